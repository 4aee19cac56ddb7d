"""Drawing instead of taking: inclusion probabilities are exact, stated, and carried to the
outcome."""

from __future__ import annotations

import math

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from core_world import FakeEstimator
from depo_rl import GroupOutcome, Prediction, Prompt, make_curriculum
from depo_rl.errors import ConfigError
from depo_rl.selectors import MostLikelyMixed, drawn_in_proportion

SCORES = st.lists(st.floats(1e-4, 1.0), min_size=1, max_size=60)


@given(SCORES, st.data())
def test_a_draw_has_as_many_as_asked_for_and_probabilities_that_add_up_to_it(
    scores: list[float], data
) -> None:
    score_P = np.array(scores)
    n = data.draw(st.integers(0, len(scores)))
    along_P = np.array(
        data.draw(st.lists(st.floats(0, 1), min_size=len(scores), max_size=len(scores)))
    )
    decision = drawn_in_proportion(
        score_P, along_P, n, np.random.default_rng(data.draw(st.integers(0, 99)))
    )
    assert len(set(decision.chosen)) == len(decision.chosen) == n
    assert set(decision.chosen) | set(decision.skipped) == set(range(len(scores)))
    if 0 < n < len(scores):
        chance_P = np.minimum(score_P / decision.threshold, 1.0)
        assert chance_P.sum() == pytest.approx(n)
        assert {i for i in range(len(scores)) if chance_P[i] == 1.0} <= set(decision.chosen)


def test_empirical_inclusion_is_the_stated_one() -> None:
    rng = np.random.default_rng(1)
    score_P = rng.uniform(0.01, 1.0, 40) ** 2
    along_P = rng.random(40)
    draws, count_P = 20_000, np.zeros(40)
    for _ in range(draws):
        decision = drawn_in_proportion(score_P, along_P, 10, rng)
        count_P[list(decision.chosen)] += 1
    chance_P = np.minimum(score_P / decision.threshold, 1.0)
    error_P = np.sqrt(chance_P * (1 - chance_P) / draws)
    assert np.all(np.abs(count_P / draws - chance_P) <= 4.5 * error_P + 1e-12)


def test_neighbours_along_the_walk_hardly_come_together() -> None:
    """Half of the candidates are wanted, all alike: one of each pair of neighbours, where chance
    would give any."""
    along_P = np.linspace(0.0, 1.0, 20)
    for seed in range(20):
        chosen = sorted(
            drawn_in_proportion(np.ones(20), along_P, 10, np.random.default_rng(seed)).chosen
        )
        assert [i // 2 for i in chosen] == list(range(10))


def test_temperature_goes_from_in_proportion_to_the_largest() -> None:
    belief = Prediction(np.linspace(0.05, 0.95, 64), np.full(64, 20.0))
    candidates = [Prompt(str(i), str(i)) for i in range(64)]
    p_mixed_P = belief.p_mixed(8)
    means = []
    for temperature in (1.0, 0.5, 0.1, 0.0):
        rng, selector = np.random.default_rng(0), MostLikelyMixed(8, temperature)
        chosen = [selector.select(candidates, belief, 8, rng).chosen for _ in range(200)]
        means.append(np.mean([p_mixed_P[list(c)].mean() for c in chosen]))
    assert means == sorted(means)
    assert means[-1] == pytest.approx(np.sort(p_mixed_P)[-8:].mean())


def _outcome(prompt: Prompt) -> GroupOutcome:
    return GroupOutcome(prompt.key, 4, 8)


@pytest.mark.parametrize("explore", [0.0, 0.25])
def test_the_mean_of_one_over_inclusion_is_one(explore: float) -> None:
    """What Horvitz and Thompson need: weighted by it, a chosen batch stands for the whole pool."""
    prompts = [Prompt(str(i), f"what is {i}?") for i in range(256)]
    settings = {
        "group_size": 8,
        "warmup_steps": 0,
        "explore": explore,
        "temperature": 1.0,
        "guard": False,
    }
    weights = []
    for seed in range(20):
        curriculum = make_curriculum("depo+", prompts, settings | {"seed": seed})
        fake = FakeEstimator(lambda prompt: 0.02 + 0.96 * int(prompt.key) / 255)
        curriculum.estimator = curriculum._learners["estimator"] = fake
        for _ in range(20):
            settled = curriculum.settle([_outcome(p) for p in curriculum.propose(16)])
            weights += [1.0 / s.inclusion for s in settled]
    assert np.mean(weights) == pytest.approx(1.0, abs=0.03)


def test_uniform_choices_have_inclusion_one_and_rules_that_do_not_draw_have_none() -> None:
    prompts = [Prompt(str(i), f"what is {i}?") for i in range(64)]
    uniform = make_curriculum("grpo", prompts)
    assert {s.inclusion for s in uniform.settle([_outcome(p) for p in uniform.propose(8)])} == {1.0}
    ranked = make_curriculum("mopps", prompts)
    assert all(
        math.isnan(s.inclusion) for s in ranked.settle([_outcome(p) for p in ranked.propose(8)])
    )
    warm = make_curriculum("depo+", prompts, {"temperature": 1.0, "warmup_steps": 2})
    assert {s.inclusion for s in warm.settle([_outcome(p) for p in warm.propose(8)])} == {1.0}


@pytest.mark.parametrize(
    ("n_correct", "least", "most"), [(4, 1.0, 2.0), (8, 3.0, 4.0)], ids=["alive", "dead"]
)
def test_candidate_factor_auto_follows_the_pool_and_falls_with_the_epochs(
    n_correct: int, least: float, most: float
) -> None:
    """Few candidates where most groups are mixed under uniform choice, many where few are, fewer
    each epoch."""
    prompts = [Prompt(str(i), f"what is {i}?") for i in range(64)]
    settings = {
        "group_size": 8,
        "warmup_steps": 1000,
        "estimator": {"n_buckets": 2**10, "n_random": 0},
    }
    curriculum = make_curriculum("depo+", prompts, settings)
    before = curriculum.candidate_factor
    assert before == pytest.approx(1.4 / 0.5)  # nothing is known: half of the groups
    factors = []
    for _ in range(40):
        batch = curriculum.propose(16)
        curriculum.settle([GroupOutcome(p.key, n_correct, 8) for p in batch])
        factors.append(curriculum.candidate_factor)
    assert least <= max(factors) <= most
    assert factors[-1] < max(factors) and factors[-1] > 1.0
    assert (
        make_curriculum("depo+", prompts, settings | {"candidate_factor": 3}).candidate_factor
        == 3.0
    )


@pytest.mark.parametrize("value", [0, -1, 2.5, "many", True, None])
def test_a_bad_candidate_factor_is_one_line(value: object) -> None:
    with pytest.raises(ConfigError, match=r"candidate_factor = .*or 'auto'") as error:
        make_curriculum("depo+", [Prompt("a", "a")], {"candidate_factor": value})
    assert "\n" not in str(error.value)
