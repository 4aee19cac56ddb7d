"""Readers of what other trainers leave behind: TRL's logged completions and verl's rollout dumps,
as groups.

TRL (``log_completions=True``): parquet, one row a completion: step, prompt, completion, one column
per reward function, columns that reward functions logged, advantage. It writes one file per logged
step and repeats the completions of one generation for as many steps as are trained on them. verl
(``trainer.rollout_data_dir``): JSONL, one row a completion: input, output, gts, score, step, and
what the reward function returned beside the score (``acc`` for most).

A group is the completions of one step and one prompt, however the trainer has ordered the rows.
"""

from __future__ import annotations

import math
import statistics
from collections import Counter
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

from ...errors import ConfigError
from ...types import chat_text, finite, prompt_key
from ..rows import TableRow
from ..schema import LogRow, show
from .table import Table

_TRL = ("step", "prompt", "completion", "advantage")
_VERL = ("input", "output", "score", "step")


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


def is_trl(columns: Sequence[str]) -> bool:
    return set(_TRL) <= set(columns)


def is_verl(columns: Sequence[str]) -> bool:
    return set(_VERL) <= set(columns)


def read_trl(table: Table, verdict: Verdict) -> Dump:
    """Groups of TRL's ``completions_*.parquet``. Raises DataError naming file and row, ConfigError
    for the column."""
    rewards = [name for name in table.columns if name not in _TRL and _is_numeric(table.rows, name)]
    column = verdict.column or _only_verdict(table, rewards, verdict)
    rows, n_repeated = _without_repeats(table.rows)
    reward = rewards[0] if len(rewards) == 1 else None  # of several the weights are not in the file
    found = _groups(rows, "prompt", column, verdict, reward)
    note = f"{n_repeated} steps of the dump repeat the completions of the step before: left out."
    return Dump(found.rows, (*((note,) if n_repeated else ()), *found.notes))


def read_verl(table: Table, verdict: Verdict) -> Dump:
    """Groups of verl's ``rollout_data_dir``; correct is ``acc`` where there is one, else
    ``score``."""
    column = verdict.column or ("acc" if "acc" in table.columns else "score")
    return _groups(table.rows, "input", column, verdict, "score")


def _is_numeric(rows: Sequence[TableRow], column: str) -> bool:
    values = [value for value in _values(rows, column) if value is not None]
    return bool(values) and all(isinstance(value, (bool, int, float)) for value in values)


def _values(rows: Sequence[TableRow], column: str) -> list[Any]:
    return [row.values.get(column) for row in rows]


def _only_verdict(table: Table, rewards: Sequence[str], verdict: Verdict) -> str:
    """The one reward column that can be a verdict. Raises ConfigError if there is none, or more
    than one."""
    usable = rewards
    if verdict.at is None:
        usable = [
            c for c in rewards if _scale({finite(v) for v in _values(table.rows, c)} - {None})
        ]
    if len(usable) == 1:
        return usable[0]
    raise ConfigError(
        f"{table.path}: {len(usable)} columns could say whether a completion is correct "
        f"({', '.join(usable or rewards) or 'none'}): name one with --correct-reward, and from which value on it means "
        "correct with --correct-threshold"
    )


def _scale(values: set[float | None]) -> bool:
    """Whether nothing but 0 and 1, or -1 and 1, is there."""
    return values <= {0.0, 1.0} or values <= {-1.0, 1.0}


def _without_repeats(rows: Sequence[TableRow]) -> tuple[list[TableRow], int]:
    """Without the steps whose completions are those of the step before; how many they were."""
    by_step: dict[Any, list[TableRow]] = {}
    for row in rows:
        by_step.setdefault(_step(row), []).append(row)
    kept: list[TableRow] = []
    before: list[tuple[str, str]] = []
    n_repeated = 0
    for step in sorted(by_step):
        now = [(str(row.get("prompt")), str(row.get("completion"))) for row in by_step[step]]
        if now == before:
            n_repeated += 1
        else:
            kept += by_step[step]
        before = now
    return kept, n_repeated


def _step(row: TableRow) -> int:
    value = row.get("step")
    whole = isinstance(value, int) or (isinstance(value, float) and value.is_integer())
    if isinstance(value, bool) or not whole or value < 0:
        raise row.bad(f"step = {show(value)}: must be a whole number, 0 or more")
    return int(value)


def _groups(
    rows: Sequence[TableRow], prompt: str, column: str, verdict: Verdict, reward: str | None
) -> Dump:
    """One row for each step and prompt; a prompt that a step has several times over is several
    groups."""
    if column not in rows[0].values:
        names = ", ".join(rows[0].values)
        raise ConfigError(
            f"{rows[0].file}: no column {column!r} (--correct-reward); there are {names}"
        )
    scale = {_number(row, column) for row in rows} - {None}
    if verdict.at is None and not _scale(scale):
        odd = next(row for row in rows if _number(row, column) not in (None, 0.0, 1.0))
        raise odd.bad(
            f"{column} = {show(odd.values[column])}: a verdict is 0 or 1; of a graded reward say with "
            "--correct-threshold from which value on it means correct, or name another column with --correct-reward"
        )
    threshold = verdict.at if verdict.at is not None else 1.0
    together: dict[tuple[int, str], list[TableRow]] = {}
    for row in rows:
        together.setdefault((_step(row), _text(row, prompt)), []).append(row)
    usual = Counter(len(group) for group in together.values()).most_common(1)[0][0]
    found = [
        _group(step, text, group[i : i + usual], column, threshold, reward)
        for (step, text), group in sorted(together.items(), key=lambda item: item[0][0])
        for i in range(0, len(group), usual)
    ]
    odd_sized = sum(row.group_size != usual for row in found)
    note = (
        f"{odd_sized} of {len(found)} groups of the dump have not {usual} completions as most have."
    )
    return Dump(tuple(found), (note,) if odd_sized else ())


def _group(
    step: int,
    text: str,
    rows: Sequence[TableRow],
    column: str,
    threshold: float,
    reward: str | None,
) -> LogRow:
    judged = [v for row in rows if (v := _number(row, column)) is not None]
    shaped = [v for row in rows if reward and (v := _number(row, reward)) is not None]
    return LogRow(
        key=prompt_key(text),
        prompt=text,
        source="default",
        step=step,
        group_size=len(rows),
        n_correct=sum(value >= threshold for value in judged),
        n_scored=len(judged),
        n_failed=len(rows) - len(judged),
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


def _text(row: TableRow, column: str) -> str:
    """The prompt as one text, a chat as the engines read it: so its key is that of the run's own
    log."""
    value = row.get(column)
    if isinstance(value, list) and all(isinstance(m, dict) and "content" in m for m in value):
        value = chat_text(value)
    if not isinstance(value, str) or not value:
        raise row.bad(
            f"{column} = {show(value)}: must be a text or a list of messages, and not empty"
        )
    return value
