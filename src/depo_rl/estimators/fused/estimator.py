"""Our estimator: one calibrated belief about each prompt from everything that is known of it.

    prior     features -> Normal(mean, variance) of the logit of the pass rate      (prior_heads)
    evidence  the prompt's own groups, faded by policy steps, moved by the drift    (evidence)
    mending   P(mixed) recalibrated by what became of the latest predictions        (recalibration)

The prior serves prompts never seen, and those seen long ago; what their groups tell takes over as
it comes.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace

import numpy as np

from ...config import FusedSettings
from ...errors import expect_fields, expect_same
from ...features.experimental.policy import AnswerLogprobs, Block, PolicyFeatures, PolicyStates
from ...features.table import FeatureTable
from ...types import FloatArray, GroupOutcome, Lesson, Prediction, Prompt, State
from ..beliefs import StepClock, beta_with_p_mixed
from ..recalibration import Recalibration
from .evidence import Evidence, IndexArray
from .logistic_normal import rates
from .prior_heads import PriorHeads

# The heads were fitted to the groups of a prompt that was seen; its prior is widened, lest they
# count twice.
_SEEN_WIDENING = 2.0


class FusedEstimator:
    """prompts: the whole pool. group_size: the G whose P(mixed) is calibrated. seed: of the
    replay's generator.

    The belief is told as the Beta that has its P(mixed) for groups of ``group_size``, at its mean.
    Without ``history`` a prompt's own groups teach the prior only. lesson: what the heads begin
    with.
    """

    def __init__(
        self,
        prompts: Sequence[Prompt],
        settings: FusedSettings,
        group_size: int,
        seed: int,
        lesson: Lesson | None = None,
    ) -> None:
        self.settings = settings
        self._group_size = group_size
        self.policy_states: PolicyStates | None = None
        self.answer_logprobs: AnswerLogprobs | None = None
        self._table = FeatureTable([*prompts, *lesson.prompts] if lesson else prompts, settings)
        self._policy = PolicyFeatures(settings)
        self._heads = PriorHeads(
            self._table, self._policy, len(prompts), settings, np.random.default_rng([seed, 103])
        )
        if lesson:
            self._heads.begin_with(np.arange(len(prompts), len(self._table)), lesson.counts_P2)
        # what the features' meaning and the weights' priors come from, and a checkpoint must agree
        # with
        self._origin = self._table.origin | {"warm_start": lesson.identity if lesson else None}
        self._evidence = Evidence(len(prompts), settings)
        self._keys = [prompt.key for prompt in prompts]
        self._position = {key: position for position, key in enumerate(self._keys)}
        self._recalibration = Recalibration()
        self._clock = StepClock()

    def predict(self, prompts: Sequence[Prompt]) -> Prediction:
        index_P = self._table.index_of([p.key for p in prompts])
        prior = self._prior(index_P, self._look(prompts, index_P))
        mean_P, p_mixed_P = self._believe(index_P, *prior)
        if self.settings.recalibrate:
            p_mixed_P = self._recalibration.apply(p_mixed_P, self._evidence.seen(index_P))
        belief = beta_with_p_mixed(mean_P, p_mixed_P, self._group_size)
        return replace(belief, suspicion_P=self._evidence.faults(index_P)[0])

    def read_policy(self, states: PolicyStates | None, answers: AnswerLogprobs | None) -> None:
        """Takes from an engine that has the policy how to read it; asked by each ``predict`` if the
        settings say so.

        What they ask for and nobody handed over is a ConfigError of ``predict``.
        """
        self.policy_states = states
        self.answer_logprobs = answers

    def _look(self, prompts: Sequence[Prompt], index_P: IndexArray) -> Block:
        return self._policy.look(self.policy_states, self.answer_logprobs, prompts, index_P)

    def _prior(self, index_P: IndexArray, policy_PF: Block) -> tuple[FloatArray, FloatArray]:
        mean_P, variance_P = self._heads.predict(index_P, policy_PF)
        return mean_P, np.where(
            self._evidence.seen(index_P), _SEEN_WIDENING * variance_P, variance_P
        )

    def _believe(
        self, index_P: IndexArray, prior_mean_P: FloatArray, prior_variance_P: FloatArray
    ) -> tuple[FloatArray, FloatArray]:
        """Expected pass rate and P(mixed) of each prompt, not mended: the mean over the walks."""
        if not self.settings.history:
            told = rates(prior_mean_P, prior_variance_P, self._group_size)
            return told.mean, 1.0 - told.all_pass - told.all_fail
        belief = self._evidence.belief(index_P, prior_mean_P, prior_variance_P, self._clock.now)
        told = rates(belief.mean_WP, belief.variance_WP, self._group_size)
        weight_W = self._evidence.weight_W
        return weight_W @ told.mean, 1.0 - weight_W @ (told.all_pass + told.all_fail)

    def observe(self, outcomes: Sequence[GroupOutcome]) -> None:
        scored = [o for o in outcomes if o.n_scored > 0]
        if not scored:
            return
        now = self._clock.read(scored)
        # In the pool's order, whatever order an engine's workers finished in: the replay's batches
        # depend on it.
        scored.sort(key=lambda o: self._position[o.key])
        index_P = self._table.index_of([o.key for o in scored])
        counts_P2 = np.array([(o.n_correct, o.n_scored) for o in scored], dtype=np.float64)
        step_P = np.array(
            [now if o.policy_step is None else o.policy_step for o in scored], dtype=np.int64
        )
        for part in _rounds(index_P):
            self._learn(index_P[part], counts_P2[part], step_P[part], now)

    def _learn(
        self, index_P: IndexArray, counts_P2: FloatArray, step_P: IndexArray, now: int
    ) -> None:
        """One group each of distinct prompts; the prediction is judged before anything is learnt
        from them."""
        policy_PF = self._policy.told(index_P)
        prior_mean_P, prior_variance_P = self._prior(index_P, policy_PF)
        whole_P = counts_P2[:, 1] == self._group_size  # P(mixed) of a partial group is another
        if self.settings.recalibrate and whole_P.any():
            _, p_mixed_P = self._believe(index_P, prior_mean_P, prior_variance_P)
            mixed_P = (counts_P2[:, 0] > 0) & (counts_P2[:, 0] < counts_P2[:, 1])
            seen_P = self._evidence.seen(index_P)
            self._recalibration.judge(p_mixed_P[whole_P], seen_P[whole_P], mixed_P[whole_P])
        if self.settings.history:
            self._evidence.update(index_P, prior_mean_P, prior_variance_P, counts_P2, step_P)
        self._heads.learn(index_P, policy_PF, counts_P2, step_P, now, self._evidence.drift)

    def suspects(self) -> dict[str, list[str]]:
        """Keys of the prompts whose verdicts look broken, the surest first, by fault.

        coin_flips: right half of the time, whatever is answered; such a group is mixed and teaches
        nothing. never_right: wrong however well the policy does on prompts alike, as with a wrong
        reference answer.
        """
        found = self._evidence.suspects()
        return {fault: [self._keys[i] for i in index.tolist()] for fault, index in found.items()}

    def state_dict(self) -> State:
        return {
            "type": type(self).__name__,
            "now": self._clock.now,
            "policy": self._policy.state_dict(),
            "heads": self._heads.state_dict(),
            "evidence": self._evidence.state_dict(),
            "recalibration": self._recalibration.state_dict(),
            "origin": dict(self._origin),
        }

    def load_state_dict(self, state: State) -> None:
        """Raises StateMismatch if saved by another estimator, ValueError if malformed."""
        expect_fields("estimator", state, self.state_dict())
        for name, own in self._origin.items():
            expect_same("estimator", name, state["origin"].get(name), own)
        now = int(state["now"])
        self._policy.load_state_dict(state["policy"])
        self._heads.load_state_dict(state["heads"])
        self._evidence.load_state_dict(state["evidence"])
        self._recalibration.load_state_dict(state["recalibration"])
        self._clock.now = now

    def metrics(self) -> dict[str, float]:
        """What the parts say of themselves.

        loss: nats per group of the heads' last batch. drift: logits per policy step. walk:
        expected, logits per square root of a step. prompts_seen: with groups of their own.
        flaky_share: estimated share of prompts whose verdicts are coin flips. suspects: prompts
        that are such with a probability of at least 0.8. never_right_share: estimated share of
        prompts whose verdicts are wrong whatever is answered. never_right: prompts that are such
        with a probability of at least 0.8. recalibration_slope, recalibration_offset,
        recalibration_offset_seen: of the mended logit of P(mixed).
        """
        coin_flips, never_right = self._evidence.fault_shares.tolist()
        suspects = self._evidence.suspects()
        slope, offset, offset_seen = self._recalibration.coefficients_3.tolist()
        return {
            "loss": self._heads.loss,
            "drift": self._evidence.drift,
            "walk": float(self._evidence.weight_W @ np.array(self.settings.walks)),
            "prompts_seen": float(self._evidence.n_seen()),
            "flaky_share": coin_flips,
            "suspects": float(len(suspects["coin_flips"])),
            "never_right_share": never_right,
            "never_right": float(len(suspects["never_right"])),
            "recalibration_slope": slope,
            "recalibration_offset": offset,
            "recalibration_offset_seen": offset_seen,
        }


def _rounds(index_P: IndexArray) -> list[IndexArray]:
    """Positions of ``index_P`` in rounds of distinct prompts, each prompt's in order: usually one
    round."""
    rounds: list[list[int]] = []
    count: dict[int, int] = {}
    for position, index in enumerate(index_P.tolist()):
        nth = count.get(index, 0)
        count[index] = nth + 1
        if nth == len(rounds):
            rounds.append([])
        rounds[nth].append(position)
    return [np.array(part, dtype=np.int64) for part in rounds]
