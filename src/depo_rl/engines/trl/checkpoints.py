"""Files that we add to a TRL checkpoint, and which checkpoints are whole.

The Trainer writes ``trainer_state.json`` last, after all ranks have written theirs (``resume.py``
waits for them): a folder in which that file reads as JSON is complete, any other was cut off and is
passed over.
"""

from __future__ import annotations

import json
import re
from pathlib import Path
from typing import Any

import torch
from transformers.trainer_utils import PREFIX_CHECKPOINT_DIR

from ...checkpoint import join_leaves, split_leaves
from ...errors import CheckpointError
from ...files import write_atomically

STATE_FILE = "depo_state.safetensors"
_RANK_FILE = "depo_rank{rank}.safetensors"
_TENSOR = "$tensor"  # key that stands for a tensor in the JSON part


def is_complete(checkpoint: Path) -> bool:
    """True if the Trainer finished writing the folder ``checkpoint``."""
    try:
        json.loads((checkpoint / "trainer_state.json").read_text())
    except (OSError, ValueError):
        return False
    return True


def newest_complete(output_dir: str | Path) -> tuple[Path | None, list[Path]]:
    """The complete checkpoint of the latest step, or None, and the newer ones that were cut off."""
    folders = [
        p
        for p in Path(output_dir).glob(f"{PREFIX_CHECKPOINT_DIR}-*")
        if p.is_dir() and _step(p) is not None
    ]
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
    """Writes one rank's nested ``state`` of tensors, lists, numbers and None, any dtype;
    atomically."""
    from safetensors.torch import save

    tree, leaves = split_leaves(state, torch.Tensor, _TENSOR)
    tensors = {name: tensor.detach().contiguous().clone() for name, tensor in leaves.items()}
    data = save(tensors, metadata={"state": json.dumps(tree)})
    write_atomically(Path(checkpoint) / _RANK_FILE.format(rank=rank), data)


def load_rank(checkpoint: str | Path, rank: int, device: Any) -> dict[str, Any]:
    """What ``save_rank`` wrote, tensors on ``device``. Raises CheckpointError if it is not there or
    damaged."""
    from safetensors import SafetensorError, safe_open

    path = Path(checkpoint) / _RANK_FILE.format(rank=rank)
    try:
        with safe_open(path, framework="pt") as file:
            tensors = {name: file.get_tensor(name).to(device) for name in file.keys()}  # noqa: SIM118
            tree = json.loads((file.metadata() or {})["state"])
    except (SafetensorError, OSError, KeyError, ValueError) as error:
        raise CheckpointError(
            f"cannot read {path}: {error}; resume from an older checkpoint"
        ) from error
    state: dict[str, Any] = join_leaves(tree, tensors, _TENSOR)
    return state
