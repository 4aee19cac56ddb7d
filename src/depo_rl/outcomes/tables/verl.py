"""verl's rollout dump (``trainer.rollout_data_dir``) as groups.

JSONL, one row a completion: input, output, gts, score, step, and what the reward function returned
beside the score (``acc`` for most). verl's V1 also writes ``uid``, ``{prompt}_{session}_{output}``:
a session is one completion, whose last output is judged.

A group is told by ``uid``, where there is one, else by the question and its answer (``gts``). Where
a step then has several groups of one question, their rows can only be cut in their order.
"""

from __future__ import annotations

import re
from collections import defaultdict
from collections.abc import Iterable, Sequence
from typing import NamedTuple

from ..rows import TableRow
from .dumps import Found, Group, Sample, cut, step_of, told_by_answer, usual_size
from .table import Table

_COLUMNS = ("input", "output", "score", "step")
_OF_SESSION = re.compile(r"(.+)_(\d+)_(\d+)", re.DOTALL)


class _Uid(NamedTuple):
    """group: its group's. session, output: which completion, and which part of it."""

    group: str | None
    session: str = ""
    output: int = 0


def is_verl(columns: Iterable[str]) -> bool:
    return set(_COLUMNS) <= set(columns)


def read_verl(table: Table) -> Found:
    """The groups; correct is ``acc`` where there is one, else ``score``. Raises DataError."""
    completions, notes = _last_outputs(table.rows, _uids(table.rows))
    samples, several = told_by_answer(
        [sample for _, sample in completions],
        [sample.row.values.get("gts") for _, sample in completions],
    )
    together: dict[tuple[object, ...], list[Sample]] = defaultdict(list)
    for (uid, _), sample in zip(completions, samples, strict=True):
        together[sample.step, sample.prompt, sample.key, uid].append(sample)
    groups, untold = _told_apart(together)
    return Found(
        groups,
        verdict="acc" if "acc" in table.columns else "score",
        shaped="score",
        notes=(*notes, *several, *untold),
    )


def _uids(rows: Sequence[TableRow]) -> list[_Uid]:
    """Nothing of a group where the file does not tell it: no uid, or another one in each row."""
    texts = [None if (uid := row.values.get("uid")) is None else str(uid) for row in rows]
    matches = [_OF_SESSION.fullmatch(text) if text else None for text in texts]
    if all(match for match, text in zip(matches, texts, strict=True) if text):
        return [_Uid(m[1], m[2], int(m[3])) if m else _Uid(None) for m in matches]
    steps = [str(row.values.get("step")) for row in rows]
    if len(set(zip(steps, texts, strict=True))) == len(texts):
        return [_Uid(None)] * len(texts)
    return [_Uid(text) for text in texts]


def _last_outputs(
    rows: Sequence[TableRow], uids: Sequence[_Uid]
) -> tuple[list[tuple[str | None, Sample]], list[str]]:
    """A sample for each completion, with the uid of its group: judged by its last output, with the
    input of its first."""
    sessions: dict[object, list[tuple[int, TableRow]]] = defaultdict(list)
    for i, (row, uid) in enumerate(zip(rows, uids, strict=True)):
        name = (step_of(row), uid.group, uid.session) if uid.session else i
        sessions[name].append((uid.output, row))
    group_of = {id(row): uid.group for row, uid in zip(rows, uids, strict=True)}
    samples = []
    for outputs in sessions.values():
        first = min(outputs, key=lambda output: output[0])[1]
        last = max(outputs, key=lambda output: output[0])[1]
        samples.append((group_of[id(first)], Sample(last, step_of(first), first.prompt("input"))))
    if n := len(rows) - len(samples):
        return samples, [f"{n} rows are earlier outputs of a completion: only its last is judged."]
    return samples, []


def _told_apart(
    together: dict[tuple[object, ...], list[Sample]],
) -> tuple[list[Group], list[str]]:
    """The groups, where ``(step, prompt, key, uid)`` may hold several if there is no uid; what is not
    known, in sentences."""
    usual = usual_size(together.values())
    groups: list[Group] = []
    n_cut = 0
    for (*_, uid), samples in together.items():
        several = uid is None and len(samples) > usual and len(samples) % usual == 0
        groups += cut(samples, usual) if several else [samples]
        n_cut += several
    notes = []
    if n_cut:
        notes.append(
            f"{n_cut} times a step has a question several times, and no uid tells its groups apart: its rows are "
            f"cut into groups of {usual} in order."
        )
    steps = {step for step, *_, uid in together if uid is None}
    if len(steps) == len(together):
        notes.append(
            "Each step has one question, and no uid tells whether its completions are several groups: they are "
            "taken as one."
        )
    return groups, notes
