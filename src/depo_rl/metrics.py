"""How good predictions are, also of the latest groups, and what of a batch was mixed."""

from __future__ import annotations

from collections import deque
from collections.abc import Sequence

import numpy as np
from numpy.typing import ArrayLike

from .errors import expect_fields
from .types import FloatArray, GroupOutcome, Prediction, Settlement, State

NAN = float("nan")


def auc(score_P: ArrayLike, truth_P: ArrayLike) -> float:
    """Probability that a true one scores above a false one (ties count half); NaN if either class
    is absent."""
    from scipy.stats import rankdata

    score = np.asarray(score_P, dtype=np.float64)
    truth = np.asarray(truth_P, dtype=bool)
    n_true = int(truth.sum())
    n_false = int((~truth).sum())
    if n_true == 0 or n_false == 0:
        return NAN
    return float((rankdata(score)[truth].sum() - n_true * (n_true + 1) / 2) / (n_true * n_false))


def log_losses(probability_P: ArrayLike, truth_P: ArrayLike) -> FloatArray:
    """Of each binary truth its negative log-likelihood in nats, shape (P,); probabilities within
    [1e-6, 1 - 1e-6]."""
    p_P = np.clip(np.asarray(probability_P, dtype=np.float64), 1e-6, 1 - 1e-6)
    truth = np.asarray(truth_P, dtype=np.float64)
    losses_P: FloatArray = -(truth * np.log(p_P) + (1 - truth) * np.log1p(-p_P))
    return losses_P


def log_loss(probability_P: ArrayLike, truth_P: ArrayLike) -> float:
    """Mean of ``log_losses``; NaN without data."""
    losses_P = log_losses(probability_P, truth_P)
    return float(losses_P.mean()) if len(losses_P) else NAN


def reliability(
    probability_P: ArrayLike, truth_P: ArrayLike, bins: int = 15
) -> list[dict[str, float]]:
    """Rows of {predicted, observed, count} for the non-empty ones of ``bins`` equal-width bins of
    [0, 1]."""
    p = np.asarray(probability_P, dtype=np.float64)
    truth = np.asarray(truth_P, dtype=np.float64)
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
    return (
        sum(row["count"] * abs(row["predicted"] - row["observed"]) for row in rows) / total
        if total
        else NAN
    )


def ece_floor(probability_P: ArrayLike, bins: int = 15) -> float:
    """What ``ece`` is expected to be, in [0, 0.5], if the truths are drawn from the probabilities
    themselves.

    So much of an ECE is chance: 0.02 with 2,000 groups, 0.06 to 0.1 with 200. A bin of n truths of mean probability p
    deviates by E|X - n p| with X ~ Binomial(n, p), which is 2 m C(n, m) p^m (1 - p)^(n - m + 1), m = floor(n p) + 1
    (de Moivre; Diaconis and Zabell, 1991). That the probabilities of a bin are not all p makes it a little too large,
    by a few per cent at most with 15 bins. NaN without data.
    """
    from scipy.special import gammaln

    p = np.asarray(probability_P, dtype=np.float64)
    if not len(p):
        return NAN
    which = np.minimum((p * bins).astype(int), bins - 1)
    n_B = np.bincount(which, minlength=bins)
    mean_B = np.bincount(which, p, bins)[n_B > 0] / n_B[n_B > 0]
    n_B = n_B[n_B > 0]
    mean_B = np.clip(mean_B, 1e-12, 1 - 1e-12)
    m_B = np.minimum(np.floor(n_B * mean_B) + 1, n_B)
    log_choose_B = gammaln(n_B + 1) - gammaln(m_B + 1) - gammaln(n_B - m_B + 1)
    log_B = (
        np.log(2 * m_B) + log_choose_B + m_B * np.log(mean_B) + (n_B - m_B + 1) * np.log1p(-mean_B)
    )
    return float(np.exp(log_B).sum() / len(p))


def judged(p_mixed_P: ArrayLike, mixed_P: ArrayLike) -> dict[str, float]:
    """log_loss, auc_mixed, ece and ece_floor of predicted P(mixed) against what became of the
    groups, shape (P,)."""
    return {
        "log_loss": log_loss(p_mixed_P, mixed_P),
        "auc_mixed": auc(p_mixed_P, mixed_P),
        "ece": ece(p_mixed_P, mixed_P),
        "ece_floor": ece_floor(p_mixed_P),
    }


class PredictionTrack:
    """The last ``size`` scored groups, each with what had been predicted before its rollout."""

    def __init__(self, size: int = 1024) -> None:
        self._rows: deque[tuple[float, ...]] = deque(maxlen=size)

    def __len__(self) -> int:
        return len(self._rows)

    def add(self, settlements: Sequence[Settlement]) -> None:
        """P(mixed) is of the group as it was scored: a partial group is a smaller one."""
        for n in sorted({s.outcome.n_scored for s in settlements} - {0}):
            same = [s for s in settlements if s.outcome.n_scored == n]
            belief = Prediction(
                np.array([s.predicted_mean for s in same]),
                np.array([s.predicted_strength for s in same]),
            )
            for s, p_mixed in zip(same, belief.p_mixed(n).tolist(), strict=True):
                self._rows.append(
                    (s.predicted_mean, p_mixed, s.outcome.n_correct / n, float(s.outcome.mixed))
                )

    def columns(self) -> tuple[FloatArray, FloatArray, FloatArray, FloatArray]:
        """(predicted mean, predicted P(mixed), observed pass rate, mixed), each of shape
        (rows,)."""
        array = np.array(self._rows, dtype=np.float64).reshape(-1, 4)
        return array[:, 0], array[:, 1], array[:, 2], array[:, 3]

    def metrics(self) -> dict[str, float]:
        _, p_mixed, _, mixed = self.columns()
        return judged(p_mixed, mixed)

    def state_dict(self) -> State:
        return {"rows": np.array(self._rows, dtype=np.float64).reshape(-1, 4)}

    def load_state_dict(self, state: State) -> None:
        expect_fields("track", state, self.state_dict())
        rows = [
            tuple(row)
            for row in np.asarray(state["rows"], dtype=np.float64).reshape(-1, 4).tolist()
        ]
        self._rows.clear()
        self._rows.extend(rows)


def batch_shares(outcomes: Sequence[GroupOutcome]) -> dict[str, float]:
    """mixed_share, all_pass_share, all_fail_share and observed_mean of the scored groups; NaN if
    there is none."""
    scored = [o for o in outcomes if o.n_scored > 0]
    if not scored:
        return dict.fromkeys(
            ("mixed_share", "all_pass_share", "all_fail_share", "observed_mean"), NAN
        )
    return {
        "mixed_share": sum(o.mixed for o in scored) / len(scored),
        "all_pass_share": sum(o.all_pass for o in scored) / len(scored),
        "all_fail_share": sum(o.all_fail for o in scored) / len(scored),
        "observed_mean": sum(o.n_correct / o.n_scored for o in scored) / len(scored),
    }
