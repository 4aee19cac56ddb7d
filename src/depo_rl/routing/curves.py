"""What a way to order queries is worth: quality against the share of queries that stay on the small
model.

Axes: ``_P`` queries, ``_B`` bootstrap draws.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import NamedTuple

import numpy as np
from numpy.typing import NDArray

from ..types import FloatArray

N_DRAWS = 1000
POINTS = (0.5, 1.0, 2.0, 5.0)
_COVERED = (2.5, 97.5)  # percent


class Estimate(NamedTuple):
    """A number and the interval that holds it with 95 % confidence (bootstrap over queries)."""

    value: float
    low: float
    high: float


def ranks(predicted_PM: FloatArray, score_PM: FloatArray) -> dict[str, FloatArray]:
    """What each rule keeps on the cheapest model first: ours, the paper's (its predicted success
    alone) and the oracle's (the true gain)."""
    return {
        "": predicted_PM[:, -1] - predicted_PM[:, 0],
        "paper_rule_": -predicted_PM[:, 0],
        "oracle_": score_PM[:, -1] - score_PM[:, 0],
    }


def curve(
    rank_P: FloatArray, small_P: FloatArray, large_P: FloatArray
) -> tuple[FloatArray, FloatArray]:
    """Share on the small model and mean quality, each (P + 1,), from all on the large one to all on
    the small one. rank_P: those with the lowest stay on the small model first."""
    order = np.argsort(rank_P, kind="stable")
    lost = np.concatenate([[0.0], np.cumsum((large_P - small_P)[order])])
    n = len(order)
    return np.arange(n + 1) / n, large_P.mean() - lost / n


def area(rank_P: FloatArray, small_P: FloatArray, large_P: FloatArray) -> Estimate:
    """Area under the recovered-gap curve: x is the share on the small model, y the share of the gap
    between always-small and always-large that is kept. Chance has 0.5; above 1 is possible, where
    the small model is the better one on some queries.

    NaN if the models are equally good: there is no gap.
    """
    return _interval(bootstrap_areas(rank_P, small_P, large_P))


def chance(small_P: FloatArray, large_P: FloatArray) -> Estimate:
    """The area of a random order, 0.5, and what luck alone makes of it."""
    rng = np.random.default_rng(1)
    drawn = [
        bootstrap_areas(rng.random(len(small_P)), small_P, large_P, n=1)[1] for _ in range(N_DRAWS)
    ]
    return Estimate(0.5, *np.percentile(drawn, _COVERED).tolist())


def share_within(
    rank_P: FloatArray, small_P: FloatArray, large_P: FloatArray, points: Sequence[float] = POINTS
) -> dict[str, float]:
    """For each number of percentage points, the largest share on the small model with a mean
    quality no further than that below always-large."""
    share, quality = curve(rank_P, small_P, large_P)
    return {
        f"{p:g}": float(share[quality >= large_P.mean() - p / 100 - 1e-12].max()) for p in points
    }


def bootstrap_areas(
    rank_P: FloatArray, small_P: FloatArray, large_P: FloatArray, n: int = N_DRAWS
) -> FloatArray:
    """The area on the queries as they are, then on n bootstrap draws of them, (1 + n,).

    A draw counts each query some times; the area is linear in those counts but for the total.
    """
    order = np.argsort(rank_P, kind="stable")
    gain_P = (large_P - small_P)[order]
    result = [_weighted_area(np.ones((1, len(order))), gain_P)]
    rng = np.random.default_rng(0)
    for at in range(0, n, 50):
        shape = (min(50, n - at), len(order))
        drawn = rng.integers(0, len(order), shape)
        count_BP = np.stack([np.bincount(row, minlength=len(order)) for row in drawn])
        result.append(_weighted_area(count_BP.astype(np.float64), gain_P))
    return np.concatenate(result)


def _weighted_area(count_BP: NDArray[np.float64], gain_P: FloatArray) -> FloatArray:
    total_B = count_BP.sum(1)
    gained_BP = count_BP * gain_P
    sent_B = gained_BP.sum(1)
    below_BP = np.cumsum(count_BP, 1) - count_BP / 2  # queries kept before the middle of this one
    kept_B = (gained_BP * below_BP).sum(1)
    with np.errstate(divide="ignore", invalid="ignore"):
        result: FloatArray = kept_B / (total_B * sent_B)
    return np.where(np.isfinite(result), result, np.nan)


def _interval(value_B: FloatArray) -> Estimate:
    drawn = value_B[1:][np.isfinite(value_B[1:])]
    if not np.isfinite(value_B[0]) or not len(drawn):
        return Estimate(float("nan"), float("nan"), float("nan"))
    return Estimate(float(value_B[0]), *np.percentile(drawn, _COVERED).tolist())
