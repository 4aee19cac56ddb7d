"""The asynchronous modes of the unmodified main_ppo, killed and resumed.

What an asynchronous run trains on depends on what is finished first. Here that is the same each
time, by one of two paces of the rollout server:

slow: it answers one batch for each version of the weights, so that a checkpoint holds a batch of
prompts that are being rolled out, and verl issues them again.
ahead: each sample waits for all that is asked for, so that a checkpoint holds a batch of finished
groups.
"""

from __future__ import annotations

import pytest

import real_run as real

STEPS = 8
SAVED_AT = 4
KILLED_IN = 7
# What is sampled must not hang on the order in which a batch's samples are summed.
SMALL_STEPS = "actor_rollout_ref.actor.optim.lr=1e-7"
DEPO = ("depo", "warmup_steps=2", "band=auto")
PACES = {
    "slow": ("running", {"CPU_ROLLOUT_PER_VERSION": str(real.BATCH)}, []),
    "ahead": (
        "finished",
        {},
        [
            "trainer.v1.sampler.max_off_policy_threshold=1",
            "trainer.v1.sampler.max_off_policy_strategy=wait",
        ],
    ),
}

pytestmark = pytest.mark.slow


EXTENDED = pytest.mark.extended
ALONE = ["actor_rollout_ref.hybrid_engine=False"]  # the trainer's own GPUs roll nothing out


@pytest.mark.parametrize(
    ("mode", "pace", "updates", "more"),
    [
        ("colocate_async", "slow", 1, []),
        pytest.param("colocate_async", "ahead", 1, [], marks=EXTENDED),
        pytest.param("separate_async", "slow", 1, [], marks=EXTENDED),
        pytest.param("separate_async", "ahead", 2, [], marks=EXTENDED),
        pytest.param("separate_async", "slow", 1, ALONE, marks=EXTENDED, id="rollout-alone"),
    ],
)
def test_a_killed_run_goes_on_as_if_it_had_never_stopped(world, mode, pace, updates, more):
    """None lost, none doubled: what verl's queue holds is what the curriculum has in flight."""
    status, environment, waits = PACES[pace]
    if more == ALONE:
        environment = environment | {"VERL_LOGGING_LEVEL": "WARN"}  # verl fails in a log line else
    name = f"{mode}-{pace}-{len(more)}"
    modes = real.mode_overrides(mode, updates) + more
    ours = [*real.plumbing(*DEPO, mode=mode), *modes, *waits, SMALL_STEPS]
    runs = real.Runs(world)
    output = runs.output(name)
    try:
        runs.begin(name, ours, STEPS, SAVED_AT, **environment)
        runs.kill_in_step(name, KILLED_IN, SAVED_AT)
        assert real.n_told_right(output) > 0.75 * KILLED_IN * real.BATCH
        never_stopped = [row for row in real.rows(output) if row[0] <= KILLED_IN]
        in_flight = real.ledger(output, SAVED_AT)[1]
        assert real.queued(output, SAVED_AT) == [status] * real.BATCH == [status] * len(in_flight)

        runs.begin(name, ours, STEPS, SAVED_AT, **environment)
        runs.end(name)
    finally:
        runs.close()
    resumed = real.rows(output)
    assert resumed[: len(never_stopped)] == never_stopped
    assert [row[0] for row in resumed] == real.whole_steps(STEPS)
    assert {row[1] for row in resumed if row[0] == SAVED_AT + 1} == set(in_flight)
    counts, in_flight = real.ledger(output, STEPS)
    assert counts["chosen"] == counts["admitted"] + len(in_flight)
    assert counts["admitted"] == STEPS * real.BATCH
    assert len(real.queued(output, STEPS)) == len(in_flight) == real.BATCH
    assert counts["failed"] == counts["duplicates"] == counts["rejected"] == 0
