"""A foreign table: the rows of one file, or of a folder of them (``dumps`` and ``sources`` say what
they mean)."""

from __future__ import annotations

import json
import os
import re
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from itertools import chain
from pathlib import Path
from typing import Any, NoReturn

from ...errors import ConfigError, DataError
from ..rows import TableRow, read_rows
from ..schema import show

_SHOWN = 8  # names or values listed in a message
_ENDINGS = (".parquet", ".jsonl", ".table.json")
_SWIFT = "completions.jsonl"  # beside it are logs of other kinds
_EVALUATION = re.compile(r"test(\.|$)|(eval|evaluation|val|valid|validation)([^a-zA-Z]|$)")


@dataclass(frozen=True, slots=True)
class Table:
    """path: what was asked for. rows: in the order of the files. torn: files that ended in half a
    line, left out. notes: on what else was left out, in sentences."""

    path: Path
    rows: Sequence[TableRow]
    torn: int = 0
    notes: tuple[str, ...] = ()

    @property
    def columns(self) -> list[str]:
        """Those of the first row."""
        return list(self.rows[0].values)


def read_table(path: str | os.PathLike[str]) -> Table:
    """Rows of a file, or of all tables in a folder (``table_files``).

    A row that holds a table, by rows as W&B writes it or by columns as ms-swift does, is its rows.
    Raises DataError, naming file and row, for what cannot be read, or if there is no row.
    """
    path = Path(path)
    rows: list[TableRow] = []
    torn = 0
    files, notes = table_files(path)
    for file in files:
        try:
            found, torn_bytes = _read(file)
        except OSError as error:
            raise DataError(f"{file}: cannot be read: {error.strerror or error}") from error
        if not found and not torn_bytes:
            raise DataError(f"{file}: holds no row")
        rows += chain.from_iterable(map(_unpacked, found))
        torn += torn_bytes > 0
    if not rows:
        torn_one = " but half a one, torn when writing stopped" if torn else ""
        raise DataError(f"{path}: holds no row{torn_one}")
    return Table(path, rows, torn, notes)


def table_files(path: Path) -> tuple[list[Path], tuple[str, ...]]:
    """The file itself, or a folder's tables, numbers in names in order of size; and what is left
    out of them, in sentences.

    A folder's tables are those in it, or of a trainer's output those in the place where it leaves
    them, or those of all folders below it, but for evaluation's. Raises DataError if there is none.
    """
    if not path.is_dir():
        return [path], ()
    if (path / _SWIFT).is_file():
        return [path / _SWIFT], ()
    prime = path / "rollouts"
    top = prime if any(prime.glob("step_*")) else path
    for folder in (top, top / "completions"):
        if files := [file for file in folder.glob("*") if _is_table(file)]:
            return sorted(files, key=_natural), ()
    files = [file for file in top.rglob("*") if _is_table(file)]
    if not files:
        raise DataError(f"{path}: no .parquet or .jsonl file in this folder or below it")
    training = [file for file in files if not _is_evaluation(file.relative_to(top))]
    n = len(files) - len(training) if training else 0
    note = f"{n} file{'s' * (n > 1)} of evaluation, by the names of their folders: left out."
    return sorted(training or files, key=_natural), (note,) if n else ()


def _is_table(file: Path) -> bool:
    """By its name; open-instruct leaves a table about the run beside the run's own."""
    hidden = file.name.startswith(".") or file.name.endswith("_metadata.jsonl")
    return file.name.endswith(_ENDINGS) and not hidden and file.is_file()


def _is_evaluation(file: Path) -> bool:
    """Whether a file, of which this is the path below the folder asked for, is evaluation's."""
    return any(_EVALUATION.match(part) for part in file.parts)


def _read(file: Path) -> tuple[list[TableRow], int]:
    """``read_rows``, and a JSON file over several lines that is one row."""
    if file.suffix == ".json":
        try:
            value = json.loads(file.read_bytes())
        except (ValueError, RecursionError):
            return read_rows(file)
        if isinstance(value, dict):
            return [TableRow(file, 1, value)], 0
    return read_rows(file)


def _unpacked(row: TableRow) -> list[TableRow]:
    """The rows of a table that stands in a row; else the row itself."""
    values = row.values
    if isinstance(values.get("columns"), list) and isinstance(values.get("data"), list):
        return _of_rows(row, values["columns"], values["data"])
    steps = values.get("step", values.get("gen_step"))
    return _of_columns(row) if isinstance(steps, list) else [row]


def _of_rows(row: TableRow, columns: list[Any], data: list[Any]) -> list[TableRow]:
    """Of a table as W&B writes it, numbered from 1 in its data."""
    if not all(isinstance(name, str) for name in columns) or len(set(columns)) < len(columns):
        raise row.bad(f"columns = {show(columns)}: must be different texts")
    for number, cells in enumerate(data, start=1):
        if not isinstance(cells, list) or len(cells) != len(columns):
            raise DataError(
                f"{row.file}: row {number}: {show(cells)}: must be a list of {len(columns)} values, one a column"
            )
    return [
        TableRow(row.file, number, dict(zip(columns, cells, strict=True)))
        for number, cells in enumerate(data, start=1)
    ]


def _of_columns(row: TableRow) -> list[TableRow]:
    """Of a table of one line; each row has the line's number."""
    lists = {name: values for name, values in row.values.items() if isinstance(values, list)}
    name, first = next(iter(lists.items()))
    for other, values in row.values.items():
        if not isinstance(values, list) or len(values) != len(first):
            raise row.bad(
                f"{other} = {show(values)}: must be a list of {len(first)} values, as {name} is"
            )
    return [
        TableRow(row.file, row.number, dict(zip(lists, cells, strict=True)), of_line=True)
        for cells in zip(*lists.values(), strict=True)
    ]


def _natural(path: Path) -> list[tuple[int, str]]:
    return [
        (int(part), "") if part.isdigit() else (-1, part)
        for part in re.split(r"(\d+)", str(path))
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
