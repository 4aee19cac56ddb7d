"""Which completions of a dump are one group: several of one prompt in a step, evaluation beside
training, repeats."""

from __future__ import annotations

import json
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Any

import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from depo_rl.outcomes.tables import GroupHistory, read_source

Row = dict[str, Any]


def write(path: Path, rows: list[Row]) -> Path:
    path.write_text("".join(json.dumps(row) + "\n" for row in rows))
    return path


def verl(text: str, right: int, of: int = 4, step: int = 1, uid: str | None = None, **more: Any):
    """The rows of a group: ``right`` of ``of`` completions correct."""
    told = {} if uid is None else {"uid": uid}
    return [
        {"input": text, "output": "x", "gts": "1", "score": float(i < right), "step": step}
        | {name: value.format(i=i) for name, value in told.items()}
        | more
        for i in range(of)
    ]


def groups(path: Path) -> tuple[list[tuple[int, int, int]], tuple[str, ...]]:
    """(step, right, of) of each group, and the notes."""
    source = read_source(path)
    assert isinstance(source, GroupHistory)
    found = [(r.step or 0, r.n_correct, r.group_size) for g in source.visits.values() for r in g]
    return sorted(found), source.notes


# ---- verl


@pytest.mark.parametrize("uid", ["g{j}_{{i}}_0", "6f1c_2_{j}_{{i}}_0", "{j}"], ids=repr)
def test_uid_tells_groups_of_one_question_apart(tmp_path, uid):
    rows = [
        row
        for j, right in enumerate((4, 0, 2))
        for row in verl("the only question", right, uid=uid.format(j=j))
    ]
    for order in (rows, rows[::2] + rows[1::2]):  # as balancing over ranks leaves them
        assert groups(write(tmp_path / "1.jsonl", order)) == (
            [(1, 0, 4), (1, 2, 4), (1, 4, 4)],
            (),
        )


@settings(max_examples=40, deadline=None)
@given(st.data())
def test_in_any_order_of_rows_groups_are_those_that_uid_tells(data):
    sizes = data.draw(st.lists(st.tuples(st.integers(1, 5), st.integers(1, 3)), min_size=2))
    truth = [(data.draw(st.integers(0, n)), n, step) for n, step in sizes]
    rows = [
        row
        for j, (right, n, step) in enumerate(truth)
        for row in verl("q", right, n, step, uid=f"{j}_{{i}}_0")
    ]
    with TemporaryDirectory() as folder:
        path = write(Path(folder) / "1.jsonl", data.draw(st.permutations(rows)))
        assert groups(path)[0] == sorted((step, right, n) for right, n, step in truth)


def test_groups_that_uid_tells_may_be_of_any_size_and_are_not_cut(tmp_path):
    rows = [
        *verl("a", 1, uid="a_{i}_0"),
        *verl("b", 2, uid="b_{i}_0"),
        *verl("c", 8, 8, uid="c_{i}_0"),
    ]
    found, notes = groups(write(tmp_path / "1.jsonl", rows))
    assert found == [(1, 1, 4), (1, 2, 4), (1, 8, 8)]
    assert len(notes) == 1 and "1 of 3 groups" in notes[0]


def test_of_a_session_with_several_outputs_the_last_is_judged_and_the_first_has_the_prompt(
    tmp_path,
):
    rows = [
        {"input": "q" + "!" * turn, "output": "x", "gts": "1", "score": float(turn), "step": 1}
        | {"uid": f"g_{session}_{turn}"}
        for session in range(4)
        for turn in range(session % 2 + 1)
    ]
    source = read_source(write(tmp_path / "1.jsonl", rows))
    assert isinstance(source, GroupHistory) and [p.text for p in source.prompts] == ["q"]
    found, notes = groups(tmp_path / "1.jsonl")
    assert found == [(1, 2, 4)] and "2 rows are earlier outputs" in notes[0]


def test_without_uid_answers_tell_questions_of_one_text_apart(tmp_path):
    rows = [
        *verl("<image>Find x.", 4, gts="12"),
        *verl("<image>Find x.", 0, gts=["7", "8"]),
        *verl("<image>Find x.", 1, step=2, gts="12"),
        *verl("q", 3),
    ]
    source = read_source(write(tmp_path / "1.jsonl", rows))
    assert isinstance(source, GroupHistory)
    seen = sorted(
        (p.text, [(r.step, r.n_correct) for r in source.visits[p.key]]) for p in source.prompts
    )
    assert seen == [
        ("<image>Find x.", [(1, 0)]),
        ("<image>Find x.", [(1, 4), (2, 1)]),
        ("q", [(1, 3)]),
    ]
    assert "1 questions have several answers" in source.notes[0]


def test_what_nothing_tells_apart_is_cut_in_order_and_said(tmp_path):
    rows = [*verl("a", 4), *verl("a", 0), *verl("b", 1), *verl("c", 2)]
    found, notes = groups(write(tmp_path / "1.jsonl", rows))
    assert found == [(1, 0, 4), (1, 1, 4), (1, 2, 4), (1, 4, 4)]
    assert len(notes) == 1 and "1 times a step has a question several times" in notes[0]


@pytest.mark.parametrize("uid", [{}, {"uid": "{i}"}], ids=["no uid", "a uid of each row's own"])
def test_one_question_a_step_is_one_group_and_the_doubt_is_said(tmp_path, uid):
    rows = [row for step in (1, 2) for row in verl("q", 3, 8, step, **uid)]
    found, notes = groups(write(tmp_path / "1.jsonl", rows))
    assert found == [(1, 3, 8), (2, 3, 8)]
    assert len(notes) == 1 and "taken as one" in notes[0]


# ---- TRL


def trl(step: int, *sizes: tuple[str, int, int], name: str = "") -> list[Row]:
    """A log: prompt, completions, how many are right."""
    return [
        {"step": step, "prompt": p, "completion": f"{name or step}-{p}-{i}", "math": float(i < k)}
        | {"advantage": (i < k) - k / n}
        for p, n, k in sizes
        for i in range(n)
    ]


def completions(folder: Path, *logs: list[Row]) -> Path:
    for rows in logs:
        path = folder / f"completions_{rows[0]['step']:05d}.parquet"
        pq.write_table(pa.Table.from_pylist(rows), path)
    return folder


TRAIN = [("a", 4, 1), ("b", 4, 2)], [("c", 4, 3), ("d", 4, 4)], [("e", 4, 0), ("f", 4, 1)]
OF_TRAINING = [(1, 1, 4), (1, 2, 4), (3, 3, 4), (3, 4, 4), (5, 0, 4), (5, 1, 4)]


@pytest.mark.parametrize(
    "evaluation",
    [
        [("u", 2, 1), ("v", 2, 0), ("w", 2, 1), ("x", 2, 0)],
        [("u", 8, 4)],
        [("u", 1, 1), ("v", 1, 0), ("w", 1, 1), ("x", 1, 0)],
        [("u", 4, 1), ("v", 4, 0)],  # as many as in training: its order tells it
    ],
    ids=["2 each", "8 each", "1 each", "as in training"],
)
def test_evaluation_that_replaces_a_step_s_log_is_left_out_and_said(tmp_path, evaluation):
    logs = [trl(step, *groups) for step, groups in zip((1, 3, 5), TRAIN, strict=True)]
    found, notes = groups(
        completions(tmp_path, *logs, trl(2, *evaluation), trl(4, *evaluation), trl(6, *evaluation))
    )
    assert found == OF_TRAINING
    assert len(notes) == 1 and "evaluation" in notes[0] and "steps 2, 4, 6" in notes[0]


@pytest.mark.parametrize("size", [2, 3, 4, 8])
def test_evaluation_behind_a_step_s_completions_is_left_out_and_said(tmp_path, size):
    evaluation = [("u", size, 1), ("v", size, 0)]
    logs = [
        trl(1, *TRAIN[0], ("x", 4, 2)),
        trl(2, *TRAIN[1], *evaluation),
        trl(3, *TRAIN[2], ("y", 4, 2)),
        trl(4, ("g", 4, 2), *evaluation),
    ]
    found, notes = groups(completions(tmp_path, *logs))
    trained = [(1, 1, 4), (1, 2, 4), (1, 2, 4), (2, 3, 4), (2, 4, 4)]
    assert found == [*trained, (3, 0, 4), (3, 1, 4), (3, 2, 4), (4, 2, 4)]
    assert len(notes) == 1 and "evaluation" in notes[0] and "steps 2, 4" in notes[0]


def test_a_group_that_evaluation_pushed_half_out_of_the_log_is_left_out_and_said(tmp_path):
    logs = [trl(1, *TRAIN[0]), trl(2, ("c", 2, 1), ("d", 4, 4), ("u", 2, 1)), trl(3, *TRAIN[2])]
    found, notes = groups(completions(tmp_path, *logs))
    assert found == [(1, 1, 4), (1, 2, 4), (2, 4, 4), (3, 0, 4), (3, 1, 4)]
    assert "2 groups of the dump have not 4 completions (2 of 2; step 2)" in notes[0]


def test_completions_that_evaluation_left_in_the_log_are_not_counted_twice(tmp_path):
    before = trl(1, *TRAIN[0])
    after = [row | {"step": 2} for row in before[4:]] + trl(2, ("u", 2, 1), ("v", 2, 0))
    found, notes = groups(completions(tmp_path, before, after, trl(3, *TRAIN[2])))
    assert found == [(1, 1, 4), (1, 2, 4), (3, 0, 4), (3, 1, 4)]
    assert "1 steps of the dump begin with completions of the step before" in notes[0]


def test_a_prompt_several_times_in_a_step_is_cut_in_order_and_said(tmp_path):
    rows = trl(1, ("a", 4, 0), ("b", 4, 2), ("c", 4, 4)) + trl(1, ("a", 4, 3), name="again")
    found, notes = groups(completions(tmp_path, rows))
    assert found == [(1, 0, 4), (1, 2, 4), (1, 3, 4), (1, 4, 4)]
    assert len(notes) == 1 and "1 times a step has a prompt more than once" in notes[0]


def test_training_that_returns_to_its_prompts_is_not_taken_for_evaluation(tmp_path):
    in_order = [TRAIN[i % 3] for i in range(7)]  # no shuffling
    shuffled = [[("a", 4, 1), ("b", 4, 2)], [("b", 4, 1), ("a", 4, 2)]] * 3
    for name, steps in (("in order", in_order), ("shuffled", shuffled)):
        (tmp_path / name).mkdir()
        logs = [trl(step, *each) for step, each in enumerate(steps, start=1)]
        found, notes = groups(completions(tmp_path / name, *logs))
        assert len(found) == 2 * len(steps) and notes == ()


def test_a_dump_of_evaluation_alone_is_read_with_a_doubt(tmp_path):
    evaluation = [("u", 2, 1), ("v", 2, 0)]
    found, notes = groups(completions(tmp_path, *(trl(step, *evaluation) for step in (1, 2, 3))))
    assert len(found) == 6
    assert len(notes) == 1 and "if that is evaluation" in notes[0]


@pytest.mark.parametrize("per_prompt", [2, 4], ids=["2 each", "as in training"])
def test_what_trl_logs_when_it_evaluates(tmp_path, per_prompt):
    from trl import GRPOConfig, GRPOTrainer

    import trl_toys as toys

    held_out = toys.dataset(40).select(range(32, 40))
    toys.caught(
        toys.run,
        tmp_path,
        cls=GRPOTrainer,
        config_cls=GRPOConfig,
        extra={"eval_dataset": held_out},
        log_completions=True,
        eval_strategy="steps",
        eval_steps=2,
        per_device_eval_batch_size=8,
        num_generations_eval=per_prompt,
        max_steps=5,
    )
    source = read_source(tmp_path)
    assert isinstance(source, GroupHistory)
    assert not {p.text for p in source.prompts} & set(held_out["prompt"])
    found, notes = groups(tmp_path)
    assert [(step, of) for step, _, of in found] == [(s, 4) for s in (1, 3) for _ in range(4)]
    assert len(notes) == 1 and "evaluation" in notes[0] and "steps 2, 4, 5" in notes[0]
