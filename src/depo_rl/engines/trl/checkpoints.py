"""Files that we add to a TRL checkpoint, and which checkpoints are whole.

The Trainer writes ``trainer_state.json`` last, after all ranks have written theirs (``resume.py`` waits for them): a
folder in which that file reads as JSON is complete, any other was cut off and is passed over.
"""

from __future__ import annotations

import json
import re
from pathlib import Path
from typing import Any

import torch
from transformers.trainer_utils import PREFIX_CHECKPOINT_DIR

from ...errors import CheckpointError
from ...files import write_atomically

STATE_FILE = "depo_state.safetensors"
_RANK_FILE = "depo_rank{rank}.safetensors"


def is_complete(checkpoint: Path) -> bool:
    """True if the Trainer finished writing the folder ``checkpoint``."""
    try:
        json.loads((checkpoint / "trainer_state.json").read_text())
    except (OSError, ValueError):
        return False
    return True


def newest_complete(output_dir: str | Path) -> tuple[Path | None, list[Path]]:
    """The complete checkpoint of the latest step, or None, and the newer ones that were cut off."""
    folders = [p for p in Path(output_dir).glob(f"{PREFIX_CHECKPOINT_DIR}-*") if p.is_dir() and _step(p) is not None]
    torn: list[Path] = []
    for folder in sorted(folders, key=lambda p: -(_step(p) or 0)):
        if is_complete(folder):
            return folder, torn
        torn.append(folder)
    return None, torn


def _step(folder: Path) -> int | None:
    match = re.fullmatch(rf"{PREFIX_CHECKPOINT_DIR}-(\d+)", folder.name)
    return int(match.group(1)) if match else None


def save_rank(checkpoint: str | Path, rank: int, state: dict[str, Any]) -> None:
    """Writes one rank's nested ``state`` of tensors, lists, numbers and None, any dtype; atomically."""
    from safetensors.torch import save

    tensors: dict[str, torch.Tensor] = {}
    tree = json.dumps(_split(state, "", tensors))
    write_atomically(Path(checkpoint) / _RANK_FILE.format(rank=rank), save(tensors, metadata={"state": tree}))


def load_rank(checkpoint: str | Path, rank: int, device: Any) -> dict[str, Any]:
    """What ``save_rank`` wrote, tensors on ``device``. Raises CheckpointError if it is not there or damaged."""
    from safetensors import SafetensorError, safe_open

    path = Path(checkpoint) / _RANK_FILE.format(rank=rank)
    try:
        with safe_open(path, framework="pt") as file:
            tensors = {name: file.get_tensor(name).to(device) for name in file.keys()}  # noqa: SIM118
            tree = json.loads((file.metadata() or {})["state"])
    except (SafetensorError, OSError, KeyError, ValueError) as error:
        raise CheckpointError(f"cannot read {path}: {error}; resume from an older checkpoint") from error
    state: dict[str, Any] = _join(tree, tensors)
    return state


def _split(value: Any, path: str, tensors: dict[str, torch.Tensor]) -> Any:
    if isinstance(value, torch.Tensor):
        tensors[path] = value.detach().contiguous().clone()
        return {"$tensor": path}
    if isinstance(value, dict):
        return {key: _split(inner, f"{path}/{key}", tensors) for key, inner in value.items()}
    if isinstance(value, (list, tuple)):
        return [_split(inner, f"{path}/{i}", tensors) for i, inner in enumerate(value)]
    return value


def _join(value: Any, tensors: dict[str, torch.Tensor]) -> Any:
    if isinstance(value, dict):
        return (
            tensors[value["$tensor"]] if set(value) == {"$tensor"} else {k: _join(v, tensors) for k, v in value.items()}
        )
    return [_join(inner, tensors) for inner in value] if isinstance(value, list) else value
