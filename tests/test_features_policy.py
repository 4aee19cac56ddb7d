"""The policy's states as features: kept as they were predicted with, standardised, resumed, refused
without any."""

from __future__ import annotations

import numpy as np
import pytest

from depo_rl import GroupOutcome, Prompt, make_curriculum
from depo_rl.checkpoint import load_state, save_state
from depo_rl.config import FusedSettings
from depo_rl.errors import ConfigError, StateMismatch
from depo_rl.estimators.fused import FusedEstimator
from depo_rl.features.experimental import policy
from depo_rl.features.experimental.policy import PolicyFeatures
from depo_rl.metrics import auc

SMALL = {"n_buckets": 2**10, "n_random": 16}
POOL = [Prompt(f"p{i}", "the same text for all") for i in range(400)]
# logit of the pass rate; in nothing but the states
SIGNAL = np.random.default_rng(5).standard_normal(len(POOL))


def states(prompts: list[Prompt], step: int = 0) -> np.ndarray:
    """One direction of 24 tells the pass rate; the rest is large, and changes with the policy."""
    index = [int(prompt.key[1:]) for prompt in prompts]
    rng = [np.random.default_rng([i, step]) for i in index]
    vectors = 5.0 + np.array([r.standard_normal(24) for r in rng])
    vectors[:, 7] = 4 * SIGNAL[index]
    return vectors.astype(np.float32)


def fused(width: int, told=states) -> FusedEstimator:
    made = FusedEstimator(
        POOL, FusedSettings.model_validate({**SMALL, "policy_features": width}), 8, seed=0
    )
    made.policy_states = told
    return made


def train(estimator: FusedEstimator, steps: range, judged: list | None = None) -> None:
    """Prompts are seen once each: there is no history to go by."""
    for step in steps:
        batch = POOL[20 * step : 20 * step + 20]
        rate_P = 1 / (1 + np.exp(-5 * SIGNAL[20 * step : 20 * step + 20]))
        p_mixed_P = estimator.predict(batch).p_mixed(8)
        counts_P = np.random.default_rng(step).binomial(8, rate_P)
        estimator.observe(
            [
                GroupOutcome(p.key, int(k), 8, policy_step=step)
                for p, k in zip(batch, counts_P, strict=True)
            ]
        )
        if judged is not None:
            judged += zip(p_mixed_P, (counts_P > 0) & (counts_P < 8), strict=True)


def test_states_tell_what_nothing_else_does():
    scores = {}
    for width in (0, 16):
        judged: list = []
        train(fused(width), range(20), judged)
        scores[width] = auc(*np.array(judged[100:], dtype=float).T)
    assert scores[16] > 0.7 and abs(scores[0] - 0.5) < 0.1


def test_the_heads_learn_from_the_features_that_were_predicted_with():
    now = [0]
    estimator = fused(8, lambda prompts: states(prompts, now[0]))
    estimator.predict(POOL[:20])
    predicted_with = estimator._policy.told(np.arange(20))
    estimator.predict(POOL[20:40])  # others are looked at meanwhile, and the policy moves on
    now[0] = 1
    estimator.observe([GroupOutcome(p.key, 3, 8, policy_step=1) for p in POOL[:10]])
    replay = estimator._heads.replay
    assert predicted_with.any() and (replay.policy_RF == predicted_with[:10]).all()
    estimator.predict(POOL[:10])
    estimator.observe([GroupOutcome(p.key, 3, 8, policy_step=2) for p in POOL[:5]])
    assert (replay.policy_RF[5:] == predicted_with[5:10]).all()
    assert (replay.policy_RF[:5] != predicted_with[:5]).any(axis=1).all(), (
        "a new group, the state as of then"
    )


def test_features_are_standardised_whatever_the_states_common_part():
    part = PolicyFeatures(FusedSettings(policy_features=12))
    for start in range(0, 400, 50):
        index = np.arange(start, start + 50)
        block = part.look(states, None, POOL[start : start + 50], index)
    assert (
        np.abs(block.mean(axis=0)).max() < 0.5
        and 0.6 < block.std(axis=0).min() <= block.std(axis=0).max() < 1.4
    )
    assert block.dtype == np.float16 and np.abs(block).max() <= 3


def test_without_features_no_state_is_asked_for():
    asked = []
    estimator = fused(0, lambda prompts: asked.append(len(prompts)) or states(prompts))
    train(estimator, range(3))
    assert asked == [] and len(estimator.predict(POOL[:20])) == 20
    train(fused(8, lambda prompts: asked.append(len(prompts)) or states(prompts)), range(3))
    assert asked, "with features it is"


@pytest.mark.parametrize(
    "vectors", [np.zeros((20, 4)), np.full((20, 4), np.nan), np.full((20, 4), 1e30)]
)
def test_states_that_tell_nothing_do_no_harm(vectors):
    estimator = fused(4, lambda prompts: vectors[: len(prompts)])
    train(estimator, range(3))
    assert estimator.predict(POOL[:20]).sanitised(20)[1] == 0


def test_resume_equals_never_stopped_with_prompts_in_flight(tmp_path):
    def begin(estimator: FusedEstimator) -> None:
        train(estimator, range(5))
        estimator.predict(POOL[300:320])

    def go_on(estimator: FusedEstimator) -> None:
        train(estimator, range(5, 8))
        estimator.observe([GroupOutcome(p.key, 5, 8, policy_step=9) for p in POOL[300:320]])

    whole, first, second = fused(8), fused(8), fused(8)
    begin(whole)
    go_on(whole)
    begin(first)
    save_state(tmp_path / "state", first.state_dict())
    second.load_state_dict(load_state(tmp_path / "state"))
    go_on(second)
    save_state(tmp_path / "whole", whole.state_dict())
    save_state(tmp_path / "second", second.state_dict())
    assert (tmp_path / "whole").read_bytes() == (tmp_path / "second").read_bytes()
    assert second._heads.replay.policy_RF[-20:].any(axis=1).all(), (
        "the states of before the save, not zeros"
    )


def test_a_state_of_other_features_or_another_model_is_refused():
    estimator = fused(8)
    train(estimator, range(2))
    state = estimator.state_dict()
    with pytest.raises(
        StateMismatch,
        match=r"policy_features 8, this estimator has 0: set estimator.policy_features",
    ):
        fused(0).load_state_dict(state)
    other = fused(8, lambda prompts: np.ones((len(prompts), 7)))
    other.load_state_dict(state)
    with pytest.raises(
        StateMismatch, match=r"states have 7 numbers, .* had 24: resume with the model"
    ) as error:
        other.predict(POOL[:2])
    assert "\n" not in str(error.value)


def test_an_engine_that_has_no_policy_says_so():
    prompts = [Prompt(f"p{i}", "x") for i in range(40)]
    estimator = {"type": "fused", **SMALL, "policy_features": 32}
    curriculum = make_curriculum("depo+", prompts, {"estimator": estimator})
    with pytest.raises(
        ConfigError, match=r"policy_features = 32: this engine has no policy .*TRL.*: set it to 0$"
    ) as error:
        curriculum.propose(4)
    assert "\n" not in str(error.value)
    assert curriculum.in_flight == frozenset()


def test_only_so_many_prompts_are_remembered(monkeypatch):
    monkeypatch.setattr(policy, "_REMEMBERED", 30)
    part = PolicyFeatures(FusedSettings(policy_features=4))
    for start in (0, 20, 0):  # the first ones are looked at again: the second ones are the older
        part.look(states, None, POOL[start : start + 20], np.arange(start, start + 20))
    assert len(part.state_dict()["index"]) == 30
    assert part.told(np.arange(20)).any(axis=1).all()
    assert part.told(np.arange(20, 40)).any(axis=1).sum() == 10
