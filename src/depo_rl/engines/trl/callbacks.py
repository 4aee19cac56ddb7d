"""Callbacks for TRL runs."""

from __future__ import annotations

from typing import Any, Protocol

from transformers import TrainerCallback

from ...errors import ConfigError


class Spending(Protocol):
    """What a budget asks of a trainer."""

    completion_tokens_generated: int


class TokenBudget(TrainerCallback):
    """Stops training once ``max_tokens`` completion tokens were generated for training, discarded
    groups included.

    Methods differ in what a step costs, so runs are compared at equal tokens, not at equal steps.
    """

    def __init__(self, max_tokens: int) -> None:
        if max_tokens < 1:
            raise ConfigError(f"a token budget must be at least 1, got {max_tokens}")
        self.max_tokens = max_tokens
        self.trainer: Spending | None = None  # set by the trainer

    def on_step_end(self, args: Any, state: Any, control: Any, **kwargs: Any) -> None:
        if self.trainer is not None and self.trainer.completion_tokens_generated >= self.max_tokens:
            control.should_training_stop = True

    def on_epoch_begin(self, args: Any, state: Any, control: Any, **kwargs: Any) -> None:
        """A run that had spent its budget and resumes is over."""
        self.on_step_end(args, state, control)
