"""Importance weights: what was drawn more often than under uniform choice counts less.

A group that was ``inclusion`` times likelier to be in the batch than under uniform choice counts 1
/ inclusion, so that the batch stands for the whole pool again: the expected gradient is that of
uniform choice, whatever was preferred (Horvitz and Thompson, Journal of the American Statistical
Association 47, 1952). Its variance is lower where what is drawn more often has the larger
gradients, as at temperature 1; a sharper draw has a few large weights, which raise it, so there is
a cap. A power beta below 1 lies between the two gradients.
"""

from __future__ import annotations

import math
from collections.abc import Sequence


def importance_weight(inclusion: float, beta: float, cap: float | None) -> float:
    """What a group's advantages are multiplied by, > 0: (1 / inclusion)^beta, at most ``cap``
    (None: no cap).

    inclusion: > 0, as in ``types.Flight``; where it is unknown (NaN) the weight is 1. beta: in [0,
    1].
    """
    weight = 1.0 if math.isnan(inclusion) else inclusion**-beta
    return weight if cap is None else min(weight, cap)


def effective_share(weights: Sequence[float]) -> float:
    """Kish's effective sample size over the number of groups, in (0, 1], 1 for equal weights; NaN
    without any.

    A weighted batch of n groups is as good as n times that many of equal weight: (sum w)^2 / (n sum
    w^2).
    """
    squares = sum(weight * weight for weight in weights)
    return sum(weights) ** 2 / (len(weights) * squares) if squares else math.nan
