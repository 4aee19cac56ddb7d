"""Atomic save and load of nested states: one safetensors file, arrays as tensors, everything else as JSON in its header.

One file, so that arrays and numbers can never be of two different saves; written beside its place and moved there, so
that a reader sees the old file or the new one, never half of one. No pickle.
"""

from __future__ import annotations

import json
import os
from pathlib import Path
from typing import Any

import numpy as np

from .errors import CheckpointError
from .types import State

_FORMAT = "depo-state-1"


def save_state(path: str | os.PathLike[str], state: State) -> None:
    """Writes ``state`` to ``path``. Raises CheckpointError and leaves an existing file alone if the disk fails."""
    from safetensors.numpy import save

    arrays: dict[str, np.ndarray] = {}
    tree = _split(state, "", arrays)
    data = save(arrays, metadata={"format": _FORMAT, "state": json.dumps(tree, allow_nan=True)})
    write_atomically(path, data)


def write_atomically(path: str | os.PathLike[str], data: bytes) -> None:
    """Puts ``data`` under ``path`` all at once: a temporary file in the same folder, then ``os.replace``."""
    path = Path(path)
    temporary = path.with_name(f".{path.name}.{os.getpid()}.tmp")
    try:
        path.parent.mkdir(parents=True, exist_ok=True)
        with open(temporary, "wb") as file:
            file.write(data)
            file.flush()
            os.fsync(file.fileno())
        os.replace(temporary, path)
    except OSError as error:
        temporary.unlink(missing_ok=True)
        raise CheckpointError(
            f"cannot write {path}: {error.strerror or error}; the previous file, if any, is untouched: free space or "
            "choose another folder"
        ) from error


def load_state(path: str | os.PathLike[str]) -> State:
    """Reads what ``save_state`` wrote. Raises CheckpointError if the file is missing, torn or of another kind."""
    from safetensors import SafetensorError, safe_open

    try:
        with safe_open(os.fspath(path), framework="numpy") as file:
            metadata = file.metadata() or {}
            arrays = {name: file.get_tensor(name) for name in file.keys()}  # noqa: SIM118 (not a mapping)
    except FileNotFoundError:
        raise CheckpointError(f"no state file at {path}") from None
    except (SafetensorError, OSError) as error:
        raise CheckpointError(f"cannot read {path}: {error}; it is damaged: resume from an older checkpoint") from error
    if metadata.get("format") != _FORMAT:
        raise CheckpointError(f"{path} is not a depo_rl state: format {metadata.get('format')!r}, expected {_FORMAT!r}")
    state: State = _join(json.loads(metadata["state"]), arrays)
    return state


def _split(value: Any, path: str, arrays: dict[str, np.ndarray]) -> Any:
    """``value`` with every array replaced by {"$array": name}; the arrays go to ``arrays``."""
    if isinstance(value, np.ndarray):
        arrays[path] = np.ascontiguousarray(value)
        return {"$array": path}
    if isinstance(value, dict):
        return {str(key): _split(inner, f"{path}/{key}", arrays) for key, inner in value.items()}
    if isinstance(value, (list, tuple)):
        return [_split(inner, f"{path}/{i}", arrays) for i, inner in enumerate(value)]
    if isinstance(value, np.generic):
        return value.item()
    return value


def _join(value: Any, arrays: dict[str, np.ndarray]) -> Any:
    if isinstance(value, dict):
        if set(value) == {"$array"}:
            return arrays[value["$array"]]
        return {key: _join(inner, arrays) for key, inner in value.items()}
    return [_join(inner, arrays) for inner in value] if isinstance(value, list) else value
