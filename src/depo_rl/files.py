"""Files written all at once, and values in JSON's words: one way for every file of the package."""

from __future__ import annotations

import math
import os
from collections.abc import Iterator, Mapping
from contextlib import contextmanager, suppress
from pathlib import Path
from typing import Any, BinaryIO

from .errors import CheckpointError


@contextmanager
def replacing(path: Path) -> Iterator[BinaryIO]:
    """A binary file that takes the name ``path`` when the block ends well and vanishes when it
    raises.

    A reader sees the old file or the new one, never half of one; its folder must exist. Two who
    write at once each have a temporary file of their own. Raises OSError if the disk fails; an
    earlier file is then untouched.
    """
    temporary = path.with_name(f".{path.name}.{os.getpid()}.{os.urandom(4).hex()}.tmp")
    try:
        with open(temporary, "wb") as file:
            yield file
            file.flush()
            os.fsync(file.fileno())
        os.replace(temporary, path)
    except BaseException:
        with suppress(OSError):
            temporary.unlink(missing_ok=True)
        raise


def write_atomically(path: str | os.PathLike[str], data: bytes | bytearray) -> None:
    """Puts ``data`` under ``path`` all at once (``replacing``) and makes its folders.

    Raises CheckpointError if the disk fails; the previous file, if any, is then untouched.
    """
    path = Path(path)
    try:
        path.parent.mkdir(parents=True, exist_ok=True)
        with replacing(path) as file:
            file.write(data)
    except OSError as error:
        raise CheckpointError(
            f"cannot write {path}: {error.strerror or error}; the previous file, if any, is untouched: free space or "
            "choose another folder"
        ) from error


def plain(value: Any) -> Any:
    """``value`` in JSON's words: NaN and infinity are null, numpy scalars and arrays are numbers
    and lists.

    What JSON has no word for stays as it is: whoever writes it decides.
    """
    if isinstance(value, Mapping):
        return {str(key): plain(inner) for key, inner in value.items()}
    if isinstance(value, (list, tuple)):
        return [plain(inner) for inner in value]
    if isinstance(value, float):
        return float(value) if math.isfinite(value) else None
    if value is None or isinstance(value, (str, int)):
        return value
    to_python = getattr(value, "tolist", None)  # numpy and torch, without importing either
    return plain(to_python()) if callable(to_python) else value
