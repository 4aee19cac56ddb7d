"""A foreign table: the rows of one file, or of a folder of them (``dumps`` and ``sources`` say what
they mean)."""

from __future__ import annotations

import os
import re
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, NoReturn

from ...errors import ConfigError, DataError
from ..rows import TableRow, read_rows
from ..schema import show

_SHOWN = 8  # names or values listed in a message


@dataclass(frozen=True, slots=True)
class Table:
    """path: what was asked for. rows: in the order of the files. torn: files that ended in half a
    line, left out."""

    path: Path
    rows: Sequence[TableRow]
    torn: int = 0

    @property
    def columns(self) -> list[str]:
        """Those of the first row."""
        return list(self.rows[0].values)


def read_table(path: str | os.PathLike[str]) -> Table:
    """Rows of a file, or of all ``*.parquet`` and ``*.jsonl`` in a folder (in TRL's case its
    ``completions`` folder).

    Raises DataError, naming file and row, for what cannot be read, or if there is no row.
    """
    path = Path(path)
    rows: list[TableRow] = []
    torn = 0
    for file in table_files(path):
        try:
            found, torn_bytes = read_rows(file)
        except OSError as error:
            raise DataError(f"{file}: cannot be read: {error.strerror or error}") from error
        if not found and not torn_bytes:
            raise DataError(f"{file}: holds no row")
        rows += found
        torn += torn_bytes > 0
    if not rows:
        raise DataError(f"{path}: holds no row but half a one, torn when writing stopped")
    return Table(path, rows, torn)


def table_files(path: Path) -> list[Path]:
    """The file itself, or a folder's tables, numbers in names in order of size. Raises DataError if
    there is none."""
    if not path.is_dir():
        return [path]
    for folder in (path, path / "completions"):
        found = [
            p
            for pattern in ("*.parquet", "*.jsonl")
            for p in folder.glob(pattern)
            if not p.name.startswith(".")
        ]
        if found:
            return sorted(found, key=_natural)
    raise DataError(f"{path}: no .parquet or .jsonl file in this folder")


def _natural(path: Path) -> list[tuple[int, str]]:
    return [
        (int(part), "") if part.isdigit() else (-1, part)
        for part in re.split(r"(\d+)", path.name)
        if part
    ]


def keep_rows(rows: Sequence[TableRow], where: Mapping[str, str]) -> list[TableRow]:
    """Rows whose columns, written as text, equal the values. Raises ConfigError if there are
    none."""
    for column, wanted in where.items():
        if not any(column in row.values for row in rows):
            raise ConfigError(
                f"--where {column}={wanted}: no column {column!r}; there are {_some(rows[0].values)}"
            )
        kept = [row for row in rows if str(row.values.get(column)) == wanted]
        if not kept:
            _refuse(column, wanted, rows)
        rows = kept
    return list(rows)


def _refuse(column: str, wanted: str, rows: Sequence[TableRow]) -> NoReturn:
    values = dict.fromkeys(str(row.values.get(column)) for row in rows)
    raise ConfigError(f"--where {column}={wanted}: no such row; {column} is one of {_some(values)}")


def _some(names: Mapping[str, Any]) -> str:
    listed: Iterator[str] = (show(name) for _, name in zip(range(_SHOWN), names, strict=False))
    more = f" and {len(names) - _SHOWN} more" if len(names) > _SHOWN else ""
    return ", ".join(listed) + more
