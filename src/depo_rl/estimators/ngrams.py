"""The embedded default: an online logistic head on hashed n-grams. No download, no torch, a few milliseconds a step."""

from __future__ import annotations

from collections import deque
from collections.abc import Callable, Sequence
from typing import Any

import numpy as np

from ..config import NgramSettings
from ..features.ngrams import NgramFeatures
from ..types import FloatArray, GroupOutcome, Prediction, Prompt, State
from .simple import expect_fields

_STRENGTHS = np.array([1.0, 2.0, 4.0, 8.0, 16.0, 32.0, 64.0, 128.0])
_JUDGED_GROUPS = 512  # recent pre-update predictions that choose the strength
_LOGIT_LIMIT = 7.0  # rates within 0.001 of 0 or 1 are not told apart


class NgramEstimator:
    """Logistic regression of k correct of n on ``NgramFeatures``, by Adam on replayed recent groups.

    Replay is weighted by recency (``half_life_groups``) so that it follows the policy. The strength is the same for
    all prompts: the value, of a small grid, that makes the groups just observed most likely under the Beta-binomial
    of the predictions made before they were learnt from; this is what keeps P(mixed) calibrated.

    lookup: key -> Prompt, for outcomes. seed: of the replay's own generator.
    """

    def __init__(self, lookup: Callable[[str], Prompt], settings: NgramSettings, seed: int) -> None:
        self._lookup, self.settings = lookup, settings
        self._features = NgramFeatures(settings.n_features, settings.cache_prompts)
        self._rng = np.random.default_rng([seed, 101])
        self._weight_D = np.zeros(settings.n_features + 1)  # the last one is the bias
        self._moment_D, self._square_D = np.zeros_like(self._weight_D), np.zeros_like(self._weight_D)
        self._n_updates = 0
        self._replay: deque[tuple[str, int, int]] = deque(maxlen=settings.replay_groups)
        self._judged: deque[tuple[float, int, int]] = deque(maxlen=_JUDGED_GROUPS)
        self._strength, self._loss = 2.0, float("nan")

    def predict(self, prompts: Sequence[Prompt]) -> Prediction:
        mean_P = _sigmoid(self._logits(self._features.transform(prompts)))
        return Prediction(mean_P, np.full(len(prompts), self._strength))

    def observe(self, outcomes: Sequence[GroupOutcome]) -> None:
        scored = [o for o in outcomes if o.n_scored > 0]
        if not scored:
            return
        mean_P = self.predict([self._lookup(o.key) for o in scored]).mean_P
        self._judged.extend((float(m), o.n_correct, o.n_scored) for m, o in zip(mean_P, scored, strict=True))
        self._replay.extend((o.key, o.n_correct, o.n_scored) for o in scored)
        self._strength = _most_likely_strength(np.array(self._judged))
        for _ in range(self.settings.updates_per_observe):
            self._update(len(scored))

    def _update(self, n_newest: int) -> None:
        """One Adam step on a batch of replayed groups, drawn by recency."""
        n = len(self._replay)
        age = np.arange(n)[::-1]
        weight = 0.5 ** (age / self.settings.half_life_groups)
        picked = self._rng.choice(n, size=min(n, self.settings.batch_groups), replace=False, p=weight / weight.sum())
        keys, correct, scored = zip(*(self._replay[i] for i in picked), strict=True)
        features = self._features.transform([self._lookup(k) for k in keys])
        rate_P = np.array(correct) / np.array(scored)
        mean_P = _sigmoid(self._logits(features))
        error_P = (mean_P - rate_P) / len(picked)
        gradient_D = np.append(features.T @ error_P, error_P.sum())
        self._loss = float(-np.mean(rate_P * np.log(mean_P) + (1 - rate_P) * np.log1p(-mean_P)))
        self._adam(gradient_D)

    def _adam(self, gradient_D: FloatArray, beta1: float = 0.9, beta2: float = 0.99) -> None:
        self._n_updates += 1
        self._moment_D += (1 - beta1) * (gradient_D - self._moment_D)
        self._square_D += (1 - beta2) * (gradient_D**2 - self._square_D)
        moment_D = self._moment_D / (1 - beta1**self._n_updates)
        square_D = self._square_D / (1 - beta2**self._n_updates)
        rate = self.settings.learning_rate
        self._weight_D[:-1] *= 1 - rate * self.settings.l2
        self._weight_D -= rate * moment_D / (np.sqrt(square_D) + 1e-6)

    def _logits(self, features: Any) -> FloatArray:
        logit_P: FloatArray = features @ self._weight_D[:-1] + self._weight_D[-1]
        return logit_P

    def state_dict(self) -> State:
        keys = [key for key, _, _ in self._replay]
        return {
            "type": type(self).__name__,
            "weight": self._weight_D.copy(),
            "moment": self._moment_D.copy(),
            "square": self._square_D.copy(),
            "n_updates": self._n_updates,
            "rng": self._rng.bit_generator.state,
            "replay_keys": keys,
            "replay_counts": np.array([c for _, *c in self._replay], dtype=np.int64).reshape(-1, 2),
            "judged": np.array(self._judged, dtype=np.float64).reshape(-1, 3),
            "strength": self._strength,
            "loss": self._loss if np.isfinite(self._loss) else None,
        }

    def load_state_dict(self, state: State) -> None:
        expect_fields(state, self.state_dict())
        weight_D = np.asarray(state["weight"], dtype=np.float64)
        if weight_D.shape != self._weight_D.shape:
            from ..errors import StateMismatch

            raise StateMismatch(
                f"estimator state has {len(weight_D) - 1} features, this estimator {len(self._weight_D) - 1} "
                "(estimator.n_features)"
            )
        self._weight_D = weight_D.copy()
        self._moment_D = np.array(state["moment"], dtype=np.float64)
        self._square_D = np.array(state["square"], dtype=np.float64)
        self._n_updates = int(state["n_updates"])
        self._rng.bit_generator.state = state["rng"]
        counts = np.asarray(state["replay_counts"]).tolist()
        self._replay.clear()
        self._replay.extend((key, int(k), int(n)) for key, (k, n) in zip(state["replay_keys"], counts, strict=True))
        self._judged.clear()
        self._judged.extend((float(m), int(k), int(n)) for m, k, n in np.asarray(state["judged"]).tolist())
        self._strength = float(state["strength"])
        self._loss = float("nan") if state["loss"] is None else float(state["loss"])

    def metrics(self) -> dict[str, float]:
        return {"loss": self._loss, "strength": self._strength, "n_updates": float(self._n_updates)}


def _sigmoid(logit_P: FloatArray) -> FloatArray:
    return 1.0 / (1.0 + np.exp(-np.clip(logit_P, -_LOGIT_LIMIT, _LOGIT_LIMIT)))


def _most_likely_strength(judged: FloatArray) -> float:
    """The strength of ``_STRENGTHS`` that maximises the Beta-binomial likelihood; judged: rows of (mean, k, n)."""
    from scipy.special import betaln

    mean, correct, scored = judged[:, :1], judged[:, 1:2], judged[:, 2:]
    a, b = mean * _STRENGTHS, (1 - mean) * _STRENGTHS
    log_likelihood = (betaln(a + correct, b + scored - correct) - betaln(a, b)).sum(axis=0)
    return float(_STRENGTHS[np.argmax(log_likelihood)])
