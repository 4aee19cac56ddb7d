"""From a data set on the hub or a local file to checked training rows: prompt, answer, source, and the other columns.

    table = load_prompts(config.data)            # raises DataError: one line with file, rows, rule and mend
    dataset = to_dataset(table.rows, table.where)

Local files are read here rather than by ``datasets`` so that an error can name the row.
"""

from __future__ import annotations

import csv
import json
import math
from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING, Any

from ...errors import ConfigError, DataError, DepoError
from ...types import as_rate, chat_text, prompt_key
from ...validation import nearest
from .config import Columns, DataSettings, DataSource

if TYPE_CHECKING:
    from datasets import Dataset

Row = dict[str, Any]
_SHOWN = 3  # row numbers named in a message
_MISSING = object()


@dataclass(frozen=True, slots=True)
class PromptTable:
    """Rows ready for training and what was found on the way.

    rows: {"prompt", "answer", "source", other columns}. where: file or data set, for messages. n_read: rows before any
    were left out. bad: numbers (from 1) of rows without prompt or answer. duplicates: number of a repeated row -> that
    of the first with that prompt. n_conflicts: duplicates whose answer is another one.
    """

    rows: list[Row]
    where: str
    n_read: int
    bad: list[int] = field(default_factory=list)
    duplicates: dict[int, int] = field(default_factory=dict)
    n_conflicts: int = 0

    @property
    def keys(self) -> set[str]:
        return {_key(row) for row in self.rows}


def load_prompts(data: DataSettings) -> PromptTable:
    """The training rows. Raises DataError for unusable rows, ConfigError for a missing or misnamed file or column."""
    return _load(data, data, data.columns, "data")


def load_eval_prompts(data: DataSettings) -> PromptTable | None:
    """The evaluation rows, or None if the configuration names none."""
    if data.eval is None:
        return None
    return _load(data.eval, data, data.eval.columns or data.columns, "data.eval")


def _load(source: DataSource, data: DataSettings, columns: Columns, setting: str) -> PromptTable:
    where = Path(source.path).name if source.path else f"{source.name} ({source.split})"
    known, rows = _read_local(source, where, setting) if source.path else _read_hub(source, setting)
    _check_columns(known, columns, where, f"{setting}.columns")
    table = _collect(rows, data, columns, _Naming(where, Path(source.location).stem, source.limit))
    _judge(table, data)
    return table


@dataclass(frozen=True, slots=True)
class _Naming:
    """What rows are called in messages, the source of rows that name none, and how many to keep."""

    where: str
    source: str
    limit: int | None


def _collect(rows: Iterable[Row], data: DataSettings, columns: Columns, naming: _Naming) -> PromptTable:
    kept: list[Row] = []
    first: dict[str, tuple[int, Any]] = {}
    bad: list[int] = []
    duplicates: dict[int, int] = {}
    n_conflicts = number = 0
    for number, raw in enumerate(rows, start=1):
        row = _row(raw, data, columns, f"{naming.where} row {number}", naming.source)
        if row is None:
            bad.append(number)
            continue
        key, answer = _key(row), row.get("answer")
        if key in first:
            duplicates[number] = first[key][0]
            n_conflicts += answer != first[key][1]
            continue
        first[key] = (number, answer)
        kept.append(row)
        if naming.limit is not None and len(kept) == naming.limit:
            break
    return PromptTable(kept, naming.where, number, bad, duplicates, n_conflicts)


def _judge(table: PromptTable, data: DataSettings) -> None:
    """Refuses what the settings do not allow to leave out."""
    if table.bad and not data.drop_bad_rows:
        raise DataError(
            f"{table.where}: {_count(len(table.bad), 'row')} of {table.n_read} without a prompt or an answer "
            f"({_rows(table.bad)}): mend them, or set data.drop_bad_rows=true to leave them out"
        )
    if table.duplicates and not data.drop_duplicates:
        pairs = ", ".join(f"row {n} repeats row {m}" for n, m in list(table.duplicates.items())[:_SHOWN])
        more = ", ..." if len(table.duplicates) > _SHOWN else ""
        raise DataError(
            f"{table.where}: {_count(len(table.duplicates), 'duplicate prompt')} in {table.n_read} rows "
            f"({pairs}{more}; {table.n_conflicts} with another answer): a prompt may stand once; remove them "
            "or set data.drop_duplicates=true to keep the first"
        )
    if not table.rows:
        raise DataError(f"{table.where}: no usable row among {table.n_read}: give a data set with at least one prompt")


def _count(n: int, what: str) -> str:
    return f"{n} {what}{'' if n == 1 else 's'}"


def _rows(numbers: Sequence[int]) -> str:
    shown = ", ".join(str(n) for n in numbers[:_SHOWN])
    return f"row{'' if len(numbers) == 1 else 's'} {shown}{', ...' if len(numbers) > _SHOWN else ''}"


# ---- one row


def _row(raw: Row, data: DataSettings, columns: Columns, where: str, source: str) -> Row | None:
    """The training row, or None without prompt or answer."""
    question = _get(raw, columns.prompt)
    prompt = None if question in (_MISSING, None) else _as_prompt(question, data, where, columns.prompt)
    answer = None if columns.answer is None else _get(raw, columns.answer)
    if prompt is None or (columns.answer is not None and _is_blank(answer)):
        return None
    used = {columns.prompt, columns.answer, columns.source, columns.pass_rate}
    row = {name: value for name, value in raw.items() if name not in used}
    row["prompt"] = prompt
    if columns.answer is not None:
        # One type for all: JSON and CSV disagree on 3 and "3", and verifiers read texts.
        row["answer"] = answer if isinstance(answer, (str, list, dict)) else str(answer)
    named = None if columns.source is None else _get(raw, columns.source)
    row["source"] = source if _is_blank(named) else str(named)
    if columns.pass_rate is not None:
        row["pass_rate"] = _as_rate(_get(raw, columns.pass_rate), f"{where}, column {columns.pass_rate!r}")
    return row


def _get(raw: Mapping[str, Any], column: str) -> Any:
    """The value of a column; ``a.b`` looks into the mapping in ``a`` unless a column has that very name."""
    if column in raw:
        return raw[column]
    here: Any = raw
    for part in column.split("."):
        if not isinstance(here, Mapping) or part not in here:
            return _MISSING
        here = here[part]
    return here


def _is_blank(value: Any) -> bool:
    if value is None or value is _MISSING or (isinstance(value, float) and math.isnan(value)):
        return True
    return isinstance(value, (str, list, dict)) and not (value.strip() if isinstance(value, str) else value)


def _as_prompt(question: Any, data: DataSettings, where: str, column: str) -> str | list[Row] | None:
    """A text or a chat as TRL takes it; None if there is nothing in it."""
    template = data.prompt_template or "{prompt}"
    system = [] if data.system_prompt is None else [{"role": "system", "content": data.system_prompt}]
    if isinstance(question, str):
        if not question.strip():
            return None
        text = template.replace("{prompt}", question)
        return [*system, {"role": "user", "content": text}] if data.chat else text
    if not isinstance(question, list) or not all(_is_message(m) for m in question):
        raise DataError(
            f"{where}, column {column!r}: a prompt must be a text or a list of {{role, content}}, "
            f"got {type(question).__name__}; set data.columns.prompt to the right column"
        )
    if not data.chat:
        raise DataError(f"{where}, column {column!r}: the prompt is a chat; set data.chat=true")
    messages = [{"role": m["role"], "content": m["content"]} for m in question]
    if not messages or not messages[-1]["content"].strip():
        return None
    messages[-1]["content"] = template.replace("{prompt}", messages[-1]["content"])
    return [*system, *(m for m in messages if not system or m["role"] != "system")]


def _is_message(value: Any) -> bool:
    return isinstance(value, Mapping) and all(isinstance(value.get(name), str) for name in ("role", "content"))


def _as_rate(value: Any, where: str) -> float | None:
    if _is_blank(value):
        return None
    try:
        rate = as_rate(float(value) if isinstance(value, str) else value)
    except ValueError:
        rate = None
    if rate is None:
        raise DataError(f"{where}: {value!r} is no pass rate; it must be a number in [0, 1] or empty")
    return rate


def _key(row: Row) -> str:
    prompt = row["prompt"]
    return prompt_key(prompt if isinstance(prompt, str) else chat_text(prompt), row["source"])


# ---- files


def _check_columns(known: Sequence[str], columns: Columns, where: str, setting: str) -> None:
    """Every mapped column is there; of a dotted one its first part (what is inside is seen row by row)."""
    for name, column in columns.model_dump().items():
        if column is not None and column not in known and column.split(".")[0] not in known:
            raise DataError(f"{where}: {setting}.{name} = {column!r}: no such column.{nearest(column, known)}")


def _read_local(source: DataSource, where: str, setting: str) -> tuple[list[str], Iterator[Row]]:
    path = Path(str(source.path))
    if not path.is_file():
        raise ConfigError(f"{setting}.path = {str(path)!r}: no such file")
    readers = {".parquet": _read_parquet, ".jsonl": _read_jsonl, ".json": _read_json, ".csv": _read_csv}
    if path.suffix.lower() not in readers:
        raise ConfigError(f"{setting}.path = {str(path)!r}: must end in {', '.join(readers)}")
    try:
        return readers[path.suffix.lower()](path, where)
    except UnicodeDecodeError as error:
        raise DataError(f"{where}: not UTF-8 text ({error.reason} at byte {error.start}): convert the file") from None


def _read_parquet(path: Path, where: str) -> tuple[list[str], Iterator[Row]]:
    import pyarrow as pa
    import pyarrow.parquet as pq

    try:
        file = pq.ParquetFile(path)
    except pa.ArrowException as error:
        raise DataError(f"{where}: not a parquet file ({str(error).splitlines()[0]})") from None
    return list(file.schema_arrow.names), (row for batch in file.iter_batches() for row in batch.to_pylist())


def _read_jsonl(path: Path, where: str) -> tuple[list[str], Iterator[Row]]:
    rows = []
    for number, line in enumerate(path.read_text(encoding="utf-8-sig").split("\n"), start=1):
        if line.strip():
            rows.append(_json_object(line, f"{where} line {number}"))
    return _union(rows), iter(rows)


def _json_object(line: str, where: str) -> Row:
    try:
        row = json.loads(line)
    except json.JSONDecodeError as error:
        raise DataError(f"{where}: not JSON ({error.msg}, column {error.colno}): mend or delete the line") from None
    if not isinstance(row, dict):
        raise DataError(f"{where}: must be a JSON object, found {type(row).__name__}")
    return row


def _read_json(path: Path, where: str) -> tuple[list[str], Iterator[Row]]:
    try:
        rows = json.loads(path.read_text(encoding="utf-8-sig"))
    except json.JSONDecodeError as error:
        raise DataError(f"{where} line {error.lineno}: not JSON ({error.msg}); one object a line is .jsonl") from None
    if not isinstance(rows, list) or not all(isinstance(row, dict) for row in rows):
        raise DataError(f"{where}: must be a JSON list of objects; one object a line is .jsonl")
    return _union(rows), iter(rows)


def _read_csv(path: Path, where: str) -> tuple[list[str], Iterator[Row]]:
    with open(path, encoding="utf-8-sig", newline="") as file:
        reader = csv.DictReader(file, strict=True)
        try:
            names, rows = list(reader.fieldnames or []), list(reader)
        except csv.Error as error:
            raise DataError(f"{where} line {reader.line_num}: not CSV ({error}): mend the line") from None
    for number, row in enumerate(rows, start=1):
        if None in row:
            raise DataError(f"{where} row {number}: more fields than the header names: quote fields that hold a comma")
    return names, iter(rows)


def _union(rows: Sequence[Row]) -> list[str]:
    return list(dict.fromkeys(name for row in rows for name in row))


def _read_hub(source: DataSource, setting: str) -> tuple[list[str], Iterator[Row]]:
    import datasets

    try:
        dataset = datasets.load_dataset(source.name, source.subset, split=source.split)
    except DepoError:
        raise
    except Exception as error:  # the hub, its cache and the loaders raise dozens of types
        reason = " ".join(str(error).split())[:200]
        raise DataError(
            f"{setting}.name = {source.name!r}, split {source.split!r}: cannot be loaded "
            f"({type(error).__name__}: {reason}): check name and connection, or set {setting}.path to a local file"
        ) from None
    batches = dataset.with_format("arrow").iter(batch_size=4096)
    return list(dataset.column_names), (row for batch in batches for row in batch.to_pylist())


def to_dataset(rows: Sequence[Row], where: str) -> Dataset:
    """The rows as a ``datasets.Dataset``. Raises DataError naming a column that mixes types."""
    import pyarrow as pa
    from datasets import Dataset

    columns = {name: [row.get(name) for row in rows] for name in _union(rows)}
    for name, values in columns.items():
        try:
            pa.array(values)
        except (pa.ArrowException, TypeError) as error:
            reason = str(error).splitlines()[0]
            raise DataError(f"{where}: column {name!r} mixes types ({reason}): give it one type or remove it") from None
    return Dataset.from_dict(columns)
