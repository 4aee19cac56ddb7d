"""State inside verl's own checkpoints: a resumed run asks for the same rows as one that never
stopped."""

from __future__ import annotations

import pytest

from depo_rl.errors import StateMismatch
from world import BATCH, CURRICULUM, N_ROWS, resume, save, step, warm_up

FILTER = ("algorithm.filter_groups.enable=True", "algorithm.filter_groups.metric=acc")


def asked_later(trainer, n_steps):
    loop = trainer.agent_loop_manager
    loop.asked.clear()
    for _ in range(n_steps):
        step(trainer)
        loop.finish_held()
    return [row for rows in loop.asked for row in rows]


@pytest.mark.parametrize("mode", ["sync", "colocate_async", "separate_async"])
@pytest.mark.parametrize("extra", [(), FILTER], ids=["plain", "filter_groups"])
def test_resumed_equals_never_stopped(trainer_of, mode, extra):
    first = trainer_of(mode=mode, extra=(*CURRICULUM, *extra))
    if mode != "sync":
        warm_up(first)
    for _ in range(5):
        step(first)
    save(first)
    unbroken = asked_later(first, 4)
    second = trainer_of(mode=mode, extra=(*CURRICULUM, *extra))
    resume(second)
    assert asked_later(second, 4) == unbroken
    for trainer in (first, second):
        trainer.train_dataset.driver.join()
    ledgers = [
        trainer.train_dataset.driver.curriculum.state_dict()["ledger"]
        for trainer in (first, second)
    ]
    assert (
        ledgers[0]["count"] == ledgers[1]["count"]
        and ledgers[0]["in_flight"] == ledgers[1]["in_flight"]
    )


def test_the_fused_estimator_and_its_guard_resume(trainer_of):
    first = trainer_of(method="depo+", extra=())
    for _ in range(5):
        metrics = step(first)
    assert metrics["depo/guarded"] == 0 and metrics["depo/explored"] >= 0
    save(first)
    unbroken = asked_later(first, 4)
    second = trainer_of(method="depo+", extra=())
    resume(second)
    assert asked_later(second, 4) == unbroken


@pytest.mark.parametrize("mode", ["colocate_async", "separate_async"])
def test_what_was_being_rolled_out_is_issued_once_more_and_settled_once(trainer_of, mode):
    first = trainer_of(mode=mode)
    warm_up(first)
    for _ in range(3):
        step(first)
    loop = first.agent_loop_manager
    loop.hold = lambda row: row in sorted(loop.flying)[-2:]
    step(first)
    flying = set(loop.flying)
    assert len(flying) == 2
    save(first)
    second = trainer_of(mode=mode)
    resume(second)
    assert set(second.agent_loop_manager.asked[0]) == flying
    for _ in range(4):
        step(second)
    second.train_dataset.driver.join()
    counts = second.train_dataset.driver.curriculum.metrics()
    assert counts["duplicates"] == 0 and counts["failed"] == 0
    assert counts["chosen"] == counts["admitted"] + counts["rejected"] + counts["in_flight"]


def test_resume_at_the_end_of_an_epoch_and_beyond(trainer_of):
    first = trainer_of()
    for _ in range(N_ROWS // BATCH):
        step(first)
    save(first)
    unbroken = asked_later(first, 3)
    second = trainer_of()
    resume(second)
    assert asked_later(second, 3) == unbroken
    assert second.train_dataset.driver.curriculum.metrics()["chosen"] == N_ROWS + 3 * BATCH


def test_grpo_is_verl_s_own_order(trainer_of):
    ours = trainer_of(method="grpo", extra=())
    asked = asked_later(ours, N_ROWS // BATCH)
    stock = [int(i) for i in ours.train_dataloader.sampler]
    assert sorted(asked) == list(range(N_ROWS))
    ours.train_dataset.driver.join()
    assert ours.train_dataset.driver.curriculum.metrics()["admitted"] == N_ROWS
    assert len(stock) == N_ROWS


def test_a_checkpoint_of_another_run_is_refused(trainer_of, caplog):
    first = trainer_of()
    step(first)
    save(first)
    other = trainer_of(method="dapo", extra=FILTER)
    with pytest.raises(StateMismatch, match="method 'depo', this run has 'dapo'"):
        resume(other)
        step(other)


def test_a_checkpoint_without_a_curriculum_is_said(trainer_of, caplog):
    first = trainer_of()
    step(first)
    first.train_dataset.state_dict = dict
    save(first)
    second = trainer_of()
    resume(second)
    step(second)
    assert "holds no curriculum" in caplog.text


def test_the_outcome_log_of_a_resumed_run_is_that_of_an_unbroken_one(trainer_of, tmp_path):
    from depo_rl.outcomes import read_log

    first = trainer_of()
    for _ in range(3):
        step(first)
    save(first)
    for _ in range(2):
        step(first)
    first.train_dataset.driver.close()
    unbroken = [(row.key, row.step, row.n_correct) for row in read_log(tmp_path / "outcomes.jsonl")]
    second = trainer_of()
    resume(second)
    for _ in range(2):
        step(second)
    second.train_dataset.driver.close()
    assert [
        (row.key, row.step, row.n_correct) for row in read_log(tmp_path / "outcomes.jsonl")
    ] == unbroken
    assert len(unbroken) == 5 * BATCH
