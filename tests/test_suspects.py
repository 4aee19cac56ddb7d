"""Prompts whose verdicts are coin flips: found by their own groups, drawn less, never taken for
merely medium ones."""

from __future__ import annotations

import numpy as np
import pytest

from depo_rl import GroupOutcome, Prediction, Prompt
from depo_rl.config import FusedSettings
from depo_rl.estimators.fused import FusedEstimator
from depo_rl.selectors import MostLikelyMixed

LEVELS = {
    "one plus": 3.0,
    "long division of": 0.0,
    "the integral of": -3.0,
}  # logits of the pass rate at first


def _pool(n: int) -> tuple[list[Prompt], np.ndarray]:
    words = list(LEVELS)
    prompts = [Prompt(str(i), f"{words[i % 3]} {i}") for i in range(n)]
    return prompts, np.array([LEVELS[words[i % 3]] for i in range(n)])


def _after_visits(
    flaky: set[int], visits: int, seed: int, wrong: set[int] | None = None
) -> FusedEstimator:
    """Every prompt is visited ``visits`` times while the policy gets better; verdicts of the flaky
    are a coin's, of the wrong always "wrong"."""
    batch = 24
    prompts, logit_P = _pool(240)
    rng = np.random.default_rng(seed)
    logit_P = logit_P + rng.normal(0.0, 1.0, len(prompts))
    estimator = FusedEstimator(prompts, FusedSettings(n_buckets=2**10, n_random=0), 8, 0)
    order = np.concatenate([rng.permutation(len(prompts)) for _ in range(visits)]).reshape(
        -1, batch
    )
    for step, index in enumerate(order.tolist()):
        rate_P = 1.0 / (1.0 + np.exp(-(logit_P + 0.02 * step)))
        rate_P[list(flaky)] = 0.5
        rate_P[list(wrong or ())] = 0.0
        correct_P = rng.binomial(8, rate_P[index]).tolist()
        keys = [prompts[i].key for i in index]
        estimator.observe(
            [GroupOutcome(k, c, 8, policy_step=step) for k, c in zip(keys, correct_P, strict=True)]
        )
    return estimator


@pytest.mark.parametrize("seed", [0, 1, 2])
def test_suspects_are_flaky_and_most_flaky_ones_are_suspects(seed: int) -> None:
    flaky = set(np.random.default_rng(seed).choice(240, 24, replace=False).tolist())
    estimator = _after_visits(flaky, 20, seed)
    suspects = set(map(int, estimator.suspects()["coin_flips"]))
    assert len(suspects & flaky) / len(suspects) >= 0.8
    assert len(suspects & flaky) / len(flaky) >= 0.5
    assert estimator.metrics()["suspects"] == len(suspects)
    assert estimator.metrics()["flaky_share"] == pytest.approx(0.1, abs=0.05)


@pytest.mark.parametrize("seed", [0, 1, 2])
def test_what_is_wrong_whatever_is_answered_is_found_among_prompts_that_are_solved(
    seed: int,
) -> None:
    planted = np.random.default_rng(seed).choice(240, 48, replace=False)
    flaky, wrong = set(planted[:24].tolist()), set(planted[24:].tolist())
    estimator = _after_visits(flaky, 20, seed, wrong)
    found = {fault: set(map(int, keys)) for fault, keys in estimator.suspects().items()}
    assert len(found["never_right"] & wrong) / len(found["never_right"]) >= 0.8
    solved = {i for i in wrong if i % 3 < 2}  # the hardest third is not solved, with any answer
    assert len(found["never_right"] & solved) / len(solved) >= 0.3
    assert len(found["coin_flips"] & flaky) / len(flaky) >= 0.5
    assert not found["coin_flips"] & found["never_right"]
    assert estimator.metrics()["never_right"] == len(found["never_right"])


@pytest.mark.parametrize("seed", [0, 1])
def test_where_no_verdict_is_a_coins_hardly_anybody_is_suspected(seed: int) -> None:
    estimator = _after_visits(set(), 20, seed)
    assert sum(map(len, estimator.suspects().values())) <= 2
    assert estimator.metrics()["flaky_share"] < 0.03


def test_suspicion_goes_with_the_prediction_and_through_a_checkpoint() -> None:
    flaky = {0, 1, 2, 3, 4, 5}
    estimator = _after_visits(flaky, 15, 3)
    prompts, _ = _pool(240)
    told = estimator.predict(prompts)
    assert told.suspicion_P is not None
    assert told.suspicion_P[:6].mean() > 10 * told.suspicion_P[6:].mean()
    other = FusedEstimator(prompts, FusedSettings(n_buckets=2**10, n_random=0), 8, 0)
    other.load_state_dict(estimator.state_dict())
    assert np.array_equal(other.predict(prompts).suspicion_P, told.suspicion_P)


def test_what_is_suspected_is_drawn_less() -> None:
    candidates = [Prompt(str(i), str(i)) for i in range(40)]
    belief = Prediction(
        np.full(40, 0.5), np.full(40, 50.0), np.where(np.arange(40) < 20, 0.95, 0.0)
    )
    rng, chosen = np.random.default_rng(0), []
    for _ in range(200):
        chosen += MostLikelyMixed(8, 1.0).select(candidates, belief, 8, rng).chosen
    assert np.mean(np.array(chosen) < 20) == pytest.approx(0.05 / 1.05, abs=0.02)
    assert set(MostLikelyMixed(8).select(candidates, belief, 8, rng).chosen) <= set(range(20, 40))
