"""Reads outcome logs, JSONL or parquet, and writes parquet. Only a last line torn by a crash is forgiven: counted."""

from __future__ import annotations

import json
import os
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, overload

from ..errors import DataError
from ..files import plain, replacing
from .files import is_json
from .schema import COLUMNS, FIELD_PREFIX, LogRow, show

_PARQUET_MAGIC = b"PAR1"
_COMPRESSED = {
    **{b"\x1f\x8b": "gzip", b"BZh": "bzip2", b"\xfd7zXZ": "xz", b"PK\x03\x04": "zip", b"\x28\xb5\x2f\xfd": "zstd"}
}
_JSON_MARK = b"depo_json"  # metadata of a parquet column whose values are JSON texts
_Column = tuple[str, list[Any], str, dict[bytes, bytes] | None]  # name, values, pyarrow type factory, metadata


@dataclass(frozen=True, slots=True)
class OutcomeLog(Sequence[LogRow]):
    """The rows of a log in the order of the file.

    torn_lines: 1 if the file ended in half a row, which was left out, else 0. torn_bytes: its length.
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

    Raises DataError, naming the file and the row (counted from 1; for JSONL the line), if the file is missing or
    empty, a row lacks a required column or has an unknown one, or a value is of a wrong type or out of range.
    """
    path = Path(path)
    try:
        with open(path, "rb") as file:
            is_parquet = file.read(len(_PARQUET_MAGIC)) == _PARQUET_MAGIC
        log = _read_parquet(path) if is_parquet else _read_jsonl(path)
    except OSError as error:
        raise DataError(f"{path}: cannot read the outcome log: {error.strerror or error}") from error
    if not log.rows:
        torn = f" but {log.torn_bytes} bytes of a torn one" if log.torn_lines else ""
        raise DataError(f"{path}: the outcome log holds no row{torn}")
    return log


def _read_jsonl(path: Path) -> OutcomeLog:
    rows, torn_bytes = json_rows(path)
    parsed = tuple(_row(path, number, row) for number, row in rows)
    return OutcomeLog(parsed, torn_lines=int(torn_bytes > 0), torn_bytes=torn_bytes)


def json_rows(path: Path) -> tuple[list[tuple[int, Mapping[str, Any]]], int]:
    """(row number, row) of each line that is not blank, and the bytes of a torn last one, 0 if there is none.

    Raises DataError, naming file and row, if another line is not a JSON object, or the file is compressed.
    """
    rows: list[tuple[int, Mapping[str, Any]]] = []
    with open(path, "rb") as file:
        for number, line in enumerate(file, start=1):
            if number == 1:
                _expect_text(path, line)
                line = line.removeprefix(b"\xef\xbb\xbf")  # the byte-order mark that Windows tools put first
            if not line.strip():
                continue
            if not line.endswith(b"\n") and not is_json(line) and _may_be_torn(line):
                return rows, len(line)
            rows.append((number, _parse(path, number, line)))
    return rows, 0


def _may_be_torn(line: bytes) -> bool:
    """A row's first half, or the zeros that a file system leaves after a power cut; not any junk."""
    return line.lstrip().startswith(b"{") or not line.strip(b"\0")


def _expect_text(path: Path, line: bytes) -> None:
    for magic, kind in _COMPRESSED.items():
        if line.startswith(magic):
            raise DataError(f"{path}: a {kind} file: unpack it first; JSON lines and parquet can be read")


def _parse(path: Path, number: int, line: bytes) -> Mapping[str, Any]:
    try:
        value = json.loads(line)
    except (ValueError, RecursionError) as error:
        reason = str(error).splitlines()[0]
        hint = "" if line.lstrip().startswith(b"{") else "; JSON lines and parquet can be read, not CSV or a JSON list"
        raise DataError(f"{path}: row {number}: not a JSON object ({reason}): {show(line)}{hint}") from None
    if not isinstance(value, dict):
        raise DataError(f"{path}: row {number}: {show(value)}: a row is a JSON object of columns and values, on a line")
    return value


def _row(path: Path, number: int, flat: Mapping[str, Any]) -> LogRow:
    try:
        return LogRow.from_dict(flat)
    except DataError as error:
        raise DataError(f"{path}: row {number}: {error}") from None


def _read_parquet(path: Path) -> OutcomeLog:
    import pyarrow as pa
    import pyarrow.parquet as pq

    rows: list[LogRow] = []
    try:
        with pq.ParquetFile(path) as file:
            as_json = {f.name for f in file.schema_arrow if f.metadata and _JSON_MARK in f.metadata}
            for batch in file.iter_batches():
                for flat in batch.to_pylist():
                    number = len(rows) + 1
                    rows.append(_row(path, number, _decode(path, number, flat, as_json)))
    except (pa.ArrowException, OSError) as error:
        raise DataError(f"{path}: not a readable parquet file: {str(error).splitlines()[0]}") from error
    return OutcomeLog(tuple(rows))


def _decode(path: Path, number: int, flat: Mapping[str, Any], as_json: set[str]) -> dict[str, Any]:
    """Undoes ``_column``: JSON texts become values, and a field that this row never had is gone again."""
    decoded = {name: value for name, value in flat.items() if not name.startswith("__index_level_")}  # pandas' own
    for name in as_json:
        text = decoded.pop(name)
        if text is not None:
            try:
                decoded[name] = json.loads(text)
            except ValueError:
                raise DataError(f"{path}: row {number}: {name} = {show(text)}: marked as JSON, but is not") from None
    return decoded


def write_parquet(rows: Iterable[LogRow], path: str | os.PathLike[str]) -> int:
    """Writes the rows as parquet under ``path``, all at once; returns how many. Folders are made.

    A data set's column of mixed or nested values is stored as JSON texts and read back as it was. Raises DataError for
    a text that is not valid Unicode, OSError if the disk fails; an earlier file under ``path`` is then untouched.
    """
    import pyarrow as pa
    import pyarrow.parquet as pq

    rows, path = list(rows), Path(path)
    columns: list[_Column] = [(n, [getattr(row, n) for row in rows], _arrow_type(n), None) for n in COLUMNS]
    names = dict.fromkeys(name for row in rows for name in row.fields)
    columns += [(f"{FIELD_PREFIX}{name}", *_column(rows, name)) for name in names]
    schema = pa.schema([pa.field(name, getattr(pa, kind)(), metadata=meta) for name, _, kind, meta in columns])
    try:
        arrays = [pa.array(values, type=f.type) for (_, values, _, _), f in zip(columns, schema, strict=True)]
    except (UnicodeEncodeError, pa.ArrowException) as error:
        raise DataError(f"{path}: cannot store a row as parquet: {error}") from error
    path.parent.mkdir(parents=True, exist_ok=True)
    with replacing(path) as file:
        pq.write_table(pa.Table.from_arrays(arrays, schema=schema), file)
    return len(rows)


def _arrow_type(name: str) -> str:
    """Name of the pyarrow type factory of a column, after the annotation in ``LogRow``."""
    annotation = str(LogRow.__annotations__[name]).removesuffix(" | None")
    return {"str": "string", "int": "int64", "float": "float64", "bool": "bool_"}[annotation]


def _column(rows: Sequence[LogRow], name: str) -> tuple[list[Any], str, dict[bytes, bytes] | None]:
    """(values, type, metadata) of a data set's column: as it is if all rows hold one simple type, else JSON texts."""
    absent = object()
    values = [row.fields.get(name, absent) for row in rows]
    kinds = {type(value) for value in values}
    simple = {str: "string", int: "int64", float: "float64", bool: "bool_"}
    kind = simple.get(next(iter(kinds))) if len(kinds) == 1 else None
    if kind and all(_fits(value) for value in values):
        return values, kind, None
    texts = [None if value is absent else json.dumps(plain(value)) for value in values]
    return texts, "string", {_JSON_MARK: b"1"}


def _fits(value: Any) -> bool:
    """Whether parquet can hold the simple value unchanged."""
    if isinstance(value, int):
        return -(2**63) <= value < 2**63
    if isinstance(value, str):
        return value.isprintable() or not any("\ud800" <= c <= "\udfff" for c in value)
    return True
