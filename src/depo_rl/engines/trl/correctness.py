"""What counts as correct. The estimator and the gate learn from this, never from the shaped
reward."""

from __future__ import annotations

import warnings
from collections.abc import Callable, Sequence
from typing import Any

import torch

from ...errors import ConfigError, RewardError
from .config import DEPOConfig

CorrectFn = Callable[..., Sequence[bool | float | None]]


class Correctness:
    """Turns rewards of all ranks into correct (1), wrong (0) or unscorable (NaN) per completion.

    By default the first reward function judges: correct means its reward is at least 0.5. Where it
    gave no value (None or NaN) the next one that gave a value judges, by the same threshold, if it
    is a task's own: one that never gave a value beside an earlier function, as a reward for format
    or length does. Where no such function did: unscorable. ``DEPOConfig.correct_reward`` names
    another one and ``correct_threshold`` another value; ``function`` replaces it, called like a TRL
    reward function and returning one truth value or number per completion (None: unscorable).
    graded: groups count by their rewards, and nobody asks what is correct.
    """

    def __init__(
        self,
        names: Sequence[str],
        args: DEPOConfig,
        function: CorrectFn | None,
        graded: bool = False,
    ) -> None:
        reward = args.correct_reward
        if reward is not None and reward not in names:
            raise ConfigError(
                f"correct_reward = {reward!r}: no reward function of that name. Known: {', '.join(names)}"
            )
        if reward is not None and function is not None:
            raise ConfigError(
                f"correct_reward = {reward!r} and correct_fn both say what is correct: give one"
            )
        self._names = list(names)
        self._column = self._names.index(reward) if reward else 0
        # gave a value where an earlier function did
        self._beside = torch.zeros(len(names), dtype=torch.bool)
        self._threshold = 0.5 if args.correct_threshold is None else args.correct_threshold
        self._function = function
        self._falls_back = reward is None and len(names) > 1
        of_the_only_one = len(names) == 1 and args.correct_threshold is not None
        self._named = reward is not None or function is not None or of_the_only_one or graded
        self._warned = False

    def local(
        self, inputs: Sequence[Any], kwargs: dict[str, Any], device: Any
    ) -> torch.Tensor | None:
        """This rank's judgement by ``function``, shape (B,), NaN where unscorable; None if a reward
        judges."""
        if self._function is None:
            return None
        columns = {
            k: [row[k] for row in inputs]
            for k in inputs[0]
            if k not in ("prompt", "completion", "completion_ids")
        }
        try:
            given = self._function(**kwargs, **columns)
            values = [float("nan") if value is None else float(value) for value in given]
        except Exception as error:
            raise RewardError(f"correct_fn raised {type(error).__name__}: {error}") from error
        if len(values) != len(inputs):
            raise RewardError(
                f"correct_fn returned {len(values)} values for {len(inputs)} completions: give one each"
            )
        return torch.tensor(values, device=device)

    def judge(self, rewards_SF: torch.Tensor, gathered_S: torch.Tensor | None) -> torch.Tensor:
        """Correctness of all samples, shape (S,), from rewards of shape (S, functions) or what
        ``local`` gathered."""
        score_S = self._score(rewards_SF) if gathered_S is None else gathered_S
        self._warn_if_shaped(rewards_SF)
        score_S = score_S.double().cpu()
        correct_S = (score_S >= self._threshold).double()
        correct_S[~torch.isfinite(score_S)] = torch.nan
        return correct_S

    @property
    def accompanying(self) -> list[str]:
        """Names of the functions that gave a value beside an earlier one, and so judge in nobody's
        place."""
        return [
            name for name, beside in zip(self._names, self._beside.tolist(), strict=True) if beside
        ]

    @accompanying.setter
    def accompanying(self, names: Sequence[str]) -> None:
        self._beside = torch.tensor([name in names for name in self._names], dtype=torch.bool)

    def _score(self, rewards_SF: torch.Tensor) -> torch.Tensor:
        """The judging function's value of each sample, NaN where none gave one."""
        score_S = rewards_SF[:, self._column]
        if not self._falls_back:
            return score_S
        gave_SF = ~rewards_SF.isnan().cpu()
        earlier_SF = gave_SF.cumsum(dim=1) > gave_SF.long()
        self._beside |= (gave_SF & earlier_SF).any(dim=0)
        for column in (~self._beside).nonzero().flatten().tolist():
            score_S = torch.where(score_S.isnan(), rewards_SF[:, column], score_S)
        return score_S

    def _warn_if_shaped(self, rewards_SF: torch.Tensor) -> None:
        if self._named or self._warned:
            return
        known = rewards_SF[torch.isfinite(rewards_SF)]
        if len(self._names) > 1 or bool(((known != 0) & (known != 1)).any()):
            self._warned = True
            warnings.warn(
                f"the rewards are shaped ({', '.join(self._names)}) and nothing says what is correct: a completion "
                f"counts as correct when {self._names[self._column]!r} gives at least {self._threshold}, "
                "or, where that one gives None, another function that judges rows of its own. Name the "
                "judge with correct_reward and correct_threshold, or pass correct_fn",
                stacklevel=2,
            )
