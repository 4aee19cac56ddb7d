"""What becomes of groups that verl drops, loses or never trains on: all are observed, none
leaks."""

from __future__ import annotations

import json
from collections import Counter

import numpy as np
import pytest

from world import BATCH, CURRICULUM, GROUP, RATES, step, warm_up

FILTER = ("algorithm.filter_groups.enable=True", "algorithm.filter_groups.metric=acc")
MODES = ("sync", "colocate_async", "separate_async")


def closed_log(trainer):
    trainer.train_dataset.driver.close()
    return trainer.train_dataset.driver._log_path.read_text().splitlines()


def settled(trainer):
    trainer.train_dataset.driver.join()
    return trainer.train_dataset.driver.curriculum.metrics()


def asked_once(trainer, rows):
    """Keys of those ``rows`` that verl did not roll out again later: with their only group gone,
    nothing is left."""
    asked = Counter(row for call in trainer.agent_loop_manager.asked for row in call)
    return {trainer.train_dataset.driver._table.key_of_row[row] for row in rows if asked[row] == 1}


@pytest.mark.parametrize("mode", MODES)
def test_filter_groups_works_without_any_sampler_kwargs_and_what_it_drops_is_learnt_from(
    trainer_of, mode
):
    trainer = trainer_of(mode=mode, method="dapo", extra=FILTER)
    if mode != "sync":
        warm_up(trainer)
    metrics = [step(trainer) for _ in range(6)]
    assert trainer.replay_buffer.filter_groups_metric == "acc"
    dropped = sum(m.get("training/filter_groups/evicted_samples", 0) for m in metrics)
    surplus = sum(m.get("training/filter_groups/discarded_surplus_samples", 0) for m in metrics)
    counts = settled(trainer)
    rolled_out = sum(trainer.agent_loop_manager.rolled_out.values())
    assert dropped > 0
    assert (
        counts["rejected"] == dropped if mode != "separate_async" else counts["rejected"] >= dropped
    )
    assert counts["admitted"] + counts["rejected"] + counts["in_flight"] == rolled_out
    assert counts["duplicates"] == 0
    if mode == "sync":
        assert counts["in_flight"] == 0 and counts["admitted"] == 6 * BATCH + surplus


@pytest.mark.parametrize("mode", MODES)
def test_any_method_may_choose_before_and_have_verl_filter_after(trainer_of, mode):
    """depo with gate dynamic: each batch is full of mixed groups, and more of what is chosen is
    mixed."""
    trainer = trainer_of(
        mode=mode, extra=(*CURRICULUM, *FILTER, "+data.depo.curriculum.gate=dynamic")
    )
    if mode != "sync":
        warm_up(trainer)
    for _ in range(12):
        step(trainer)
    counts = settled(trainer)
    assert counts["admitted"] >= 12 * BATCH and counts["rejected"] > 0 and counts["skipped"] > 0
    log = [json.loads(line) for line in closed_log(trainer)]
    trained = [row for row in log if row["admitted"]]  # a surplus of mixed ones is not
    assert all(0 < row["n_correct"] < GROUP for row in trained) and len(trained) >= 12 * BATCH
    assert {row["chosen_because"] for row in log} >= {"warmup", "selected"}
    assert (
        np.mean(
            [0 < row["n_correct"] < GROUP for row in log if row["chosen_because"] == "selected"]
        )
        > 0.375 + 0.1
    )


def test_dapo_without_its_gate_needs_no_filter(trainer_of):
    trainer = trainer_of(method="dapo", extra=["+data.depo.curriculum.gate=none"])
    for _ in range(3):
        step(trainer)
    counts = settled(trainer)
    assert counts["admitted"] == 3 * BATCH and counts["rejected"] == 0
    assert {row["inclusion"] for row in map(json.loads, closed_log(trainer))} == {1.0}


@pytest.mark.parametrize("mode", MODES)
def test_a_pool_that_teaches_nothing_does_not_filter_for_ever(trainer_of, mode):
    trainer = trainer_of(
        mode=mode, method="dapo", extra=(*FILTER, "+data.depo.curriculum.max_rounds=3")
    )
    trainer.agent_loop_manager.judge = lambda row, right: {"acc": 0.0}
    if mode != "sync":
        warm_up(trainer)
    step(trainer)
    counts = settled(trainer)
    assert 3 * BATCH <= counts["rejected"] <= 5 * BATCH


@pytest.mark.parametrize("mode", MODES)
def test_a_group_that_failed_counts_as_failed_and_may_come_again(trainer_of, mode):
    trainer = trainer_of(mode=mode)
    if mode != "sync":
        warm_up(trainer)
    lost: set[int] = set()
    loop = trainer.agent_loop_manager

    def dies_once(row):
        dies = row not in lost and len(lost) < 2
        lost.update({row} if dies else ())
        return dies

    loop.die = dies_once
    for _ in range(3):
        step(trainer)
    counts = settled(trainer)
    assert counts["failed"] == 2
    driver = trainer.train_dataset.driver
    assert not (driver.curriculum.in_flight - set(driver._queue)) & asked_once(trainer, lost)
    assert counts["chosen"] == counts["admitted"] + counts["failed"] + counts["in_flight"]


@pytest.mark.parametrize("mode", ["colocate_async", "separate_async"])
def test_stale_groups_are_dropped_by_verl_and_observed_by_us(trainer_of, mode):
    stale = (
        "trainer.v1.sampler.max_off_policy_threshold=2",
        "trainer.v1.sampler.max_off_policy_strategy=drop",
    )
    trainer = trainer_of(mode=mode, extra=(*CURRICULUM, *stale))
    loop = trainer.agent_loop_manager
    warm_up(trainer)
    loop.hold = lambda row: row in sorted(loop.flying)[:2]
    step(trainer)
    held = set(loop.flying)
    assert held
    loop.hold = lambda row: row in held
    for _ in range(3):
        step(trainer)
    loop.hold = lambda row: False
    loop.finish_held()
    metrics = step(trainer)
    assert metrics["training/off_policy/evicted_samples"] == len(held)
    counts = settled(trainer)
    assert counts["failed"] == 0 and counts["duplicates"] == 0
    assert counts["chosen"] == counts["admitted"] + counts["in_flight"]
    assert not set(trainer.train_dataset.driver._asked) & asked_once(trainer, held)


def test_validation_is_never_observed(trainer_of):
    import transfer_queue as tq
    from verl.utils import tensordict_utils as tu

    trainer = trainer_of()
    assert trainer.val_dataset.driver is None
    step(trainer)
    before = settled(trainer)
    batch_dict = next(iter(trainer.val_dataloader))
    assert "depo_row" not in batch_dict and "depo_row" not in batch_dict["extra_info"][0]
    batch_dict["uid"] = np.array(
        [f"val{i}" for i in range(len(batch_dict["raw_prompt"]))], dtype=object
    )
    batch = tu.get_tensordict(batch_dict)
    tu.assign_non_tensor_data(batch, "global_steps", 1)
    tu.assign_non_tensor_data(batch, "validate", True)
    tags = [{"is_prompt": True, "status": "pending", "global_steps": 1}] * len(batch)
    tq.kv_batch_put(keys=list(batch["uid"]), partition_id="val", tags=tags)
    trainer.agent_loop_manager.generate_sequences(batch)
    sampled, _ = trainer.replay_buffer.sample(
        global_steps=1, partition_id="val", batch_size=len(batch)
    )
    assert len(sampled.keys) == 8 * GROUP
    now = settled(trainer)
    for name in ("seconds_learning", "seconds_selecting"):
        before.pop(name), now.pop(name)
    assert {k: v for k, v in now.items() if v == v} == {k: v for k, v in before.items() if v == v}


@pytest.mark.parametrize("mode", MODES)
def test_a_row_may_ask_for_a_group_size_of_its_own(trainer_of, mode):
    trainer = trainer_of(mode=mode)
    driver = trainer.train_dataset.driver
    for prompt in driver._table.prompts:  # as if the data set had verl's column
        prompt.fields["__rollout_n__"] = 4 if prompt.source == "toy" else None
    if mode != "sync":
        warm_up(trainer)
    for _ in range(3):
        step(trainer)
    sizes = trainer.agent_loop_manager.sizes
    assert set(sizes) == {4, GROUP}
    driver.join()
    assert settled(trainer)["failed"] == 0
    driver.close()
    lines = (driver._log_path).read_text().splitlines()

    for row in map(json.loads, lines):
        assert (
            row["group_size"] == (4 if row["source"] == "toy" else GROUP) and row["n_failed"] == 0
        )


def test_outcomes_carry_correctness_not_the_shaped_reward(trainer_of):

    trainer = trainer_of()
    for _ in range(4):
        step(trainer)
    driver = trainer.train_dataset.driver
    driver.close()
    rows = [json.loads(line) for line in driver._log_path.read_text().splitlines()]
    assert len(rows) == 4 * BATCH
    for row in rows:
        rate = row["fields.pass_rate"]
        if rate in (0.0, 1.0):
            assert row["n_correct"] == rate * GROUP and row["reward_std"] > 0, (
                "shaped rewards differ in every group"
            )
        assert row["n_scored"] == GROUP and row["tokens"] == 5 * GROUP // 2
        assert row["mean_logprob"] == pytest.approx(-0.5)
    assert {row["step"] for row in rows} == {1, 2, 3, 4}
    assert any(rate in RATES for rate in (row["fields.pass_rate"] for row in rows))
