"""AdaRFT (arXiv 2504.05520): one target difficulty that rises while the policy succeeds and falls
while it fails."""

from __future__ import annotations

import math
from collections.abc import Sequence

import numpy as np

from ..errors import expect_fields
from ..rivals_config import AdaRFTSettings
from ..selectors import ALL, best_ranked
from ..types import Decision, GroupOutcome, Prediction, Prompt, State


class TargetDifficulty:
    """The prompts whose difficulty, 100 * (1 - predicted pass rate), is nearest to the target T.

    The prediction is a label of the data set, unless another estimator is chosen. Before the next
    choice T moves by ``rate`` * tanh(``sensitivity`` * (r - ``goal``)), within [0, 100], r the mean
    pass rate of the groups that came back since the last one.
    """

    def __init__(self, settings: AdaRFTSettings) -> None:
        self.settings = settings
        self._target = settings.start
        self._rates = 0.0
        self._n = 0

    def appetite(self, n: int) -> int:
        return ALL

    def select(
        self, candidates: Sequence[Prompt], prediction: Prediction, n: int, rng: np.random.Generator
    ) -> Decision:
        if self._n:
            s = self.settings
            moved = self._target + s.rate * math.tanh(
                s.sensitivity * (self._rates / self._n - s.goal)
            )
            self._target = min(max(moved, 0.0), 100.0)
            self._rates = 0.0
            self._n = 0
        return best_ranked(-np.abs(100.0 * (1.0 - prediction.mean_P) - self._target), n)

    def observe(self, outcomes: Sequence[GroupOutcome]) -> None:
        rates = [o.n_correct / o.n_scored for o in outcomes if o.n_scored > 0]
        self._rates += sum(rates)
        self._n += len(rates)

    def state_dict(self) -> State:
        return {
            "type": type(self).__name__,
            "target": self._target,
            "rates": self._rates,
            "n": self._n,
        }

    def load_state_dict(self, state: State) -> None:
        """Raises StateMismatch or ValueError, with nothing changed, if ``state`` is not of this
        selector."""
        expect_fields("selector", state, self.state_dict())
        target = float(state["target"])
        rates = float(state["rates"])
        n = int(state["n"])
        self._target = target
        self._rates = rates
        self._n = n

    def metrics(self) -> dict[str, float]:
        """target: difficulty aimed at, 0 (always right) to 100 (always wrong)."""
        return {"target": self._target}
