"""Reward functions in TRL's shape, with the judging done in a
:class:`~depo_rl.rewards.pool.VerifierPool`.

This module does not import TRL: a reward function there is any callable ``(prompts, completions,
**columns)``.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from types import TracebackType
from typing import Any, Literal

from ..errors import ConfigError, DataError
from . import math
from .pool import RewardFunction, VerifierPool, callable_name

MathKind = Literal["math_verify", "boxed", "gsm8k"]
Completion = str | Sequence[Mapping[str, Any]]
"""A text, or a conversation of messages ``{"role", "content"}`` whose last assistant message is
judged."""

_MATH: dict[str, tuple[RewardFunction, Callable[[], None] | None]] = {
    "math_verify": (math.math_verify_reward, math.load_math_verify),
    "boxed": (math.boxed_reward, None),
    "gsm8k": (math.gsm8k_reward, None),
}


class WorkerReward:
    """A TRL reward function that runs ``f(completion, answer)`` in worker processes with a limit
    per completion.

    Give it to ``GRPOTrainer(reward_funcs=...)``; TRL names its metrics after ``__name__``. Workers
    start on the first call. Can be pickled and copied; the copy has workers of its own.
    """

    def __init__(
        self,
        function: RewardFunction,
        *,
        answer_column: str = "answer",
        extra_columns: Sequence[str] = (),
        name: str | None = None,
        **pool_settings: Any,
    ) -> None:
        """Store the settings; starts nothing.

        function: ``f(completion, answer, **extras) -> number, bool or None``. answer_column: column
        of the data set that holds the gold answer. extra_columns: columns to pass on as keyword
        arguments; "prompts" is allowed. name: name in TRL's metrics; default: the function's.
        **pool_settings: ``n_workers``, ``timeout_s``, ``memory_limit_mb``, ... of
        :class:`VerifierPool`.

        Raises ConfigError if a setting is out of range, or the function cannot be sent to another
        process.
        """
        self.__name__ = name or callable_name(function)
        self.answer_column = answer_column
        self.extra_columns = tuple(extra_columns)
        self.pool = VerifierPool(function, **pool_settings)

    def __call__(
        self, prompts: Sequence[Any], completions: Sequence[Completion], **columns: Any
    ) -> list[float | None]:
        """Score n completions.

        prompts: the n prompts; only used where "prompts" is among the extra columns. completions: n
        texts or conversations. **columns: the data set's other columns, n values each, and TRL's
        own extras. Through TRL's ``log_metric`` the share that could not be scored is logged as
        ``<name>/unscorable_share``.

        Returns n rewards; None where unscorable. A gold answer of None is unscorable at once.

        Raises ConfigError if the answer column or an extra column is missing, RewardError if the
        workers cannot start.
        """
        columns["prompts"] = prompts
        answers = self._column(self.answer_column, columns, len(completions))
        extra_columns = {
            name: self._column(name, columns, len(completions)) for name in self.extra_columns
        }
        with_gold = [index for index, answer in enumerate(answers) if answer is not None]
        scores = self.pool.score(
            [completion_text(completions[index]) for index in with_gold],
            [answers[index] for index in with_gold],
            [
                {name: values[index] for name, values in extra_columns.items()}
                for index in with_gold
            ],
        )
        rewards: list[float | None] = [None] * len(completions)
        for index, score in zip(with_gold, scores, strict=True):
            rewards[index] = score
        self._log_share(rewards, columns.get("log_metric"))
        return rewards

    def metrics(self) -> dict[str, int]:
        """Counts since the start, see :meth:`VerifierPool.metrics`."""
        return self.pool.metrics()

    def close(self) -> None:
        """End the workers now rather than with the interpreter."""
        self.pool.close()

    def __enter__(self) -> WorkerReward:
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        traceback: TracebackType | None,
    ) -> None:
        self.close()

    def _column(self, name: str, columns: Mapping[str, Any], n_completions: int) -> Sequence[Any]:
        if name not in columns:
            there = ", ".join(
                sorted(key for key, value in columns.items() if isinstance(value, (list, tuple)))
            )
            setting = "answer_column" if name == self.answer_column else "extra_columns"
            raise ConfigError(
                f"reward {self.__name__}: the data set has no column {name!r} (setting {setting}); there are: {there}"
            )
        values: Sequence[Any] = columns[name]
        if len(values) != n_completions:
            raise DataError(
                f"reward {self.__name__}: {n_completions} completions, {len(values)} values in {name!r}"
            )
        return values

    def _log_share(
        self, rewards: Sequence[float | None], log_metric: Callable[[str, float], None] | None
    ) -> None:
        if log_metric is not None and rewards:
            log_metric(
                f"{self.__name__}/unscorable_share",
                sum(reward is None for reward in rewards) / len(rewards),
            )


def in_workers(function: RewardFunction, **settings: Any) -> WorkerReward:
    """Wrap a function ``f(completion, answer, **extras)`` of your own; settings as in
    :class:`WorkerReward`."""
    return WorkerReward(function, **settings)


def math_reward(kind: MathKind = "math_verify", **settings: Any) -> WorkerReward:
    r"""A reward for answers in mathematics.

    kind: "math_verify" (symbolic equality), "boxed" (text of the last ``\boxed{}``) or "gsm8k"
    (final number). **settings: as in :class:`WorkerReward`; ``name`` defaults to ``<kind>_reward``.

    Raises ConfigError for an unknown kind, or if a setting is out of range.
    """
    if kind not in _MATH:
        raise ConfigError(f"kind={kind!r}: must be one of {', '.join(_MATH)}")
    function, setup = _MATH[kind]
    return WorkerReward(function, **{"setup": setup, **settings})


def completion_text(completion: Completion) -> str:
    """The text to judge: the string, or the last assistant message ("" if there is none or it is a
    bare tool call)."""
    if isinstance(completion, str):
        return completion
    said = [
        message.get("content")
        for message in completion
        if message.get("role", "assistant") == "assistant"
    ]
    content = said[-1] if said else None
    if isinstance(content, str):
        return content
    return "".join(
        str(part.get("text", "")) for part in content or () if part.get("type", "text") == "text"
    )
