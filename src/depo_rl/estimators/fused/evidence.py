"""What each prompt's own groups say of its pass rate, fading as fast as the policy is seen to move.

The logit theta_i of a prompt's pass rate moves from policy step to policy step with the rest, by a
common drift, and by itself, as a random walk:

    theta_i(t + 1) = theta_i(t) + drift + walk * noise,    noise ~ Normal(0, 1)                                     (1)

Its own groups leave a normal message about theta_i: a precision, 0 for none, and a mean. A message
that is dt policy steps old has its mean moved by drift * dt and its variance widened by walk^2 *
dt, and multiplies the belief that comes from elsewhere (the prior, from the features). So evidence
fades towards the prior with the *policy steps* since, and a prompt that was not seen for long has
moved with the rest. A new group conditions that product (assumed density filtering: moments of the
exact posterior), and the message becomes the quotient of the result and the prior.

How fast prompts move is not known beforehand: one filter is run for each of a few ``walks``, and
they are weighted by how likely they made the latest groups. The drift of each follows its score by
Newton steps.
"""

from __future__ import annotations

from typing import NamedTuple

import numpy as np
from numpy.typing import NDArray
from scipy.special import softmax

from ...config import FusedSettings
from ...errors import StateMismatch
from ...types import FloatArray, State
from .logistic_normal import LOGIT_LIMIT, Conditioned, condition

IndexArray = NDArray[np.int64]
_DRIFT_PRIOR = 1e4  # information, in (logits per step)^-2, that the drift is 0
_DRIFT_MEMORY = 0.999  # of information, per batch
FAULTS = ("coin_flips", "never_right")  # what a verifier may say, whatever is answered
_FAULT_RATE_F1 = np.array([[0.5], [0.01]])  # how often it then says "right"
_FAULT_PRIOR = 0.01  # share of the prompts with each fault
_FAULT_WEIGHT = 100.0  # what that weighs, in prompts
_FAULT_STEPS = 5
SUSPECT = 0.8  # probability from which on a prompt is listed
_MAX_STEPS = 10_000  # beyond it a prompt's evidence is worth nothing under any walk


class Belief(NamedTuple):
    """mean_WP, variance_WP: of theta, by walk and prompt. gain_WP: d mean / d (mean of the
    message)."""

    mean_WP: FloatArray
    variance_WP: FloatArray
    gain_WP: FloatArray


class Evidence:
    """Messages of ``n_prompts`` prompts under each walk of ``settings``; prompts are named by their
    index."""

    def __init__(self, n_prompts: int, settings: FusedSettings) -> None:
        self.settings = settings
        self._variance_W1 = np.square(np.array(settings.walks, dtype=np.float64))[:, None]
        walks = len(settings.walks)
        self._precision_WN = np.zeros((walks, n_prompts), dtype=np.float32)
        self._shift_WN = np.zeros((walks, n_prompts), dtype=np.float32)  # precision * mean
        # policy step of the latest group; -1: none
        self._step_N = np.full(n_prompts, -1, dtype=np.int32)
        # log-odds of each fault of a prompt's verdicts, of its groups
        self._odds_FN = np.zeros((len(FAULTS), n_prompts), dtype=np.float32)
        self.drift_W = np.zeros(walks)
        self._information_W = np.full(walks, _DRIFT_PRIOR)
        self._log_weight_W = np.zeros(walks)

    @property
    def weight_W(self) -> FloatArray:
        """Posterior probability of each walk, by the latest groups."""
        weight_W = np.exp(self._log_weight_W - self._log_weight_W.max())
        result: FloatArray = weight_W / weight_W.sum()
        return result

    @property
    def drift(self) -> float:
        """The common drift, in logits per policy step."""
        return float(self.weight_W @ self.drift_W)

    def seen(self, index_P: IndexArray) -> NDArray[np.bool_]:
        """Whether each prompt has had a scored group."""
        result: NDArray[np.bool_] = self._step_N[index_P] >= 0
        return result

    def faults(self, index_P: IndexArray) -> FloatArray:
        """Posterior probability of each of ``FAULTS`` of each prompt's verdicts, shape (F, P).

        Bayes' rule for "right with a fixed probability, whatever is answered" against the belief
        that was held before each group, which follows the prompt's features, its neighbours'
        movement and its own history. Beforehand a prompt has a fault with the share that the pool
        shows (``fault_shares``).
        """
        return _posterior(self._odds_FN[:, index_P].astype(np.float64), self.fault_shares)

    def suspects(self, least: float = SUSPECT) -> dict[str, IndexArray]:
        """The prompts with each of ``FAULTS`` with a probability of at least ``least``, the surest
        first."""
        seen = np.flatnonzero(self._step_N >= 0)
        found: dict[str, IndexArray] = {}
        for fault, chance_P in zip(FAULTS, self.faults(seen), strict=True):
            order = np.argsort(-chance_P, kind="stable")
            found[fault] = seen[order[chance_P[order] >= least]]
        return found

    @property
    def fault_shares(self) -> FloatArray:
        """Share of the prompts seen with each of ``FAULTS``, shape (F,): a few steps of
        expectation-maximisation."""
        odds_FN = self._odds_FN[:, self._step_N >= 0].astype(np.float64)
        share_F = np.full(len(FAULTS), _FAULT_PRIOR)
        for _ in range(_FAULT_STEPS):
            faulty_F = _posterior(odds_FN, share_F).sum(axis=1)
            share_F = (faulty_F + _FAULT_PRIOR * _FAULT_WEIGHT) / (odds_FN.shape[1] + _FAULT_WEIGHT)
        return share_F

    def n_seen(self) -> int:
        return int((self._step_N >= 0).sum())

    def belief(
        self,
        index_P: IndexArray,
        prior_mean_P: FloatArray,
        prior_variance_P: FloatArray,
        now: int | IndexArray,
    ) -> Belief:
        """The prior times the message of each prompt, as of policy step ``now`` (one for all, or
        each its own)."""
        precision_WP = self._precision_WN[:, index_P].astype(np.float64)
        has_WP = precision_WP > 0
        safe_WP = np.where(has_WP, precision_WP, 1.0)
        age_P = self._age(index_P, now)
        mean_WP = np.where(
            has_WP, self._shift_WN[:, index_P] / safe_WP + self.drift_W[:, None] * age_P, 0.0
        )
        aged_WP = np.where(has_WP, 1.0 / (1.0 / safe_WP + self._variance_W1 * age_P), 0.0)
        total_WP = 1.0 / prior_variance_P + aged_WP
        combined_WP = (prior_mean_P / prior_variance_P + aged_WP * mean_WP) / total_WP
        return Belief(
            np.clip(combined_WP, -LOGIT_LIMIT, LOGIT_LIMIT), 1.0 / total_WP, aged_WP / total_WP
        )

    def _age(self, index_P: IndexArray, now: int | IndexArray) -> FloatArray:
        step_P = self._step_N[index_P]
        return np.where(step_P >= 0, np.clip(now - step_P, 0, _MAX_STEPS), 0).astype(np.float64)

    def update(
        self,
        index_P: IndexArray,
        prior_mean_P: FloatArray,
        prior_variance_P: FloatArray,
        counts_P2: FloatArray,
        step_P: IndexArray,
    ) -> None:
        """Learns from one group each of distinct prompts; counts_P2: correct, scored. step_P: their
        policy steps.

        A group older than the prompt's latest counts as if it were as new as that one.
        """
        step_P = np.maximum(step_P, self._step_N[index_P])
        before = self.belief(index_P, prior_mean_P, prior_variance_P, step_P)
        after = condition(before.mean_WP, before.variance_WP, counts_P2[:, 0], counts_P2[:, 1])
        seen_P = self.seen(index_P)
        log_weight_W = self._log_weight_W - np.logaddexp.reduce(self._log_weight_W)
        told_P = np.logaddexp.reduce(log_weight_W[:, None] + after.log_evidence, axis=0)
        wrong_P = counts_P2[:, 1] - counts_P2[:, 0]
        of_fault_FP = np.log(_FAULT_RATE_F1) * counts_P2[:, 0] + np.log1p(-_FAULT_RATE_F1) * wrong_P
        self._odds_FN[:, index_P] += of_fault_FP - told_P
        if seen_P.any():
            self._log_weight_W *= 0.5 ** (seen_P.sum() / self.settings.walk_half_life)
            self._log_weight_W += after.log_evidence[:, seen_P].sum(axis=1)
            if self.settings.drift:
                self._follow_drift(before, after, self._age(index_P, step_P))
        # A quotient of normals; the likelihood is log-concave, so that it is one too, up to the
        # moments' rounding.
        precision_WP = np.maximum(1.0 / after.variance - 1.0 / prior_variance_P, 1e-6)
        shift_WP = after.mean / after.variance - prior_mean_P / prior_variance_P
        self._precision_WN[:, index_P] = precision_WP
        self._shift_WN[:, index_P] = shift_WP
        self._step_N[index_P] = step_P

    def _follow_drift(self, before: Belief, after: Conditioned, age_P: FloatArray) -> None:
        """A Newton step on the drift: the score and information of each group's mean, by the chain
        rule of (1)."""
        by_drift_WP = before.gain_WP * age_P
        score_WP = (after.mean - before.mean_WP) / before.variance_WP
        information_WP = (
            np.maximum(before.variance_WP - after.variance, 0.0) / before.variance_WP**2
        )
        self._information_W *= _DRIFT_MEMORY
        self._information_W += (by_drift_WP**2 * information_WP).sum(axis=1)
        self.drift_W += (by_drift_WP * score_WP).sum(axis=1) / self._information_W

    def state_dict(self) -> State:
        """Only prompts that were seen take room."""
        index = np.flatnonzero(self._step_N >= 0).astype(np.int32)
        return {
            "walks": list(self.settings.walks),
            "index": index,
            "step": self._step_N[index],
            "precision": self._precision_WN[:, index],
            "shift": self._shift_WN[:, index],
            "drift": self.drift_W.copy(),
            "information": self._information_W.copy(),
            "log_weight": self._log_weight_W.copy(),
            "faults": self._odds_FN[:, index],
        }

    def load_state_dict(self, state: State) -> None:
        """Raises StateMismatch if saved with other walks, ValueError or IndexError if malformed;
        nothing is changed."""
        if list(state["walks"]) != list(self.settings.walks):
            raise StateMismatch(
                f"estimator state was saved with walks {state['walks']}, this estimator has "
                f"{list(self.settings.walks)}: set estimator.walks to the former, or start anew"
            )
        walks = len(self.settings.walks)
        index = np.asarray(state["index"], dtype=np.int64)
        step_N = np.full_like(self._step_N, -1)
        precision_WN = np.zeros_like(self._precision_WN)
        shift_WN = np.zeros_like(self._shift_WN)
        step_N[index] = np.asarray(state["step"]).reshape(len(index))
        precision_WN[:, index] = np.asarray(state["precision"]).reshape(walks, len(index))
        shift_WN[:, index] = np.asarray(state["shift"]).reshape(walks, len(index))
        vectors = [
            np.array(state[name], dtype=np.float64).reshape(walks)
            for name in ("drift", "information")
        ]
        log_weight_W = np.array(state["log_weight"], dtype=np.float64).reshape(walks)
        odds_FN = np.zeros_like(self._odds_FN)
        odds_FN[:, index] = np.asarray(state["faults"]).reshape(len(FAULTS), len(index))
        self._step_N = step_N
        self._precision_WN = precision_WN
        self._shift_WN = shift_WN
        self._odds_FN = odds_FN
        self.drift_W, self._information_W = vectors
        self._log_weight_W = log_weight_W


def _posterior(odds_FP: FloatArray, share_F: FloatArray) -> FloatArray:
    """Probability of each fault, shape (F, P), from the log-odds of each against none."""
    odds_FP = odds_FP + np.log(share_F / (1.0 - share_F.sum()))[:, None]
    none_1P = np.zeros((1, odds_FP.shape[1]))
    result_FP: FloatArray = softmax(np.vstack([none_1P, odds_FP]), axis=0)[1:]
    return result_FP
