"""BOTS (arXiv 2510.26374): fading counts per prompt, and evidence from two reference models for
prompts not chosen."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
from numpy.typing import NDArray

from ..errors import StateMismatch, expect_fields
from ..labels import label_rate
from ..rivals_config import BOTSSettings
from ..types import FloatArray, GroupOutcome, Prediction, Prompt, State

# reference pass rates closer than this on a batch do not tell how capable the policy is
_APART = 1e-3


class BOTSEstimator:
    """Beta(1, 1) and counts of every prompt of the pool; each batch that is learnt from is a step.

    In each step counts <- (1 - fade) * counts + evidence. A prompt of the batch has its own correct
    and wrong ones as evidence; any other prompt has rho * G at its implied pass rate, weak + c *
    (strong - weak), clipped to [0, 1], where weak and strong are its pass rates under the two
    references and c, the policy's capability on their scale, is the running mean (weight
    ``capability_inertia`` on the past) of (mean rate - mean weak) / (mean strong - mean weak) over
    the batches. Prompts without both labels, or a pool without, have own evidence alone.
    """

    def __init__(self, prompts: Sequence[Prompt], settings: BOTSSettings, group_size: int) -> None:
        self.settings = settings
        self._group_size = group_size
        self._row = {prompt.key: i for i, prompt in enumerate(prompts)}
        rates = [
            [label_rate(p.fields.get(name or "")) for name in (settings.weak, settings.strong)]
            for p in prompts
        ]
        self._label_N2 = np.array(rates, dtype=np.float64).reshape(-1, 2)  # None becomes NaN
        self._has_labels_N: NDArray[np.bool_] = np.asarray(~np.isnan(self._label_N2).any(axis=1))
        self._count_N2 = np.zeros((len(prompts), 2))
        self._capability = float("nan")

    def predict(self, prompts: Sequence[Prompt]) -> Prediction:
        beta_P2 = 1.0 + self._count_N2[[self._row[p.key] for p in prompts]].reshape(-1, 2)
        strength_P = beta_P2.sum(axis=1)
        return Prediction(beta_P2[:, 0] / strength_P, strength_P)

    def observe(self, outcomes: Sequence[GroupOutcome]) -> None:
        latest = {o.key: o for o in outcomes if o.n_scored > 0}
        if not latest:
            return
        rows = np.array([self._row[key] for key in latest])
        own_R2 = np.array(
            [[o.n_correct, o.n_scored - o.n_correct] for o in latest.values()], dtype=np.float64
        )
        self._learn_capability(rows, own_R2[:, 0] / own_R2.sum(axis=1))
        evidence_N2 = self._implied()
        evidence_N2[rows] = own_R2
        self._count_N2 = (1 - self.settings.fade) * self._count_N2 + evidence_N2

    def _learn_capability(self, rows: NDArray[np.int64], rate_R: FloatArray) -> None:
        labelled_R = self._has_labels_N[rows]
        if not labelled_R.any():
            return
        weak, strong = self._label_N2[rows[labelled_R]].mean(axis=0).tolist()
        if abs(strong - weak) < _APART:
            return
        now = (float(rate_R[labelled_R].mean()) - weak) / (strong - weak)
        # NaN: none yet
        past = self.settings.capability_inertia if self._capability == self._capability else 0.0
        self._capability = past * (self._capability if past else 0.0) + (1 - past) * now

    def _implied(self) -> FloatArray:
        """Evidence for every prompt from the references, shape (N, 2), 0 where there is none."""
        weak_N, strong_N = self._label_N2.T
        rate_N = np.clip(weak_N + self._capability * (strong_N - weak_N), 0.0, 1.0)
        size = self.settings.rho * self._group_size
        return np.nan_to_num(size * np.column_stack([rate_N, 1.0 - rate_N]))

    def state_dict(self) -> State:
        return {
            "type": type(self).__name__,
            "counts": self._count_N2.copy(),
            "capability": self._capability,
        }

    def load_state_dict(self, state: State) -> None:
        """Raises StateMismatch, with nothing changed, if saved by another estimator or for another
        pool."""
        expect_fields("estimator", state, self.state_dict())
        counts = np.array(state["counts"], dtype=np.float64)
        capability = float(state["capability"])
        if counts.shape != self._count_N2.shape:
            raise StateMismatch(
                f"estimator state was saved with counts of {len(counts)} prompts, this pool has {len(self._count_N2)}: "
                "resume with the data set the run was started with"
            )
        self._count_N2 = counts
        self._capability = capability

    def metrics(self) -> dict[str, float]:
        """capability: of the policy, 0 as the weak reference, 1 as the strong one; NaN without
        labels.

        labelled_share: of the pool, with both reference pass rates.
        """
        return {"capability": self._capability, "labelled_share": float(self._has_labels_N.mean())}
