"""Completions that TRL and ms-swift log, as groups.

TRL (``log_completions=True``): ``completions/completions_*.parquet`` or a W&B table, one row a
completion: step, prompt, completion, one column per reward function, columns that reward functions
logged, advantage. ms-swift: ``completions.jsonl``, in each line such a table by columns (as read
here, its rows). Both write what the last generation left in a buffer of its length, so that a log

* repeats the completions of one generation for as many steps as are trained on them;
* holds evaluation too, of the step after which it took place: behind what of the training's
  completions the buffer still has, or alone.

A group is the completions of one prompt in one log.
"""

from __future__ import annotations

from collections import Counter, defaultdict
from collections.abc import Iterable, Sequence
from itertools import takewhile

from ...types import finite
from ..rows import TableRow
from .dumps import Found, Group, Sample, cut, number_columns, step_of, usual_size
from .table import Table

_STEPS = ("step", "gen_step")  # the second one is that of ms-swift on Megatron
_NO_REWARDS = (
    *_STEPS,
    *("prompt", "completion", "advantage", "advantages", "num_turns", "entropy", "solution"),
)
_ROUND = 1e-3  # a mean advantage below this is 0
_TOO_MANY = 4  # prompts in an order seen before to be chance, if training has them too
_SHOWN = 5  # steps in a note

Log = list[Sample]


def is_trl(columns: Iterable[str]) -> bool:
    """Whether this is it, or a table of it."""
    names = set(columns)
    return {"prompt", "completion"} <= names and any(step in names for step in _STEPS)


def read_trl(table: Table) -> Found:
    """The groups of training, without what is repeated and without evaluation. Raises DataError."""
    rewards = number_columns(table.rows, _NO_REWARDS)
    logs, repeated = _without_repeats(_logs(table.rows))
    training, evaluation = _without_evaluation([_by_prompt(log) for log in logs])
    groups, others = _of_size(training, _training_size(training))
    return Found(
        groups,
        rewards=rewards,
        shaped=rewards[0] if len(rewards) == 1 else None,  # of several the weights are not there
        notes=(*repeated, *evaluation, *others),
    )


def _logs(rows: Sequence[TableRow]) -> list[Log]:
    """The samples of each log in its order, by step."""
    column = next(name for name in _STEPS if name in rows[0].values)
    logs: dict[tuple[object, ...], Log] = {}
    for row in rows:
        step = step_of(row, column)
        place = (step, row.file, row.number if row.of_line else 0)
        logs.setdefault(place, []).append(Sample(row, step, row.prompt("prompt")))
    return sorted(logs.values(), key=lambda log: log[0].step)


def _by_prompt(log: Log) -> list[Group]:
    """Samples of one prompt, prompts in the order in which they begin."""
    found: dict[str, Log] = {}
    for sample in log:
        found.setdefault(sample.prompt, []).append(sample)
    return list(found.values())


def _training_size(logs: Sequence[Sequence[Group]]) -> int:
    """Completions of a group of training: the usual size in most logs; of several the first's.

    Logs and not groups are counted, because evaluation with smaller groups has more of them.
    """
    return Counter(usual_size(log) for log in logs).most_common(1)[0][0]


def _without_repeats(logs: Sequence[Log]) -> tuple[list[Log], list[str]]:
    """Without what a log has in common with the end of the log before, if that is a group or
    all."""
    kept: list[Log] = []
    n_whole = 0
    n_part = 0
    before: list[object] = []
    for log in logs:
        now = [_content(sample.row) for sample in log]
        shared = _overlap(before, now)
        before = now
        if shared == len(now):
            n_whole += 1
            continue
        shared = shared if shared >= usual_size(_by_prompt(log)) else 0
        n_part += shared > 0
        kept.append(log[shared:])
    notes = []
    if n_whole:
        notes.append(
            f"{n_whole} steps of the dump repeat the completions of the step before: left out."
        )
    if n_part:
        notes.append(
            f"{n_part} steps of the dump begin with completions of the step before: those are left out."
        )
    return kept, notes


def _content(row: TableRow) -> object:
    return tuple(str(value) for name, value in row.values.items() if name not in _STEPS)


def _overlap(before: Sequence[object], now: Sequence[object]) -> int:
    """How many of the last of ``before`` are the first of ``now``."""
    for start in range(len(before)):
        if before[start] == now[0] and before[start:] == now[: len(before) - start]:
            return len(before) - start
    return 0


def _of_size(logs: Sequence[Sequence[Group]], size: int) -> tuple[list[Group], list[str]]:
    """The groups with ``size`` samples. A prompt that a log has several times is several of them,
    if the log has others of that size."""
    kept: list[Group] = []
    odd: Counter[int] = Counter()
    steps: set[int] = set()
    n_cut = 0
    for log in logs:
        trains = any(len(group) == size for group in log)
        whole = {len(group) for group in log if _is_one(group, size)}
        for group in log:
            several = trains and len(group) % size == 0 and len(group) not in whole
            if len(group) == size or several:
                kept += cut(group, size)
                n_cut += len(group) > size
            else:
                odd[len(group)] += 1
                steps.add(group[0].step)
    notes = []
    if n_cut:
        notes.append(
            f"{n_cut} times a step has a prompt more than once: its completions are cut into groups of {size} in the "
            "order of the rows."
        )
    if odd:
        sizes = ", ".join(f"{n} of {length}" for length, n in sorted(odd.items()))
        notes.append(
            f"{odd.total()} groups of the dump have not {size} completions ({sizes}; {_named(steps)}): "
            "evaluation, which is logged to the same files, or the rest of a group: left out."
        )
    return kept, notes


def _is_one(group: Group, size: int) -> bool:
    """Whether the advantages, which are centred within a group, say that these are one group."""
    values = [
        finite(sample.row.values.get("advantage", sample.row.values.get("advantages"))) or 0.0
        for sample in group
    ]
    parts = [abs(sum(values[i : i + size])) for i in range(0, len(values), size)]
    return abs(sum(values)) < _ROUND * len(values) and max(parts) > _ROUND * len(values)


def _without_evaluation(
    logs: Sequence[Sequence[Group]],
) -> tuple[list[Sequence[Group]], list[str]]:
    """Without evaluation, known by its fixed order.

    Evaluation visits the same prompts in the same order every so many steps and after the last one:
    the logs of these steps end alike, in two prompts or more, and no others do. Training shuffles.
    """
    prompts = [[group[0].prompt for group in log] for log in logs]
    ends = _common_ends(prompts)
    if len(ends) != 1:
        return list(logs), []
    alike, n = ends[0]
    steps = {logs[i][0][0].step for i in alike}
    rest = [log[:-n] if i in alike else log for i, log in enumerate(logs)]
    training = [log for log in rest if log]
    if not training:
        return list(logs), [
            f"All steps have the same {n} prompts in the same order: if that is evaluation, which is logged to the "
            "same files, the dump holds no training."
        ]
    if not _is_every_few(steps, last=logs[-1][0][0].step):
        return list(logs), []
    return training, [
        f"The same {n} prompts in the same order ({_named(steps)}) are evaluation, which is logged to the same files: "
        "left out."
    ]


def _is_every_few(steps: set[int], last: int) -> bool:
    """Whether these are s, 2 s, 3 s, ..., with or without the ones before and after training."""
    regular = sorted(steps - {0})
    if len(regular) > 1 and regular[-1] == last and last % regular[0]:
        regular.pop()
    return regular == [regular[0] * i for i in range(1, len(regular) + 1)] if regular else False


def _common_ends(prompts: Sequence[Sequence[str]]) -> list[tuple[set[int], int]]:
    """Which logs end alike, and in how many prompts: two or more, and not by chance."""
    with_last: dict[str, set[int]] = defaultdict(set)
    for i, names in enumerate(prompts):
        with_last[names[-1]].add(i)
    times = Counter(name for names in prompts for name in names)
    ends = []
    for logs in with_last.values():
        n = _alike(prompts, logs) if len(logs) > 1 else 0
        held_out = all(times[name] == len(logs) for name in prompts[min(logs)][-n:])
        if n > 1 and (held_out or n * (len(logs) - 1) >= _TOO_MANY):
            ends.append((logs, n))
    return ends


def _alike(prompts: Sequence[Sequence[str]], logs: Iterable[int]) -> int:
    """With how many prompts these logs end alike."""
    ends = zip(*(reversed(prompts[i]) for i in logs), strict=False)
    return sum(1 for _ in takewhile(lambda names: len(set(names)) == 1, ends))


def _named(steps: Iterable[int]) -> str:
    """``steps 2, 4``, the first few."""
    listed = [str(step) for step in sorted(steps)]
    shown = ", ".join(listed[:_SHOWN]) + (", ..." if len(listed) > _SHOWN else "")
    return f"step{'s' * (len(listed) > 1)} {shown}"
