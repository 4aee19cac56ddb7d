"""End to end: the unmodified main_ppo with updates, weight sync and checkpoints; killed, resumed, and against GRPO."""

from __future__ import annotations

import json

import numpy as np
import pytest

import real_run as real

STEPS, SAVED_AT = 10, 5
DEPO = ("depo", "warmup_steps=2", "band=auto")

pytestmark = pytest.mark.timeout(420)


@pytest.fixture(scope="module")
def world(tmp_path_factory):
    folder = tmp_path_factory.mktemp("world")
    real.write_world(folder)
    return folder


def run_to_the_end(world, name, method, steps=STEPS):
    output = world / name
    output.mkdir(exist_ok=True)
    arguments = real.overrides(world, output, steps, SAVED_AT) + real.plumbing(*method)
    run = real.start(arguments, output / "log.txt")
    real.wait_for(run, output / "log.txt", 300)
    return output


@pytest.fixture(scope="module")
def unbroken(world):
    return run_to_the_end(world, "unbroken", DEPO)


def mixed_share(output, after=2):
    rows = [row for row in real.outcomes(output) if row["step"] > after]
    return float(np.mean([0 < row["n_correct"] < row["n_scored"] for row in rows]))


def logged(output):
    lines = [json.loads(line) for path in output.rglob("gsm8k.jsonl") for line in path.read_text().splitlines()]
    return [line.get("data", line) for line in lines]


def test_depo_trains_on_more_mixed_groups_than_grpo(world, unbroken):
    grpo = run_to_the_end(world, "grpo", ("grpo",))
    depo_share, grpo_share = mixed_share(unbroken), mixed_share(grpo)
    print(f"mixed share after the warm-up: depo {depo_share:.2f}, grpo {grpo_share:.2f}")
    assert depo_share > grpo_share + 0.2
    assert len(real.outcomes(grpo)) == len(real.outcomes(unbroken)) == STEPS * real.BATCH


def test_what_the_curriculum_adds_to_a_step_is_small(unbroken):
    steps = logged(unbroken)[1:]
    added = [sum(m[f"depo/seconds_{name}"] for name in ("selecting", "waiting", "reading")) for m in steps]
    whole = [m["timing_s/step"] for m in steps]
    print(f"seconds added to a step: median {np.median(added):.4f} of {np.median(whole):.2f}")
    assert np.median(added) < 0.1 * np.median(whole)


def test_sigkill_and_resume_give_the_rows_of_a_run_that_never_stopped(world, unbroken):
    output = world / "killed"
    output.mkdir()
    arguments = real.overrides(world, output, STEPS, SAVED_AT) + real.plumbing(*DEPO)
    run = real.start(arguments, output / "log.txt")
    try:
        beyond = (SAVED_AT + 1) * real.BATCH
        real.wait_until(lambda: len(real.outcomes(output)) >= beyond, run, output / "log.txt", 300)
    finally:
        real.stop(run)  # SIGKILL, the driver and all of its Ray
    assert (output / "latest_checkpointed_iteration.txt").read_text() == str(SAVED_AT)
    run_to_the_end(world, "killed", DEPO)

    def rows(folder):
        return [(row["step"], row["key"], row["n_correct"], row["chosen_because"]) for row in real.outcomes(folder)]

    assert sorted(rows(output)) == sorted(rows(unbroken))
    assert len(rows(output)) == STEPS * real.BATCH
