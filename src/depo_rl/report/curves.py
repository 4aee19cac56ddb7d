"""From runs to curves: seeds onto a common grid, bands, smoothing, bins merged. Plain numpy."""

from __future__ import annotations

import math
from collections.abc import Sequence
from typing import NamedTuple

import numpy as np

from ..types import FloatArray
from .results import ReliabilityBin, RunResult

Curve = tuple[FloatArray, FloatArray]
"""(x, y), both of shape (points,), x not decreasing."""

GRID = 200
BINS = 15  # as metrics.reliability makes them


class Band(NamedTuple):
    """Over the seeds at each x: median, lowest and highest; all of shape (points,)."""

    x: FloatArray
    median: FloatArray
    low: FloatArray
    high: FloatArray


def band(curves: Sequence[Curve]) -> Band | None:
    """Median and extent over the x that every curve covers; None if there is no such x.

    Nothing is extrapolated: a median over fewer seeds further out would jump where a seed ends.
    """
    curves = [(x, y) for x, y in curves if len(x)]
    if not curves:
        return None
    start = max(x[0] for x, _ in curves)
    end = min(x[-1] for x, _ in curves)
    if start > end:
        return None
    every = np.unique(np.concatenate([x for x, _ in curves]))
    own = every[(every >= start) & (every <= end)]
    x = own if len(own) <= GRID else np.linspace(start, end, GRID)
    y = np.stack([np.interp(x, cx, cy) for cx, cy in curves])
    return Band(x, np.median(y, axis=0), y.min(axis=0), y.max(axis=0))


def smooth(curve: Curve, window: int, keep_ends: bool = False) -> Curve:
    """Rolling mean over ``window`` points (odd), over fewer at both ends; unchanged for a window of
    1.

    keep_ends: as many points on either side everywhere, so that the first and the last point are as
    they were.
    """
    x, y = curve
    if window <= 1 or not len(y):
        return curve
    i = np.arange(len(y))
    before = np.minimum(window // 2, i)
    after = np.minimum(window // 2, len(y) - 1 - i)
    if keep_ends:
        before = after = np.minimum(before, after)
    total = np.concatenate([[0.0], np.cumsum(y)])
    first = i - before
    last = i + after + 1
    return x, (total[last] - total[first]) / (last - first)


def window_for(results: Sequence[RunResult]) -> int:
    """Points to average over: about a thirtieth of the longest history, odd, 1 for short ones."""
    longest = max((len(run.history or ()) for run in results), default=0)
    return 2 * (longest // 60) + 1


def evaluation_window(curve: Curve) -> int:
    """Evaluations to average over: about a sixth of them, odd, 1 for fewer than 15."""
    return 2 * (len(curve[0]) // 15) + 1


def as_curve(points: tuple[Sequence[float], Sequence[float]]) -> Curve:
    return np.asarray(points[0], dtype=np.float64), np.asarray(points[1], dtype=np.float64)


def accuracy_curve(run: RunResult, unit: str) -> Curve:
    """Accuracy against ``unit``: rollouts, tokens, seconds or step; steps not given are derived
    from the rollouts."""
    points = run.curve(unit)
    if unit != "step" or points[0]:
        return as_curve(points)
    rollouts, accuracies = as_curve(run.curve("rollouts"))
    steps, spent = as_curve(run.series("rollouts"))
    if len(steps):
        return np.interp(
            rollouts, np.concatenate([[0.0], spent]), np.concatenate([[0.0], steps])
        ), accuracies
    if run.steps and run.rollouts:
        return rollouts * run.steps / run.rollouts, accuracies
    return as_curve(([], []))


def merge_bins(runs: Sequence[RunResult]) -> list[ReliabilityBin]:
    """The reliability bins of several seeds as one: means weighted by counts."""
    merged: dict[int, list[ReliabilityBin]] = {}
    for run in runs:
        for row in run.reliability or ():
            if row.count:
                merged.setdefault(min(int(row.predicted * BINS), BINS - 1), []).append(row)
    result = []
    for _, rows in sorted(merged.items()):
        n = sum(row.count for row in rows)
        predicted, observed = (
            sum(getattr(r, k) * r.count for r in rows) / n for k in ("predicted", "observed")
        )
        result.append(
            ReliabilityBin(predicted=min(predicted, 1.0), observed=min(observed, 1.0), count=n)
        )
    return result


def wilson(successes: int, n: int, z: float = 1.96) -> tuple[float, float] | tuple[None, None]:
    """Wilson's score interval of a share, 95 % by default (E. B. Wilson, JASA 22, 1927); (None,
    None) for n = 0."""
    if n == 0:
        return None, None
    share = successes / n
    spread = z * z / n
    middle = (share + spread / 2) / (1 + spread)
    half = math.sqrt(spread * (share * (1 - share) + spread / 4)) / (1 + spread)
    return max(0.0, middle - half), min(1.0, middle + half)
