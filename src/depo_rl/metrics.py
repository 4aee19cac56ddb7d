"""How good the predictions are, and what the curriculum did: counts that always add up, and a rolling judgement."""

from __future__ import annotations

from collections import deque

import numpy as np
from numpy.typing import ArrayLike

from .types import FloatArray, GroupOutcome, State

NAN = float("nan")


def auc(score_P: ArrayLike, truth_P: ArrayLike) -> float:
    """Probability that a true one scores above a false one (ties count half); NaN if either class is absent."""
    from scipy.stats import rankdata

    score, truth = np.asarray(score_P, dtype=np.float64), np.asarray(truth_P, dtype=bool)
    n_true, n_false = int(truth.sum()), int((~truth).sum())
    if n_true == 0 or n_false == 0:
        return NAN
    return float((rankdata(score)[truth].sum() - n_true * (n_true + 1) / 2) / (n_true * n_false))


def log_loss(probability_P: ArrayLike, truth_P: ArrayLike) -> float:
    """Mean negative log-likelihood (nats) of binary truths; probabilities are clipped to [1e-6, 1 - 1e-6]."""
    p = np.clip(np.asarray(probability_P, dtype=np.float64), 1e-6, 1 - 1e-6)
    truth = np.asarray(truth_P, dtype=np.float64)
    return float(-np.mean(truth * np.log(p) + (1 - truth) * np.log1p(-p))) if len(p) else NAN


def reliability(probability_P: ArrayLike, truth_P: ArrayLike, bins: int = 15) -> list[dict[str, float]]:
    """Rows of {predicted, observed, count} for the non-empty ones of ``bins`` equal-width bins of [0, 1]."""
    p, truth = np.asarray(probability_P, dtype=np.float64), np.asarray(truth_P, dtype=np.float64)
    which = np.minimum((p * bins).astype(int), bins - 1)
    return [
        {"predicted": float(p[m].mean()), "observed": float(truth[m].mean()), "count": int(m.sum())}
        for m in (which == b for b in range(bins))
        if m.any()
    ]


def ece(probability_P: ArrayLike, truth_P: ArrayLike, bins: int = 15) -> float:
    """Expected calibration error: |predicted - observed| averaged over bins by their counts; NaN without data."""
    rows = reliability(probability_P, truth_P, bins)
    total = sum(row["count"] for row in rows)
    return sum(row["count"] * abs(row["predicted"] - row["observed"]) for row in rows) / total if total else NAN


class PredictionTrack:
    """The last ``size`` scored groups, each with what had been predicted before its rollout."""

    def __init__(self, size: int = 1024) -> None:
        self._rows: deque[tuple[float, float, float, float]] = deque(maxlen=size)

    def add(self, predicted_mean: float, p_mixed: float, outcome: GroupOutcome) -> None:
        """outcome: scored (``n_scored`` > 0)."""
        self._rows.append((predicted_mean, p_mixed, outcome.n_correct / outcome.n_scored, float(outcome.mixed)))

    def columns(self) -> tuple[FloatArray, FloatArray, FloatArray, FloatArray]:
        """(predicted mean, predicted P(mixed), observed pass rate, mixed), each of shape (rows,)."""
        array = np.array(self._rows, dtype=np.float64).reshape(-1, 4)
        return array[:, 0], array[:, 1], array[:, 2], array[:, 3]

    def metrics(self) -> dict[str, float]:
        _, p_mixed, _, mixed = self.columns()
        return {"log_loss": log_loss(p_mixed, mixed), "auc_mixed": auc(p_mixed, mixed), "ece": ece(p_mixed, mixed)}

    def state_dict(self) -> State:
        return {"rows": np.array(self._rows, dtype=np.float64).reshape(-1, 4)}

    def load_state_dict(self, state: State) -> None:
        self._rows.clear()
        self._rows.extend(tuple(row) for row in np.asarray(state["rows"]).tolist())


def batch_shares(outcomes: list[GroupOutcome]) -> dict[str, float]:
    """mixed_share, all_pass_share, all_fail_share and observed_mean of the scored groups; NaN if there is none."""
    scored = [o for o in outcomes if o.n_scored > 0]
    if not scored:
        return dict.fromkeys(("mixed_share", "all_pass_share", "all_fail_share", "observed_mean"), NAN)
    return {
        "mixed_share": float(np.mean([o.mixed for o in scored])),
        "all_pass_share": float(np.mean([o.all_pass for o in scored])),
        "all_fail_share": float(np.mean([o.all_fail for o in scored])),
        "observed_mean": float(np.mean([o.n_correct / o.n_scored for o in scored])),
    }
