"""Dynamic sampling, which TRL has not: rounds of generation until enough groups are admitted.

A round uses TRL's own generation and rewards. The admitted groups then go through TRL's own scoring as if they had been
generated in one batch, so that advantages, masks, old and reference log-probabilities, metrics and normalisation are
TRL's.
"""

from __future__ import annotations

import warnings
from typing import TYPE_CHECKING, Any

import torch
from accelerate.utils import gather_object

from ...errors import EngineError
from ..session import next_round
from . import rollouts

if TYPE_CHECKING:
    from .trainer import DEPOTrainer


class DynamicSampler:
    """Fills the batches of a ``DEPOTrainer`` whose gate rejects groups."""

    def __init__(self, trainer: DEPOTrainer) -> None:
        args = trainer.args
        self._who = f"method {args.method!r} with gate {args.curriculum_config().gate!r}"
        if trainer.tools or trainer.environment_factories is not None:
            raise EngineError(
                f"{self._who} on TRL resamples single-turn rollouts only: train with tools or an environment by "
                "curriculum.gate='none', or by a method without dynamic sampling, such as 'depo'"
            )
        self._trainer = trainer
        self._told = False

    def fill(self, n_groups: int, n_local: int) -> dict[str, Any]:
        """The scored batch of ``n_groups``, of which this rank has ``n_local`` completions.

        A round asks for as many groups as should fill the batch, by the share admitted so far in this batch: it wastes
        less than fixed rounds of a whole batch. If the bound is reached the rest is filled with rejected groups that
        take no part in the loss.

        Logged for each batch. rounds: of generation. unfilled: places left without an admitted group. surplus: admitted
        groups that found no place and are not trained on.
        """
        trainer, max_rounds = self._trainer, self._trainer.max_rounds
        kept: list[rollouts.RolledGroup] = []
        spare: list[rollouts.RolledGroup] = []
        rounds = 0
        while len(kept) < n_groups and rounds < max_rounds:
            size = next_round(n_groups, len(kept), len(kept) + len(spare))
            groups, admitted = self._round(self._pad_to_world(size))
            for group, keep in zip(groups, admitted, strict=True):
                (kept if keep else spare).append(group)
            rounds += 1
        n_kept = min(len(kept), n_groups)
        if n_kept < n_groups:
            self._tell(n_kept, n_groups, rounds)
        for name, value in (("rounds", rounds), ("unfilled", n_groups - n_kept), ("surplus", len(kept) - n_kept)):
            trainer._metrics["train"][f"depo/{name}"].append(float(value))
        return self._score((kept + spare)[:n_groups], n_kept, n_local)

    def _pad_to_world(self, n: int) -> int:
        """The smallest number of groups, at least ``n``, whose completions divide evenly over the ranks."""
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

    def _round(self, n_groups: int) -> tuple[list[rollouts.RolledGroup], list[bool]]:
        """One round: all its groups, the same on all ranks, and whether the gate admits each."""
        trainer = self._trainer
        world, size = trainer.accelerator.num_processes, trainer.num_generations
        n_local = n_groups * size // world
        rows, keys = trainer.propose(n_groups)
        inputs = trainer.local_rows(rows, n_local)
        if any("image" in row or "images" in row for row in inputs):
            raise EngineError(
                f"{self._who} on TRL resamples text only, and this data set has images: set curriculum.gate='none', or "
                "use a method without dynamic sampling, such as 'depo'"
            )
        prompts = [row["prompt"] for row in inputs]
        trainer._pending_extra_logs.clear()
        generated = trainer._generate(prompts)
        for name, values in (generated[rollouts.EXTRA] or {}).items():
            for i, row in enumerate(inputs):
                row[name] = values[i] if isinstance(values, list) else values
        completions, ids = generated[rollouts.COMPLETIONS], generated[rollouts.COMPLETION_IDS]
        rewards_P_G_F = trainer._calculate_rewards(inputs, prompts, completions, ids).view(n_groups, size, -1)
        local = rollouts.split(generated, n_local, trainer._pending_extra_logs)
        samples = gather_object(local) if world > 1 else local
        weights = trainer.importance(keys)  # before the groups are settled
        groups = [
            rollouts.RolledGroup(row, samples[i * size : (i + 1) * size], rewards_P_G_F[i], weights[i])
            for i, row in enumerate(rows)
        ]
        return groups, trainer.settle(keys)

    def _score(self, batch: list[rollouts.RolledGroup], n_kept: int, n_local: int) -> dict[str, Any]:
        """TRL's own advantages, log-probabilities, masks and metrics for groups that were generated before."""
        trainer = self._trainer
        start = trainer.accelerator.process_index * n_local
        mine = [c for group in batch for c in group.completions][start : start + n_local]
        trainer._pending_extra_logs.clear()
        for name in sorted({name for c in mine for name in c.logged}):
            trainer._pending_extra_logs[name] = [c.logged.get(name) for c in mine]
        rows = trainer.local_rows([group.row for group in batch], n_local)
        rewards_S_F = torch.cat([group.rewards_G_F for group in batch])
        output = trainer.score_rolled(rows, rollouts.join(mine), rewards_S_F)
        trainer.weigh(output, [group.weight for group in batch], n_kept)
        return output if n_kept == len(batch) else self._without_padding(output, n_kept, start)

    def _without_padding(self, output: dict[str, Any], n_kept: int, start: int) -> dict[str, Any]:
        """Rejected groups only fill the batch's shape: no advantage, no token of theirs in the loss.

        If nothing was admitted the tokens stay, for a loss over no token at all would be 0 / 0; their advantages are 0.
        """
        padding_B = torch.arange(start, start + len(output["advantages"])) >= n_kept * self._trainer.num_generations
        padding_B = padding_B.to(output["advantages"].device)
        output["advantages"] = output["advantages"].masked_fill(padding_B, 0.0)
        if n_kept:
            output["completion_mask"] = output["completion_mask"].masked_fill(padding_B[:, None], 0)
            output["num_items_in_batch"] = self._trainer.accelerator.gather(rollouts.loss_mask(output).sum()).sum()
        return output
