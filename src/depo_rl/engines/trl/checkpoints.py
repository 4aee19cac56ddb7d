"""Files that we add to a TRL checkpoint, and which checkpoints are whole.

The Trainer writes ``trainer_state.json`` last, after all ranks have written theirs (``resume.py``
waits for them): a folder in which that file reads as JSON is complete, any other was cut off and is
passed over. Whether it still is what was written, say the sums that we add after it.
"""

from __future__ import annotations

import json
import re
import zlib
from pathlib import Path
from typing import Any

import torch
from transformers.trainer_utils import PREFIX_CHECKPOINT_DIR

from ...checkpoint import join_leaves, split_leaves
from ...errors import CheckpointError
from ...files import write_atomically

STATE_FILE = "depo_state.safetensors"
SUMS_FILE = "depo_sums.json"
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


def save_sums(checkpoint: Path) -> None:
    """Writes the CRC-32 of every file of the complete folder ``checkpoint`` into one more."""
    files = sorted(path for path in checkpoint.rglob("*") if path.is_file())
    sums = {path.relative_to(checkpoint).as_posix(): _crc32(path) for path in files}
    # No space between: there a damaged byte could mean the same.
    write_atomically(checkpoint / SUMS_FILE, json.dumps(sums, separators=(",", ":")).encode())


def expect_undamaged(checkpoint: Path) -> None:
    """CheckpointError that names a file which is not what ``save_sums`` saw.

    A folder without sums passes: it is of the stock trainer, or was cut off just before them.
    """
    path = checkpoint / SUMS_FILE
    if not path.exists():
        return
    mend = f"resume from an older checkpoint, or delete {path} to load it as it is"
    name = SUMS_FILE
    try:
        for name, saved in json.loads(path.read_bytes()).items():
            if _crc32(checkpoint / name) != saved:
                raise ValueError("its checksum is not the one that was saved")
    except (OSError, ValueError, AttributeError) as error:
        reason = getattr(error, "strerror", None) or error
        raise CheckpointError(f"cannot read {checkpoint / name}: {reason}; {mend}") from error


def _crc32(path: Path) -> str:
    """Some seconds per 10 GB; a damaged disk is what it is for, not an enemy."""
    crc = 0
    with open(path, "rb") as file:
        while block := file.read(1 << 22):
            crc = zlib.crc32(block, crc)
    return f"{crc:08x}"


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
