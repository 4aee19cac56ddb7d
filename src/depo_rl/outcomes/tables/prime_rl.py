"""prime-rl's rollouts (``rollouts/step_N/...``) as groups.

JSONL in folders by step, as three generations of it wrote them:

* ``{train,eval}/{all,effective}/traces.jsonl``, a row an episode: task, group, run, and traces,
  each with its agent, its rewards and whether it went well;
* the same files, a row a trace: task, rewards, group_id, kind;
* ``train_rollouts.jsonl``, a row a completion: example_id, prompt, completion, reward, metrics.

A group is told by its id, else by the example, in one step. It may begin in one step's folder and
end in the next one's. ``effective`` repeats what ``all`` has.
"""

from __future__ import annotations

import re
from collections import defaultdict
from collections.abc import Iterable, Iterator, Mapping, Sequence
from itertools import takewhile
from typing import Any, NamedTuple

from ...types import finite
from ..rows import TableRow
from ..schema import show
from .dumps import Found, Sample, step_of, told_by_answer
from .table import Table

_KINDS = (
    {"traces", "task"},
    {"rewards", "task", "nodes"},
    {"example_id", "prompt", "completion", "reward"},
)
_STEP = re.compile(r"step_([0-9]{1,18})")


class _Completion(NamedTuple):
    """One that a policy was trained on, or would have been. agent: None where no trace tells it.

    scores: by reward, None if it was not judged.
    """

    sample: Sample
    group: object
    agent: str | None
    answer: object
    scores: Mapping[str, float | None]


def is_prime_rl(columns: Iterable[str]) -> bool:
    names = set(columns)
    return any(kind <= names for kind in _KINDS)


def read_prime_rl(table: Table) -> Found:
    """The groups of training. Correct is the only reward, else the one of several that is 0 or 1.

    Raises DataError.
    """
    rows, notes = _of_training(table.rows)
    found = [completion for row in rows for completion in _completions(row)]
    samples, several = told_by_answer([c.sample for c in found], [c.answer for c in found])
    agents = {c.agent for c in found} - {None}
    alone = agents.pop() if len(agents) == 1 else None
    names = dict.fromkeys(name for c in found for name in c.scores)
    groups: dict[object, list[Sample]] = defaultdict(list)
    for c, sample in zip(found, samples, strict=True):
        values = dict(sample.row.values) | {name: c.scores.get(name) for name in names}
        row = sample.row._replace(values=values)
        groups[c.group, c.agent or alone].append(sample._replace(row=row))
    return Found(
        list(groups.values()),
        verdict=None if len(names) > 1 else next(iter(names), "reward"),
        rewards=tuple(names),
        shaped="reward",
        notes=(*notes, *several),
    )


def _of_training(rows: Sequence[TableRow]) -> tuple[list[TableRow], list[str]]:
    """Each once, and none of evaluation unless there is nothing else."""
    once: dict[object, TableRow] = {}
    for i, row in enumerate(rows):
        name = row.values.get("id")
        once.setdefault(name if isinstance(name, str) else i, row)
    kept = list(once.values())
    training = [row for row in kept if _kind(row) != "eval"]
    notes = []
    if n := len(rows) - len(kept):
        notes.append(f"{n} rows repeat another one by its id: left out.")
    if training and len(training) < len(kept):
        notes.append(f"{len(kept) - len(training)} rows are of evaluation: left out.")
    return training or kept, notes


def _kind(row: TableRow) -> object:
    if "example_id" in row.values:
        return "eval" if row.file.name.startswith("eval") else "train"
    run = _part(row, row.values, "run")
    return row.values.get("kind") or _part(row, run, "work").get("type") or run.get("type")


def _completions(row: TableRow) -> Iterator[_Completion]:
    values = row.values
    if "traces" in values:
        env = _part(row, values, "env")
        group = _part(row, values, "group").get("id")
        source = env.get("name") or env.get("id")
        traces = [_mapping(row, "traces", trace) for trace in _list(row, values, "traces")]
        trained = [t for t in traces if _part(row, t, "agent").get("trainable", True)]
        for trace in trained or [{}]:  # none: the episode failed before there was one
            yield _of_trace(row, {"task": row.get("task"), "ok": False, **trace}, group, source)
    elif "example_id" in values:
        yield _of_rollout(row)
    else:
        info = _part(row, values, "info")
        group = values.get("group_id") or info.get("group_id")
        yield _of_trace(row, values, group, values.get("env_name") or info.get("env_name"))


def _of_trace(row: TableRow, trace: Mapping[str, Any], group: Any, source: Any) -> _Completion:
    task = _part(row, trace, "task")
    data = _part(row, task, "data") or task
    told = {name: value for name, value in data.items() if name not in ("idx", "name")}
    example = task.get("key") or task.get("hash") or data.get("idx")
    ok = trace.get("ok", not trace.get("errors"))
    rewards = {
        name: _reward(row, name, reward) if ok else (None, 1.0)
        for name, reward in _part(row, trace, "rewards").items()
    }
    judged = [score * weight for score, weight in rewards.values() if score is not None]
    values = {"reward": sum(judged) if judged else None} | _metrics(row, trace)
    run = _part(row, row.values, "run")
    step = _step(
        row, _part(row, run, "work").get("step"), run.get("step"), trace.get("policy_version")
    )
    prompt = _prompt(row, trace, data, example)
    sample = Sample(row._replace(values=values), step, prompt, str(source or "default"))
    return _Completion(
        sample,
        str(group) if group else (step, sample.source, str(example or prompt)),
        _part(row, trace, "agent").get("name"),
        told,
        {name: score for name, (score, _) in rewards.items()},
    )


def _of_rollout(row: TableRow) -> _Completion:
    values = row.values
    reward = None if values.get("error") else row.get("reward")
    step = _step(row)
    source = str(values.get("env_name") or values.get("task") or "default")
    sample = Sample(
        row._replace(values={"reward": reward} | _metrics(row, values)),
        step,
        row.prompt("prompt"),
        source,
    )
    group = (step, source, str(values["example_id"]))
    return _Completion(sample, group, None, values.get("answer"), {})


def _reward(row: TableRow, name: str, reward: Any) -> tuple[float | None, float]:
    """Score and weight. Raises DataError for what is none, null or a number."""
    score = reward
    weight: Any = 1.0
    if isinstance(reward, Mapping):
        score = reward.get("score")
        weight = reward.get("weight", 1.0)
    if score is None or score != score:  # not equal to itself: NaN
        return None, 1.0
    if isinstance(score, bool) or finite(score) is None or finite(weight) is None:
        raise row.bad(f"rewards: {name} = {show(reward)}: must be a number, with or without weight")
    return float(score), float(weight)


def _metrics(row: TableRow, trace: Mapping[str, Any]) -> dict[str, Any]:
    return dict(_part(row, trace, "metrics"))


def _step(row: TableRow, *told: Any) -> int:
    """That of the folder, else the first that the record tells."""
    for part in reversed(row.file.parts):
        if match := _STEP.fullmatch(part):
            return int(match[1])
    step = next((value for value in told if value is not None), None)
    if step is None:
        raise row.bad("no step, neither here nor as the name of a folder, step_N, around the file")
    return step_of(row._replace(values={"step": step}))


def _prompt(row: TableRow, trace: Mapping[str, Any], data: Mapping[str, Any], example: Any) -> str:
    """What the task asks, else what stands before the model's first message, else the task's
    key."""
    asked = data.get("prompt")
    messages = [{"role": "user", "content": asked}] if isinstance(asked, str) else asked
    if messages is None:
        nodes = [_mapping(row, "nodes", node) for node in _list(row, trace, "nodes")]
        given = takewhile(lambda node: not node.get("sampled"), nodes)
        messages = [_part(row, node, "message") for node in given]
    elif system := data.get("system_prompt"):
        messages = [
            {"role": "system", "content": system},
            *_list(row, {"prompt": messages}, "prompt"),
        ]
    if not messages and example is not None:
        return str(example)
    return row._replace(values={"prompt": messages}).prompt("prompt")


def _part(row: TableRow, values: Mapping[str, Any], name: str) -> Mapping[str, Any]:
    """A mapping inside a record, empty where there is none. Raises DataError for anything else."""
    value = values.get(name)
    return {} if value is None else _mapping(row, name, value)


def _mapping(row: TableRow, name: str, value: Any) -> Mapping[str, Any]:
    if not isinstance(value, Mapping):
        raise row.bad(f"{name} = {show(value)}: must be an object")
    return value


def _list(row: TableRow, values: Mapping[str, Any], name: str) -> list[Any]:
    value = values.get(name) or []
    if not isinstance(value, list):
        raise row.bad(f"{name} = {show(value)}: must be a list")
    return value
