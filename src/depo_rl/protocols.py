"""What the curriculum asks of its parts: an estimator, a selector, a gate."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Protocol, runtime_checkable

import numpy as np

from .types import Decision, FloatArray, GroupOutcome, Prediction, Prompt, State


@runtime_checkable
class Learner(Protocol):
    """A part that learns from finished groups; a curriculum feeds it, checkpoints it and shows its
    metrics."""

    def observe(self, outcomes: Sequence[GroupOutcome]) -> None: ...

    def state_dict(self) -> State: ...

    def load_state_dict(self, state: State) -> None: ...

    def metrics(self) -> dict[str, float]: ...


@runtime_checkable
class PassRateEstimator(Learner, Protocol):
    """Predicts, before the rollout, the pass rate of each prompt under the current policy, and
    learns from outcomes."""

    def predict(self, prompts: Sequence[Prompt]) -> Prediction: ...


@runtime_checkable
class Selector(Protocol):
    """Chooses before the rollout; all randomness comes from ``rng``. One that keeps state is a
    ``Learner`` as well."""

    def appetite(self, n: int) -> int:
        """How many candidates to look at, at a time, to fill ``n`` places."""
        ...

    def select(
        self, candidates: Sequence[Prompt], prediction: Prediction, n: int, rng: np.random.Generator
    ) -> Decision: ...


@runtime_checkable
class Drawing(Selector, Protocol):
    """A selector that draws: the probability that a candidate is chosen follows from its score
    (``Decision``)."""

    def score(self, prediction: Prediction) -> FloatArray: ...


@runtime_checkable
class Gate(Protocol):
    """Admits after the rollout. ``max_rounds``: generation rounds an engine may spend on one batch
    (1: no refill)."""

    max_rounds: int

    def admit(self, outcome: GroupOutcome) -> bool: ...


@runtime_checkable
class ScreeningGate(Gate, Protocol):
    """Looks at a group after its first ``screen`` completions; only one that passes gets the rest.

    batches: prompts screened per generation round, in batches. Groups admitted beyond a batch wait
    for the next one. Needs an engine that extends groups (``engines.replay``,
    ``engines.synthetic``).
    """

    screen: int
    batches: int

    def passes(self, screened: GroupOutcome) -> bool: ...
