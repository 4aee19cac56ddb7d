"""The policy's own log-probabilities, heard from the loss that computes them anyway.

An estimator that wants them waits for the loss where TRL updates the policy only after it has seen
the whole generation: the loss's log-probabilities are then those of the policy that sampled.
Elsewhere TRL computes them beforehand.
"""

from __future__ import annotations

from typing import Any

import torch

from .driver import TrlDriver
from .generation import Generation
from .resume import ResumableTrainer
from .rollouts import known_logprobs


class ListeningTrainer(ResumableTrainer):
    """A trainer whose generation under way may wait for its log-probabilities before it is
    settled."""

    _generation: Generation | None  # the one under way, until it is settled
    _driver: TrlDriver | None

    @property
    def driver(self) -> TrlDriver:
        """What chooses and settles; there is none with method grpo on a stream of rows."""
        assert self._driver is not None
        return self._driver

    def _settle_and_publish(self, logprob_B2: torch.Tensor | None) -> None:
        raise NotImplementedError

    @property
    def _waits(self) -> bool:
        return self._generation is not None and self._generation.waits

    def _settle_or_wait(self, output: dict[str, Any]) -> None:
        """Settles at once, unless the estimator wants what only the loss will compute."""
        assert self._generation is not None
        logprob_B2 = known_logprobs(output)
        if logprob_B2 is None and self.driver.wants_logprobs:
            self._generation.wait(output)
        else:
            self._settle_and_publish(logprob_B2)

    def _compute_loss(self, model: Any, inputs: dict[str, Any]) -> torch.Tensor:
        waiting = self._generation if self._waits else None
        if waiting is None or not self.model.training or "depo_sample" not in inputs:
            return super()._compute_loss(model, inputs)
        waiting.in_the_loss = inputs
        try:
            return super()._compute_loss(model, inputs)
        finally:
            waiting.in_the_loss = None

    def _get_per_token_logps_and_entropies(self, *args: Any, **kwargs: Any) -> Any:
        result = super()._get_per_token_logps_and_entropies(*args, **kwargs)
        if self._generation is not None:
            self._generation.hear(result[0])
        return result

    def training_step(self, *args: Any, **kwargs: Any) -> torch.Tensor:
        loss = super().training_step(*args, **kwargs)
        if self._generation is not None and self._generation.heard_all:
            self._settle_and_publish(self._generation.logprob_B2)
        return loss

    def _save_checkpoint(self, model: Any, trial: Any) -> None:
        # A checkpoint has no place for a generation half seen. All ranks settle it, so before a
        # write that may fail on one of them.
        if self._waits and not self.args.save_only_model:
            self._settle_and_publish(None)
        super()._save_checkpoint(model, trial)
