"""What ``depo replay`` can answer from: a labelled pool, or a history of groups; the columns say
which it is.

| columns                             | what it is                                                             |
|-------------------------------------|------------------------------------------------------------------------|
| prompt, n_correct, n_scored         | our own outcome log, read strictly (``log_row``)                       |
| those of a trainer's dump           | its completions, judged and grouped (``formats``)                      |
| prompt, n_correct, group_size, step | a history of another trainer; further columns become fields            |
| prompt, pass_rate                   | a labelled pool; k, there or in the label, says how many samples it is |

The names ``prompt`` and ``pass_rate`` may be others (``SourceOptions``).
"""

from __future__ import annotations

import os
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any

import numpy as np

from ...errors import ConfigError, DataError
from ...labels import Label, is_missing, read_label
from ...types import FloatArray, Prompt, finite, prompt_key
from ...validation import nearest
from ..reader import log_row
from ..rows import TableRow
from ..schema import COLUMNS, REQUIRED, LogRow, count, show
from .dumps import Verdict, judged
from .formats import FORMATS, format_of
from .leaks import Told, telling_columns
from .table import Table, keep_rows, read_table

_KINDS = (
    "an outcome log (prompt, n_correct, n_scored), a history (prompt, n_correct, group_size, step), a labelled pool "
    f"(prompt, pass_rate), {', '.join(form.what for form in FORMATS)}"
)
_PROMPTS = ("problem", "question", "query", "instruction", "input", "text")  # as others name them
_OWN = ("key", "prompt", "source")  # columns that are not fields of a prompt


@dataclass(frozen=True, slots=True)
class LabelledPool:
    """prompts: distinct. rate_P: shape (P,), pass rates in [0, 1]. notes: what was done on reading,
    in sentences.

    label_columns: fields of the prompts that hold the label or tell it; methods that choose by
    labels read them there.
    """

    prompts: tuple[Prompt, ...]
    rate_P: FloatArray
    notes: tuple[str, ...] = ()
    label_columns: tuple[str, ...] = ()


@dataclass(frozen=True, slots=True)
class GroupHistory:
    """prompts: distinct. visits: by key, the groups of each in the order of their steps (none is
    null).

    visit_columns: fields of the prompts that tell an outcome or belong to a visit.
    """

    prompts: tuple[Prompt, ...]
    visits: Mapping[str, tuple[LogRow, ...]]
    notes: tuple[str, ...] = ()
    visit_columns: tuple[str, ...] = ()


Source = LabelledPool | GroupHistory


def hidden_columns(source: Source) -> tuple[str, ...]:
    """Fields of the prompts that an estimator must not read when outcomes come from ``source``:
    they tell them."""
    return source.label_columns if isinstance(source, LabelledPool) else source.visit_columns


@dataclass(frozen=True, slots=True)
class SourceOptions:
    """where: only rows whose columns, as text, equal these. pass_rate_column: of a labelled pool.

    verdict: how the completions of a dump are judged. prompt_column: holds the prompts of a pool or
    a history.
    """

    where: Mapping[str, str] = field(default_factory=dict)
    pass_rate_column: str = "pass_rate"
    verdict: Verdict = field(default_factory=Verdict)
    prompt_column: str = "prompt"


def read_source(path: str | os.PathLike[str], options: SourceOptions | None = None) -> Source:
    """What the file or folder holds. Raises DataError naming file, row and rule, ConfigError for a
    wrong option."""
    options = options or SourceOptions()
    path = Path(path)
    table = _with_prompts(read_table(path), options.prompt_column)
    columns = set(table.columns)
    if set(REQUIRED) <= columns:
        return _own_log(table, options)
    if options.where:
        table = replace(table, rows=keep_rows(table.rows, options.where))
    notes = _torn(table.torn) + table.notes
    if form := format_of(table.columns):
        dump = judged(form.read(table), path, options.verdict)
        return _history(
            dump.rows, notes + dump.notes, [f"{path}: group {i + 1}" for i in range(len(dump.rows))]
        )
    if {"prompt", "n_correct", "group_size"} <= columns:
        return _history([_foreign_group(row) for row in table.rows], notes, _places(table.rows))
    if "prompt" in columns and any(options.pass_rate_column in row.values for row in table.rows):
        return _labelled(table, options.pass_rate_column, notes)
    raise _unknown(table, options)


def _with_prompts(table: Table, column: str) -> Table:
    """The table with the column's values as its prompts. Raises ConfigError if there is none."""
    if column == "prompt":
        return table
    if column not in table.columns:
        raise ConfigError(
            f"{table.path}: no column {column!r} (--prompt-column).{nearest(column, table.columns)}"
        )
    rows = [
        row._replace(
            values={
                "prompt" if name == column else name: value
                for name, value in row.values.items()
                if name != "prompt"
            }
        )
        for row in table.rows
    ]
    return replace(table, rows=rows)


def _unknown(table: Table, options: SourceOptions) -> DataError:
    """What is said of a table of which nothing can be made."""
    columns = table.columns
    label = options.pass_rate_column
    there = f"{table.path}: columns {', '.join(columns)}"
    if "prompt" not in columns and (
        label in columns or {"n_correct", "group_size"} <= set(columns)
    ):
        likely = next((name for name in _PROMPTS if name in columns), None)
        hint = f" Did you mean --prompt-column {likely}?" if likely else ""
        return DataError(f"{there}: no column 'prompt': name it with --prompt-column.{hint}")
    asked = "" if label == "pass_rate" else f" (--pass-rate-column {label})"
    close = nearest(label, columns) if asked else ""
    return DataError(f"{there}{asked}: can replay {_KINDS}.{close}")


def _torn(n: int) -> tuple[str, ...]:
    return (
        (f"{n} file{'s' * (n > 1)} ended in half a line, torn when writing stopped: left out.",)
        if n
        else ()
    )


def _own_log(table: Table, options: SourceOptions) -> Source:
    rows = [log_row(row) for row in table.rows]
    places = _places(table.rows)
    if options.where:
        numbered = [TableRow(table.path, i, row.to_dict()) for i, row in enumerate(rows)]
        kept = [row.number for row in keep_rows(numbered, options.where)]
        rows = [rows[i] for i in kept]
        places = [places[i] for i in kept]
    return _history(rows, _torn(table.torn) + table.notes, places)


def _places(rows: Sequence[TableRow]) -> list[str]:
    """Where each row is, for messages."""
    return [f"{row.file}: row {row.number}" for row in rows]


def _foreign_group(row: TableRow) -> LogRow:
    """A group of a table that is not ours: n_scored defaults to the group size, further columns are
    fields."""
    known = ("key", "prompt", "source", "step", "group_size", "n_correct", "n_failed", "tokens")
    row.get("n_correct")
    flat = {name: row.values[name] for name in known if name in row.values}
    flat["prompt"] = row.prompt("prompt")
    row.get("group_size")
    try:
        size = count("group_size", flat["group_size"])
        failed = count("n_failed", flat.get("n_failed")) or 0
    except DataError as error:
        raise row.bad(str(error)) from None
    if size is not None and failed > size:
        raise row.bad(f"n_failed = {failed}: must not exceed group_size = {size}")
    flat["n_scored"] = None if size is None else size - failed
    flat |= {
        f"fields.{name}": value
        for name, value in row.values.items()
        if name not in (*known, *COLUMNS)
    }
    try:
        return LogRow.from_dict(flat)
    except DataError as error:
        raise row.bad(str(error).replace("n_scored", "group_size")) from None


def _history(rows: Sequence[LogRow], notes: tuple[str, ...], places: Sequence[str]) -> Source:
    """The visits of each prompt; groups without steps are pooled into pass rates. places: of each
    row, for messages."""
    first: dict[str, LogRow] = {}
    visits: dict[str, list[LogRow]] = {}
    for place, row in zip(places, rows, strict=True):
        if (row.step is None) != (rows[0].step is None):
            raise DataError(
                f"{place}: step = {row.step}, of the first it is {rows[0].step}: all or none have one"
            )
        known = first.setdefault(row.key, row)
        if known.prompt != row.prompt:
            raise DataError(
                f"{place}: key {show(row.key)} with another prompt than before: one key, one prompt"
            )
        visits.setdefault(row.key, []).append(row)
    prompts = tuple(row.to_prompt() for row in first.values())
    if rows[0].step is None:
        return _pooled(prompts, visits, notes, places[0])
    telling = telling_columns(
        [Told(r.key, r.fields, r.n_correct / r.n_scored, r.n_scored) for r in rows if r.n_scored]
    )
    ordered = {key: tuple(sorted(each, key=lambda r: r.step or 0)) for key, each in visits.items()}
    return GroupHistory(prompts, ordered, notes, telling)


def _pooled(
    prompts: tuple[Prompt, ...],
    visits: Mapping[str, Sequence[LogRow]],
    notes: tuple[str, ...],
    first_place: str,
) -> LabelledPool:
    scored = {key: sum(row.n_scored for row in each) for key, each in visits.items()}
    kept = tuple(prompt for prompt in prompts if scored[prompt.key])
    if not kept:
        raise DataError(
            f"{first_place} and all others: no group has a scored completion: there is nothing to replay"
        )
    rates = [sum(row.n_correct for row in visits[p.key]) / scored[p.key] for p in kept]
    rows = [row for each in visits.values() for row in each if row.n_scored]
    telling = telling_columns(
        [Told(r.key, r.fields, r.n_correct / r.n_scored, r.n_scored) for r in rows]
    )
    told = [Told(p.key, p.fields, rate, scored[p.key]) for p, rate in zip(kept, rates, strict=True)]
    notes = (*notes, "No group has a step: groups were pooled into pass rates.")
    return LabelledPool(
        kept, np.array(rates), notes, tuple(dict.fromkeys((*telling, *telling_columns(told))))
    )


def _labelled(table: Table, column: str, notes: tuple[str, ...]) -> LabelledPool:
    """Prompts with their labels; rows without one are left out, and rows that repeat a prompt and
    differ in nothing but the label are averaged by k."""
    rows, missing = _with_label(table.rows, column)
    first: dict[str, TableRow] = {}
    labels: dict[str, list[Label]] = {}
    for row in rows:
        key = _key(row)
        label = _label(row, column)
        if key in first:
            _expect_repeat(first[key], row, column)
        first.setdefault(key, row)
        labels.setdefault(key, []).append(label)
    rates = [
        sum(p * (k or 1) for p, k in each) / sum(k or 1 for _, k in each)
        for each in labels.values()
    ]
    prompts = tuple(_prompt(key, row, column) for key, row in first.items())
    if merged := len(rows) - len(prompts):
        missing += (f"{merged} rows repeat the prompt of another row: their labels were averaged.",)
    told = [
        Told(p.key, p.fields, r, finite(p.fields.get("k")) or 0.0)
        for p, r in zip(prompts, rates, strict=True)
    ]
    own = [name for name in (column, "k") if any(name in p.fields for p in prompts)]
    telling = tuple(dict.fromkeys((*own, *telling_columns(told))))
    return LabelledPool(prompts, np.clip(rates, 0.0, 1.0), notes + missing, telling)


def _with_label(
    rows: Sequence[TableRow], column: str
) -> tuple[Sequence[TableRow], tuple[str, ...]]:
    kept = [row for row in rows if not _is_unlabelled(row, column)]
    if not kept:
        shown = show(rows[0].get(column))
        raise rows[0].bad(f"{column} = {shown}: no row has a pass rate there: name another column")
    if n := len(rows) - len(kept):
        return kept, (f"{n} of {len(rows)} rows have no label ({column}): left out.",)
    return kept, ()


def _is_unlabelled(row: TableRow, column: str) -> bool:
    """Whether it is one of a pool without a label: its column may be absent in JSON lines."""
    absent = column not in row.values and "n_correct" not in row.values
    return absent or is_missing(row.get(column))


def _key(row: TableRow) -> str:
    text = row.prompt("prompt")
    return _optional_text(row, "key") or prompt_key(text, _source(row))


def _source(row: TableRow) -> str:
    return _optional_text(row, "source") or "default"


def _optional_text(row: TableRow, column: str) -> str | None:
    value = row.values.get(column)
    if value is None or isinstance(value, str):
        return value
    raise row.bad(f"{column} = {show(value)}: must be a text, or null")


def _prompt(key: str, row: TableRow, column: str) -> Prompt:
    """With the label as a number, and k, where the label says it."""
    fields: dict[str, Any] = {name: value for name, value in row.values.items() if name not in _OWN}
    label = _label(row, column)
    fields[column] = label.rate if isinstance(fields[column], str) else fields[column]
    if label.k is not None:
        fields["k"] = label.k
    return Prompt(key, row.prompt("prompt"), _source(row), fields)


def _label(row: TableRow, column: str) -> Label:
    """k: what the label says, else the column k, else None."""
    value = row.get(column)
    label = read_label(value)
    if label is None:
        text = ", or a text such as '37.5%' or '3/8'" if isinstance(value, str) else ""
        raise row.bad(f"{column} = {show(value)}: a pass rate is a number in [0, 1]{text}")
    return label if label.k is not None else label._replace(k=_samples(row))


def _samples(row: TableRow) -> float | None:
    k = row.values.get("k")
    if k is None:
        return None
    if isinstance(k, bool) or not isinstance(k, (int, float)) or not k > 0 or finite(k) is None:
        raise row.bad(f"k = {show(k)}: the number of samples behind a label is above 0")
    return float(k)


def _expect_repeat(one: TableRow, other: TableRow, column: str) -> None:
    """Rows of one prompt under different policies must not be averaged by accident."""
    differ = [
        n for n in one.values if n not in (column, "k") and one.values[n] != other.values.get(n)
    ]
    if differ:
        name = differ[-1]
        if "prompt" in differ:
            raise other.bad(f"the key of row {one.number} with another prompt: one key, one prompt")
        raise other.bad(
            f"repeats the prompt of row {one.number} with another {name} ({show(one.values[name])}, "
            f"{show(other.values.get(name))}): choose rows with --where {name}=..."
        )


def parse_where(given: Iterable[str]) -> dict[str, str]:
    """``column=value`` texts as a mapping. Raises ConfigError for one without a '='."""
    where = {}
    for text in given:
        column, equals, value = text.partition("=")
        if not equals or not column:
            raise ConfigError(f"--where {text}: write it as column=value")
        where[column.strip()] = value.strip()
    return where
