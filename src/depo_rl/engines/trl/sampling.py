"""Dynamic sampling, which TRL has not: rounds of generation until enough groups are admitted.

A round uses TRL's own generation and rewards. The admitted groups then go through TRL's own scoring
as if they had been generated in one batch, so that advantages, masks, old and reference
log-probabilities, metrics and normalisation are TRL's.
"""

from __future__ import annotations

import warnings
from typing import Any, Protocol

import torch

from ...errors import EngineError
from ..session import next_round
from .rollouts import RolledGroup, loss_mask


class Rolling(Protocol):
    """What dynamic sampling asks of a trainer."""

    accelerator: Any
    num_generations: int
    state: Any

    def roll_out(self, n_groups: int) -> list[RolledGroup]:
        """Chooses, generates and settles; all groups, the same on all ranks."""
        ...

    def score_rolled(self, groups: list[RolledGroup], n_kept: int, n_local: int) -> dict[str, Any]:
        """TRL's scored batch of these groups, of which the first ``n_kept`` are trained on; this
        rank's part."""
        ...

    def note(self, name: str, value: float) -> None:
        """For TRL's log."""
        ...


def check_resampling(who: str, multi_turn: bool, images: bool) -> None:
    """Raises EngineError for rollouts that cannot be put together from several rounds."""
    if multi_turn:
        raise EngineError(
            f"{who} on TRL resamples single-turn rollouts only: train with tools or an environment by "
            "curriculum.gate='none', or by a method without dynamic sampling, such as 'depo'"
        )
    if images:
        raise EngineError(
            f"{who} on TRL resamples text only, and this data set has images: set curriculum.gate='none', or "
            "use a method without dynamic sampling, such as 'depo'"
        )


class DynamicSampler:
    """Fills the batches of a trainer whose gate rejects groups, with at most ``max_rounds`` of
    generation each."""

    def __init__(self, trainer: Rolling, max_rounds: int) -> None:
        self._trainer = trainer
        self._max_rounds = max_rounds
        self._told = False

    def fill(self, n_groups: int, n_local: int) -> dict[str, Any]:
        """The scored batch of ``n_groups``, of which this rank has ``n_local`` completions.

        A round asks for as many groups as should fill the batch, by the share admitted so far in
        this batch. If the bound is reached the rest is filled with rejected groups that take no
        part in the loss.

        Logged for each batch. rounds: of generation. unfilled: places left without an admitted
        group. surplus: admitted groups that found no place and are not trained on.
        """
        kept: list[RolledGroup] = []
        spare: list[RolledGroup] = []
        rounds = 0
        while len(kept) < n_groups and rounds < self._max_rounds:
            size = next_round(n_groups, len(kept), len(kept) + len(spare))
            for group in self._trainer.roll_out(self._pad_to_world(size)):
                (kept if group.admitted else spare).append(group)
            rounds += 1
        n_kept = min(len(kept), n_groups)
        if n_kept < n_groups:
            self._tell(n_kept, n_groups, rounds)
        self._trainer.note("rounds", rounds)
        self._trainer.note("unfilled", n_groups - n_kept)
        self._trainer.note("surplus", len(kept) - n_kept)
        output = self._trainer.score_rolled((kept + spare)[:n_groups], n_kept, n_local)
        return output if n_kept == n_groups else self._without_padding(output, n_kept)

    def _pad_to_world(self, n: int) -> int:
        """The smallest number of groups, at least ``n``, whose completions divide evenly over the
        ranks."""
        while (n * self._trainer.num_generations) % self._trainer.accelerator.num_processes:
            n += 1
        return n

    def _tell(self, n_kept: int, n_groups: int, rounds: int) -> None:
        if self._told or not self._trainer.accelerator.is_main_process:
            return
        self._told = True
        warnings.warn(
            f"step {self._trainer.state.global_step + 1}: {n_kept} of {n_groups} groups were admitted after {rounds} "
            "rounds of generation (curriculum.max_rounds): training on those alone. Said once; depo/unfilled counts it",
            stacklevel=2,
        )

    def _without_padding(self, output: dict[str, Any], n_kept: int) -> dict[str, Any]:
        """Rejected groups only fill the batch's shape: no advantage, no token of theirs in the
        loss.

        If nothing was admitted the tokens stay, for a loss over no token at all would be 0 / 0;
        their advantages are 0.
        """
        advantages = output["advantages"]
        start = self._trainer.accelerator.process_index * len(advantages)
        sample_B = torch.arange(start, start + len(advantages), device=advantages.device)
        padding_B = sample_B >= n_kept * self._trainer.num_generations
        output["advantages"] = advantages.masked_fill(padding_B, 0.0)
        if n_kept:
            output["completion_mask"] = output["completion_mask"].masked_fill(padding_B[:, None], 0)
            n_tokens = self._trainer.accelerator.gather(loss_mask(output).sum()).sum()
            output["num_items_in_batch"] = n_tokens
        return output
