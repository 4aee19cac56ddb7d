"""A threshold on the predicted gain that keeps a promise, whatever the distribution of the queries.

Learn-then-Test (Angelopoulos, Bates, Candès, Jordan, Lei, "Learn then Test: calibrating predictive
algorithms to achieve risk control", arXiv 2110.01052): the candidates, from the threshold that
sends nearly all to the large model down to the one that keeps all on the small one, are tested in
that order (fixed-sequence testing), each against "it breaks the promise", until one test does not
reject. The last one rejected keeps the promise with probability at least ``confidence`` over the
draw of the labelled rows, provided that the candidates do not depend on those rows and that later
queries are drawn as the rows were; no model of the scores is assumed.

The test of a mean bets on it (Waudby-Smith, Ramdas, "Estimating means of bounded random variables
by betting", arXiv 2010.09686): wealth that starts at 1 and is multiplied by 1 + bet * margin for
each row is a supermartingale where the mean margin is at most 0, so that it ever exceeds 1 / (1 -
confidence) with probability at most 1 - confidence (Ville). The test of a share is the exact
binomial one.

Axes: ``_R`` labelled rows, ``_C`` candidates.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Literal, NamedTuple

import numpy as np
from numpy.typing import NDArray

from ..errors import DataError
from ..types import FloatArray

Kind = Literal["quality", "budget", "points"]
N_CANDIDATES = 200
_MOST_STAKED = 0.75  # of the wealth, on a row
_MOST_ROWS = 1 << 24  # beyond which no number of rows is named


class Promise(NamedTuple):
    """kind "quality": at least ``value`` of the large model's mean score; "points": at most
    ``value`` percentage points below it; "budget": at most ``value`` of the queries to the large
    model."""

    kind: Kind
    value: float
    confidence: float = 0.95


class Labelled(NamedTuple):
    """What a promise is tested on, models from the cheapest to the large one.

    gain_RK: predicted gain of the large model over each cheaper one, (R, M - 1). score_RM: in
    [0, 1].
    """

    gain_RK: FloatArray
    score_RM: FloatArray

    def __len__(self) -> int:
        return len(self.score_RM)

    def shuffled(self) -> Labelled:
        """In an order that has nothing to do with the file's, the same each time: the bets assume
        one."""
        order = np.random.default_rng(0).permutation(len(self))
        return Labelled(self.gain_RK[order], self.score_RM[order])

    def repeated(self, times: int) -> Labelled:
        return Labelled(np.tile(self.gain_RK, (times, 1)), np.tile(self.score_RM, (times, 1)))


def choose(gain_RK: FloatArray, threshold: float) -> NDArray[np.int64]:
    """The router's rule: position of the cheapest model over which the large one gains no more than
    ``threshold``, else the large one's, K. (R,)."""
    within = gain_RK <= threshold
    return np.asarray(np.where(within.any(1), within.argmax(1), gain_RK.shape[1]), np.int64)


def candidates(gain_PK: FloatArray) -> FloatArray:
    """Thresholds (C,), rising, from gains that were predicted for other queries than those that
    the promise is tested on."""
    inner = np.quantile(gain_PK, np.arange(1, N_CANDIDATES) / N_CANDIDATES)
    return np.unique(np.append(inner, np.inf))


def promised_threshold(promise: Promise, candidate_C: FloatArray, rows: Labelled) -> float:
    """The threshold that keeps the promise and asks least of the large model; for a budget, the one
    that asks most of it. ``inf`` leaves it nothing.

    Raises DataError, saying about how many rows are needed, if there are too few to promise
    anything; and if more would not help, saying so.
    """
    test = _keeps_budget if promise.kind == "budget" else _keeps_quality
    ordered = candidate_C[::-1] if promise.kind == "budget" else candidate_C
    kept = float("nan")
    for threshold in ordered.tolist():
        if not test(promise, threshold, rows):
            break
        kept = threshold
    if np.isnan(kept):
        raise DataError(_refusal(promise, float(ordered[0]), rows, test))
    return kept


def _keeps_quality(promise: Promise, threshold: float, rows: Labelled) -> bool:
    margin_R = _margins(promise, threshold, rows)
    return bool(wins(margin_R[None], _reach(promise), promise.confidence)[0])


def broken(promise: Promise, threshold: float, rows: Labelled) -> bool:
    """Whether rows in the order in which they came show that the promise is not kept any more.

    The same bets, laid on the opposite: while the promise is kept, this is true of all rows up to
    any moment, however often one looks, with probability at most 1 - confidence.
    """
    margin_R = -_margins(promise, threshold, rows)
    return bool(wins(margin_R[None], 1.0 + _slack(promise), promise.confidence)[0])


def _margins(promise: Promise, threshold: float, rows: Labelled) -> FloatArray:
    """How much better than promised each row turned out, (R,); the promise is a mean of 0 or
    more."""
    chosen_R = choose(rows.gain_RK, threshold)
    if promise.kind == "budget":
        sent_R: FloatArray = (chosen_R == rows.gain_RK.shape[1]).astype(np.float64)
        return promise.value - sent_R
    routed_R = rows.score_RM[np.arange(len(rows)), chosen_R]
    margin_R: FloatArray = routed_R - _share(promise) * rows.score_RM[:, -1] + _slack(promise)
    return margin_R


def _share(promise: Promise) -> float:
    return promise.value if promise.kind == "quality" else 1.0


def _slack(promise: Promise) -> float:
    return promise.value / 100 if promise.kind == "points" else 0.0


def _reach(promise: Promise) -> float:
    """No margin of a promise of quality is below minus this."""
    return _share(promise) - _slack(promise)


def wins(margin_BR: FloatArray, lowest: float, confidence: float) -> NDArray[np.bool_]:
    """Whether betting on a positive mean ever makes 1 / (1 - confidence) of 1; (B,) for B samples
    at once.

    lowest: every margin is at least -lowest, > 0. The bet on a row depends on earlier rows only.
    Where the mean is at most 0 it wins with probability at most 1 - confidence.
    """
    n = margin_BR.shape[1]
    seen = np.arange(1, n + 1)
    # One made-up row of middling spread stands before the first.
    mean = np.cumsum(margin_BR, 1) / (seen + 1)
    spread = (0.25 * lowest**2 + np.cumsum((margin_BR - mean) ** 2, 1)) / (seen + 1)
    before = np.concatenate([np.full((len(spread), 1), 0.25 * lowest**2), spread[:, :-1]], 1)
    aim = np.log(1 / (1 - confidence))
    bet = np.minimum(np.sqrt(2 * aim / (n * before)), _MOST_STAKED / lowest)
    wealth = np.cumsum(np.log1p(bet * margin_BR), 1)
    return np.asarray(wealth.max(1, initial=-np.inf) >= aim)


def _keeps_budget(promise: Promise, threshold: float, rows: Labelled) -> bool:
    from scipy.stats import binom

    sent = int((choose(rows.gain_RK, threshold) == rows.gain_RK.shape[1]).sum())
    return bool(binom.cdf(sent, len(rows), promise.value) <= 1 - promise.confidence)


def _refusal(
    promise: Promise,
    threshold: float,
    rows: Labelled,
    test: Callable[[Promise, float, Labelled], bool],
) -> str:
    """How many rows like these would do, found by repeating them."""
    n = len(rows)
    times = 2
    while times * n <= _MOST_ROWS and not test(promise, threshold, rows.repeated(times)):
        times *= 2
    what = f"{n} labelled rows cannot promise {promise.kind} {promise.value:g} with confidence {promise.confidence:g}"
    if times * n > _MOST_ROWS:
        return f"{what}, nor would more like them: ask for less"
    return f"{what}: about {times * n} are needed"
