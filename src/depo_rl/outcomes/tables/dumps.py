"""From the samples that another trainer logged to groups: what all formats of dumps share.

A format's reader (``formats`` lists them) says which samples are one group; what is correct is
judged here, by one rule for all.
"""

from __future__ import annotations

import json
import math
import statistics
from collections import Counter, defaultdict
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, NamedTuple

from ...errors import ConfigError
from ...types import finite, prompt_key
from ..rows import TableRow
from ..schema import LogRow, show

_SCALES = (frozenset({0.0, 1.0}), frozenset({-1.0, 1.0}))


@dataclass(frozen=True, slots=True)
class Verdict:
    """How completions are judged. column: holds the verdict (None: found by rule). at: correct from
    this value on.

    Without ``at`` the column must hold nothing but 0 and 1, or -1 and 1. Null and NaN are
    completions that could not be judged.
    """

    column: str | None = None
    at: float | None = None


@dataclass(frozen=True, slots=True)
class Dump:
    """rows: one per group, by step. notes: what was done that a reader should know, one sentence
    each."""

    rows: tuple[LogRow, ...]
    notes: tuple[str, ...] = ()


class Sample(NamedTuple):
    """A completion. row: where it was logged. key: of its prompt, where text and source do not tell
    it."""

    row: TableRow
    step: int
    prompt: str
    source: str = "default"
    key: str | None = None


Group = Sequence[Sample]


@dataclass(frozen=True, slots=True)
class Found:
    """What a format's reader made of a table.

    groups: the samples of each. verdict: the column of their rows that says what is correct; where
    that is not known, rewards: those that may. shaped: the column that was trained on, if there is
    one. scales: further sets of values that are verdicts in this format, the highest right. notes:
    sentences.
    """

    groups: Sequence[Group]
    verdict: str | None = None
    rewards: Sequence[str] = ()
    shaped: str | None = None
    scales: tuple[frozenset[float], ...] = ()
    notes: tuple[str, ...] = ()


def judged(found: Found, path: Path, verdict: Verdict) -> Dump:
    """The groups with their verdicts. Raises DataError naming file and row, ConfigError for the
    column."""
    scales = (*_SCALES, *found.scales)
    rows = [sample.row for group in found.groups for sample in group]
    column = verdict.column or found.verdict or _only_verdict(rows, found, verdict, scales, path)
    if not any(column in row.values for row in rows):
        raise ConfigError(
            f"{path}: no column {column!r} (--correct-reward); there are {', '.join(rows[0].values)}"
        )
    at = verdict.at if verdict.at is not None else _right_value(rows, column, scales)
    groups = sorted(found.groups, key=lambda group: group[0].step)
    return Dump(
        tuple(_log_row(group, column, at, found.shaped) for group in groups),
        (*found.notes, *_odd_sizes(groups)),
    )


def number_columns(rows: Sequence[TableRow], besides: Iterable[str]) -> list[str]:
    """Columns of the first row that hold numbers or nothing, in its order."""
    skipped = set(besides)
    names = [name for name in rows[0].values if name not in skipped]
    return [name for name in names if _is_numeric([row.values.get(name) for row in rows])]


def step_of(row: TableRow, column: str = "step") -> int:
    """A whole number, which may stand there as text. Raises DataError."""
    value = row.get(column)
    if isinstance(value, str) and value.isascii() and value.isdigit() and len(value) < 19:
        return int(value)
    whole = isinstance(value, int) or (isinstance(value, float) and value.is_integer())
    if isinstance(value, bool) or not whole or not 0 <= value < 2**63:
        raise row.bad(f"{column} = {show(value)}: must be a whole number, 0 or more")
    return int(value)


def told_by_answer(
    samples: Sequence[Sample], answers: Sequence[Any]
) -> tuple[list[Sample], tuple[str, ...]]:
    """The samples; where questions of one text have several answers, with keys that tell them
    apart, and that said."""
    texts = [
        a if isinstance(a, str) else json.dumps(a, sort_keys=True, default=str) for a in answers
    ]
    of_question: dict[tuple[str, str], set[str]] = defaultdict(set)
    for sample, text in zip(samples, texts, strict=True):
        of_question[sample.prompt, sample.source].add(text)
    told = [
        s._replace(key=f"{prompt_key(s.prompt, s.source)}-{prompt_key(text)[:8]}")
        if len(of_question[s.prompt, s.source]) > 1
        else s
        for s, text in zip(samples, texts, strict=True)
    ]
    n = sum(len(each) > 1 for each in of_question.values())
    note = f"{n} questions have several answers: each answer is a prompt of its own."
    return told, (note,) if n else ()


def usual_size(groups: Iterable[Group]) -> int:
    """The most frequent size, of several the first."""
    return Counter(map(len, groups)).most_common(1)[0][0]


def cut(group: Group, size: int) -> Iterator[Group]:
    """The samples in groups of ``size``, in their order."""
    return (group[i : i + size] for i in range(0, len(group), size))


def _is_numeric(values: Sequence[Any]) -> bool:
    present = [value for value in values if value is not None]
    return bool(present) and all(isinstance(value, (bool, int, float)) for value in present)


def _only_verdict(
    rows: Sequence[TableRow],
    found: Found,
    verdict: Verdict,
    scales: Sequence[frozenset[float]],
    path: Path,
) -> str:
    """The one reward column that can be a verdict. Raises ConfigError if there is none, or more
    than one."""
    rewards = found.rewards
    usable = rewards
    if verdict.at is None:
        usable = [c for c in rewards if _fits({finite(row.values.get(c)) for row in rows}, scales)]
    if len(usable) == 1:
        return usable[0]
    raise ConfigError(
        f"{path}: {len(usable)} columns could say whether a completion is correct "
        f"({', '.join(usable or rewards) or 'none'}): name one with --correct-reward, and from which value on it means "
        "correct with --correct-threshold"
    )


def _fits(values: set[float | None], scales: Sequence[frozenset[float]]) -> bool:
    return any(values - {None} <= scale for scale in scales)


def _right_value(
    rows: Sequence[TableRow], column: str, scales: Sequence[frozenset[float]]
) -> float:
    """The value that means correct. Raises DataError for the first row that holds no verdict."""
    numbers = [_number(row, column) for row in rows]
    for scale in scales:
        if _fits(set(numbers), (scale,)):
            return max(scale)
    odd = next(row for row, n in zip(rows, numbers, strict=True) if n not in (None, 0.0, 1.0))
    raise odd.bad(
        f"{column} = {show(odd.values[column])}: a verdict is 0 or 1; of a graded reward say with "
        "--correct-threshold from which value on it means correct, or name another column with --correct-reward"
    )


def _log_row(group: Group, column: str, at: float, reward: str | None) -> LogRow:
    first = group[0]
    verdicts = [v for s in group if (v := _number(s.row, column)) is not None]
    shaped = [v for s in group if reward and (v := _number(s.row, reward)) is not None]
    return LogRow(
        key=first.key or prompt_key(first.prompt, first.source),
        prompt=first.prompt,
        source=first.source,
        step=min(sample.step for sample in group),
        group_size=len(group),
        n_correct=sum(value >= at for value in verdicts),
        n_scored=len(verdicts),
        n_failed=len(group) - len(verdicts),
        reward_mean=statistics.fmean(shaped) if shaped else None,
        reward_std=statistics.pstdev(shaped) if shaped else None,
    )


def _number(row: TableRow, column: str) -> float | None:
    """The value if it is a finite number, None for NaN and null; else DataError."""
    value = row.get(column)
    if value is None or isinstance(value, (bool, int, float)):
        if isinstance(value, float) and math.isinf(value):
            raise row.bad(f"{column} = {value}: must be finite, or null if it could not be judged")
        return finite(value)
    raise row.bad(f"{column} = {show(value)}: must be a number")


def _odd_sizes(groups: Sequence[Group]) -> tuple[str, ...]:
    usual = usual_size(groups)
    n_odd = sum(len(group) != usual for group in groups)
    if not n_odd:
        return ()
    return (
        f"{n_odd} of {len(groups)} groups of the dump have not {usual} completions as most have.",
    )
