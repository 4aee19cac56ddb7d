"""The embedded default: online Beta-binomial regression on hashed n-grams. No download, no torch."""

from __future__ import annotations

from collections import deque
from collections.abc import Callable, Sequence
from typing import Any

import numpy as np

from ..config import NgramSettings
from ..errors import StateMismatch
from ..features.ngrams import NgramFeatures
from ..types import FloatArray, GroupOutcome, Prediction, Prompt, State
from .simple import expect_fields

_JUDGED_GROUPS = 512  # recent pre-update predictions that the calibration is fitted to
_SHRINK = (0.0, 0.15, 0.3, 0.5, 0.7, 0.85, 1.0)
_LOG_FACTOR = (-1.4, -0.7, 0.0, 0.7, 1.4)
_LOGIT_LIMIT = 7.0  # rates within 0.001 of 0 or 1 are not told apart
_LOG_STRENGTH_LIMITS = (-2.5, 5.0)  # 0.08 to 148 equivalent rollouts
_FIELDS = ("weight", "moment", "square", "n_updates", "rng", "replay_keys", "replay_counts", "judged", "shrink",
           "log_factor", "loss")  # fmt: skip


class NgramEstimator:
    """Two linear heads on ``NgramFeatures``, the logit of the mean and the log of the strength of each prompt's Beta.

    They maximise the Beta-binomial likelihood of k correct of n, by Adam on replayed groups weighted by recency
    (``half_life_groups``), so that they follow the policy. With a strength of its own for each prompt the belief says
    how likely a *mixed* group is, which a mean near one half does not: all-or-nothing prompts have one too.

    Calibration: what the n-grams add to the two biases is shrunk, and the strength scaled, by the values of a small
    grid that make the latest groups most likely under the predictions made before they were learnt from.

    lookup: key -> Prompt, for outcomes. seed: of the replay's own generator.
    """

    def __init__(self, lookup: Callable[[str], Prompt], settings: NgramSettings, seed: int) -> None:
        self._lookup, self.settings = lookup, settings
        self._features = NgramFeatures(settings.n_features, settings.cache_prompts)
        self._rng = np.random.default_rng([seed, 101])
        self._weight_D2 = np.zeros((settings.n_features + 1, 2))  # columns: mean, strength; the last row is the bias
        self._moment_D2, self._square_D2 = np.zeros_like(self._weight_D2), np.zeros_like(self._weight_D2)
        self._n_updates = 0
        self._replay: deque[tuple[str, int, int]] = deque(maxlen=settings.replay_groups)
        self._judged: deque[tuple[float, ...]] = deque(maxlen=_JUDGED_GROUPS)
        self._shrink, self._log_factor, self._loss = 1.0, 0.0, float("nan")

    def predict(self, prompts: Sequence[Prompt]) -> Prediction:
        ngrams_P2 = self._features.transform(prompts) @ self._weight_D2[:-1]
        return Prediction(*_belief(self._shrink * ngrams_P2 + self._weight_D2[-1] + [0.0, self._log_factor]))

    def observe(self, outcomes: Sequence[GroupOutcome]) -> None:
        scored = [o for o in outcomes if o.n_scored > 0]
        if not scored:
            return
        ngrams_P2 = self._features.transform([self._lookup(o.key) for o in scored]) @ self._weight_D2[:-1]
        bias = self._weight_D2[-1].tolist()
        rows = zip(ngrams_P2.tolist(), scored, strict=True)
        self._judged.extend((*ngrams, *bias, float(o.n_correct), float(o.n_scored)) for ngrams, o in rows)
        self._replay.extend((o.key, o.n_correct, o.n_scored) for o in scored)
        self._calibrate()
        for _ in range(self.settings.updates_per_observe):
            self._update()

    def _update(self) -> None:
        """One Adam step on a batch of replayed groups, drawn by recency."""
        n = len(self._replay)
        weight = 0.5 ** (np.arange(n)[::-1] / self.settings.half_life_groups)
        picked = self._rng.choice(n, size=min(n, self.settings.batch_groups), replace=False, p=weight / weight.sum())
        keys, correct, scored = zip(*(self._replay[i] for i in picked), strict=True)
        features = self._features.transform([self._lookup(k) for k in keys])
        raw_P2 = features @ self._weight_D2[:-1] + self._weight_D2[-1]
        loss, slope_P2 = _loss_and_slope(raw_P2, np.array(correct), np.array(scored))
        self._loss = loss
        self._adam(np.vstack([features.T @ slope_P2, slope_P2.sum(axis=0)]))

    def _adam(self, gradient_D2: FloatArray, beta1: float = 0.9, beta2: float = 0.99) -> None:
        self._n_updates += 1
        self._moment_D2 += (1 - beta1) * (gradient_D2 - self._moment_D2)
        self._square_D2 += (1 - beta2) * (gradient_D2**2 - self._square_D2)
        moment_D2 = self._moment_D2 / (1 - beta1**self._n_updates)
        square_D2 = self._square_D2 / (1 - beta2**self._n_updates)
        rate = self.settings.learning_rate
        self._weight_D2[:-1] *= 1 - rate * self.settings.l2
        self._weight_D2 -= rate * moment_D2 / (np.sqrt(square_D2) + 1e-6)

    def _calibrate(self) -> None:
        """Chooses shrinkage and strength factor by the likelihood of the judged groups."""
        judged = np.array(self._judged)
        ngrams_P2, bias_P2, correct_P, scored_P = judged[:, :2], judged[:, 2:4], judged[:, 4], judged[:, 5]
        best = -np.inf
        for shrink in _SHRINK:
            for log_factor in _LOG_FACTOR:
                belief = _belief(shrink * ngrams_P2 + bias_P2 + [0.0, log_factor])
                likelihood = float(_log_likelihood(*belief, correct_P, scored_P).sum())
                if likelihood > best:
                    best, self._shrink, self._log_factor = likelihood, shrink, log_factor

    def state_dict(self) -> State:
        return {
            "type": type(self).__name__,
            "weight": self._weight_D2.copy(),
            "moment": self._moment_D2.copy(),
            "square": self._square_D2.copy(),
            "n_updates": self._n_updates,
            "rng": self._rng.bit_generator.state,
            "replay_keys": [key for key, *_ in self._replay],
            "replay_counts": np.array([counts for _, *counts in self._replay], dtype=np.int64).reshape(-1, 2),
            "judged": np.array(self._judged, dtype=np.float64).reshape(-1, 6),
            "shrink": self._shrink,
            "log_factor": self._log_factor,
            "loss": self._loss,
        }

    def load_state_dict(self, state: State) -> None:
        """Raises StateMismatch, with nothing changed, if saved by another estimator or with other ``n_features``."""
        expect_fields(state, {"type": type(self).__name__, **dict.fromkeys(_FIELDS)})
        arrays = [np.array(state[name], dtype=np.float64) for name in ("weight", "moment", "square")]
        if any(array.shape != self._weight_D2.shape for array in arrays):
            raise StateMismatch(
                f"estimator state was saved with n_features {len(arrays[0]) - 1}, this estimator has "
                f"{len(self._weight_D2) - 1}: set estimator.n_features to the former, or start anew"
            )
        counts = np.asarray(state["replay_counts"]).reshape(-1, 2).tolist()
        replay = [(key, int(k), int(n)) for key, (k, n) in zip(state["replay_keys"], counts, strict=True)]
        judged = [tuple(row) for row in np.asarray(state["judged"]).reshape(-1, 6).tolist()]
        numbers = int(state["n_updates"]), float(state["shrink"]), float(state["log_factor"]), float(state["loss"])
        self._rng.bit_generator.state = state["rng"]
        self._weight_D2, self._moment_D2, self._square_D2 = arrays
        self._replay, self._judged = deque(replay, self._replay.maxlen), deque(judged, self._judged.maxlen)
        self._n_updates, self._shrink, self._log_factor, self._loss = numbers

    def metrics(self) -> dict[str, float]:
        """loss: nats per group of the last update's batch. shrink, strength_factor: of the calibration."""
        return {
            "loss": self._loss,
            "shrink": self._shrink,
            "strength_factor": float(np.exp(self._log_factor)),
            "n_updates": float(self._n_updates),
        }


def _belief(raw_P2: FloatArray) -> tuple[FloatArray, FloatArray]:
    """(mean, strength) of (logit of the mean, log of the strength)."""
    mean_P = 1.0 / (1.0 + np.exp(-np.clip(raw_P2[:, 0], -_LOGIT_LIMIT, _LOGIT_LIMIT)))
    return mean_P, np.exp(np.clip(raw_P2[:, 1], *_LOG_STRENGTH_LIMITS))


def _log_likelihood(mean_P: FloatArray, strength_P: FloatArray, correct_P: Any, scored_P: Any) -> FloatArray:
    """Beta-binomial, in nats per group, up to the binomial coefficient."""
    from scipy.special import betaln

    a_P, b_P = mean_P * strength_P, (1 - mean_P) * strength_P
    result_P: FloatArray = betaln(a_P + correct_P, b_P + scored_P - correct_P) - betaln(a_P, b_P)
    return result_P


def _loss_and_slope(raw_P2: FloatArray, correct_P: Any, scored_P: Any) -> tuple[float, FloatArray]:
    """Mean negative log-likelihood, and its derivative by each of ``raw_P2``."""
    from scipy.special import digamma

    mean_P, strength_P = _belief(raw_P2)
    a_P, b_P = mean_P * strength_P, (1 - mean_P) * strength_P
    by_a_P = digamma(a_P + correct_P) - digamma(a_P)
    by_b_P = digamma(b_P + scored_P - correct_P) - digamma(b_P)
    by_total_P = digamma(strength_P) - digamma(strength_P + scored_P)
    by_logit_P = (by_a_P - by_b_P) * strength_P * mean_P * (1 - mean_P)
    by_log_strength_P = (mean_P * by_a_P + (1 - mean_P) * by_b_P + by_total_P) * strength_P
    loss = -float(_log_likelihood(mean_P, strength_P, correct_P, scored_P).mean())
    return loss, -np.column_stack([by_logit_P, by_log_strength_P]) / len(raw_P2)
