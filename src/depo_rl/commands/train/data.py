"""From a data set on the hub or local files to checked training rows: prompt, answer, source, and
the other columns.

table = load_prompts(config.data)            # raises DataError: one line with file, rows, rule and mend
dataset = to_dataset(table)
"""

from __future__ import annotations

import json
import math
from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field, replace
from typing import TYPE_CHECKING, Any

from ...errors import DataError, DepoError
from ...labels import label_rate
from ...rewards.gold import is_number, number_text, plain
from ...types import prompt_key
from ...validation import nearest
from .chat import chat_of_text, needs_json, read_chat
from .config import Columns, DataSettings, DataSource
from .files import DataFile, Found, Place, Row, arrow_rows, data_files, read_files, union

if TYPE_CHECKING:
    from datasets import Dataset

_SHOWN = 3  # row numbers named in a message
_MISSING = object()


@dataclass(frozen=True, slots=True)
class PromptTable:
    """Rows ready for training and what was found on the way.

    rows: {"prompt", "answer", "source", other columns}. places: where each of them stands. where:
    file, files or data set, for messages. n_read: rows before any were left out. bad: places of
    rows without prompt or answer. duplicates: place of a repeated row -> that of the first with
    that prompt. n_conflicts: duplicates whose answer is another one. files: names of the local
    files.
    """

    rows: list[Row]
    places: list[Place]
    where: str
    n_read: int
    bad: list[Place] = field(default_factory=list)
    duplicates: dict[Place, Place] = field(default_factory=dict)
    n_conflicts: int = 0
    files: tuple[str, ...] = ()

    def row_at(self, i: int) -> str:
        """Row i of ``rows`` in messages: the file's name and the number there."""
        place = self.places[i]
        return f"{place.file} row {place.number}"


def load_prompts(data: DataSettings) -> PromptTable:
    """The training rows. Raises DataError for unusable rows, ConfigError for a missing or misnamed
    file or column."""
    return _load(data, data, data.columns, "data")


def load_eval_prompts(data: DataSettings) -> PromptTable | None:
    """The evaluation rows, or None if the configuration names none."""
    if data.eval is None:
        return None
    return _load(data.eval, data, data.eval.columns or data.columns, "data.eval")


def _load(source: DataSource, data: DataSettings, columns: Columns, setting: str) -> PromptTable:
    files = data_files(source, setting)
    where = _name_of(files, source)
    known, rows = read_files(files) if files else _read_hub(source, where, setting)
    _check_columns(known, columns, where, f"{setting}.columns")
    empty = PromptTable([], [], where, 0, files=tuple(file.name for file in files))
    table = _collect(rows, data, columns, source.limit, empty)
    _judge(table, data)
    return table


def _name_of(files: Sequence[DataFile], source: DataSource) -> str:
    if not files:
        return f"{source.name} ({source.split})"
    return (
        files[0].name
        if len(files) == 1
        else f"{files[0].name} and {_count(len(files) - 1, 'other file')}"
    )


def _collect(
    rows: Iterable[Found],
    data: DataSettings,
    columns: Columns,
    limit: int | None,
    empty: PromptTable,
) -> PromptTable:
    """``empty`` with the rows in it; at most ``limit`` good ones."""
    table = empty
    first: dict[str, tuple[Place, Any]] = {}
    n_read = n_conflicts = 0
    for found in rows:
        n_read += 1
        row = _row(found, data, columns)
        if row is None:
            table.bad.append(found.place)
            continue
        key = _identity(row)
        answer = row.get("answer")
        if key in first:
            table.duplicates[found.place] = first[key][0]
            n_conflicts += answer != first[key][1]
            continue
        first[key] = (found.place, answer)
        table.rows.append(row)
        table.places.append(found.place)
        if limit is not None and len(table.rows) == limit:
            break
    _give_answers_one_type(table.rows)
    return replace(table, n_read=n_read, n_conflicts=n_conflicts)


def _give_answers_one_type(rows: Sequence[Row]) -> None:
    """Where some answers are lists, all are, and of texts if they mix types: a data set's column
    has one."""
    lists = [_members(row["answer"]) for row in rows if isinstance(row.get("answer"), list)]
    kinds = {type(member) for members in lists for member in members} - {type(None)}
    if not lists or kinds & {list, dict} or any(isinstance(row["answer"], dict) for row in rows):
        return
    if len(lists) < len(rows) or len(kinds) > 1:
        for row in rows:
            row["answer"] = [_answer_text(member) for member in _members(row["answer"])]


def _members(answer: Any) -> list[Any]:
    """Of a list its members, of a list in a list of one those of the inner; of anything else
    itself."""
    while isinstance(answer, list) and len(answer) == 1 and isinstance(answer[0], list):
        answer = answer[0]
    return answer if isinstance(answer, list) else [answer]


def _judge(table: PromptTable, data: DataSettings) -> None:
    """Refuses what the settings do not allow to leave out."""
    if table.bad and not data.drop_bad_rows:
        raise DataError(
            f"{table.where}: {_count(len(table.bad), 'row')} of {table.n_read} without a prompt or an answer "
            f"({_rows(table.bad, table)}): mend them, or set data.drop_bad_rows=true to leave them out"
        )
    if table.duplicates and not data.drop_duplicates:
        named = [
            (_at(one, table), _at(first, table))
            for one, first in list(table.duplicates.items())[:_SHOWN]
        ]
        pairs = ", ".join(f"{one} repeats {first}" for one, first in named)
        more = ", ..." if len(table.duplicates) > _SHOWN else ""
        raise DataError(
            f"{table.where}: {_count(len(table.duplicates), 'duplicate prompt')} in {table.n_read} rows "
            f"({pairs}{more}; {table.n_conflicts} with another answer): a prompt may stand once; remove them "
            "or set data.drop_duplicates=true to keep the first"
        )
    if not table.rows:
        raise DataError(
            f"{table.where}: no usable row among {table.n_read}: give a data set with at least one prompt"
        )


def _count(n: int, what: str) -> str:
    return f"{n} {what}{'' if n == 1 else 's'}"


def _at(place: Place, table: PromptTable) -> str:
    """A place after the table's name: the file only where there are several."""
    return f"row {place.number}" if len(table.files) < 2 else f"{place.file} row {place.number}"


def _rows(places: Sequence[Place], table: PromptTable) -> str:
    if len(table.files) < 2:
        shown = ", ".join(str(place.number) for place in places[:_SHOWN])
        shown = f"row{'' if len(places) == 1 else 's'} {shown}"
    else:
        shown = ", ".join(_at(place, table) for place in places[:_SHOWN])
    return f"{shown}{', ...' if len(places) > _SHOWN else ''}"


# ---- one row


def _row(found: Found, data: DataSettings, columns: Columns) -> Row | None:
    """The training row, or None without prompt or answer."""
    raw = found.row
    where = f"{found.place.file} row {found.place.number}"
    question = _get(raw, columns.prompt)
    prompt = None
    if question is not _MISSING and question is not None:
        prompt = _as_prompt(question, data, f"{where}, column {columns.prompt!r}", found.arrow)
    answer = None if columns.answer is None else _get(raw, columns.answer)
    if prompt is None or (columns.answer is not None and _is_blank(answer)):
        return None
    used = {columns.prompt, columns.answer, columns.source, columns.pass_rate}
    row = {name: value for name, value in raw.items() if name not in used}
    _check_media(row, data, where)
    row["prompt"] = prompt
    if columns.answer is not None:
        # One type for all: JSON and CSV disagree on 3 and "3", and verifiers read texts.
        row["answer"] = answer if isinstance(answer, (list, dict)) else _answer_text(answer)
    named = None if columns.source is None else _get(raw, columns.source)
    row["source"] = found.source if _is_blank(named) else str(named)
    if columns.pass_rate is not None:
        row["pass_rate"] = _as_rate(
            _get(raw, columns.pass_rate), f"{where}, column {columns.pass_rate!r}"
        )
    return row


def _answer_text(answer: Any) -> Any:
    """A scalar as text, a number written out (0.00001, not 1e-05); a list, a mapping and null as
    they are."""
    answer = plain(answer)
    if answer is None or isinstance(answer, (str, list, dict)):
        return answer
    return number_text(answer) if is_number(answer) else str(answer)


def _check_media(row: Row, data: DataSettings, where: str) -> None:
    """TRL reads these columns by their names; ``row`` is left without those that hold nothing."""
    for name in ("image", "images", "tools"):
        if _is_blank(row.get(name)):
            row.pop(name, None)
    for name in ("image", "images"):
        if name in row:
            raise DataError(
                f"{where}: column {name!r} holds an image, which a model of text cannot read: remove or rename the "
                "column, or give DEPOTrainer the model's processor in a script"
            )
    if data.chat and isinstance(row.get("tools"), list):
        raise DataError(
            f"{where}: column 'tools' holds tools that the policy would not be shown: write them into the prompt's "
            "system message, or rename the column if only a reward needs them"
        )


def _get(raw: Mapping[str, Any], column: str) -> Any:
    """The value of a column; ``a.b`` looks into the mapping in ``a`` unless a column has that very
    name."""
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
    return isinstance(value, (str, list, dict)) and not (
        value.strip() if isinstance(value, str) else value
    )


def _as_prompt(
    question: Any, data: DataSettings, where: str, arrow: bool
) -> str | list[Row] | None:
    """A text or a chat as TRL takes it; None if there is nothing in it."""
    template = data.prompt_template or "{prompt}"
    system = (
        [] if data.system_prompt is None else [{"role": "system", "content": data.system_prompt}]
    )
    if isinstance(question, str) and (chat := chat_of_text(question, where)) is not None:
        question = chat
    if isinstance(question, str):
        if not question.strip():
            return None
        text = template.replace("{prompt}", question)
        return [*system, {"role": "user", "content": text}] if data.chat else text
    if not isinstance(question, list):
        raise DataError(
            f"{where}: a prompt must be a text or a list of {{role, content}}, got {type(question).__name__}; set "
            "data.columns.prompt to the right column"
        )
    messages = read_chat(question, where, arrow)
    if not data.chat:
        raise DataError(f"{where}: the prompt is a chat; set data.chat=true")
    if messages and messages[-1]["content"] is None:
        raise DataError(
            f"{where}: ends in a tool call; a prompt must end where the policy is to answer"
        )
    if not messages or not messages[-1]["content"].strip():
        return None
    messages[-1]["content"] = template.replace("{prompt}", messages[-1]["content"])
    return [*system, *(m for m in messages if not system or m["role"] != "system")]


def _as_rate(value: Any, where: str) -> float | None:
    if _is_blank(value):
        return None
    rate = label_rate(value)
    if rate is None:
        raise DataError(
            f"{where}: {value!r} is no pass rate; it must be a number in [0, 1], a text such as '37.5%' or '3/8', "
            "or empty"
        )
    return rate


def _identity(row: Row) -> str:
    """What two rows share that are one prompt: all that the policy reads, and the source."""
    return prompt_key(json.dumps(row["prompt"], sort_keys=True), row["source"])


# ---- data sets


def _check_columns(known: Sequence[str], columns: Columns, where: str, setting: str) -> None:
    """Every mapped column is there; of a dotted one its first part (what is inside is seen row by
    row)."""
    for name, column in columns.model_dump().items():
        if column is not None and column not in known and column.split(".")[0] not in known:
            there = nearest(column, known) if known else " There is none: not one row."
            raise DataError(f"{where}: {setting}.{name} = {column!r}: no such column.{there}")


def _read_hub(source: DataSource, where: str, setting: str) -> tuple[list[str], Iterator[Found]]:
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
    rows = (row for table in batches for batch in table.to_batches() for row in arrow_rows(batch))
    name = str(source.name).rpartition("/")[2]
    return list(dataset.column_names), (
        Found(Place(where, number), name, row, arrow=True)
        for number, row in enumerate(rows, start=1)
    )


def to_dataset(table: PromptTable) -> Dataset:
    """The rows as a ``datasets.Dataset``. Raises DataError naming a column that mixes types, and
    rows of two."""
    import pyarrow as pa
    from datasets import Dataset, Features, Json, List, concatenate_datasets

    columns = {name: [row.get(name) for row in table.rows] for name in union(table.rows)}
    chats = columns.pop("prompt") if needs_json(columns["prompt"]) else None
    for name, values in columns.items():
        try:
            pa.array(values)
        except (pa.ArrowException, TypeError) as error:
            reason = _two_types(values, table) or str(error).splitlines()[0]
            raise DataError(
                f"{table.where}: column {name!r} mixes types ({reason}): give it one type or remove it"
            ) from None
    dataset = Dataset.from_dict(columns)
    if chats is None:
        return dataset
    # As JSON, because in a table each message, and each tool's arguments, would get the keys of
    # all.
    whole = Dataset.from_dict({"prompt": chats}, features=Features({"prompt": List(Json())}))
    return concatenate_datasets([dataset, whole], axis=1)


def _two_types(values: Sequence[Any], table: PromptTable) -> str | None:
    """Two rows whose values are of different types: 'dict in row 1, str in row 13'."""
    first: dict[str, str] = {}
    for i, value in enumerate(values):
        if value is not None:
            first.setdefault(type(value).__name__, _at(table.places[i], table))
    pairs = [f"{name} in {at}" for name, at in first.items()]
    return ", ".join(pairs[:2]) if len(pairs) > 1 else None
