"""Choice and feedback in all three modes of verl's V1 trainer, everything real but the agent loop."""

from __future__ import annotations

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
