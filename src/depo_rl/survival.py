"""An estimator that fails must neither end a run nor bend it: without predictions prompts are
chosen uniformly."""

from __future__ import annotations

import logging
from collections.abc import Sequence
from typing import Any

import numpy as np

from .errors import ConfigError, DataError, DepoError, StateMismatch
from .protocols import PassRateEstimator
from .types import GroupOutcome, Prediction, Prompt, State

_log = logging.getLogger(__name__)
_FOR_THE_USER = (
    ConfigError,
    DataError,
    StateMismatch,
)  # to mend: it would only fail again, and say so to nobody


class SurvivingEstimator:
    """Passes everything on to ``inner``; what it raises in a run is counted, and said once in a
    row.

    A failed prediction becomes NaN, which the curriculum takes for "unknown" and counts in
    ``invalid_predictions``: all candidates are then alike, so that the choice does not depend on
    the prompt. Errors in what the user gave (settings, data, a state of another run) are raised as
    they are.
    """

    inner: PassRateEstimator

    def __init__(self, inner: PassRateEstimator) -> None:
        self.inner = inner
        self._failures = {"failed_predictions": 0, "failed_updates": 0}
        self._failing = {"failed_predictions": False, "failed_updates": False}

    def predict(self, prompts: Sequence[Prompt]) -> Prediction:
        """The inner estimator's beliefs, or NaN, shape (P,), if it fails."""
        try:
            belief = self.inner.predict(prompts)
            if len(belief.mean_P) != len(prompts) or len(belief.strength_P) != len(prompts):
                raise ValueError(f"{len(belief.mean_P)} predictions for {len(prompts)} prompts")
        except _FOR_THE_USER:
            raise
        except Exception as error:
            self._note(
                "failed_predictions", error, "prompts are chosen uniformly until it predicts again"
            )
            return Prediction(np.full(len(prompts), np.nan), np.full(len(prompts), np.nan))
        self._failing["failed_predictions"] = False
        return belief

    def observe(self, outcomes: Sequence[GroupOutcome]) -> None:
        try:
            self.inner.observe(outcomes)
        except _FOR_THE_USER:
            raise
        except Exception as error:
            self._note("failed_updates", error, f"nothing is learnt from {len(outcomes)} groups")
        else:
            self._failing["failed_updates"] = False

    def __getattr__(self, name: str) -> Any:
        """What only some estimators have."""
        if name == "inner":  # not there yet, as while a copy is made
            raise AttributeError(name)
        return getattr(self.inner, name)

    def state_dict(self) -> State:
        return self.inner.state_dict()

    def load_state_dict(self, state: State) -> None:
        self.inner.load_state_dict(state)

    def metrics(self) -> dict[str, float]:
        """The estimator's own, and its failures since the start of this process.

        failed_predictions: batches that the estimator could not predict, chosen uniformly.
        failed_updates: batches that it could not learn from.
        """
        return self.inner.metrics() | {name: float(count) for name, count in self._failures.items()}

    def _note(self, what: str, error: Exception, consequence: str) -> None:
        self._failures[what] += 1
        if not self._failing[what]:
            self._failing[what] = True
            reason = " ".join(str(error).split())[:300]
            name = (
                type(error).__name__ if not isinstance(error, DepoError) else "the estimator says"
            )
            _log.warning(
                "the pass-rate estimator failed (%s: %s); the run goes on, %s",
                name,
                reason,
                consequence,
            )
