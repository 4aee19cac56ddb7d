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
def test_the_older_trainer_chooses_and_learns(world):
    """trainer.use_v1=False: the last batch is not fed back, for verl ends before it calls
    ``on_batch_end``."""
    output, steps = world / "v0", 8
    output.mkdir()
    ours = [argument for argument in real.plumbing(*DEPO) if "sampler" not in argument]
    arguments = real.overrides(world, output, steps, SAVED_AT) + ours + ["trainer.use_v1=False"]
    run = real.start(arguments, output / "log.txt")
    real.wait_for(run, output / "log.txt")
    found = real.outcomes(output)
    assert len(found) == (steps - 1) * real.BATCH and all(
        row["n_scored"] == real.GROUP for row in found
    )
    print(f"mixed share after the warm-up, older trainer: {mixed_share(output):.2f}")
    assert mixed_share(output) > 0.5


@pytest.mark.extended
def test_importance_reaches_the_advantages_that_the_actor_trains_on(world):
    """verl's own trainer finds the estimator in its registry and the weights of what it has just
    sampled."""
    output, steps = world / "weighted", 6
    output.mkdir()
    drawn = ("warmup_steps=1", "band=auto", "temperature=1", "importance=1")
    arguments = real.overrides(world, output, steps, SAVED_AT) + real.plumbing("depo", *drawn)
    run = real.start([*arguments, "algorithm.adv_estimator=depo_grpo"], output / "log.txt")
    real.wait_for(run, output / "log.txt")
    inclusion = {step: [] for step in range(1, steps + 1)}
    for row in real.outcomes(output):
        inclusion[row["step"]].append(row["inclusion"])
    told = [m["depo/importance_max"] for m in logged(output)]
    assert told == pytest.approx([min(1 / min(group), 5.0) for group in inclusion.values()])
    assert told[0] == 1.0 and max(told) > 1.0
