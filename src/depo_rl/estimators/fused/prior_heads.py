"""The prior of every prompt, from its features: two linear heads, learnt from replayed groups.

    theta_i ~ Normal(w . x_i, exp(2 v . x_i)),    k_i of n_i right ~ Binomial(n_i, logistic(theta_i))              (1)

The second head, the logarithm of the spread, is what predicting *mixed* needs and a mean near one
half does not tell: all-or-nothing prompts have such a mean too. Both maximise the likelihood of k
of n under (1), with normal priors on the weights whose precisions stay while the data grow, by Adam
on random batches of the replay. The priors' mean is 0, but for published pass rates of other
models, which are believed from the start (``rate_slope``).

The replay has one row a prompt: a prompt that is chosen again and again because it is mixed must
not teach that such prompts are mixed, as a row per group would. Which prompts have a row depends on
their features and chance alone, and given the features that is no selection. Groups of earlier
policies count as of then: their mean is behind by the drift since. They are learnt from the less
often the older they are: where a source was scored 0 for a while, exploration alone would take for
ever to outweigh what was learnt then.
"""

from __future__ import annotations

from math import ceil

import numpy as np

from ...config import FusedSettings
from ...features.experimental.policy import Block, PolicyFeatures
from ...features.table import FeatureRows, FeatureTable
from ...types import FloatArray, State
from .evidence import IndexArray
from .logistic_normal import LOGIT_LIMIT, condition

_LOG_SPREAD_LIMITS = (-1.5, 2.0)  # standard deviations of 0.22 to 7.4 logits
_BIAS_RATE = 5.0  # the level of all prompts is learnt faster than what tells them apart
_LESSON_PASSES = 6  # of a warm start
_LESSON_TRUST = 0.7
_START = (0.0, float(np.log(3.0)))  # pools of real models are U-shaped in the pass rate


class Replay:
    """The latest group of each of the ``size`` prompts seen last: index, correct, scored, policy
    step, and features of the policy as they were then, ``width`` of them."""

    def __init__(self, n_prompts: int, size: int, width: int = 0) -> None:
        self._size = min(size, n_prompts)
        self.index_R = np.zeros(0, dtype=np.int64)
        self.counts_R2 = np.zeros((0, 2))
        self.step_R = np.zeros(0, dtype=np.int64)
        self.policy_RF = np.zeros((0, width), dtype=np.float16)
        self._slot_N = np.full(n_prompts, -1, dtype=np.int32)
        self._next = 0  # slot to overwrite once full

    def __len__(self) -> int:
        return len(self.index_R)

    def add(
        self, index_P: IndexArray, policy_PF: Block, counts_P2: FloatArray, step_P: IndexArray
    ) -> None:
        """Distinct prompts; one that has a row gets it overwritten."""
        fresh_P = self._slot_N[index_P] < 0
        self._make_room(index_P[fresh_P])
        slots = self._slot_N[index_P]
        self.index_R[slots] = index_P
        self.policy_RF[slots] = policy_PF
        self.counts_R2[slots] = counts_P2
        self.step_R[slots] = step_P

    def _make_room(self, index_P: IndexArray) -> None:
        n_grown = min(len(index_P), self._size - len(self))
        self._slot_N[index_P[:n_grown]] = np.arange(len(self), len(self) + n_grown)
        self.index_R = np.concatenate([self.index_R, index_P[:n_grown]])
        self.counts_R2 = np.concatenate([self.counts_R2, np.zeros((n_grown, 2))])
        self.step_R = np.concatenate([self.step_R, np.zeros(n_grown, dtype=np.int64)])
        grown = np.zeros((n_grown, self.policy_RF.shape[1]), dtype=np.float16)
        self.policy_RF = np.concatenate([self.policy_RF, grown])
        for index in index_P[n_grown:].tolist():
            self._slot_N[self.index_R[self._next]] = -1
            self._slot_N[index] = self._next
            self.index_R[self._next] = index
            self._next = (self._next + 1) % self._size

    def state_dict(self) -> State:
        rows = {
            "index": self.index_R,
            "policy": self.policy_RF,
            "counts": self.counts_R2,
            "step": self.step_R,
        }
        return rows | {"next": self._next}

    def load_state_dict(self, state: State) -> None:
        """Raises ValueError or IndexError if malformed, with nothing changed."""
        index_R = np.array(state["index"], dtype=np.int64).reshape(-1)
        counts_R2 = np.array(state["counts"], dtype=np.float64).reshape(len(index_R), 2)
        step_R = np.array(state["step"], dtype=np.int64).reshape(len(index_R))
        policy_RF = np.array(state["policy"], dtype=np.float16).reshape(
            len(index_R), self.policy_RF.shape[1]
        )
        slot_N = np.full_like(self._slot_N, -1)
        slot_N[index_R] = np.arange(len(index_R))
        following = int(state["next"])
        self.index_R = index_R
        self.policy_RF = policy_RF
        self.counts_R2 = counts_R2
        self.step_R = step_R
        self._slot_N = slot_N
        self._next = following


class PriorHeads:
    """``predict`` the prior of prompts; ``learn`` from finished groups.

    moving: the features that change with the policy, beside those of the table. rng: of the
    replay's batches.
    """

    def __init__(
        self,
        table: FeatureTable,
        moving: PolicyFeatures,
        n_prompts: int,
        settings: FusedSettings,
        rng: np.random.Generator,
    ) -> None:
        self.settings = settings
        self._table = table
        self._moving = moving
        self._rng = rng
        start_D = np.concatenate([table.start(settings.rate_slope), np.zeros(moving.width)])
        self._start_D2 = np.column_stack([start_D, np.zeros_like(start_D)])
        self._weight_D2 = self._start_D2.copy()
        self._bias_2 = np.array(_START)
        self._moment_D2 = np.zeros((len(start_D) + 1, 2))
        self._square_D2 = np.zeros((len(start_D) + 1, 2))
        self._n_updates = 0
        self.replay = Replay(n_prompts, settings.replay_prompts, moving.width)
        self.loss = float("nan")

    def begin_with(self, index_P: IndexArray, counts_P2: FloatArray) -> None:
        """Takes over, as the mean of the weights' priors, what heads learn from these groups of
        distinct prompts.

        They were of another policy: its level is left out, and what tells prompts apart is believed
        in part. A few passes, no more, for what they would learn then is of that policy too.
        """
        settings = self.settings.model_copy(
            update={"replay_prompts": len(index_P), "updates_per_observe": 0}
        )
        teacher = PriorHeads(
            self._table, self._moving, len(self._table), settings, np.random.default_rng(0)
        )
        nothing_PF = np.zeros((len(index_P), self._moving.width), np.float16)
        teacher.learn(index_P, nothing_PF, counts_P2, np.zeros(len(index_P), np.int64), 0, 0.0)
        for _ in range(ceil(_LESSON_PASSES * len(index_P) / settings.batch_groups)):
            teacher._update(0, 0.0)
        self._start_D2 = self._start_D2 + _LESSON_TRUST * (teacher._weight_D2 - self._start_D2)
        self._weight_D2 = self._start_D2.copy()

    def predict(self, index_P: IndexArray, policy_PF: Block) -> tuple[FloatArray, FloatArray]:
        """(mean, variance) of theta of each prompt before its own groups are known. policy_PF:
        ``PolicyFeatures``."""
        mean_P, log_spread_P = self._raw(self._rows(index_P, policy_PF))
        return mean_P, np.exp(2.0 * log_spread_P)

    def _rows(self, index_P: IndexArray, policy_PF: Block) -> FeatureRows:
        rows = self._table.rows(index_P)
        return rows.beside(policy_PF, self._moving.scale_F) if self._moving.width else rows

    def _raw(self, rows: FeatureRows) -> tuple[FloatArray, FloatArray]:
        raw_P2 = rows.dot(self._weight_D2) + self._bias_2
        return np.clip(raw_P2[:, 0], -LOGIT_LIMIT, LOGIT_LIMIT), np.clip(
            raw_P2[:, 1], *_LOG_SPREAD_LIMITS
        )

    def learn(
        self,
        index_P: IndexArray,
        policy_PF: Block,
        counts_P2: FloatArray,
        step_P: IndexArray,
        now: int,
        drift: float,
    ) -> None:
        """Adds groups of distinct prompts to the replay and makes ``updates_per_observe``
        updates."""
        self.replay.add(index_P, policy_PF, counts_P2, step_P)
        for _ in range(self.settings.updates_per_observe):
            self._update(now, drift)

    def _pick(self) -> IndexArray:
        """Rows of the replay for one update, with repeats, the more likely the younger their
        group."""
        age_R = self.replay.step_R.max() - self.replay.step_R
        share_R = np.cumsum(0.5 ** (age_R / self.settings.half_life_steps))
        drawn = self._rng.random(min(len(age_R), self.settings.batch_groups)) * share_R[-1]
        picked: IndexArray = np.searchsorted(share_R, drawn, side="right")
        return np.minimum(picked, len(age_R) - 1)

    def _update(self, now: int, drift: float) -> None:
        replay = self.replay
        picked = self._pick()
        rows = self._rows(replay.index_R[picked], replay.policy_RF[picked])
        mean_P, log_spread_P = self._raw(rows)
        mean_P = mean_P - drift * (now - replay.step_R[picked])
        variance_P = np.exp(2.0 * log_spread_P)
        counts_P2 = replay.counts_R2[picked]
        after = condition(mean_P, variance_P, counts_P2[:, 0], counts_P2[:, 1])
        moved_P = after.mean - mean_P
        slope_P2 = np.column_stack(
            [moved_P / variance_P, (after.variance + moved_P**2) / variance_P - 1.0]
        )
        slope_P2 /= -len(picked)
        self.loss = -float(after.log_evidence.mean())
        precision_2 = np.array(
            [self.settings.mean_precision, self.settings.spread_precision]
        ) / len(replay)
        gradient_D2 = rows.t_dot(slope_P2) + precision_2 * (self._weight_D2 - self._start_D2)
        self._adam(np.vstack([gradient_D2, slope_P2.sum(axis=0)]))

    def _adam(self, gradient_D2: FloatArray, beta1: float = 0.9, beta2: float = 0.99) -> None:
        self._n_updates += 1
        self._moment_D2 += (1 - beta1) * (gradient_D2 - self._moment_D2)
        self._square_D2 += (1 - beta2) * (gradient_D2**2 - self._square_D2)
        corrected = np.sqrt(self._square_D2 / (1 - beta2**self._n_updates)) + 1e-8
        step_D2 = (
            self.settings.learning_rate / (1 - beta1**self._n_updates) * self._moment_D2 / corrected
        )
        self._weight_D2 -= step_D2[:-1]
        self._bias_2 = self._bias_2 - _BIAS_RATE * step_D2[-1]

    def state_dict(self) -> State:
        return {
            "weight": self._weight_D2.copy(),
            "bias": self._bias_2.copy(),
            "moment": self._moment_D2.copy(),
            "square": self._square_D2.copy(),
            "n_updates": self._n_updates,
            "rng": dict(self._rng.bit_generator.state),
            "replay": self.replay.state_dict(),
            "loss": self.loss,
        }

    def load_state_dict(self, state: State) -> None:
        """Raises ValueError, with nothing changed, if the arrays are of other features."""
        names = ("weight", "moment", "square")
        shapes = (self._weight_D2.shape, self._moment_D2.shape, self._square_D2.shape)
        arrays = [
            np.array(state[n], dtype=np.float64).reshape(shape)
            for n, shape in zip(names, shapes, strict=True)
        ]
        bias_2 = np.array(state["bias"], dtype=np.float64).reshape(2)
        n_updates = int(state["n_updates"])
        loss = float(state["loss"])
        self.replay.load_state_dict(state["replay"])
        self._rng.bit_generator.state = state["rng"]
        self._weight_D2, self._moment_D2, self._square_D2 = arrays
        self._bias_2 = bias_2
        self._n_updates = n_updates
        self.loss = loss
