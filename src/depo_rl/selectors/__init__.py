"""Selectors: which candidates are rolled out, given what the estimator says of them. One rule, one
small class.

Those here are stateless; one that keeps a history of its own is a ``types.Learner`` too and has a
file. Exploration, warm-up, the bound on candidates and the filling of a short batch are the
curriculum's, the same for all of them.
"""

from __future__ import annotations

import dataclasses
import sys
from collections.abc import Sequence

import numpy as np

from ..types import Decision, FloatArray, Prediction, Prompt

ALL = sys.maxsize  # candidates: as many as the curriculum allows (``candidate_factor``)
_LEAST = 1e-4  # P(teaches) of a prompt that is drawn: none is out of reach for good


class Uniform:
    """The next prompts in the order of the epoch: GRPO."""

    def appetite(self, n: int) -> int:
        return n

    def select(
        self, candidates: Sequence[Prompt], prediction: Prediction, n: int, rng: np.random.Generator
    ) -> Decision:
        return _decide(np.zeros(len(candidates)), list(range(len(candidates))), n, "surplus")


class PassRateWindow:
    """Prompts whose predicted pass rate lies in [low, high]: the paper's rule (arXiv 2602.06375).

    Candidates are taken in the order they were drawn; those outside rank by their distance to the
    window.
    """

    def __init__(self, low: float, high: float) -> None:
        self.low = low
        self.high = high

    def appetite(self, n: int) -> int:
        return n

    def select(
        self, candidates: Sequence[Prompt], prediction: Prediction, n: int, rng: np.random.Generator
    ) -> Decision:
        mean_P = prediction.mean_P
        distance_P = np.maximum(np.maximum(self.low - mean_P, mean_P - self.high), 0.0)
        inside = np.flatnonzero(distance_P == 0.0).tolist()
        decision = _decide(-distance_P, inside, n, "surplus")
        outside = {
            i: "too_hard" if mean_P[i] < self.low else "too_easy"
            for i in np.flatnonzero(distance_P > 0.0).tolist()
        }
        return Decision(decision.chosen, {**decision.skipped, **outside}, decision.score_P)


class MostLikelyMixed:
    """Prompts by their predicted probability of a mixed group for this G, of all candidates
    allowed.

    The window follows from theory instead of being a knob: P(teaches nothing) = P(all right) +
    P(all wrong) under the predicted Beta (depo_paper, "what theory says about the window").

    temperature: above 0 prompts are *drawn*, each with a probability in proportion to P(mixed)^(1 /
    temperature); at 0 the largest are taken. What is taken by an uncertain belief is what it
    overrates, and all else is forgotten.
    """

    def __init__(self, group_size: int, temperature: float = 0.0) -> None:
        self.group_size = group_size
        self.temperature = temperature

    def appetite(self, n: int) -> int:
        return ALL

    def select(
        self, candidates: Sequence[Prompt], prediction: Prediction, n: int, rng: np.random.Generator
    ) -> Decision:
        if self.temperature == 0.0:
            return best_ranked(prediction.p_teaches(self.group_size), n)
        return drawn_in_proportion(self.score(prediction), prediction.mean_P, n, rng)

    def score(self, prediction: Prediction) -> FloatArray:
        """What the probability of being drawn is in proportion to, shape (P,), > 0."""
        p_teaches_P = np.maximum(prediction.p_teaches(self.group_size), _LEAST)
        result_P: FloatArray = p_teaches_P ** (1.0 / self.temperature)
        return result_P


class NearestRate:
    """The prompts whose pass rate is nearest to ``target``, of all candidates allowed: MoPPS, BOTS,
    PCL.

    thompson: go by a sample of each predicted Beta in the place of its mean, which also tries what
    is uncertain.
    """

    def __init__(self, target: float, thompson: bool) -> None:
        self.target = target
        self.thompson = thompson

    def appetite(self, n: int) -> int:
        return ALL

    def select(
        self, candidates: Sequence[Prompt], prediction: Prediction, n: int, rng: np.random.Generator
    ) -> Decision:
        rate_P = prediction.mean_P
        if self.thompson:
            rate_P = rng.beta(
                rate_P * prediction.strength_P, (1.0 - rate_P) * prediction.strength_P
            )
        return best_ranked(-np.abs(rate_P - self.target), n)


def best_ranked(score_P: FloatArray, n: int) -> Decision:
    """The ``n`` candidates with the largest scores; ties keep the order of the draw, which is
    random."""
    return _decide(score_P, np.argsort(-score_P, kind="stable").tolist(), n, "outranked")


def drawn_in_proportion(
    score_P: FloatArray, along_P: FloatArray, n: int, rng: np.random.Generator
) -> Decision:
    """``n`` candidates, each with probability min(1, score / threshold), exactly: systematic
    sampling (Madow 1949).

    score_P: shape (P,), > 0. along_P: shape (P,), what the candidates are walked along: neighbours
    hardly come together, so that each draw covers the whole range.
    """
    if n >= len(score_P):
        return dataclasses.replace(
            best_ranked(score_P, n), threshold=float(score_P.min(initial=1.0))
        )
    if n == 0:
        return best_ranked(score_P, 0)
    threshold = _threshold(score_P, n)
    order = np.lexsort((rng.random(len(score_P)), along_P))
    walked_P = np.cumsum(np.minimum(score_P[order] / threshold, 1.0))
    walked_P *= n / walked_P[-1]  # it is n but for rounding
    stride_P = np.floor(walked_P + rng.uniform(0.0, 1.0 - 1e-9))
    chosen = order[np.flatnonzero(np.diff(stride_P, prepend=0.0))]
    left = np.setdiff1d(np.arange(len(score_P)), chosen).tolist()
    return Decision(
        tuple(chosen.tolist()), dict.fromkeys(left, "not_drawn"), score_P, threshold=threshold
    )


def _threshold(score_P: FloatArray, n: int) -> float:
    """The one at which the probabilities min(1, score / threshold) add up to ``n``, which is below
    their number."""
    falling_P = -np.sort(-score_P)
    rest_P = np.cumsum(falling_P[::-1])[::-1]  # of each and all smaller ones
    for certain in range(n):
        threshold = rest_P[certain] / (n - certain)
        if falling_P[certain] <= threshold:
            break
    return float(threshold)


def keep_at_random(
    keep_P: FloatArray, reasons: Sequence[str], n: int, rng: np.random.Generator
) -> Decision:
    """Each candidate, in the order of the draw, with its probability; ``reasons``: why each would
    be skipped."""
    kept_P = rng.random(len(keep_P)) < keep_P
    # the kept rank first
    decision = _decide(keep_P + kept_P, np.flatnonzero(kept_P).tolist(), n, "surplus")
    dropped = {i: reasons[i] for i in np.flatnonzero(~kept_P).tolist()}
    return Decision(decision.chosen, {**decision.skipped, **dropped}, decision.score_P)


def _decide(score_P: FloatArray, ranked: list[int], n: int, reason: str) -> Decision:
    """The first ``n`` of ``ranked`` are chosen; the rest of ``ranked`` is skipped for
    ``reason``."""
    return Decision(tuple(ranked[:n]), dict.fromkeys(ranked[n:], reason), score_P)
