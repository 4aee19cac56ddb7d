"""Importance weights through verl's real ``_compute_advantage``, out of its queue and back into
it."""

from __future__ import annotations

import json

import numpy as np
import pytest
import torch

from depo_rl.engines.verl import importance
from depo_rl.engines.verl.names import ADVANTAGES
from depo_rl.errors import EngineError
from world import BATCH, CURRICULUM, GROUP, warm_up

MODES = ("sync", "colocate_async", "separate_async")
OLD = "algorithm.rollout_correction.bypass_mode=True"  # old log-probabilities are the rollout's: no actor is here
DRAWN = (*CURRICULUM, OLD, "+data.depo.curriculum.band=auto", "+data.depo.curriculum.temperature=1")
WEIGHTED = (*DRAWN, "+data.depo.curriculum.importance=1", f"algorithm.adv_estimator={ADVANTAGES}")


def advantages(trainer, batch):
    """Of each completion of a sampled batch, by its key, as verl computes and stores them."""
    import transfer_queue as tq

    trainer._compute_old_log_prob(batch, {})
    trainer._compute_advantage(batch, {})
    data = tq.kv_batch_get(keys=batch.keys, partition_id="train", select_fields=["advantages"])
    return {
        key: float(tokens[0])
        for key, tokens in zip(batch.keys, data["advantages"].unbind(), strict=True)
    }


def steps(trainer, n):
    """(advantages of verl's own GRPO, those trained on, row of each uid, metrics) of each sample of
    ``n`` steps."""
    import transfer_queue as tq

    from depo_rl.engines.verl.feedback import row_of_uid

    seen = []
    for _ in range(n):
        trainer._add_batch_to_generate()
        for _ in range(trainer.parameter_sync_step):
            batch, metrics = trainer.replay_buffer.sample(
                global_steps=trainer.global_steps,
                partition_id="train",
                batch_size=BATCH // trainer.parameter_sync_step,
            )
            rows, weighted = row_of_uid(batch.keys, "train"), advantages(trainer, batch)
            trainer.config.algorithm.adv_estimator = "grpo"
            seen.append((advantages(trainer, batch), weighted, rows, metrics))
            trainer.config.algorithm.adv_estimator = ADVANTAGES
            tq.kv_clear(keys=batch.keys, partition_id="train")
        trainer.global_steps += 1
    return seen


def logged(trainer):
    """(step, row) -> the group's row of the outcome log."""
    driver = trainer.train_dataset.driver
    driver.close()
    table = driver._table
    lines = [json.loads(line) for line in driver._log_path.read_text().splitlines()]
    return {(line["step"], table.row_of[line["key"]]): line for line in lines}


@pytest.mark.parametrize("mode", MODES)
def test_advantages_are_those_of_grpo_times_the_weight_of_the_group(trainer_of, mode):
    trainer = trainer_of(mode=mode, extra=WEIGHTED)
    if mode != "sync":
        warm_up(trainer)
    seen = steps(trainer, 8)
    log, per_step, weights = logged(trainer), len(seen) // 8, []
    for i, (stock, weighted, rows, metrics) in enumerate(seen):
        of_sample = {
            uid: min(1 / log[1 + i // per_step, row]["inclusion"], 5.0) for uid, row in rows.items()
        }
        assert stock.keys() == weighted.keys() and len(rows) == BATCH // per_step
        for key, value in weighted.items():
            assert value == pytest.approx(stock[key] * of_sample[key.split("_")[0]], rel=1e-6)
        assert metrics["depo/importance_max"] == pytest.approx(max(of_sample.values()))
        assert 0 < metrics["depo/effective_share"] <= 1 + 1e-9
        weights += of_sample.values()
    assert len({round(weight, 9) for weight in weights}) > 4, "some were drawn"
    assert any(value for _, weighted, *_ in seen for value in weighted.values())


def test_at_zero_verl_s_own_grpo_is_untouched(trainer_of):
    trainer = trainer_of(extra=(*DRAWN, f"algorithm.adv_estimator={ADVANTAGES}"))
    for stock, weighted, _, metrics in steps(trainer, 4):
        assert stock == weighted and "depo/importance_max" not in metrics


def test_what_verl_pads_with_weighs_one_and_what_was_not_sampled_is_an_error():
    rewards, mask = torch.tensor([[0.0, 1.0], [0.0, 0.0], [0.0, 1.0], [0.0, 0.0]]), torch.ones(4, 2)
    try:
        importance.leave_weights({"a": 3.0})
        index = np.array(["a", "a", "pad7", "pad7"], dtype=object)
        weighted, _ = importance.weighted_grpo(rewards, mask, index)
        assert torch.equal(weighted[:2], 3.0 * weighted[2:])
        plain, _ = importance.weighted_grpo(
            rewards, mask, index, config={"norm_adv_by_std_in_grpo": False}
        )
        assert plain[:, 0].tolist() == [1.5, -1.5, 0.5, -0.5]
        with pytest.raises(EngineError, match=r"no importance weight for uid 'b'.*importance=0"):
            importance.weighted_grpo(rewards, mask, np.array(["a", "a", "b", "b"], dtype=object))
    finally:
        importance.leave_weights(None)


def test_several_outputs_of_a_session_are_refused():
    from depo_rl.engines.verl.feedback import row_of_uid

    with pytest.raises(
        EngineError, match=r"importance: a session .* several outputs.*: set it to 0"
    ):
        row_of_uid([f"u_{i}_{i}" for i in range(GROUP)], "train")
