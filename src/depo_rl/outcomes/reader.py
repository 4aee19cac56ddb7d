"""Reads outcome logs, JSONL or parquet. Only a last line torn by a crash is forgiven: left out, and
counted."""

from __future__ import annotations

import os
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import overload

from ..errors import DataError
from .rows import TableRow, read_rows
from .schema import LogRow


@dataclass(frozen=True, slots=True)
class OutcomeLog(Sequence[LogRow]):
    """The rows of a log in the order of the file.

    torn_lines: 1 if the file ended in half a row, which was left out, else 0. torn_bytes: its
    length.
    """

    rows: tuple[LogRow, ...]
    torn_lines: int = 0
    torn_bytes: int = 0

    def __len__(self) -> int:
        return len(self.rows)

    @overload
    def __getitem__(self, index: int) -> LogRow: ...
    @overload
    def __getitem__(self, index: slice) -> tuple[LogRow, ...]: ...
    def __getitem__(self, index: int | slice) -> LogRow | tuple[LogRow, ...]:
        return self.rows[index]


def read_log(path: str | os.PathLike[str]) -> OutcomeLog:
    """Every row of a JSONL or parquet log; which of the two is told by content, not by name.

    Raises DataError, naming the file and the row (counted from 1; for JSONL the line), if the file
    is missing or empty, a row lacks a required column or has an unknown one, or a value is of a
    wrong type or out of range.
    """
    path = Path(path)
    try:
        rows, torn_bytes = read_rows(path)
    except OSError as error:
        raise DataError(
            f"{path}: cannot read the outcome log: {error.strerror or error}"
        ) from error
    if not rows:
        torn = f" but {torn_bytes} bytes of a torn one" if torn_bytes else ""
        raise DataError(f"{path}: the outcome log holds no row{torn}")
    return OutcomeLog(
        tuple(map(log_row, rows)), torn_lines=int(torn_bytes > 0), torn_bytes=torn_bytes
    )


def log_row(row: TableRow) -> LogRow:
    """A row of a log, read strictly. Raises DataError naming file and row."""
    try:
        return LogRow.from_dict(row.values)
    except DataError as error:
        raise row.bad(error) from None
