"""What a run came to: accuracy on the whole pool weighted by hand, shares and seconds from what was
logged."""

from __future__ import annotations

from types import SimpleNamespace

import numpy as np
import pytest

pytest.importorskip("trl")

from core_world import build, make_prompts, roll_out
from depo_rl.commands.evaluation import Evaluation, dead_share
from depo_rl.commands.recorder import Recorder
from depo_rl.commands.runs import trl_result
from depo_rl.outcomes import LogRow

WEIGHT = {"easy": 3.0, "hard": 1.0}


def test_sources_weigh_as_in_the_pool_not_as_in_the_evaluation():
    rates, sources = np.array([1.0, 0.5, 0.0, 0.5, 0.25, 0.25]), ["easy"] * 2 + ["hard"] * 4
    found = Evaluation.exact(rates, sources, WEIGHT)
    assert found.accuracy == {"easy": 0.75, "hard": 0.25}
    assert found.whole == (3 * 0.75 + 1 * 0.25) / 4
    right = {"easy": (1 + 1 - 0.5**8) / 2, "hard": (0 + 1 - 0.5**8 + 2 * (1 - 0.75**8)) / 4}
    assert found.pass_at_8 == pytest.approx(right)
    assert found.pass_at_8_whole == pytest.approx((3 * right["easy"] + right["hard"]) / 4)


def test_sampled_accuracies_have_no_pass_at_8():
    found = Evaluation({"a": 0.5}, {"a": 7.0})
    assert (found.whole, found.pass_at_8_whole) == (0.5, None)


def test_dead_groups_by_hand():
    assert dead_share(np.array([0.0, 1.0]), 8) == 1.0
    assert dead_share(np.array([0.5, 0.0]), 2) == (0.5 + 1.0) / 2


@pytest.mark.parametrize("weight", [{}, {"a": 1.0}, {"a": 1.0, "b": 1.0, "c": 1.0}])
def test_a_source_without_weight_is_refused(weight):
    with pytest.raises(ValueError, match="each source needs a weight"):
        Evaluation({"a": 0.1, "b": 0.2}, weight)
    with pytest.raises(ValueError, match="there must be one"):
        Evaluation({}, {})


def recorded(values, every=2, steps=4):
    """A recorder after ``steps`` steps of a trainer that only counts."""
    curriculum = build("grpo", make_prompts([40]))
    recorder = Recorder(lambda: next(values), every=every, target=0.6)
    state = SimpleNamespace(global_step=0)
    args = SimpleNamespace(
        seed=5, steps_per_generation=2, num_iterations=1, gradient_accumulation_steps=2
    )
    recorder.trainer = SimpleNamespace(
        completion_tokens_generated=0, curriculum=curriculum, state=state, args=args
    )
    recorder.on_train_begin(None, state, None)
    for step in range(1, steps + 1):
        curriculum.settle(roll_out(curriculum.propose(4), np.random.default_rng(step)))
        state.global_step = step
        recorder.on_step_end(None, state, None)
        recorder.on_log(None, state, None, {"depo/rollouts": 32 * step, "depo/distinct_share": 1.0})
    recorder.on_train_end(None, state, None)
    return recorder.result()


def test_a_recorder_keeps_start_and_end_of_each_source_and_the_series_between():
    def at(easy, hard):
        return Evaluation({"easy": easy, "hard": hard}, WEIGHT, {"easy": 1.0, "hard": 0.2})

    run = recorded(iter([at(0.5, 0.0), at(0.8, 0.1), at(0.48, 0.4)]), steps=3)
    assert [point.accuracy for point in run.accuracy] == pytest.approx([0.375, 0.625, 0.46])
    assert run.accuracy_whole == pytest.approx(0.46) and run.pass_at_8_whole == pytest.approx(0.8)
    assert {name: (a.start, a.end) for name, a in run.accuracy_by_source.items()} == {
        "easy": (0.5, 0.48),
        "hard": (0.0, 0.4),
    }
    assert run.forgotten == ["easy"]
    assert run.rollouts_to_target == 2 * 4 * 8  # by the whole pool, though it did not last
    assert run.series("accuracy_easy") == (
        [2, 3],
        [0.8, 0.48],
    )  # the last one after its step was logged
    assert run.series("distinct_share") == ([1, 2, 3], [1.0, 1.0, 1.0])
    assert (run.most_visits, run.unseen_share, run.sources_per_batch) == (1, 28 / 40, 1.0)


def test_one_number_says_nothing_of_sources():
    run = recorded(iter([0.1, 0.2, 0.3]))
    assert [point.accuracy for point in run.accuracy] == [0.1, 0.2, 0.3]
    assert (
        run.accuracy_whole is run.accuracy_by_source is run.forgotten is run.pass_at_8_whole is None
    )
    assert not any(name.startswith("accuracy_") for row in run.history for name in row)


def finished(log_history, **layout):
    """A trainer whose log is ``log_history``, after as many steps."""
    args = {
        "seed": 5,
        "steps_per_generation": 1,
        "num_iterations": 1,
        "gradient_accumulation_steps": 1,
    } | layout
    state = SimpleNamespace(global_step=len(log_history), log_history=log_history)
    curriculum = build("grpo", make_prompts([40]))
    return SimpleNamespace(
        completion_tokens_generated=7,
        curriculum=curriculum,
        state=state,
        args=SimpleNamespace(**args),
    )


def entry(step, rollouts, seconds, mixed):
    names = ("rollouts", "seconds_selecting", "mixed_share")
    values = (rollouts, seconds, mixed)
    return {"step": step} | {
        f"depo/{name}": value for name, value in zip(names, values, strict=True)
    }


@pytest.mark.parametrize(
    ("layout", "log", "seconds"),
    [
        ({}, [(1, 3.0), (2, 5.0)], 8.0),
        (
            {},
            [(2, 4.0), (4, 1.0)],
            2 * 4.0 + 2 * 1.0,
        ),  # logged every other step: means of two generations
        ({"steps_per_generation": 2}, [(1, 3.0), (3, 5.0)], 8.0),  # a generation lasts two steps
        ({"num_iterations": 2}, [(3, 3.0), (4, 0.0)], 6.0),
        (
            {"gradient_accumulation_steps": 2},
            [(1, 3.0), (2, 5.0)],
            2 * 3.0 + 2 * 5.0,
        ),  # two generations a step
    ],
)
def test_seconds_are_those_of_all_generations(layout, log, seconds):
    trainer = finished([entry(step, 8 * step, value, 0.5) for step, value in log], **layout)
    assert trl_result(trainer).seconds_selecting == seconds


def test_shares_weigh_by_rollouts_and_are_exact_where_there_is_an_outcome_log():
    trainer = finished(
        [entry(1, 10, 0.0, 1.0), entry(2, 40, 0.0, 0.5), {"step": 2, "train_loss": 0.1}]
    )
    assert trl_result(trainer).mixed_share == (10 * 1.0 + 30 * 0.5) / 40
    log = [LogRow("a", "a", "s", 1, 4, k, n, 4 - n) for k, n in ((2, 4), (4, 4), (0, 4), (0, 0))]
    run = trl_result(trainer, log)
    assert (run.mixed_share, run.all_pass_share, run.all_fail_share) == (1 / 3, 1 / 3, 1 / 3)
    empty = trl_result(finished([]))
    assert empty.mixed_share is empty.seconds_learning is empty.history is None
