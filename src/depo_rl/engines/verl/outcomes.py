"""What verl knows of a group's completions becomes an outcome; free of verl.

Correctness comes from a named key of ``reward_extra_info``, never from the reward that the policy
trains on.
"""

from __future__ import annotations

import math
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from ...errors import RewardError
from ...types import GroupOutcome


@dataclass(frozen=True, slots=True)
class Completion:
    """One finished completion.

    reward: what the policy trains on, None if unknown. info: ``reward_extra_info``. n_tokens: the
    policy's own tokens. logprob_sum: of those tokens under the policy that sampled them (nats),
    None if unknown. version: policy step that sampled it, None if unknown.
    """

    reward: float | None
    info: Mapping[str, Any]
    n_tokens: int
    logprob_sum: float | None
    version: int | None


@dataclass(frozen=True, slots=True)
class Judge:
    """A completion is correct if ``info[key]`` is at least ``threshold``; None, NaN and infinite
    are unscorable.

    by_score: where ``info`` has no such key, ``info["score"]``, else the reward, is judged in its
    place.
    """

    key: str
    threshold: float
    by_score: bool = False

    def verdict(self, completion: Completion) -> bool | None:
        """True, False, or None where the verifier could not judge. A value that is no number raises
        RewardError."""
        value = completion.info.get(self.key)
        if self.by_score and self.key not in completion.info:
            value = completion.info.get("score", completion.reward)
        if value is None:
            return None
        try:
            number = float(value)
        except (TypeError, ValueError):
            raise RewardError(
                f"reward_extra_info[{self.key!r}] is {value!r}, must be a number or a truth value: name another key "
                f"with +data.depo.correct_key=...; keys there: {_listed(completion.info)}"
            ) from None
        return number >= self.threshold if math.isfinite(number) else None

    def check_key(self, completions: Iterable[Completion]) -> None:
        """Raises RewardError, naming the keys that are there, if no completion has the key."""
        completions = list(completions)
        if completions and not any(self.key in completion.info for completion in completions):
            seen = sorted({name for completion in completions for name in completion.info})
            raise RewardError(
                f"none of {len(completions)} completions has {self.key!r} in reward_extra_info, which says what is "
                f"correct; keys there: {', '.join(seen) or 'none'}. Return it from the reward function beside 'score', "
                f"or name another key with +data.depo.correct_key=..."
            )


def group_outcome(
    key: str, completions: Sequence[Completion], group_size: int, judge: Judge
) -> GroupOutcome:
    """The outcome of one group; completions asked for (``group_size``) that never came count as
    failed."""
    versions = [c.version for c in completions if c.version is not None]
    return GroupOutcome.of(
        key,
        [judge.verdict(completion) for completion in completions],
        [completion.reward for completion in completions],
        logprobs=[(c.logprob_sum, c.n_tokens) for c in completions if c.logprob_sum is not None],
        n_tokens=sum(c.n_tokens for c in completions) if completions else None,
        policy_step=min(versions, default=None),
        group_size=group_size,
    )


def _listed(info: Mapping[str, Any]) -> str:
    return ", ".join(sorted(info)) or "none"
