"""Files of the outcome log: lines out, healing after a crash, trimming on resume."""

from __future__ import annotations

import json
import os
from pathlib import Path
from typing import BinaryIO

from ..files import plain, replacing
from .rows import is_json
from .schema import LogRow

_BLOCK = 1 << 16


def encode_line(row: LogRow) -> bytes:
    """The row as one JSON line in UTF-8, newline included. Values JSON has no word for are written
    as text or null."""
    flat = plain(row.to_dict())
    try:
        return (json.dumps(flat, ensure_ascii=False, allow_nan=False, default=str) + "\n").encode()
    except (
        UnicodeEncodeError
    ):  # half a surrogate pair, as tokenisers cut them: escaped, it is valid JSON
        return (json.dumps(flat, ensure_ascii=True, allow_nan=False, default=str) + "\n").encode()


def heal(path: Path) -> int:
    """Makes the last line whole after a crash; returns the bytes cut away (0 if there was nothing
    to heal).

    A last line without its newline is cut off, unless it is a complete row that lacks nothing but
    the newline.
    """
    with open(path, "r+b") as file:
        end = file.seek(0, os.SEEK_END)
        start = _start_of_last_line(file, end)
        if start == end:
            return 0
        file.seek(start)
        if is_json(file.read(end - start)):
            file.write(b"\n")
            return 0
        file.truncate(start)
        return end - start


def _start_of_last_line(file: BinaryIO, end: int) -> int:
    """Offset just after the last newline before ``end``: ``end`` itself if the file is whole."""
    while end > 0:
        begin = max(0, end - _BLOCK)
        file.seek(begin)
        found = file.read(end - begin).rfind(b"\n")
        if found >= 0:
            return begin + found + 1
        end = begin
    return 0


def trim(path: Path, after_step: int) -> int:
    """Removes rows whose step is above ``after_step``, all at once; returns how many. Other lines
    stay byte for byte.

    A line that is no row, or a row without a step, is kept: throwing away what one cannot judge
    helps nobody.
    """
    removed = 0
    with open(path, "rb") as old:
        later = any(_is_later(line, after_step) for line in old)
        if not later:  # the common case: the run was stopped right after its checkpoint
            return 0
        old.seek(0)
        with replacing(path) as new:
            for line in old:
                if _is_later(line, after_step):
                    removed += 1
                else:
                    new.write(line)
    return removed


def _is_later(line: bytes, after_step: int) -> bool:
    try:
        row = json.loads(line)
    except (ValueError, RecursionError):
        return False
    step = row.get("step") if isinstance(row, dict) else None
    return isinstance(step, (int, float)) and step > after_step
