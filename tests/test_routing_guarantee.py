"""The promise of a threshold: kept in at least 95 % of draws, and not so loose as to be useless."""

from __future__ import annotations

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from depo_rl.errors import DataError
from depo_rl.routing.guarantee import (
    Labelled,
    Promise,
    broken,
    candidates,
    choose,
    promised_threshold,
    wins,
)

N_DRAWS = 1000
POPULATION = 100_000


def _population(seed: int = 0):
    """Queries of a logistic world, predicted with noise; expectations of both models' scores."""
    rng = np.random.default_rng(seed)
    ease = rng.normal(size=POPULATION)
    small = 1 / (1 + np.exp(-(ease + 0.5)))
    large = 1 / (1 + np.exp(-(ease + 1.7 + 0.5 * rng.normal(size=POPULATION))))
    gain = large - small + 0.08 * rng.normal(size=POPULATION)
    return gain[:, None], np.stack([small, large], 1)


def _margin(promise, threshold, gain, chance):
    """How much better than promised a threshold is, on the whole population."""
    chosen = choose(gain, threshold)
    if promise.kind == "budget":
        return promise.value - (chosen == 1).mean()
    routed = chance[np.arange(len(chance)), chosen].mean()
    large = chance[:, 1].mean()
    return routed - (
        promise.value * large if promise.kind == "quality" else large - promise.value / 100
    )


@pytest.mark.parametrize(
    ("promise", "n_rows", "at_least"),
    [
        (Promise("quality", 0.95), 1000, 0.5),
        (Promise("points", 3.0), 1000, 0.4),
        (Promise("budget", 0.3), 1000, 0.85),
    ],
)
def test_a_promise_holds_in_95_percent_of_1000_draws_and_is_of_use(promise, n_rows, at_least):
    gain, chance = _population()
    candidate_C = candidates(gain[:5000])
    margins = np.array([_margin(promise, c, gain, chance) for c in candidate_C.tolist()])
    kept = [float(c) for c, m in zip(candidate_C, margins, strict=True) if m >= 0]
    best = min(kept) if promise.kind == "budget" else max(kept)
    rng = np.random.default_rng(1)
    broken = 0
    moved = []
    for _ in range(N_DRAWS):
        row = rng.integers(5000, POPULATION, n_rows)
        score = (rng.random((n_rows, 2)) < chance[row]).astype(float)
        found = promised_threshold(promise, candidate_C, Labelled(gain[row], score))
        broken += margins[np.searchsorted(candidate_C, found)] < 0
        moved.append(float((gain <= found).mean()))
    share = (gain <= best).mean()
    use = (1 - np.mean(moved)) / (1 - share) if promise.kind == "budget" else np.mean(moved) / share
    assert broken / N_DRAWS <= 0.05
    assert use >= at_least


def test_the_simulation_can_fail():
    """A threshold chosen by the rows' own mean, without a bound, breaks the promise half the
    time."""
    gain, chance = _population()
    candidate_C = candidates(gain[:5000])
    margins = np.array(
        [_margin(Promise("quality", 0.95), c, gain, chance) for c in candidate_C.tolist()]
    )
    rng = np.random.default_rng(1)
    broken = 0
    for _ in range(50):
        row = rng.integers(5000, POPULATION, 1000)
        score = (rng.random((1000, 2)) < chance[row]).astype(float)
        means = [
            score[np.arange(1000), choose(gain[row], c)].mean() - 0.95 * score[:, 1].mean()
            for c in candidate_C.tolist()
        ]
        broken += margins[int(np.flatnonzero(np.array(means) >= 0).max())] < 0
    assert broken / 50 > 0.2


def test_betting_on_a_mean_of_nothing_wins_as_rarely_as_promised():
    rng = np.random.default_rng(0)
    for low, high in ((-1.0, 1.0), (-0.95, 0.05)):  # two points with mean 0
        up = -low / (high - low)
        margin = np.where(rng.random((4000, 300)) < up, high, low)
        assert wins(margin, -low, 0.95).mean() <= 0.05 + 3 * (0.05 * 0.95 / 4000) ** 0.5


def test_too_few_rows_are_refused_with_the_number_needed():
    gain, chance = _population()
    rng = np.random.default_rng(0)
    score = (rng.random((20, 2)) < chance[:20]).astype(float)
    with pytest.raises(DataError, match=r"20 labelled rows cannot promise quality 0.95 .* \d+ are"):
        promised_threshold(Promise("quality", 0.95), candidates(gain), Labelled(gain[:20], score))


def test_what_no_number_of_rows_can_promise_says_so():
    gain = np.linspace(-1, 1, 40)[:, None]
    score = np.tile([0.0, 1.0], (40, 1))
    rows = Labelled(gain, score)
    with pytest.raises(DataError, match="nor would more like them"):
        promised_threshold(Promise("quality", 0.99), np.array([0.5, np.inf]), rows)


def test_a_small_model_that_is_as_good_keeps_everything():
    gain = np.random.default_rng(0).normal(size=(500, 1))
    rows = Labelled(gain, np.ones((500, 2)))
    assert promised_threshold(Promise("quality", 0.95), candidates(gain), rows) == np.inf


@given(st.integers(1, 4), st.lists(st.floats(-2, 2), min_size=2, max_size=2))
def test_a_higher_threshold_never_chooses_a_dearer_model(n_cheaper, thresholds):
    gain = np.random.default_rng(0).normal(size=(50, n_cheaper))
    low, high = sorted(thresholds)
    assert (choose(gain, high) <= choose(gain, low)).all()
    assert (choose(gain, np.inf) == 0).all()
    assert (choose(gain, -np.inf) == n_cheaper).all()


def test_an_alarm_is_rare_while_the_promise_is_kept_and_comes_once_it_is_not():
    gain, chance = _population()
    candidate_C = candidates(gain[:5000])
    rng = np.random.default_rng(2)
    for promise in (Promise("quality", 0.95), Promise("points", 3.0), Promise("budget", 0.3)):
        margins = [_margin(promise, c, gain, chance) for c in candidate_C.tolist()]
        barely = float(candidate_C[int(np.argmin([m if m >= 0 else 9 for m in margins]))])
        far = float(np.inf if promise.kind != "budget" else candidate_C[0])
        alarms = np.zeros(2)
        for _ in range(100):
            row = rng.integers(5000, POPULATION, 2000)
            score = (rng.random((2000, 2)) < chance[row]).astype(float)
            rows = Labelled(gain[row], score)
            alarms += [broken(promise, barely, rows), broken(promise, far, rows)]
        assert alarms[0] <= 10 and alarms[1] == 100
