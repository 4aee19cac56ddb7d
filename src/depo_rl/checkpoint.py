"""Atomic save and load of nested states: one safetensors file, arrays as tensors, the rest as JSON in its header.

One file, so that arrays and numbers can never be of two different saves; written beside its place and moved there, so
that a reader sees the old file or the new one, never half of one. The same state gives the same bytes. No pickle.
"""

from __future__ import annotations

import json
import os
from collections.abc import Mapping
from typing import Any, Protocol

import numpy as np

from .errors import CheckpointError, StateMismatch
from .files import write_atomically
from .types import State

_FORMAT = "depo-state-1"
_ARRAY = "$array"  # key that stands for an array in the JSON part


def save_state(path: str | os.PathLike[str], state: State) -> None:
    """Writes ``state``: nested dicts with string keys, lists, JSON values and numpy arrays (a tuple comes back a list).

    Raises CheckpointError, with an existing file left alone, if the disk fails; TypeError for any other value.
    """
    from safetensors.numpy import save

    arrays: dict[str, np.ndarray] = {}
    tree = _split(state, "", arrays)
    # A single entry: safetensors writes several in an order that changes from save to save.
    write_atomically(path, save(arrays, metadata={_FORMAT: json.dumps(tree, allow_nan=True)}))


def load_state(path: str | os.PathLike[str]) -> State:
    """Reads what ``save_state`` wrote. Raises CheckpointError if the file is missing, torn or of another kind."""
    from safetensors import SafetensorError, safe_open

    try:
        with safe_open(os.fspath(path), framework="numpy") as file:
            metadata = file.metadata() or {}
            if _FORMAT not in metadata:
                raise CheckpointError(
                    f"{path} is not a depo_rl state: its header holds {sorted(metadata)}, expected {_FORMAT!r}: name a "
                    "file that save_state wrote"
                )
            arrays = {name: file.get_tensor(name) for name in file.keys()}  # noqa: SIM118 (not a mapping)
        state: State = _join(json.loads(metadata[_FORMAT]), arrays)
    except FileNotFoundError:
        raise CheckpointError(f"no state file at {path}: name an existing one, or start anew") from None
    except CheckpointError:
        raise
    except (SafetensorError, OSError, ValueError, KeyError) as error:
        raise CheckpointError(f"cannot read {path}: {error}; it is damaged: resume from an older checkpoint") from error
    return state


class Stateful(Protocol):
    def state_dict(self) -> State: ...

    def load_state_dict(self, state: State) -> None: ...


class RngState:
    """A numpy generator as a part with a state."""

    def __init__(self, rng: np.random.Generator) -> None:
        self._rng = rng

    def state_dict(self) -> State:
        return dict(self._rng.bit_generator.state)

    def load_state_dict(self, state: State) -> None:
        self._rng.bit_generator.state = state


def load_all_or_nothing(parts: Mapping[str, Stateful], state: State) -> None:
    """Loads ``state[name]`` into each part. If one refuses, all get back what they had, and StateMismatch says why."""
    own = {name: part.state_dict() for name, part in parts.items()}
    name = ""
    try:
        for name, part in parts.items():
            part.load_state_dict(state[name])
    except BaseException as error:
        for part_name, part in parts.items():
            part.load_state_dict(own[part_name])
        if isinstance(error, (TypeError, ValueError, LookupError, AttributeError)) and not isinstance(
            error, StateMismatch
        ):
            raise StateMismatch(
                f"the saved state of {name!r} is malformed ({type(error).__name__}: {error}): resume from another "
                "checkpoint"
            ) from error
        raise


def _split(value: Any, path: str, arrays: dict[str, np.ndarray]) -> Any:
    """``value`` with every array replaced by {"$array": name}; the arrays go to ``arrays``."""
    if isinstance(value, np.ndarray):
        name = f"{len(arrays):04d}{path}"  # numbered, for a path alone can be ambiguous: keys may hold slashes
        arrays[name] = np.asarray(value, order="C")
        return {_ARRAY: name}
    if isinstance(value, dict):
        for key in value:
            if not isinstance(key, str) or key == _ARRAY:
                raise TypeError(f"state{path}: keys must be strings other than {_ARRAY!r}, got {key!r}")
        return {key: _split(inner, f"{path}/{key}", arrays) for key, inner in value.items()}
    if isinstance(value, (list, tuple)):
        return [_split(inner, f"{path}/{i}", arrays) for i, inner in enumerate(value)]
    if isinstance(value, np.generic):
        return value.item()
    return value


def _join(value: Any, arrays: dict[str, np.ndarray]) -> Any:
    if isinstance(value, dict):
        if set(value) == {_ARRAY}:
            return arrays[value[_ARRAY]]
        return {key: _join(inner, arrays) for key, inner in value.items()}
    return [_join(inner, arrays) for inner in value] if isinstance(value, list) else value
