"""Choice and feedback in all three modes of verl's V1 trainer, everything real but the agent
loop."""

from __future__ import annotations

import time

import pytest

from world import BATCH, can_teach, step, warm_up

MODES = ("sync", "colocate_async", "separate_async")


@pytest.mark.parametrize("mode", MODES)
def test_choice_moves_towards_what_can_teach(trainer_of, mode):
    trainer = trainer_of(mode=mode)
    if mode != "sync":
        warm_up(trainer)
    shares = [step(trainer)["depo/mixed_share"] for _ in range(30)]
    asked = [row for rows in trainer.agent_loop_manager.asked for row in rows]
    driver = trainer.train_dataset.driver
    driver.join()
    counts = driver.curriculum.metrics()
    in_flight = 0 if mode == "sync" else BATCH
    assert counts["chosen"] == len(asked) == 30 * BATCH + in_flight
    assert counts["in_flight"] == in_flight
    assert counts["admitted"] == 30 * BATCH and counts["failed"] == 0 and counts["duplicates"] == 0
    assert can_teach(asked[-40:]) > 0.375 + 0.2, "the share of such rows is 0.375"
    assert sum(shares[-10:]) > sum(shares[:10])


def test_groups_of_one_step_are_trained_on_in_the_order_they_were_chosen(trainer_of):
    """Half a batch a sample: which half depends on no hash, so that a resumed run takes the
    same."""
    trainer = trainer_of(mode="separate_async")
    warm_up(trainer)
    driver = trainer.train_dataset.driver
    finish = driver.finish
    samples = []

    def finish_and_note(groups, *args, **kwargs):
        samples.append(set(groups))
        return finish(groups, *args, **kwargs)

    driver.finish = finish_and_note
    for _ in range(4):
        step(trainer)
    asked = [row for rows in trainer.agent_loop_manager.asked for row in rows]
    assert samples == [set(asked[i : i + BATCH // 2]) for i in range(0, 4 * BATCH, BATCH // 2)]


def test_learning_is_off_the_critical_path_and_the_next_choice_waits_for_it(trainer_of):
    """An estimator that takes half a second to learn: ``sample`` does not wait, and an update hides
    it."""
    trainer = trainer_of(extra=["+data.depo.curriculum.warmup_steps=1"])
    driver = trainer.train_dataset.driver
    learn, learnt = driver.curriculum.estimator.inner.observe, []

    def slowly(outcomes):
        time.sleep(0.5)
        learn(outcomes)
        learnt.extend(outcomes)

    driver.curriculum.estimator.inner.observe = slowly
    step(trainer)
    assert not learnt, "a step is over before its groups are learnt"
    time.sleep(0.8)  # the actor's update
    assert len(learnt) == BATCH
    hidden = step(trainer)  # its own learning goes on, and nobody updates an actor meanwhile
    waited = step(trainer)
    assert hidden["depo/seconds_waiting"] < 0.1 and waited["depo/seconds_waiting"] > 0.3
    assert waited["depo/seconds_learning"] >= 0.5 and waited["depo/seconds_selecting"] < 0.3
    assert len(learnt) == 2 * BATCH
    driver.join()
