"""Estimators that do not learn: the same belief for all, or a label read from the data set."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np

from ..errors import expect_fields
from ..labels import label_rate
from ..types import GroupOutcome, Prediction, Prompt, State


class ConstantEstimator:
    """The same Beta(mean * strength, (1 - mean) * strength) for every prompt."""

    def __init__(self, mean: float = 0.5, strength: float = 2.0) -> None:
        self.mean = mean
        self.strength = strength

    def predict(self, prompts: Sequence[Prompt]) -> Prediction:
        return Prediction(np.full(len(prompts), self.mean), np.full(len(prompts), self.strength))

    def observe(self, outcomes: Sequence[GroupOutcome]) -> None:
        pass

    def state_dict(self) -> State:
        return {"type": type(self).__name__}

    def load_state_dict(self, state: State) -> None:
        expect_fields("estimator", state, self.state_dict())

    def metrics(self) -> dict[str, float]:
        return {}


class OracleEstimator(ConstantEstimator):
    """Reads each prompt's pass rate from ``fields[field]``; where it is missing or not a rate, 0.5
    with strength 2."""

    def __init__(self, field: str, strength: float) -> None:
        super().__init__()
        self.field = field
        self._label_strength = strength

    def predict(self, prompts: Sequence[Prompt]) -> Prediction:
        rates = [label_rate(prompt.fields.get(self.field)) for prompt in prompts]
        mean_P = np.array([self.mean if rate is None else rate for rate in rates], dtype=np.float64)
        strength_P = np.array(
            [self.strength if rate is None else self._label_strength for rate in rates]
        )
        return Prediction(np.clip(mean_P, 1e-6, 1 - 1e-6), strength_P)
