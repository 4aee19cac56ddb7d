"""Rows of a file, JSONL or parquet, each with the place it came from; what a row means is decided
elsewhere."""

from __future__ import annotations

import json
from collections.abc import Mapping
from pathlib import Path
from typing import Any, NamedTuple

from ..errors import DataError
from ..types import chat_text
from .schema import show

_PARQUET_MAGIC = b"PAR1"
_COMPRESSED = {
    b"\x1f\x8b": "gzip",
    b"BZh": "bzip2",
    b"\xfd7zXZ": "xz",
    b"PK\x03\x04": "zip",
    b"\x28\xb5\x2f\xfd": "zstd",
}
_JSON_MARK = b"depo_json"  # metadata of a parquet column whose values are JSON texts, as version 0.1 wrote them


class TableRow(NamedTuple):
    """file: the path. number: counted from 1; in JSONL the line. values: columns and values, as the
    file has them. of_line: whether the line holds a whole table, of which this is one row."""

    file: Path
    number: int
    values: Mapping[str, Any]
    of_line: bool = False

    def bad(self, message: object) -> DataError:
        """The error to raise for this row."""
        return DataError(f"{self.file}: row {self.number}: {message}")

    def get(self, column: str) -> Any:
        """Raises DataError if this row has no such column."""
        if column not in self.values:
            raise self.bad(
                f"no column {column!r}, which earlier rows have: one file, one kind of row"
            )
        return self.values[column]

    def text(self, column: str) -> str:
        """Raises DataError if the value is missing or not a string."""
        value = self.get(column)
        if not isinstance(value, str) or not value:
            raise self.bad(f"{column} = {show(value)}: must be a text that is not empty")
        return value

    def prompt(self, column: str) -> str:
        """A prompt as one text, a chat as the engines read it, so that its key is that of the run's
        own log.

        Raises DataError if it is neither a text nor a list of messages, or holds no text.
        """
        value = self.get(column)
        text = chat_text(value) if _is_chat(value) else value
        if not isinstance(text, str) or not text.strip():
            raise self.bad(
                f"{column} = {show(value)}: must be a text or a list of messages, and not empty"
            )
        return text


def _is_chat(value: Any) -> bool:
    return isinstance(value, list) and all(
        isinstance(message, dict) and _is_content(message.get("content", 0)) for message in value
    )


def _is_content(content: Any) -> bool:
    """What a message says: a text, parts, or nothing, as beside a tool call."""
    if isinstance(content, list):
        return all(isinstance(part, (str, dict)) for part in content)
    return content is None or isinstance(content, str)


def read_rows(path: Path) -> tuple[list[TableRow], int]:
    """Every row of a JSONL or parquet file, and the bytes of a last line torn by a crash, which is
    left out.

    Which of the two it is, is told by content, not by name. Raises DataError, naming file and row,
    for what is neither; OSError if the disk fails.
    """
    with open(path, "rb") as file:
        is_parquet = file.read(len(_PARQUET_MAGIC)) == _PARQUET_MAGIC
    return (_parquet_rows(path), 0) if is_parquet else _json_rows(path)


def _json_rows(path: Path) -> tuple[list[TableRow], int]:
    """Each line that is not blank, and the bytes of a torn last one, 0 if there is none."""
    rows: list[TableRow] = []
    with open(path, "rb") as file:
        for number, line in enumerate(file, start=1):
            if number == 1:
                _expect_text(path, line)
                # the byte-order mark that Windows tools put first
                line = line.removeprefix(b"\xef\xbb\xbf")
            if not line.strip():
                continue
            if not line.endswith(b"\n") and not is_json(line) and _may_be_torn(line):
                return rows, len(line)
            rows.append(TableRow(path, number, _parse(path, number, line)))
    return rows, 0


def _may_be_torn(line: bytes) -> bool:
    """A row's first half, or the zeros that a file system leaves after a power cut; not any
    junk."""
    return line.lstrip().startswith(b"{") or not line.strip(b"\0")


def _expect_text(path: Path, line: bytes) -> None:
    for magic, kind in _COMPRESSED.items():
        if line.startswith(magic):
            raise DataError(
                f"{path}: a {kind} file: unpack it first; JSON lines and parquet can be read"
            )


def _parse(path: Path, number: int, line: bytes) -> Mapping[str, Any]:
    try:
        value = json.loads(line)
    except (ValueError, RecursionError) as error:
        reason = str(error).splitlines()[0]
        hint = (
            ""
            if line.lstrip().startswith(b"{")
            else "; JSON lines and parquet can be read, not CSV or a JSON list"
        )
        raise DataError(
            f"{path}: row {number}: not a JSON object ({reason}): {show(line)}{hint}"
        ) from None
    if not isinstance(value, dict):
        raise DataError(
            f"{path}: row {number}: {show(value)}: a row is a JSON object of columns and values, on a line"
        )
    return value


def is_json(line: bytes) -> bool:
    """Whether the line is complete: no proper prefix of a JSON object is JSON, so a torn row never
    passes."""
    try:
        json.loads(line)
    except (ValueError, RecursionError):
        return False
    return True


def _parquet_rows(path: Path) -> list[TableRow]:
    import pyarrow as pa
    import pyarrow.parquet as pq

    rows: list[TableRow] = []
    try:
        with pq.ParquetFile(path) as file:
            # pandas' own
            names = [
                name for name in file.schema_arrow.names if not name.startswith("__index_level_")
            ]
            if twice := [name for name in names if names.count(name) > 1]:
                raise DataError(f"{path}: column {show(twice[0])} is there twice: rename one")
            as_json = {f.name for f in file.schema_arrow if f.metadata and _JSON_MARK in f.metadata}
            for batch in file.iter_batches(columns=names):
                for number, values in enumerate(batch.to_pylist(), start=len(rows) + 1):
                    rows.append(_decoded(TableRow(path, number, values), as_json))
    except (pa.ArrowException, UnicodeDecodeError, OSError) as error:
        raise DataError(
            f"{path}: not a readable parquet file: {str(error).splitlines()[0]}"
        ) from error
    return rows


def _decoded(row: TableRow, as_json: set[str]) -> TableRow:
    """With the JSON texts of version 0.1 as values; a field that this row never had is gone
    again."""
    values = dict(row.values)
    for name in as_json:
        text = values.pop(name)
        if text is not None:
            try:
                values[name] = json.loads(text)
            except ValueError:
                raise row.bad(f"{name} = {show(text)}: marked as JSON, but is not") from None
    return row._replace(values=values)
