"""A measure over the seeds of a method: median and extent, with what is only known as a bound told
apart."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from statistics import median
from typing import Literal

from .results import SourceAccuracy, forgotten_sources

Bound = Literal["=", ">", ">=", "<", "<="]

Observation = tuple[float, bool] | None
"""(value, whether the run was censored there), or None if it was not measured."""


@dataclass(frozen=True, slots=True)
class Spread:
    """A measure over the seeds of one method.

    median, low, high: None if no seed has it. bound, low_bound, high_bound: how the true value
    relates to each of them; "=" unless runs were censored. n: seeds that have it; censored: those
    of them known as a lower bound only; missing: seeds without it.
    """

    median: float | None = None
    low: float | None = None
    high: float | None = None
    bound: Bound = "="
    low_bound: Bound = "="
    high_bound: Bound = "="
    n: int = 0
    censored: int = 0
    missing: int = 0


@dataclass(frozen=True, slots=True)
class Ratio:
    """A method's median over a baseline's; value: None if it cannot be said, as when both are
    censored."""

    value: float | None = None
    bound: Bound = "="


@dataclass(frozen=True, slots=True)
class SourceSummary:
    """Accuracy on one source over the seeds of one method.

    start, end: in [0, 1]. change: end - start, in [-1, 1]. forgotten: seeds in which it fell by
    more than .01.
    """

    start: Spread
    end: Spread
    change: Spread
    forgotten: int


def spread_of(observations: Sequence[Observation]) -> Spread:
    """The spread of one method's observations.

    The true median lies between the median with every censored run just above where it stopped and
    the median with every censored run at infinity. Where the two agree it is exact; where a
    censored run is in the middle it is above.
    """
    known = sorted(o for o in observations if o is not None)
    if not known:
        return Spread(missing=len(observations))
    middle = known[(len(known) - 1) // 2 : len(known) // 2 + 1]
    lower = median(value for value, _ in known)
    upper = median(math.inf if censored else value for value, censored in known)
    (low, low_censored) = known[0]
    (high, high_censored) = known[-1]
    n_censored = sum(censored for _, censored in known)
    return Spread(
        median=lower,
        low=low,
        high=high,
        bound="=" if lower == upper else ">" if any(censored for _, censored in middle) else ">=",
        low_bound=">" if low_censored else "=",
        high_bound=">" if high_censored else ">=" if n_censored else "=",
        n=len(known),
        censored=n_censored,
        missing=len(observations) - len(known),
    )


def ratio_of(own: Spread, base: Spread) -> Ratio:
    """``own`` over ``base``; a lower bound over a number is a lower bound, a number over one an
    upper bound."""
    if own.median is None or not base.median or (own.bound != "=" and base.bound != "="):
        return Ratio()  # a baseline of 0 has no ratio either
    flipped: dict[Bound, Bound] = {"=": "=", ">": "<", ">=": "<="}
    return Ratio(own.median / base.median, flipped[base.bound] if base.bound != "=" else own.bound)


def difference(own: float | None, base: float | None) -> float | None:
    """own - base; None unless both are known."""
    return None if own is None or base is None else own - base


def sources_of(runs: Sequence[Mapping[str, SourceAccuracy]]) -> dict[str, SourceSummary]:
    """Each source over the seeds that measured it, in the order of the first run."""
    found = {}
    for source in dict.fromkeys(name for run in runs for name in run):
        known = [run[source] for run in runs if source in run]
        start, end, change = (
            spread_of(
                [None if (value := getattr(a, name)) is None else (value, False) for a in known]
            )
            for name in ("start", "end", "change")
        )
        found[source] = SourceSummary(
            start, end, change, sum(bool(forgotten_sources({source: a})) for a in known)
        )
    return found
