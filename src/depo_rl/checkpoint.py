"""Atomic save and load of nested states: one safetensors file, arrays as tensors, the rest as JSON
in its header.

One file, so that arrays and numbers can never be of two different saves; written beside its place
and moved there, so that a reader sees the old file or the new one, never half of one. The same
state gives the same bytes. No pickle.
"""

from __future__ import annotations

import json
import os
import zlib
from collections.abc import Mapping
from pathlib import Path
from typing import Any, Protocol, TypeVar

import numpy as np

from .errors import CheckpointError, StateMismatch
from .files import write_atomically
from .types import State

_FORMAT = "depo-state-2"
_MARK = f'"{_FORMAT}":"'.encode()  # in the header; the checksum comes next
_BLANK = b"00000000"  # in the place of the checksum while it is summed
_ARRAY = "$array"  # key that stands for an array in the JSON part

LeafT = TypeVar("LeafT")


def save_state(path: str | os.PathLike[str], state: State) -> None:
    """Writes ``state``: nested dicts with string keys, lists, JSON values and numpy arrays (a tuple
    comes back a list).

    Raises CheckpointError, with an existing file left alone, if the disk fails; TypeError for any
    other value.
    """
    from safetensors.numpy import save

    tree, leaves = split_leaves(state, np.ndarray, _ARRAY)
    arrays = {name: np.asarray(array, order="C") for name, array in leaves.items()}
    # A single entry: safetensors writes several in an order that changes from save to save.
    text = f"{_BLANK.decode()} {json.dumps(tree, allow_nan=True)}"
    data = bytearray(save(arrays, metadata={_FORMAT: text}))
    place, crc = _checksum(data)
    data[place] = crc
    write_atomically(path, data)


def load_state(path: str | os.PathLike[str]) -> State:
    """Reads what ``save_state`` wrote. Raises CheckpointError if the file is missing, of another
    kind, or has a byte that is not as it was written."""
    from safetensors import SafetensorError, safe_open

    try:
        with safe_open(os.fspath(path), framework="numpy") as file:
            metadata = file.metadata() or {}
            if _FORMAT not in metadata:
                raise CheckpointError(
                    f"{path} is not a depo_rl state: its header holds {sorted(metadata)}, expected {_FORMAT!r}: name a "
                    "file that save_state wrote"
                )
            data = Path(path).read_bytes()
            place, crc = _checksum(data)
            if data[place] != crc:
                raise ValueError("its checksum is not that of its bytes")
            arrays = {name: file.get_tensor(name) for name in file.keys()}  # noqa: SIM118 (not a mapping)
        tree = json.loads(metadata[_FORMAT][len(_BLANK) :])
        state: State = join_leaves(tree, arrays, _ARRAY)
    except FileNotFoundError:
        raise CheckpointError(
            f"no state file at {path}: name an existing one, or start anew"
        ) from None
    except CheckpointError:
        raise
    except (SafetensorError, OSError, ValueError, KeyError) as error:
        raise CheckpointError(
            f"cannot read {path}: {error}; it is damaged: resume from an older checkpoint"
        ) from error
    return state


def _checksum(data: bytes | bytearray) -> tuple[slice, bytes]:
    """Where in ``data`` its checksum stands, and the CRC-32 of all its other bytes: safetensors
    checks none.

    Raises ValueError if there is no place for it.
    """
    at = data.index(_MARK) + len(_MARK)
    place = slice(at, at + len(_BLANK))
    view = memoryview(data)
    crc = zlib.crc32(view[place.stop :], zlib.crc32(_BLANK, zlib.crc32(view[:at])))
    return place, f"{crc:08x}".encode()


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
    """Loads ``state[name]`` into each part. If one refuses, all get back what they had, and
    StateMismatch says why."""
    own = {name: part.state_dict() for name, part in parts.items()}
    name = ""
    try:
        for name, part in parts.items():
            part.load_state_dict(state[name])
    except BaseException as error:
        for part_name, part in parts.items():
            part.load_state_dict(own[part_name])
        if isinstance(
            error, (TypeError, ValueError, LookupError, AttributeError)
        ) and not isinstance(error, StateMismatch):
            raise StateMismatch(
                f"the saved state of {name!r} is malformed ({type(error).__name__}: {error}): resume from another "
                "checkpoint"
            ) from error
        raise


def split_leaves(state: Any, leaf: type[LeafT], mark: str) -> tuple[Any, dict[str, LeafT]]:
    """``state`` with every ``leaf`` in it replaced by {mark: name}, ready for JSON; and the leaves
    by those names.

    Raises TypeError for a key that is no string, or is ``mark`` itself.
    """
    leaves: dict[str, LeafT] = {}

    def split(value: Any, path: str) -> Any:
        if isinstance(value, leaf):
            name = f"{len(leaves):04d}{path}"  # numbered: paths alone can be equal, for keys may hold slashes
            leaves[name] = value
            return {mark: name}
        if isinstance(value, dict):
            for key in value:
                if not isinstance(key, str) or key == mark:
                    raise TypeError(
                        f"state{path}: keys must be strings other than {mark!r}, got {key!r}"
                    )
            return {key: split(inner, f"{path}/{key}") for key, inner in value.items()}
        if isinstance(value, (list, tuple)):
            return [split(inner, f"{path}/{i}") for i, inner in enumerate(value)]
        if isinstance(value, np.generic):
            return value.item()
        return value

    return split(state, ""), leaves


def join_leaves(tree: Any, leaves: Mapping[str, Any], mark: str) -> Any:
    """Undoes ``split_leaves``. Raises KeyError if a leaf is missing."""
    if isinstance(tree, dict):
        if set(tree) == {mark}:
            return leaves[tree[mark]]
        return {key: join_leaves(inner, leaves, mark) for key, inner in tree.items()}
    return [join_leaves(inner, leaves, mark) for inner in tree] if isinstance(tree, list) else tree
