"""A world without a model: pools of any size whose pass rates drift as a learner improves.

Item response (two parameters and a guessing floor): prompt i has a skill s(i), a difficulty b_i ~
N(0, spread^2) in logits and a discrimination a_i with log a_i ~ N(0, 0.25^2). A learner with
ability theta_s in skill s answers right with probability

    p_i = c + (1 - c) / (1 + exp(-a_i * (theta_s(i) - b_i)))                                                       (1)

and a group of n completions has k_i ~ Binomial(n, p_i) right ones.

Learning, from mixed groups only: a group with share q = k / n right carries a signal v = 4 q (1 -
q), the variance of its rewards relative to the largest possible, which is 0 for a group that is all
right or all wrong. After each step

    theta_s += rate * [ sum of v over trained groups of skill s + transfer * mean over skills of these sums ]      (2)

so that what is easy becomes all right, what was hopeless comes within reach, and a selector that
finds mixed groups learns faster.

The text of a prompt tells its skill and a *grade*, a rounded noisy reading of its difficulty, g = r
b + sqrt(1 - r^2) spread e with e ~ N(0, 1): ``text_signal`` r is the correlation of grade and
difficulty, the most that a text model can know.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np

from ..errors import ConfigError
from ..types import FloatArray, GroupOutcome, Prompt

_GRADE_STEP = 0.5  # logits per grade
_MIDDLE_GRADE = 20


@dataclass(frozen=True, slots=True)
class SyntheticSettings:
    """n_prompts, n_skills: sizes. difficulty_spread: of b, in logits. ability: theta at the start,
    in logits.

    guess: c in [0, 1). learning_rate: logits per mixed group of the highest signal. transfer: share
    of what is learnt in one skill that all gain. text_signal: r in [0, 1]. seed: of the pool, not
    of the rollouts. Raises ConfigError.
    """

    n_prompts: int = 10_000
    n_skills: int = 8
    difficulty_spread: float = 2.5
    ability: float = -0.5
    guess: float = 0.0
    learning_rate: float = 0.002
    transfer: float = 0.5
    text_signal: float = 0.8
    seed: int = 0

    def __post_init__(self) -> None:
        if min(self.n_prompts, self.n_skills) < 1:
            raise ConfigError(
                f"n_prompts = {self.n_prompts}, n_skills = {self.n_skills}: each must be at least 1"
            )
        if not (0.0 <= self.guess < 1.0 and 0.0 <= self.text_signal <= 1.0):
            raise ConfigError(
                f"guess = {self.guess} must be in [0, 1), text_signal = {self.text_signal} in [0, 1]"
            )
        if min(self.difficulty_spread, self.learning_rate, self.transfer) < 0.0:
            raise ConfigError("difficulty_spread, learning_rate and transfer must not be negative")


class SyntheticEngine:
    """A learner in such a world. seed: of the rollouts. Prompts' fields hold the pass rate at the
    start."""

    def __init__(self, settings: SyntheticSettings | None = None, seed: int = 0) -> None:
        self.settings = settings or SyntheticSettings()
        world = np.random.default_rng([self.settings.seed, 3])
        n = self.settings.n_prompts
        self._skill_P = world.integers(self.settings.n_skills, size=n)
        standard_P, noise_P = world.standard_normal((2, n))
        self._difficulty_P = self.settings.difficulty_spread * standard_P
        self._discrimination_P = np.exp(0.25 * world.standard_normal(n))
        r = self.settings.text_signal
        reading_P = self.settings.difficulty_spread * (r * standard_P + np.sqrt(1 - r**2) * noise_P)
        self._grade_P = np.maximum(np.round(reading_P / _GRADE_STEP) + _MIDDLE_GRADE, 0).astype(
            np.int64
        )
        self.ability_S: FloatArray = np.full(self.settings.n_skills, float(self.settings.ability))
        self._rng = np.random.default_rng([seed, 2])
        self.step = 1

    def prompts(self) -> list[Prompt]:
        """The pool, in a fixed order; the i-th has the key ``p<i>``."""
        rows = zip(
            self._skill_P.tolist(), self._grade_P.tolist(), self.pass_rates().tolist(), strict=True
        )
        return [
            Prompt(
                f"p{i}", f"skill {skill} grade {grade} task {i}", "synthetic", {"pass_rate": rate}
            )
            for i, (skill, grade, rate) in enumerate(rows)
        ]

    def pass_rates(self, index_P: Sequence[int] | None = None) -> FloatArray:
        """Equation (1) for the learner as it is now, of all prompts or of those at ``index_P``;
        shape (P,)."""
        at = slice(None) if index_P is None else np.asarray(index_P, dtype=np.int64)
        logit_P = self._discrimination_P[at] * (
            self.ability_S[self._skill_P[at]] - self._difficulty_P[at]
        )
        right_P = 1.0 / (1.0 + np.exp(-np.clip(logit_P, -700.0, 700.0)))
        rates_P: FloatArray = self.settings.guess + (1.0 - self.settings.guess) * right_P
        return rates_P

    def rollout(self, prompts: Sequence[Prompt], group_size: int) -> list[GroupOutcome]:
        """A group for each prompt, in order. Raises ValueError for a key that is not of this
        world."""
        rate_P = self.pass_rates([_index(prompt.key) for prompt in prompts])
        correct_P = self._rng.binomial(group_size, rate_P).tolist()
        return [
            GroupOutcome(prompt.key, k, group_size, policy_step=self.step)
            for prompt, k in zip(prompts, correct_P, strict=True)
        ]

    def extend(self, outcomes: Sequence[GroupOutcome], n: int) -> list[GroupOutcome]:
        """Each group with ``n`` further completions of the learner as it is now, in order."""
        rate_P = self.pass_rates([_index(o.key) for o in outcomes])
        correct_P = self._rng.binomial(n, rate_P).tolist()
        return [
            o.joined(GroupOutcome(o.key, k, n)) for o, k in zip(outcomes, correct_P, strict=True)
        ]

    def advance(self, trained: Sequence[GroupOutcome]) -> None:
        """Equation (2): the learner learns from what was trained on, and the next step begins."""
        signal_S = np.zeros(self.settings.n_skills)
        for outcome in trained:
            if outcome.mixed:
                share = outcome.n_correct / outcome.n_scored
                signal_S[self._skill_P[_index(outcome.key)]] += 4 * share * (1 - share)
        self.ability_S += self.settings.learning_rate * (
            signal_S + self.settings.transfer * signal_S.mean()
        )
        self.step += 1

    def metrics(self) -> dict[str, float]:
        """ability: mean over skills, in logits. accuracy: mean pass rate over the pool."""
        return {
            "ability": float(self.ability_S.mean()),
            "accuracy": float(self.pass_rates().mean()),
        }


def _index(key: str) -> int:
    if key[:1] != "p":
        raise ValueError(f"no prompt of a synthetic pool has the key {key!r}")
    return int(key[1:])
