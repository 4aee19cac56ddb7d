"""Curves and areas: against definitions written out, and where the answer is known."""

from __future__ import annotations

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from depo_rl.routing.curves import area, chance, curve, share_within


def _area_by_definition(rank, small, large):
    order = np.argsort(rank, kind="stable")
    gain = (large - small)[order]
    kept = np.array([gain[n:].sum() / gain.sum() for n in range(len(gain) + 1)])
    return ((kept[1:] + kept[:-1]) / 2).mean()


@given(st.integers(0, 10_000), st.integers(2, 40))
def test_the_area_is_that_under_the_curve(seed, n):
    rng = np.random.default_rng(seed)
    small = rng.random(n)
    large = small + rng.random(n) - 0.3
    rank = rng.integers(0, 5, n).astype(float)
    if abs((large - small).sum()) < 0.1:
        return
    expected = _area_by_definition(rank, small, large)
    assert area(rank, small, large).value == pytest.approx(expected)


def test_an_oracle_beats_chance_and_its_opposite_mirrors_it():
    rng = np.random.default_rng(0)
    small = (rng.random(400) < 0.4).astype(float)
    large = (rng.random(400) < 0.7).astype(float)
    best = area(large - small, small, large)
    worst = area(small - large, small, large)
    assert best.low > 0.85 and best.value + worst.value == pytest.approx(1.0)
    luck = chance(small, large)
    assert luck.value == 0.5 and luck.low < 0.5 < luck.high < best.value


def test_an_interval_holds_the_value_of_the_population_as_often_as_it_says():
    rng = np.random.default_rng(0)
    rank = rng.random(20_000)
    small = (rng.random(20_000) < 0.5).astype(float)
    large = (rng.random(20_000) < 0.5 + 0.4 * rank).astype(float)
    truth = area(rank, small, large).value
    held = 0
    for _ in range(60):
        row = rng.integers(0, 20_000, 400)
        found = area(rank[row], small[row], large[row])
        held += found.low <= truth <= found.high
    assert held >= 50


def test_equally_good_models_have_no_gap_and_no_area():
    same = np.ones(10)
    assert np.isnan(area(np.arange(10.0), same, same).value)


def test_the_share_within_some_points_is_the_last_place_where_quality_suffices():
    rank = np.arange(4.0)
    small = np.array([1.0, 0.0, 1.0, 0.0])
    large = np.array([1.0, 1.0, 1.0, 1.0])
    share, quality = curve(rank, small, large)
    assert share.tolist() == [0, 0.25, 0.5, 0.75, 1]
    assert quality.tolist() == [1, 1, 0.75, 0.75, 0.5]
    assert share_within(rank, small, large, (0.0, 25.0)) == {"0": 0.25, "25": 0.75}
