"""Filling a batch by a selector: a bounded search among candidates, and the best-ranked rest when
too few qualify."""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping, Sequence, Set
from typing import NamedTuple

import numpy as np

from .config import CurriculumConfig
from .protocols import Drawing, Selector
from .selectors import Uniform
from .types import Decision, Flight, Prediction, Prompt

WANTED = 1.4  # of candidate_factor "auto": mixed candidates per place
EPOCHS = 4.0  # of candidate_factor "auto": those after which half of what is above 1 is left

Draw = Callable[[int, Set[str]], list[Prompt]]
"""draw(k, seen): up to k further candidates whose keys are not in seen; fewer only if no more
exist."""


class Filled(NamedTuple):
    """flights: by key, in the order chosen. n_skipped: candidates looked at and not chosen.

    wasted_groups: how many of those would be expected to teach nothing, had they been rolled out.
    threshold: of a draw (``Decision``); None if the rule is none.
    """

    flights: dict[str, Flight]
    n_skipped: int
    wasted_groups: float
    threshold: float | None

    def included(self, selector: Selector, flights: Mapping[str, Flight]) -> dict[str, Flight]:
        """``flights``, the explored ones and those of this filling, with their inclusion."""
        if not isinstance(selector, Drawing) or self.threshold is None:
            all_explored = not self.flights
            inclusion = 1.0 if isinstance(selector, Uniform) or all_explored else math.nan
            return {key: flight._replace(inclusion=inclusion) for key, flight in flights.items()}
        belief = Prediction(*np.array([flight[1:4] for flight in flights.values()]).T)
        chance_P = np.minimum(selector.score(belief) / self.threshold, 1.0)
        n_seen = len(self.flights) + self.n_skipped
        explored = 1.0 - len(self.flights) / len(flights)  # share of the places, filled uniformly
        inclusion_P = explored + chance_P * n_seen / len(flights)
        rows = zip(flights.items(), inclusion_P.tolist(), strict=True)
        return {key: flight._replace(inclusion=inclusion) for (key, flight), inclusion in rows}


class _Rest(NamedTuple):
    score: float
    key: str
    flight: Flight
    p_dead: float


def fill(
    n: int,
    rule: tuple[Selector, str],
    draw: Draw,
    predict: Callable[[Sequence[Prompt]], Prediction],
    config: CurriculumConfig,
    factor: float,
    rng: np.random.Generator,
) -> Filled:
    """Flights for ``n`` prompts (fewer only if no more are free), after at most ``factor``
    candidates a place."""
    selector, because = rule
    threshold: float | None = None
    flights: dict[str, Flight] = {}
    rest: list[_Rest] = []
    seen: set[str] = set()
    budget = math.ceil(n * factor)
    wanted = max(selector.appetite(n), n)
    while drawn := draw(min(wanted, budget - len(seen)), seen):
        belief = predict(drawn)
        decision = selector.select(drawn, belief, n - len(flights), rng)
        threshold = decision.threshold
        flights |= fly([drawn[i] for i in decision.chosen], because, belief, decision.chosen)
        rest += _not_chosen(drawn, belief, decision, config.group_size)
        seen.update(prompt.key for prompt in drawn)
        # As many as the share let through so far says are needed: a few large calls, not many small
        # ones.
        wanted = math.ceil((n - len(flights)) * len(seen) / max(len(flights), 1))
    # stable: ties keep the order of the draw, which is random
    rest.sort(key=lambda row: -row.score)
    n_short = n - len(flights)
    flights |= {row.key: row.flight for row in rest[:n_short]}
    skipped = rest[n_short:]
    return Filled(flights, len(skipped), sum(row.p_dead for row in skipped), threshold)


def candidates_per_place(config: CurriculumConfig, mixed_share: float, epochs: float) -> float:
    """``config.candidate_factor``, at least 1, or what "auto" makes of it.

    auto (our rule): 1.4 / u with u the mixed share under uniform choice, within [2, 4], so that
    there are enough mixed groups to choose from and hardly more; less the more epochs the pool was
    rolled out, down to uniform choice, for what a few prompts teach many times over is those
    prompts.
    """
    if config.candidate_factor != "auto":
        return float(config.candidate_factor)
    at_first = min(max(WANTED / mixed_share, 2.0), config.most_candidates)
    return 1.0 + EPOCHS / (EPOCHS + epochs) * (at_first - 1.0)


def fly(
    prompts: Sequence[Prompt], because: str, belief: Prediction, at: Sequence[int] | None = None
) -> dict[str, Flight]:
    """``prompts`` by key with the beliefs ``at`` those positions (their own by default)."""
    positions = range(len(prompts)) if at is None else at
    suspicion_P = np.zeros(len(belief)) if belief.suspicion_P is None else belief.suspicion_P
    told_P3 = list(
        zip(belief.mean_P.tolist(), belief.strength_P.tolist(), suspicion_P.tolist(), strict=True)
    )
    return {
        prompt.key: Flight(because, *told_P3[i], math.nan)
        for prompt, i in zip(prompts, positions, strict=True)
    }


def _not_chosen(
    drawn: Sequence[Prompt], belief: Prediction, decision: Decision, group_size: int
) -> list[_Rest]:
    left = sorted(set(range(len(drawn))) - set(decision.chosen))
    flights = fly([drawn[i] for i in left], "fallback", belief, left)
    # A surplus candidate was not judged unfit, so that passing it over saves nothing.
    p_dead_P = 1.0 - belief.p_mixed(group_size)
    p_dead = [0.0 if decision.skipped.get(i) == "surplus" else float(p_dead_P[i]) for i in left]
    score = [float(decision.score_P[i]) for i in left]
    return [_Rest(*row) for row in zip(score, flights, flights.values(), p_dead, strict=True)]
