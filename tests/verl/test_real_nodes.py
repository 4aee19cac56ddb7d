"""The unmodified main_ppo on two Ray nodes, a worker of the trainer and a rollout server on each;
one of them is lost."""

from __future__ import annotations

import pytest

import real_run as real
from nodes import Cluster

STEPS = 8
SAVED_AT = 4
KILLED_IN = 6
DEPO = ("depo", "warmup_steps=2", "band=auto")
TWO_NODES = [
    "trainer.nnodes=2",
    # Where the queue is lost with a node, its clients try for ten minutes before the run ends.
    "+transfer_queue.backend.SimpleStorage.required_node_resource=head",
    f"actor_rollout_ref.actor.ppo_micro_batch_size_per_gpu={real.BATCH * real.GROUP // 2}",
    f"actor_rollout_ref.rollout.log_prob_micro_batch_size_per_gpu={real.BATCH * real.GROUP // 2}",
    # What is sampled must not hang on the order in which a batch's samples are summed.
    "actor_rollout_ref.actor.optim.lr=1e-7",
]

pytestmark = [pytest.mark.slow, pytest.mark.extended]


@pytest.fixture
def cluster(world):
    cluster = Cluster(world, real.environment(world / "nodes"))
    yield cluster
    cluster.close()


def gpu_node(cluster, name, head=False):
    """verl asks for one worker of the trainer on each of two nodes: a node has room for one."""
    return cluster.node(name, "--num-gpus=1", f'--resources={{"{name}": 1}}', head=head)


def test_a_node_is_lost_and_the_run_goes_on_with_another(cluster, world):
    gpu_node(cluster, "head", head=True)
    other = gpu_node(cluster, "other")
    cluster.wait_for_nodes("head", "other")
    runs = real.Runs(world, [f"+ray_kwargs.ray_init.address={cluster.address}"])
    ours = real.plumbing(*DEPO) + TWO_NODES
    output = runs.output("nodes")
    try:
        runs.begin("nodes", ours, STEPS, SAVED_AT)
        run = runs.alive["nodes"]
        real.wait_until(
            lambda: len(real.outcomes(output)) >= KILLED_IN * real.BATCH, run, runs.log("nodes")
        )
        real.stop(other)
        assert run.wait(real.HANG_S) != 0, "verl does not go on without a worker"
        assert real.n_told_right(output) > 0.75 * KILLED_IN * real.BATCH
        never_stopped = [row for row in real.rows(output) if row[0] <= KILLED_IN]

        gpu_node(cluster, "another")
        cluster.wait_for_nodes("head", "another")
        runs.begin("nodes", ours, STEPS, SAVED_AT)
        runs.end("nodes")
    finally:
        runs.close()
    resumed = real.rows(output)
    assert resumed[: len(never_stopped)] == never_stopped
    assert [row[0] for row in resumed] == real.whole_steps(STEPS)
    assert all(row["n_scored"] == real.GROUP for row in real.outcomes(output))
    counts, in_flight = real.ledger(output, STEPS)
    assert counts["chosen"] == counts["admitted"] == STEPS * real.BATCH and not in_flight
    for rank in (0, 1):
        assert (output / f"global_step_{STEPS}/actor/model_world_size_2_rank_{rank}.pt").exists()
