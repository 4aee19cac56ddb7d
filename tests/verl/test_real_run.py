"""End to end: the unmodified main_ppo with updates, weight sync and checkpoints; killed, resumed,
and against GRPO."""

from __future__ import annotations

import json

import numpy as np
import pytest

import real_run as real

STEPS, SAVED_AT = 10, 5
DEPO = ("depo", "warmup_steps=2", "band=auto")

pytestmark = pytest.mark.slow


@pytest.fixture(scope="module")
def runs(world):
    """Runs "unbroken" and "grpo" to their end, and "killed" after SIGKILL at step 6 of 10 as well.

    Two at a time, for most of a run's time is its start.
    """
    runs = real.Runs(world)
    depo = real.plumbing(*DEPO)
    try:
        runs.begin("unbroken", depo, STEPS, SAVED_AT)
        runs.begin("killed", depo, STEPS, SAVED_AT)
        runs.kill_in_step("killed", SAVED_AT + 1, SAVED_AT)
        runs.begin("killed", depo, STEPS, SAVED_AT)
        runs.end("unbroken")
        runs.begin("grpo", real.plumbing("grpo"), STEPS, SAVED_AT)
        runs.end("killed")
        runs.end("grpo")
        yield runs
    finally:
        runs.close()


def mixed_share(output, after=2):
    rows = [row for row in real.outcomes(output) if row["step"] > after]
    return float(np.mean([0 < row["n_correct"] < row["n_scored"] for row in rows]))


def logged(output):
    lines = [
        json.loads(line)
        for path in output.rglob("gsm8k.jsonl")
        for line in path.read_text().splitlines()
    ]
    return [line.get("data", line) for line in lines]


def test_depo_trains_on_more_mixed_groups_than_grpo(runs):
    unbroken, grpo = runs.output("unbroken"), runs.output("grpo")
    depo_share, grpo_share = mixed_share(unbroken), mixed_share(grpo)
    print(f"mixed share after the warm-up: depo {depo_share:.2f}, grpo {grpo_share:.2f}")
    assert depo_share > grpo_share + 0.2
    assert len(real.outcomes(grpo)) == len(real.outcomes(unbroken)) == STEPS * real.BATCH


@pytest.mark.parametrize("name", ["unbroken", "grpo"])
def test_what_is_learnt_from_is_what_the_reward_function_said(runs, name):
    assert real.n_told_right(runs.output(name)) == STEPS * real.BATCH


def test_what_the_curriculum_adds_to_a_step_is_small(runs):
    steps = logged(runs.output("unbroken"))[1:]
    added = [
        sum(m[f"depo/seconds_{name}"] for name in ("selecting", "waiting", "reading"))
        for m in steps
    ]
    whole = [m["timing_s/step"] for m in steps]
    print(f"seconds added to a step: median {np.median(added):.4f} of {np.median(whole):.2f}")
    assert np.median(added) < 0.1 * np.median(whole)


def test_sigkill_and_resume_give_the_rows_of_a_run_that_never_stopped(runs):
    killed = real.rows(runs.output("killed"))
    assert killed == real.rows(runs.output("unbroken"))
    assert len(killed) == STEPS * real.BATCH


@pytest.mark.extended
def test_the_older_trainer_is_killed_and_goes_on_as_if_it_had_never_stopped(world):
    """trainer.use_v1=False: it saves before it tells of a batch, which is then in the outcome log.

    The last batch is never told: verl ends before it calls ``on_batch_end``.
    """
    steps, saved_at = 9, 4
    ours = [argument for argument in real.plumbing(*DEPO) if "sampler" not in argument]
    ours.append("trainer.use_v1=False")
    runs = real.Runs(world)
    output = runs.output("v0")
    try:
        runs.begin("v0", ours, steps, saved_at)
        runs.kill_in_step("v0", saved_at + 3, saved_at)
        assert real.n_told_right(output) > 0.75 * (saved_at + 3) * real.BATCH
        never_stopped = [row for row in real.rows(output) if row[0] <= saved_at + 3]
        runs.begin("v0", ours, steps, saved_at)
        runs.end("v0")
    finally:
        runs.close()
    resumed = real.rows(output)
    assert resumed[: len(never_stopped)] == never_stopped
    assert [row[0] for row in resumed] == real.whole_steps(steps - 1)
    assert all(row["n_scored"] == real.GROUP for row in real.outcomes(output))
    counts, in_flight = real.ledger(output, steps - 1)
    assert counts["failed"] == 0 and counts["admitted"] == (steps - 2) * real.BATCH
    assert len(in_flight) == real.BATCH, "of the batch that is told after the checkpoint"
    print(f"mixed share after the warm-up, older trainer: {mixed_share(output):.2f}")
    assert mixed_share(output) > 0.5


@pytest.mark.extended
def test_importance_reaches_the_advantages_that_the_actor_trains_on(world):
    """verl's own trainer finds the estimator in its registry and the weights of what it has just
    sampled."""
    steps = 6
    drawn = ("warmup_steps=1", "band=auto", "temperature=1", "importance=1")
    ours = [*real.plumbing("depo", *drawn), "algorithm.adv_estimator=depo_grpo"]
    runs = real.Runs(world)
    try:
        runs.begin("weighted", ours, steps, SAVED_AT)
        runs.end("weighted")
    finally:
        runs.close()
    output = runs.output("weighted")
    inclusion = {step: [] for step in range(1, steps + 1)}
    for row in real.outcomes(output):
        inclusion[row["step"]].append(row["inclusion"])
    told = [m["depo/importance_max"] for m in logged(output)]
    assert told == pytest.approx([min(1 / min(group), 5.0) for group in inclusion.values()])
    assert told[0] == 1.0 and max(told) > 1.0
