"""The dumps of other trainers, in the forms in which they leave them."""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pyarrow as pa
import pyarrow.parquet as pq
import pytest

from depo_rl.errors import ConfigError, DataError
from depo_rl.outcomes.tables import GroupHistory, SourceOptions, Verdict, read_source

Row = dict[str, Any]
Seen = list[tuple[str, int, int, int, int]]


def write(path: Path, rows: list[Row]) -> Path:
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text("".join(json.dumps(row) + "\n" for row in rows))
    return path


def read(path: Path, *verdict: Any) -> tuple[Seen, tuple[str, ...]]:
    """(prompt, step, right, judged, size) of each group in order, and the notes."""
    source = read_source(path, SourceOptions(verdict=Verdict(*verdict)))
    assert isinstance(source, GroupHistory)
    rows = [row for each in source.visits.values() for row in each]
    return sorted(
        (r.prompt, r.step or 0, r.n_correct, r.n_scored, r.group_size) for r in rows
    ), source.notes


def refused(path: Path, *says: str) -> None:
    with pytest.raises((DataError, ConfigError)) as caught:
        read_source(path)
    assert "\n" not in str(caught.value)
    assert all(part in str(caught.value) for part in says), caught.value


# ---- ms-swift: a table by columns in each line


def swift(step: Any, groups: dict[str, list[Any]], **more: Any) -> Row:
    flat = [(p, r) for p, rewards in groups.items() for r in rewards]
    return {
        "step": [step] * len(flat),
        "prompt": [p for p, _ in flat],
        "completion": [f"{step}-{p}-{i}" for i, (p, _) in enumerate(flat)],
        "MathAccuracy": [r for _, r in flat],
        "advantages": [0.0] * len(flat),
        "num_turns": [1] * len(flat),
    } | more


def test_ms_swift_writes_a_table_by_columns_in_each_line(tmp_path):
    logs = [
        swift("1", {"a": [1.0, 0.0, 1.0, None], "b": [0.0] * 4}),
        swift("2", {"c": [1.0] * 4, "a": [0.0, 0.0, 0.0, 1.0]}),
    ]
    write(tmp_path / "logging.jsonl", [{"loss": 0.1, "global_step/max_steps": "1/2"}])
    path = write(tmp_path / "completions.jsonl", logs)
    for given in (path, tmp_path):
        assert read(given) == (
            [("a", 1, 2, 3, 4), ("a", 2, 1, 4, 4), ("b", 1, 0, 4, 4), ("c", 2, 4, 4, 4)],
            (),
        )


def test_evaluation_in_ms_swift_s_log_is_a_line_of_its_own(tmp_path):
    evaluation = {"u": [1.0, 0.0], "v": [0.0, 0.0]}
    logs = [
        swift("1", {"a": [1.0, 0.0, 1.0, 0.0], "b": [0.0] * 4}),
        swift("2", {"c": [1.0] * 4, "a": [0.0, 0.0, 0.0, 1.0]}),
        swift("2", evaluation),
        swift("3", {"b": [1.0] * 4, "d": [0.0] * 4}),
    ]
    found, notes = read(write(tmp_path / "completions.jsonl", logs))
    assert [group[:2] for group in found] == [("a", 1), ("a", 2), ("b", 1), ("b", 3), ("c", 2), ("d", 3)]  # fmt: skip
    assert len(notes) == 1 and "2 of 2; step 2" in notes[0]


def test_a_run_of_ms_swift_that_was_resumed_has_steps_twice(tmp_path):
    logs = [
        swift(str(step), {"a": [1.0, 0.0]}, completion=[f"{n}", "x"])
        for n, step in enumerate((1, 2, 2, 3))
    ]
    assert [g[1:] for g in read(write(tmp_path / "completions.jsonl", logs))[0]] == [
        (1, 1, 2, 2),
        (2, 1, 2, 2),
        (2, 1, 2, 2),
        (3, 1, 2, 2),
    ]


@pytest.mark.parametrize("rows", [True, False], ids=["a row each", "a table"])
def test_ms_swift_on_megatron_calls_the_step_gen_step(tmp_path, rows):
    one_each = [
        {"gen_step": 0, "prompt": "a", "completion": f"{i}", "reward": r}
        for i, r in enumerate((1.0, 0.0))
    ]
    table = {name: [row[name] for row in one_each] for name in one_each[0]}
    path = write(tmp_path / "completions.jsonl", one_each if rows else [table])
    assert read(path)[0] == [("a", 0, 1, 2, 2)]


# ---- W&B: a JSON table


def wandb(step: Any, groups: dict[str, list[float]]) -> Row:
    data = [[step, p, f"{step}{p}{i}", r] for p, rs in groups.items() for i, r in enumerate(rs)]
    return {"columns": ["step", "prompt", "completion", "reward"], "data": data}


@pytest.mark.parametrize("indent", [None, 2])
def test_tables_of_completions_as_wandb_keeps_them(tmp_path, indent):
    folder = tmp_path / "media" / "table"
    folder.mkdir(parents=True)
    groups = {"a": [1.0, 0.0], "b": [0.0, 0.0]}
    for step, each in ((2, groups), (10, dict(reversed(groups.items())))):
        table = wandb(str(step), each)
        (folder / f"completions_{step}_0f.table.json").write_text(json.dumps(table, indent=indent))
    expected = [("a", 2, 1, 2, 2), ("a", 10, 1, 2, 2), ("b", 2, 0, 2, 2), ("b", 10, 0, 2, 2)]
    assert read(tmp_path) == (expected, ())
    assert read(folder / "completions_2_0f.table.json")[0] == expected[::2]


# ---- verl in folders


def verl(step: int, prompt: str = "q") -> list[Row]:
    return [
        {"input": prompt, "output": "x", "gts": "1", "score": s, "step": step} for s in (1.0, 0.0)
    ]


@pytest.mark.parametrize("name", ["run/{}.jsonl", "step_{}/rollouts.jsonl", "a/b/{}.jsonl"])
def test_dumps_in_folders_below_are_read(tmp_path, name):
    for step in (2, 10):
        write(tmp_path / name.format(step), [*verl(step), *verl(step, "r")])
    found, notes = read(tmp_path)
    assert [g[:3] for g in found] == [("q", 2, 1), ("q", 10, 1), ("r", 2, 1), ("r", 10, 1)]
    assert notes == ()


@pytest.mark.parametrize("name", ["val", "validation_data", "eval", "evaluation-1", "test"])
def test_folders_of_evaluation_are_left_out_and_said(tmp_path, name):
    write(tmp_path / "train" / "1.jsonl", [*verl(1), *verl(1, "r")])
    write(tmp_path / name / "1.jsonl", verl(1, "held out"))
    found, notes = read(tmp_path)
    assert [g[0] for g in found] == ["q", "r"]
    assert notes == ("1 file of evaluation, by the names of their folders: left out.",)
    assert [g[0] for g in read(tmp_path / name)[0]] == ["held out"]  # asked for by name


# ---- open-instruct


def rollout(step: int, number: int, reward: float, **more: Any) -> Row:
    return {
        "step": step,
        "sample_idx": 0,
        "prompt_idx": number,
        "prompt_tokens": [5, 17 + number],
        "response_tokens": [1, 2],
        "reward": reward,
        "advantage": 0.0,
        "finish_reason": "stop",
        "dataset": "gsm8k",
        "ground_truth": [7],
    } | more


def test_open_instruct_s_shards_become_groups(tmp_path):
    rows = [rollout(1, n, r) for n, rs in enumerate(([10, 0], [0, 0])) for r in rs]
    write(tmp_path / "run_rollouts_000000.jsonl", rows)
    write(tmp_path / "run_rollouts_000001.jsonl", [rollout(2, 1, r) for r in (10.0, 10.0)])
    write(tmp_path / "run_metadata.jsonl", [{"run_name": "run", "model_name": "m"}])
    found, notes = read(tmp_path)
    assert found == [("5 17", 1, 1, 2, 2), ("5 18", 1, 0, 2, 2), ("5 18", 2, 2, 2, 2)]
    assert len(notes) == 1 and "token ids only" in notes[0]
    source = read_source(tmp_path)
    assert {prompt.source for prompt in source.prompts} == {"gsm8k"}


def test_open_instruct_s_steps_that_a_resumed_run_wrote_again_are_groups_of_their_own(tmp_path):
    once = [rollout(1, n, r) for n in (0, 1, 2) for r in (10.0, 0.0)]
    found, notes = read(
        write(tmp_path / "r.jsonl", [*once, rollout(1, 0, 10.0), rollout(1, 0, 10.0)])
    )
    assert [g[1:] for g in found] == [(1, 1, 2, 2), (1, 2, 2, 2), (1, 1, 2, 2), (1, 1, 2, 2)]
    assert any("1 prompts stand several times in a step" in note for note in notes)


def test_graded_rewards_of_open_instruct_need_a_threshold(tmp_path):
    path = write(tmp_path / "r.jsonl", [rollout(1, 0, 10.0), rollout(1, 0, 4.5)])
    refused(path, "r.jsonl: row 1: reward = 10.0", "--correct-threshold")
    assert read(path, "reward", 4.0)[0] == [("5 17", 1, 2, 2, 2)]


# ---- prime-rl


def task(text: Any, **more: Any) -> Row:
    return {"type": "Math", "data": {"idx": 3, "prompt": text} | more}


def trace(text: str, reward: float | None, **more: Any) -> Row:
    """A trace of July 2026."""
    return {
        "id": f"{text}-{more}-{reward}",
        "task": {"idx": 3, "prompt": text},
        "nodes": [],
        "rewards": {} if reward is None else {"correct": reward},
        "metrics": {"length": 3.0},
        "errors": [] if reward is not None else [{"type": "E", "message": "boom"}],
        "kind": "train",
        "env_name": "math",
        "policy_version": 1,
    } | more


def episode(text: Any, score: Any, group: str, name: str, **more: Any) -> Row:
    """An episode of August 2026."""
    done = {
        "task": task(text),
        "agent": {"name": "solver", "trainable": True},
        "nodes": [],
        "rewards": {"correct": {"score": score, "weight": 2.0}},
        "ok": True,
    }
    judge = done | {"agent": {"name": "judge", "trainable": False}}
    return {
        "id": name,
        "env": {"id": "math-v1", "name": "math"},
        "task": task(text),
        "group": {"id": group},
        "run": {"type": "train", "id": "r", "work": {"type": "train", "step": 7}},
        "ok": score is not None,
        "errors": [],
        "traces": [judge, done] if score is not None else [],
    } | more


def test_prime_rl_s_episodes_become_groups(tmp_path):
    rollouts = tmp_path / "rollouts"
    first = [episode("p", s, "g", f"e{i}") for i, s in enumerate((1.0, 0.0, None))]
    write(rollouts / "step_2" / "train" / "all" / "traces.jsonl", first)
    write(rollouts / "step_2" / "train" / "effective" / "traces.jsonl", first[:2])
    late = [episode("p", 1.0, "g", "e3"), *(episode("q", 1.0, "h", f"f{i}") for i in range(4))]
    write(rollouts / "step_10" / "train" / "all" / "traces.jsonl", late)
    write(
        rollouts / "step_10" / "eval" / "all" / "traces.jsonl", [episode("held out", 1.0, "v", "v")]
    )
    write(tmp_path / "metrics.jsonl", [{"step": 1, "time": 0.0}])
    for path in (tmp_path, rollouts):
        found, notes = read(path)
        assert found == [("p", 2, 2, 3, 4), ("q", 10, 4, 4, 4)]  # a group keeps its first step
        assert [note.split(":")[0] for note in notes] == [
            "1 file of evaluation, by the names of their folders",
            "2 rows repeat another one by its id",
        ]
    source = read_source(rollouts)
    assert isinstance(source, GroupHistory) and source.prompts[0].source == "math"
    assert source.visits[source.prompts[0].key][0].reward_mean == pytest.approx(4 / 3)  # weighted


def test_prime_rl_s_episodes_away_from_their_folders(tmp_path):
    rows = [episode("p", s, "g", f"e{s}") for s in (1.0, 0.0)]
    held_out = {"type": "train", "id": "r", "work": {"type": "eval", "step": 7}}
    rows.append(episode("p", 1.0, "v", "v", run=held_out))
    found, notes = read(write(tmp_path / "t.jsonl", rows))
    assert found == [("p", 7, 1, 2, 2)] and "1 rows are of evaluation" in notes[0]


def test_what_prime_rl_asks_stands_in_the_task_or_in_the_first_messages(tmp_path):
    chat = [{"role": "user", "content": [{"type": "text", "text": "1+1"}]}]
    system = task(chat, system_prompt="Be brief.")
    nodes = [
        {"message": {"role": "user", "content": "2+2"}, "sampled": False},
        {"message": {"role": "assistant", "content": "4"}, "sampled": True},
    ]
    opened = {"type": "Chat", "data": {"idx": 9}, "key": "chat-9"}
    groups = [("a", system, []), ("b", opened, nodes), ("c", opened, [])]
    rows = []
    for group, asked, said in groups:
        made = episode("p", 1.0, group, group, task=asked)
        for each in made["traces"]:
            each.update(task=asked, nodes=said)
        rows.append(made)
    found, _ = read(write(tmp_path / "t.jsonl", rows))
    assert [group[0] for group in found] == ["2+2", "Be brief.\n1+1", "chat-9"]


@pytest.mark.parametrize(
    "told",
    [
        lambda group: {"group_id": group},
        lambda group: {
            "kind": None,
            "env_name": None,
            "run": {"type": "train", "id": "r", "step": 1},
            "info": {"group_id": group, "env_name": "math", "policy_version": 1},
        },
    ],
    ids=["on the record", "stamped"],
)
def test_prime_rl_s_traces_become_groups(tmp_path, told: Callable[[str], Row]):
    rows = [trace("p", r, **told("g"), n=i) for i, r in enumerate((1.0, 0.0, None, 1.0))]
    rows += [trace("p", r, **told("h"), n=i) for i, r in enumerate((0.0, 0.0, 0.0, 0.0))]
    write(tmp_path / "step_4" / "train" / "effective" / "traces.jsonl", rows)
    found, notes = read(tmp_path)
    assert found == [("p", 4, 0, 4, 4), ("p", 4, 2, 3, 4)] and notes == ()
    assert read_source(tmp_path).prompts[0].source == "math"


def test_of_several_rewards_of_prime_rl_the_one_of_0_and_1_says_what_is_correct(tmp_path):
    rewards = {"correct": 1.0, "length": 0.3}
    rows = [trace("p", 1.0, group_id="g", rewards=rewards, n=i) for i in range(2)]
    assert read(write(tmp_path / "step_1" / "t.jsonl", rows))[0] == [("p", 1, 2, 2, 2)]
    rows = [row | {"rewards": rewards | {"format": 1.0}} for row in rows]
    refused(write(tmp_path / "step_1" / "t.jsonl", rows), "2 columns", "correct, format")


def test_prime_rl_s_older_rollouts_become_groups(tmp_path):
    rows = [
        {"example_id": n, "task": "math", "prompt": [{"role": "user", "content": f"{n}+1"}]}
        | {"completion": [], "reward": r, "metrics": {"correct": r}, "error": None}
        for n in (0, 1)
        for r in (1.0, 0.0)
    ]
    rows[3]["error"] = {"error": "E", "message": "boom"}
    write(tmp_path / "step_3" / "train_rollouts.jsonl", rows)
    write(tmp_path / "step_3" / "eval_rollouts.jsonl", rows[:2])
    found, notes = read(tmp_path)
    assert (
        found == [("0+1", 3, 1, 2, 2), ("1+1", 3, 1, 1, 2)] and "1 file of evaluation" in notes[0]
    )
    assert read(tmp_path, "correct")[0][0] == ("0+1", 3, 1, 2, 2)


# ---- what is refused, with its row

ONE = {"a": [1, 0]}
OLD = {"example_id": 1, "prompt": "p", "completion": []}
SHORT = {"columns": ["step", "prompt"], "data": [["1", "a"], ["1"]]}


def only(**wrong: Any) -> list[Row]:
    return [episode("p", 1.0, "g", "e") | wrong]


BAD: list[tuple[str, str, list[Row], list[str]]] = [
    (
        "columns of several lengths",
        "completions.jsonl",
        [swift("1", ONE), swift("2", ONE, advantages=[0])],
        ["row 2: advantages = [0]", "2 values"],
    ),
    ("no list", "c.jsonl", [swift("1", ONE, advantages=0)], ["row 1: advantages = 0"]),
    ("a step that is no number", "c.jsonl", [swift("one", ONE)], ["row 1: step = 'one'"]),
    ("no prompt", "c.jsonl", [swift("1", {"": [1, 0]})], ["row 1: prompt = ''"]),
    ("a short row of W&B", "t.table.json", [SHORT], ["t.table.json: row 2: ['1']", "2 values"]),
    (
        "columns of W&B twice",
        "t.table.json",
        [SHORT | {"columns": ["a", "a"]}],
        ["row 1: columns = ['a', 'a']"],
    ),
    ("an empty table of W&B", "t.table.json", [SHORT | {"data": []}], ["holds no row"]),
    (
        "tokens that are none",
        "o.jsonl",
        [rollout(1, 0, 1.0), rollout(1, 0, 1.0, prompt_tokens=["a"])],
        ["row 2: prompt_tokens = ['a']"],
    ),
    ("no tokens", "o.jsonl", [rollout(1, 0, 1.0, prompt_tokens=[])], ["row 1: prompt_tokens = []"]),
    ("no number", "o.jsonl", [rollout(1, 0, 1.0, prompt_idx="x")], ["row 1: prompt_idx = 'x'"]),
    (
        "a text for a reward",
        "o.jsonl",
        [rollout(1, 0, 1.0) | {"reward": "x"}],
        ["row 1: reward = 'x'"],
    ),
    (
        "a trace without a step",
        "t.jsonl",
        [trace("p", 1.0, policy_version=None)],
        ["row 1: no step"],
    ),
    ("traces that are none", "t.jsonl", only(traces=[3]), ["row 1: traces = 3"]),
    ("traces that are no list", "t.jsonl", only(traces={"a": 1}), ["row 1: traces = {'a': 1}"]),
    ("a group that is none", "t.jsonl", only(group="g"), ["row 1: group = 'g'"]),
    (
        "a text for a score",
        "t.jsonl",
        [episode("p", "x", "g", "e")],
        ["row 1: rewards: correct = {'score': 'x'"],
    ),
    (
        "an episode without a task",
        "t.jsonl",
        [*only(), {"id": "x", "traces": []}],
        ["row 2: no column 'task'"],
    ),
    ("a prompt that says nothing", "t.jsonl", [episode("", 1.0, "g", "e")], ["row 1: prompt = "]),
    (
        "a rollout without a reward",
        "step_1/r.jsonl",
        [OLD | {"reward": 1.0}, OLD],
        ["row 2: no column 'reward'"],
    ),
]


@pytest.mark.parametrize(("name", "rows", "says"), [pytest.param(*b[1:], id=b[0]) for b in BAD])
def test_a_bad_row_is_named_in_one_line(tmp_path, name, rows, says):
    refused(write(tmp_path / name, rows), *says)


def test_columns_of_nothing_name_all_that_can_be_read(tmp_path):
    says = ["TRL's", "ms-swift's", "verl's", "open-instruct's", "prime-rl's", "labelled pool"]
    refused(write(tmp_path / "x.jsonl", [{"q": 1}]), *says)


def test_a_parquet_of_verl_is_read_as_its_lines_are(tmp_path):
    pq.write_table(pa.Table.from_pylist([*verl(1), *verl(2, "r")]), tmp_path / "1.parquet")
    assert [g[:3] for g in read(tmp_path)[0]] == [("q", 1, 1), ("r", 2, 1)]
