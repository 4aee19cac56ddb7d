"""The vocabulary: the frozen values that go in and out of a curriculum, and the protocols of its
parts.

Array names carry their axes: ``_P`` prompts or candidates, ``_G`` members of a group, ``_D``
features.
"""

from __future__ import annotations

import hashlib
import math
from collections.abc import Iterable, Mapping
from dataclasses import dataclass, field, replace
from typing import Any, NamedTuple, SupportsFloat

import numpy as np
from numpy.typing import NDArray

FloatArray = NDArray[np.float64]
State = dict[str, Any]
"""Nested dict of JSON values and numpy arrays, as ``state_dict()`` returns and ``checkpoint.save``
writes."""


def finite(value: object) -> float | None:
    """``value`` as a float; None for what is no number, NaN and infinities: not measured."""
    if not isinstance(value, SupportsFloat):
        return None
    try:
        number = float(value)
    except (OverflowError, TypeError, ValueError):  # a whole number beyond floats; an array
        return None
    return number if math.isfinite(number) else None


def as_rate(value: object) -> float | None:
    """``value`` as a pass rate in [0, 1]; None if it is missing, not a number or out of range."""
    if isinstance(value, bool) or not isinstance(value, (int, float, np.integer, np.floating)):
        return None
    number = finite(value)
    return number if number is not None and 0.0 <= number <= 1.0 else None


def prompt_key(text: str, source: str = "default") -> str:
    """Default key of a prompt: 16 hex digits of a hash of source and text, stable across runs and
    machines."""
    return hashlib.blake2b(
        f"{source}\x00{text}".encode("utf-8", "surrogatepass"), digest_size=8
    ).hexdigest()


def chat_text(messages: Iterable[Mapping[str, Any]]) -> str:
    """A conversation as one string, the text of a ``Prompt``: what is said, turn by turn, without
    the roles.

    Of a content in parts, each a text or a typed block, the texts; images have none. Keys of
    prompts depend on it.
    """
    return "\n".join(_said(message.get("content")) for message in messages)


def _said(content: Any) -> str:
    if not isinstance(content, list):
        return str(content or "")
    return " ".join(
        part if isinstance(part, str) else str(part.get("text") or "") for part in content
    )


@dataclass(frozen=True, slots=True)
class Prompt:
    """One question.

    key: unique within a pool. text: what the policy reads (a chat is rendered to one string).
    source: the data set or domain it comes from. fields: the data set's other columns (answer,
    level, published pass rates, ...).
    """

    key: str
    text: str
    source: str = "default"
    fields: Mapping[str, Any] = field(default_factory=dict)


@dataclass(frozen=True, slots=True)
class GroupOutcome:
    """A finished group: counts, never a bare mean. Unknown values are None, never 0.

    key: the prompt's. n_correct: completions the verifier called correct. n_scored: completions it
    could judge. n_failed: completions it could not judge (time-out, crash, None, NaN); group size
    is n_scored + n_failed. reward_mean, reward_std: of the (shaped) training reward over scored
    completions. mean_logprob: mean token log-probability (nats) of the completions under the policy
    that sampled them. n_tokens: completion tokens generated for the group. policy_step: optimiser
    step that made the sampling policy.

    Raises ValueError if a count is negative or n_correct > n_scored.
    """

    key: str
    n_correct: int
    n_scored: int
    n_failed: int = 0
    reward_mean: float | None = None
    reward_std: float | None = None
    mean_logprob: float | None = None
    n_tokens: int | None = None
    policy_step: int | None = None

    def __post_init__(self) -> None:
        if not 0 <= self.n_correct <= self.n_scored or self.n_failed < 0:
            raise ValueError(
                f"outcome of {self.key!r}: counts must satisfy 0 <= n_correct <= n_scored and 0 <= n_failed, "
                f"got n_correct={self.n_correct}, n_scored={self.n_scored}, n_failed={self.n_failed}"
            )

    @classmethod
    def of(
        cls,
        key: str,
        verdicts: Iterable[bool | float | None],
        rewards: Iterable[float | None] = (),
        *,
        logprobs: Iterable[tuple[float, float]] = (),
        n_tokens: int | None = None,
        policy_step: int | None = None,
        group_size: int = 0,
    ) -> GroupOutcome:
        """Counts a group, given what each of its completions got; the one place where engines do.

        verdicts: true (1) where the verifier called it correct, false (0) where not, None or NaN
        where it could not judge. rewards: what the policy trains on, None or NaN where unknown.
        logprobs: of each completion of which it is known, the sum of its token log-probabilities
        (nats) and their number. group_size: completions asked for; those that never came count as
        failed.
        """
        given = list(verdicts)
        scored = [verdict for verdict in given if verdict is not None and not math.isnan(verdict)]
        known = [reward for reward in rewards if reward is not None and math.isfinite(reward)]
        tokens = [pair for pair in logprobs if pair[1]]
        n_logprobs = sum(n for _, n in tokens)
        mean_logprob = sum(total for total, _ in tokens) / n_logprobs if n_logprobs else math.nan
        return cls(
            key=key,
            n_correct=sum(map(bool, scored)),
            n_scored=len(scored),
            n_failed=max(group_size, len(given)) - len(scored),
            reward_mean=float(np.mean(known)) if known else None,
            reward_std=float(np.std(known)) if known else None,
            mean_logprob=mean_logprob if math.isfinite(mean_logprob) else None,
            n_tokens=n_tokens,
            policy_step=policy_step,
        )

    def joined(self, more: GroupOutcome) -> GroupOutcome:
        """This group with the further completions ``more`` of the same prompt and policy step:
        counts add up.

        What was measured of the two apart (rewards, log-probability) is unknown of the whole.
        """
        tokens = (
            None
            if self.n_tokens is None or more.n_tokens is None
            else self.n_tokens + more.n_tokens
        )
        counts = (
            self.n_correct + more.n_correct,
            self.n_scored + more.n_scored,
            self.n_failed + more.n_failed,
        )
        return GroupOutcome(self.key, *counts, n_tokens=tokens, policy_step=self.policy_step)

    def graded(self, low: float, high: float) -> GroupOutcome:
        """This group judged by its rewards, in [low, high], instead of by correctness: for rewards
        that are graded.

        It counts as the group of 0/1 rewards that has their variance v, as a share of (high -
        low)^2, on their mean's side of the middle: of n, k = n (1 - sqrt(1 - 4 v)) / 2 dissent from
        the rest, rounded up from a tenth on. So 0/1 rewards count as they are, P(mixed) goes with
        the variance of the rewards, and a group whose rewards hardly differ is all-right or
        all-wrong. Without rewards it is a failed group.
        """
        mean = self.reward_mean
        std = self.reward_std
        n = self.n_scored
        if not n or mean is None or std is None or not (math.isfinite(mean) and math.isfinite(std)):
            return replace(self, n_correct=0, n_scored=0, n_failed=self.group_size)
        spread = min(2.0 * std / (high - low), 1.0)  # rewards beyond the range cannot make it more
        dissenting = math.floor(n * (1.0 - math.sqrt(1.0 - spread**2)) / 2.0 + 0.9)
        return replace(self, n_correct=n - dissenting if mean > (low + high) / 2.0 else dissenting)

    @property
    def group_size(self) -> int:
        return self.n_scored + self.n_failed

    @property
    def pass_rate(self) -> float | None:
        """Share correct among the scored, in [0, 1]; None if nothing could be scored."""
        return self.n_correct / self.n_scored if self.n_scored else None

    @property
    def mixed(self) -> bool:
        """Some right and some wrong: the only kind of group with a non-zero GRPO advantage on a 0/1
        reward."""
        return 0 < self.n_correct < self.n_scored

    @property
    def all_pass(self) -> bool:
        return self.n_scored > 0 and self.n_correct == self.n_scored

    @property
    def all_fail(self) -> bool:
        return self.n_scored > 0 and self.n_correct == 0


class Lesson(NamedTuple):
    """What an estimator can learn before a run begins: groups of other prompts, or of an earlier
    run.

    prompts: distinct, with keys that no pool has and without columns that tell the outcome.
    counts_P2: shape (P, 2), completions right and scored, fractions allowed. identity: of the
    content, for a checkpoint.
    """

    prompts: tuple[Prompt, ...]
    counts_P2: FloatArray
    identity: str


@dataclass(frozen=True, slots=True)
class Prediction:
    """A Beta belief about each prompt's pass rate under the current policy.

    mean_P: shape (P,), in (0, 1). strength_P: shape (P,), > 0, evidence in equivalent rollouts; the
    belief is Beta(mean * strength, (1 - mean) * strength). suspicion_P: shape (P,), in [0, 1], the
    probability that a prompt's verdicts are coin flips, which teach nothing however mixed its
    groups are; None where nobody judges that.
    """

    mean_P: FloatArray
    strength_P: FloatArray
    suspicion_P: FloatArray | None = None

    def __len__(self) -> int:
        return len(self.mean_P)

    def p_all_pass(self, group_size: int) -> FloatArray:
        """P(all ``group_size`` completions right), shape (P,): B(a+G, b) / B(a, b), as a product of
        G ratios."""
        return _rising_ratio(self.mean_P * self.strength_P, self.strength_P, group_size)

    def p_all_fail(self, group_size: int) -> FloatArray:
        """P(all ``group_size`` completions wrong), shape (P,): B(a, b+G) / B(a, b)."""
        return _rising_ratio((1 - self.mean_P) * self.strength_P, self.strength_P, group_size)

    def p_mixed(self, group_size: int) -> FloatArray:
        """P(the group has both right and wrong completions), shape (P,), in [0, 1]."""
        p_dead_P = self.p_all_pass(group_size) + self.p_all_fail(group_size)
        return np.clip(1.0 - p_dead_P, 0.0, 1.0)

    def p_teaches(self, group_size: int) -> FloatArray:
        """P(the group is mixed and its verdicts are none of a coin's), shape (P,), in [0, 1]."""
        p_mixed_P = self.p_mixed(group_size)
        return p_mixed_P if self.suspicion_P is None else p_mixed_P * (1.0 - self.suspicion_P)

    def sanitised(self, n_prompts: int) -> tuple[Prediction, int]:
        """Itself with each value that is not a Beta (NaN, infinite, out of range) replaced by
        Beta(1, 1); how many.

        Raises ValueError if there is not one value per prompt: a wrong shape is a bug, not an
        uncertain estimate.
        """
        mean_P = np.asarray(self.mean_P, dtype=float)
        strength_P = np.asarray(self.strength_P, dtype=float)
        if mean_P.shape != (n_prompts,) or strength_P.shape != (n_prompts,):
            raise ValueError(
                f"prediction of {n_prompts} prompts has shapes {mean_P.shape}, {strength_P.shape}"
            )
        # NaN compares false
        valid_P = (mean_P >= 0) & (mean_P <= 1) & (strength_P > 0) & np.isfinite(strength_P)
        mean_P = np.where(valid_P, mean_P, 0.5)
        strength_P = np.where(valid_P, strength_P, 2.0)
        suspicion_P = (
            np.zeros(n_prompts) if self.suspicion_P is None else np.nan_to_num(self.suspicion_P)
        )
        belief = Prediction(
            np.clip(mean_P, 1e-6, 1 - 1e-6), strength_P, np.clip(suspicion_P, 0.0, 1.0)
        )
        return belief, int((~valid_P).sum())


def _rising_ratio(a_P: FloatArray, total_P: FloatArray, n: int) -> FloatArray:
    """prod_{i<n} (a + i) / (a + b + i): the Beta-binomial probability of n successes in n
    trials."""
    result_P = np.ones_like(a_P)
    for i in range(n):
        result_P = result_P * (a_P + i) / (total_P + i)
    return result_P


@dataclass(frozen=True, slots=True)
class Decision:
    """What a selector made of a list of candidates; all positions index that list.

    chosen: positions to roll out, at most as many as asked for. skipped: position -> reason, every
    other position. explored: positions chosen whatever the prediction (the selector's own
    exploration, if any; a subset of chosen). score_P: shape (P,), larger is better; ranks the
    skipped when too few qualify and the batch must be filled. threshold: of a draw, the score from
    which on a candidate is certain to be chosen, > 0: each was chosen with probability min(1, score
    / threshold). None: the rule is not a draw.
    """

    chosen: tuple[int, ...]
    skipped: Mapping[int, str]
    score_P: FloatArray
    explored: tuple[int, ...] = ()
    threshold: float | None = None


class Flight(NamedTuple):
    """Why a prompt was chosen, and the belief before its rollout; kept while the prompt is in
    flight.

    because: "uniform", "warmup", "selected", "explored", "fallback" or "guarded". predicted_mean in
    (0, 1), predicted_strength > 0, in equivalent rollouts. suspicion: P(its verdicts are coin
    flips), in [0, 1]. inclusion: how many times likelier this prompt was to be in the batch than
    under uniform choice, > 0 (1 where the choice was uniform); NaN where the rule is not a draw.
    """

    because: str
    predicted_mean: float
    predicted_strength: float
    suspicion: float
    inclusion: float


@dataclass(frozen=True, slots=True)
class Settlement:
    """One outcome with what was known before its rollout.

    because: as in ``Flight``, or "duplicate" for an outcome of a prompt that was not in flight
    (ignored). predicted_mean, predicted_strength, suspicion, inclusion: as in ``Flight``; NaN for
    duplicates. admitted: train on it.
    """

    outcome: GroupOutcome
    because: str
    predicted_mean: float
    predicted_strength: float
    suspicion: float
    inclusion: float
    admitted: bool
