"""Rows of foreign tables, JSONL or parquet, one file or a folder of them, each with the file and number it came from.

What a row means is decided elsewhere (``dumps``, ``sources``); here a row is a mapping of columns and values.
"""

from __future__ import annotations

import os
import re
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, NamedTuple, NoReturn

from ..errors import ConfigError, DataError
from .reader import _PARQUET_MAGIC, json_rows
from .schema import show

_SHOWN = 8  # names or values listed in a message


class TableRow(NamedTuple):
    """file: the path. number: counted from 1; in JSONL the line. values: columns and values, as the file has them."""

    file: Path
    number: int
    values: Mapping[str, Any]

    def bad(self, message: str) -> DataError:
        """The error to raise for this row."""
        return DataError(f"{self.file}: row {self.number}: {message}")

    def get(self, column: str) -> Any:
        """Raises DataError if this row has no such column."""
        if column not in self.values:
            raise self.bad(f"no column {column!r}, which earlier rows have: one file, one kind of row")
        return self.values[column]

    def text(self, column: str) -> str:
        """Raises DataError if the value is missing or not a string."""
        value = self.get(column)
        if not isinstance(value, str) or not value:
            raise self.bad(f"{column} = {show(value)}: must be a text that is not empty")
        return value


@dataclass(frozen=True, slots=True)
class Table:
    """path: what was asked for. rows: in the order of the files. torn: files that ended in half a line, left out."""

    path: Path
    rows: Sequence[TableRow]
    torn: int = 0

    @property
    def columns(self) -> list[str]:
        """Those of the first row."""
        return list(self.rows[0].values)


def read_table(path: str | os.PathLike[str], where: Mapping[str, str] | None = None) -> Table:
    """Rows of a file, or of all ``*.parquet`` and ``*.jsonl`` in a folder (in TRL's case its ``completions`` folder).

    where: only rows whose column, written as text, equals the value. Raises DataError, naming file and row, for what
    cannot be read, ConfigError if ``where`` names no column or fits no row.
    """
    path = Path(path)
    rows: list[TableRow] = []
    torn = 0
    for file in table_files(path):
        try:
            found, half = _read_parquet(file) if is_parquet(file) else _read_jsonl(file)
        except OSError as error:
            raise DataError(f"{file}: cannot be read: {error.strerror or error}") from error
        if not found and not half:
            raise DataError(f"{file}: holds no row")
        rows, torn = rows + found, torn + half
    if not rows:
        raise DataError(f"{path}: holds no row but half a one, torn when writing stopped")
    return Table(path, keep_rows(rows, where) if where else rows, torn)


def table_files(path: Path) -> list[Path]:
    """The file itself, or a folder's tables, numbers in names in order of size. Raises DataError if there is none."""
    if not path.is_dir():
        return [path]
    for folder in (path, path / "completions"):
        found = [p for pattern in ("*.parquet", "*.jsonl") for p in folder.glob(pattern) if not p.name.startswith(".")]
        if found:
            return sorted(found, key=_natural)
    raise DataError(f"{path}: no .parquet or .jsonl file in this folder")


def _natural(path: Path) -> list[tuple[int, str]]:
    return [(int(part), "") if part.isdigit() else (-1, part) for part in re.split(r"(\d+)", path.name) if part]


def is_parquet(path: Path) -> bool:
    """Told by content, not by name. Raises DataError if the file cannot be read."""
    try:
        with open(path, "rb") as file:
            return file.read(len(_PARQUET_MAGIC)) == _PARQUET_MAGIC
    except OSError as error:
        raise DataError(f"{path}: cannot be read: {error.strerror or error}") from error


def _read_jsonl(path: Path) -> tuple[list[TableRow], int]:
    rows, torn_bytes = json_rows(path)
    return [TableRow(path, number, row) for number, row in rows], int(torn_bytes > 0)


def _read_parquet(path: Path) -> tuple[list[TableRow], int]:
    import pyarrow as pa
    import pyarrow.parquet as pq

    rows: list[TableRow] = []
    try:
        with pq.ParquetFile(path) as file:
            names = [name for name in file.schema_arrow.names if not name.startswith("__index_level_")]  # pandas' own
            if twice := [name for name in names if names.count(name) > 1]:
                raise DataError(f"{path}: column {show(twice[0])} is there twice: rename one")
            for batch in file.iter_batches(columns=names):
                rows += [TableRow(path, len(rows) + i, v) for i, v in enumerate(batch.to_pylist(), start=1)]
    except (pa.ArrowException, OSError) as error:
        raise DataError(f"{path}: not a readable parquet file: {str(error).splitlines()[0]}") from error
    return rows, 0


def keep_rows(rows: Sequence[TableRow], where: Mapping[str, str]) -> list[TableRow]:
    """Rows whose columns, written as text, equal the values. Raises ConfigError if there are none."""
    for column, wanted in where.items():
        if not any(column in row.values for row in rows):
            raise ConfigError(f"--where {column}={wanted}: no column {column!r}; there are {_some(rows[0].values)}")
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
