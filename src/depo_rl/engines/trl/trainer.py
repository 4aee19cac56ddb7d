"""``DEPOTrainer``: TRL's ``GRPOTrainer`` with prompts chosen before the rollout.

It wraps a few methods of the trainer through ``super()`` and copies none. The stock dataloader is only a clock that says
how many rows are due: prompts are chosen when completions are generated, with the newest estimator, because the
dataloader reads ahead and would decide a generation too early. Rows of the ranks are contiguous, rank r holding the
global samples [r*B, (r+1)*B); a group may straddle two ranks. Method ``grpo`` leaves TRL's own order alone, bit for bit.
"""

from __future__ import annotations

import copy
import dataclasses
import os
import shutil
import warnings
from pathlib import Path
from typing import Any

import torch
from accelerate.utils import gather_object
from transformers.trainer_utils import PREFIX_CHECKPOINT_DIR
from trl import GRPOConfig, GRPOTrainer

from ...checkpoint import load_state, save_state
from ...curriculum import Curriculum
from ...errors import CheckpointError, EngineError
from ...types import GroupOutcome, prompt_key
from . import rollouts
from .callbacks import TokenBudget
from .checkpoints import STATE_FILE, load_rank, newest_complete, save_rank
from .config import DEPOConfig
from .correctness import Correctness, CorrectFn, group_outcomes
from .driver import CurriculumDriver, pad_to_world, to_numpy
from .prompts import text_of

_SAVE_FAILURES_IN_A_ROW = 3


class DEPOTrainer(GRPOTrainer):  # type: ignore[misc]
    """Drop-in for ``GRPOTrainer``; takes all its arguments.

    args: a ``DEPOConfig``; a plain ``GRPOConfig`` is taken with our defaults for the rest (method "depo").
    correct_fn: says what is correct, instead of a threshold on a reward (``DEPOConfig.correct_reward``); called like a
    reward function, returns one bool, number or None (unscorable) per completion.
    """

    _tag_names = ["trl", "grpo", "depo"]  # noqa: RUF012 (as TRL declares it)

    def __init__(
        self,
        model: Any,
        reward_funcs: Any = None,
        args: GRPOConfig | None = None,
        train_dataset: Any = None,
        *positional: Any,
        correct_fn: CorrectFn | None = None,
        **kwargs: Any,
    ) -> None:
        args = _as_depo_config(args, model)
        self._replay: tuple[tuple[Any, ...], torch.Tensor] | None = None
        self._scored: dict[str, torch.Tensor] = {}  # of the generation under way: correct, rewards, tokens; all ranks'
        self._pending: dict[str, Any] | None = None  # finished groups that wait for the log-probabilities of the loss
        self._logprob_B_2: torch.Tensor | None = None
        self._capturing: dict[str, Any] | None = None
        self.completion_tokens_generated = 0  # for training, on all ranks, groups discarded later included
        self._save_failures, self._resumed = 0, False
        super().__init__(model, reward_funcs, args, train_dataset, *positional, **kwargs)
        self._correctness = Correctness(self.reward_func_names, args.correct_reward, args.correct_threshold, correct_fn)
        self._rows_dataset = self._training_rows(train_dataset)
        self._driver = CurriculumDriver(self.accelerator, self._rows_dataset, args)

    @property
    def curriculum(self) -> Curriculum | None:
        """The run's curriculum on the main process, None on the others."""
        return self._driver.curriculum

    def _training_rows(self, dataset: Any) -> Any:
        """The rows as the dataloader would give them."""
        if self.args.remove_unused_columns and hasattr(dataset, "column_names"):
            return self._remove_unused_columns(dataset, description="training")
        return dataset

    # -- choose, before the rollout -----------------------------------------------------------------------------------

    def _generate_and_score_completions(self, inputs: list[dict[str, Any]]) -> dict[str, Any]:
        if not self.model.training:
            return super()._generate_and_score_completions(inputs)
        n_groups = len(inputs) * self.accelerator.num_processes // self.num_generations
        if self._driver.max_rounds > 1:
            output = self._sample_dynamically(n_groups, len(inputs))
        else:
            output = self._sample_once(n_groups, inputs)
        self._publish()
        return output

    def _sample_once(self, n_groups: int, inputs: list[dict[str, Any]]) -> dict[str, Any]:
        """One generation round of ``n_groups`` prompts; what is generated is trained on."""
        if self.args.method == "grpo":
            keys = self._adopt(inputs)
        else:
            rows = self._driver.propose(n_groups)
            keys, inputs = self._driver.keys_of(rows), self._local_rows(rows, len(inputs))
        output = self._generate_or_explain(inputs)
        logprob_B_2 = _known_logprobs(output)
        self._pending = {"keys": keys, "step": self.state.global_step, **self._scored}
        if logprob_B_2 is None and self._driver.wants_logprobs:
            # Only the loss computes them here: remember which sample is which, and settle once all were seen.
            output["depo_sample"] = torch.arange(len(inputs), device=output["advantages"].device)
            self._logprob_B_2 = torch.full((len(inputs), 2), torch.nan, device=output["advantages"].device)
        else:
            self._settle_pending(logprob_B_2)
        return output

    def _adopt(self, inputs: list[dict[str, Any]]) -> list[str]:
        column = self.args.source_column
        local = [prompt_key(text_of(row), str(row.get(column) or "default")) for row in inputs]
        samples = gather_object(local) if self.accelerator.num_processes > 1 else local
        keys = samples[:: self.num_generations]
        if [key for key in keys for _ in range(self.num_generations)] != samples:
            raise EngineError("the rows of a group are not the same prompt: TRL's sampler was replaced, which is not supported")
        self._driver.adopt(keys)
        return list(keys)

    def _local_rows(self, rows: list[int], n_local: int) -> list[dict[str, Any]]:
        """This rank's rows, each read afresh: TRL and reward functions write into them."""
        start = self.accelerator.process_index * n_local
        return [self._rows_dataset[rows[i // self.num_generations]] for i in range(start, start + n_local)]

    def _generate_or_explain(self, inputs: list[dict[str, Any]]) -> dict[str, Any]:
        try:
            return super()._generate_and_score_completions(inputs)
        except RuntimeError as error:
            raise _explained(error, self.state.global_step, self.args.output_dir) from error

    # -- observe, after the rewards -----------------------------------------------------------------------------------

    def _calculate_rewards(self, inputs: Any, prompts: Any, completions: Any, completion_ids_list: Any) -> torch.Tensor:
        if self._replay is not None:
            return self._replay[1]
        rewards_S_F = super()._calculate_rewards(inputs, prompts, completions, completion_ids_list)
        if self.model.training:
            self._record(inputs, prompts, completions, completion_ids_list, rewards_S_F)
        return rewards_S_F

    def _record(self, inputs: Any, prompts: Any, completions: Any, completion_ids: Any, rewards_S_F: torch.Tensor) -> None:
        device, gather = rewards_S_F.device, self.accelerator.gather
        call = {"prompts": prompts, "completions": completions, "completion_ids": completion_ids}
        own_B = self._correctness.local(inputs, call, device)
        total_S = (rewards_S_F * self.reward_weights.to(device)).nansum(dim=1)
        total_S[rewards_S_F.isnan().all(dim=1)] = torch.nan
        tokens_S = gather(torch.tensor([len(ids) for ids in completion_ids], device=device))
        self.completion_tokens_generated += int(tokens_S.sum())
        correct_S = self._correctness.judge(rewards_S_F, None if own_B is None else gather(own_B))
        self._scored = {"correct": correct_S, "rewards": total_S, "tokens": tokens_S}

    def _settle_pending(self, logprob_B_2: torch.Tensor | None) -> list[bool]:
        """Hands the finished groups to the curriculum; True for each group admitted."""
        pending, self._pending = self._pending, None
        assert pending is not None
        logprob_S_2 = None if logprob_B_2 is None else self.accelerator.gather(logprob_B_2)

        def outcomes() -> list[GroupOutcome]:
            parts = (pending["correct"], pending["rewards"], pending["tokens"], logprob_S_2, pending["step"])
            return group_outcomes(pending["keys"], *parts)

        return self._driver.settle(outcomes, pending["step"])

    def _publish(self) -> None:
        for name, value in self._driver.metrics().items():
            self._metrics["train"][f"depo/{name}"].append(value)
        self._metrics["train"]["depo/completion_tokens"] = [float(self.completion_tokens_generated)]

    # -- the policy's own log-probabilities, from the loss that computes them anyway ----------------------------------

    def _compute_loss(self, model: Any, inputs: dict[str, Any]) -> torch.Tensor:
        if self._pending is not None and self.model.training and "depo_sample" in inputs:
            self._capturing = inputs
        try:
            return super()._compute_loss(model, inputs)
        finally:
            self._capturing = None

    def _get_per_token_logps_and_entropies(self, *args: Any, **kwargs: Any) -> Any:
        result = super()._get_per_token_logps_and_entropies(*args, **kwargs)
        if self._capturing is not None and self._logprob_B_2 is not None:
            inputs, self._capturing = self._capturing, None
            self._logprob_B_2[inputs["depo_sample"]] = _sums(result[0].detach(), _loss_mask(inputs))
        return result

    def training_step(self, *args: Any, **kwargs: Any) -> torch.Tensor:
        loss = super().training_step(*args, **kwargs)
        if self._pending is not None and self._logprob_B_2 is not None and not self._logprob_B_2.isnan().any():
            logprob_B_2, self._logprob_B_2 = self._logprob_B_2, None
            self._settle_pending(logprob_B_2)
        return loss

    # -- dynamic sampling ---------------------------------------------------------------------------------------------

    def _generate(self, prompts: list[Any]) -> tuple[Any, ...]:
        return super()._generate(prompts) if self._replay is None else self._replay[0]

    def _sample_dynamically(self, n_groups: int, n_local: int) -> dict[str, Any]:
        """Rounds of generation until ``n_groups`` are admitted or the bound is reached; then TRL's own scoring.

        A round asks for as many groups as should fill the batch, by the share admitted so far in this batch: it wastes
        less than fixed rounds of a whole batch. If the bound is reached the rest is filled with rejected groups that
        take no part in the loss.
        """
        kept: list[rollouts.RolledGroup] = []
        spare: list[rollouts.RolledGroup] = []
        rounds = 0
        while len(kept) < n_groups and rounds < self._driver.max_rounds:
            drawn = len(kept) + len(spare)
            share = max(len(kept), 1) / drawn if drawn else 1.0
            size = min(n_groups, -int(-(n_groups - len(kept)) // share))
            groups, admitted = self._roll_out(pad_to_world(size, self.num_generations, self.accelerator.num_processes))
            for group, keep in zip(groups, admitted, strict=True):
                (kept if keep else spare).append(group)
            rounds += 1
        n_kept = min(len(kept), n_groups)
        self._metrics["train"]["depo/rounds"].append(float(rounds))
        self._metrics["train"]["depo/unfilled"].append(float(n_groups - n_kept))
        self._metrics["train"]["depo/surplus"].append(float(len(kept) - n_kept))
        batch = (kept + spare)[:n_groups]
        if len(batch) < n_groups:  # more wanted than the pool has distinct prompts
            batch = [batch[i % len(batch)] for i in range(n_groups)]
        return self._score_again(batch, n_kept, n_local)

    def _roll_out(self, n_groups: int) -> tuple[list[rollouts.RolledGroup], list[bool]]:
        """One round: all its groups, the same on all ranks, and whether the gate admits each."""
        world, size = self.accelerator.num_processes, self.num_generations
        n_local = n_groups * size // world
        rows = self._driver.propose(n_groups)
        inputs = self._local_rows(rows, n_local)
        prompts = [row["prompt"] for row in inputs]
        generated = super()._generate(prompts)
        if generated[rollouts.IMAGES] is not None or any("image" in row or "images" in row for row in inputs):
            raise EngineError("method 'dapo' on TRL resamples text only; this data set has images: use another method")
        for name, values in (generated[rollouts.EXTRA] or {}).items():
            for i, row in enumerate(inputs):
                row[name] = values[i] if isinstance(values, list) else values
        completions, ids = generated[rollouts.COMPLETIONS], generated[rollouts.COMPLETION_IDS]
        rewards_S_F = self._calculate_rewards(inputs, prompts, completions, ids)
        local = rollouts.split(generated, n_local, self._pending_extra_logs)
        samples = gather_object(local) if world > 1 else local
        self._pending = {"keys": self._driver.keys_of(rows), "step": self.state.global_step, **self._scored}
        rewards_P_G_F = rewards_S_F.view(n_groups, size, -1)
        groups = [
            rollouts.RolledGroup(row, samples[i * size : (i + 1) * size], rewards_P_G_F[i]) for i, row in enumerate(rows)
        ]
        return groups, self._settle_pending(None)

    def _score_again(self, batch: list[rollouts.RolledGroup], n_kept: int, n_local: int) -> dict[str, Any]:
        """TRL's own advantages, log-probabilities, masks and metrics for groups that were generated before."""
        start = self.accelerator.process_index * n_local
        mine = [c for group in batch for c in group.completions][start : start + n_local]
        self._pending_extra_logs.clear()
        for name in sorted({name for c in mine for name in c.logged}):
            self._pending_extra_logs[name] = [c.logged.get(name) for c in mine]
        self._replay = (rollouts.join(mine), torch.cat([group.rewards_G_F for group in batch]))
        try:
            output = self._generate_or_explain(self._local_rows([group.row for group in batch], n_local))
        finally:
            self._replay = None
        return self._without_padding(output, n_kept, start) if 0 < n_kept < len(batch) else output

    def _without_padding(self, output: dict[str, Any], n_kept: int, start: int) -> dict[str, Any]:
        """Rejected groups only fill the batch's shape: no advantage, no token of theirs in the loss."""
        padding_B = torch.arange(start, start + len(output["advantages"])) >= n_kept * self.num_generations
        padding_B = padding_B.to(output["advantages"].device)
        output["advantages"] = output["advantages"].masked_fill(padding_B, 0.0)
        output["completion_mask"] = output["completion_mask"].masked_fill(padding_B[:, None], 0)
        output["num_items_in_batch"] = self.accelerator.gather(_loss_mask(output).sum()).sum()
        return output

    # -- save and resume ----------------------------------------------------------------------------------------------

    def train(self, resume_from_checkpoint: str | bool | None = None, *args: Any, **kwargs: Any) -> Any:
        """As ``Trainer.train``; True resumes from the newest *complete* checkpoint, "auto" also starts anew without one."""
        if resume_from_checkpoint is True or resume_from_checkpoint == "auto":
            resume_from_checkpoint = self._newest_checkpoint(required=resume_from_checkpoint is True)
        for callback in self.callback_handler.callbacks:
            if isinstance(callback, TokenBudget):
                callback.trainer = self
        if not resume_from_checkpoint:
            self._driver.open_log(self._log_path, resume_after=None)
        try:
            return super().train(resume_from_checkpoint, *args, **kwargs)
        finally:
            self._driver.close_log()

    @property
    def _log_path(self) -> Path:
        return Path(self.args.output_dir) / "outcomes.jsonl"

    def _newest_checkpoint(self, required: bool) -> str | None:
        found, torn = newest_complete(self.args.output_dir)
        if torn:
            warnings.warn(
                f"passing over {', '.join(p.name for p in torn)}: cut off while being written; resuming from "
                f"{found.name if found else 'the start'}",
                stacklevel=3,
            )
        if found is None and required:
            raise CheckpointError(
                f"no complete checkpoint in {self.args.output_dir}: train with resume_from_checkpoint='auto' to start "
                "anew where there is none"
            )
        return str(found) if found else None

    def _save_checkpoint(self, model: Any, trial: Any) -> None:
        """A failing disk does not stop a run: the partial folder is removed, the failure shown, the next save tried."""
        try:
            super()._save_checkpoint(model, trial)
            self._save_failures = 0
        except Exception as error:
            if not _is_disk_error(error):
                raise
            self._save_failures += 1
            folder = Path(self._get_output_dir(trial=trial)) / f"{PREFIX_CHECKPOINT_DIR}-{self.state.global_step}"
            shutil.rmtree(folder, ignore_errors=True)
            text = f"cannot save {folder}: {error}; {self._save_failures} failed in a row. Free disk space"
            if self._save_failures >= _SAVE_FAILURES_IN_A_ROW:
                raise CheckpointError(f"{text}; resume from an earlier checkpoint") from error
            warnings.warn(f"{text}; training goes on and the next save is tried again", stacklevel=2)
        self._metrics["train"]["depo/save_failures"] = [float(self._save_failures)]

    def _save_rng_state(self, output_dir: str) -> None:
        super()._save_rng_state(output_dir)
        self.accelerator.wait_for_everyone()  # trainer_state.json comes next and says that the folder is complete

    def _save_optimizer_and_scheduler(self, output_dir: str) -> None:
        super()._save_optimizer_and_scheduler(output_dir)
        os.makedirs(output_dir, exist_ok=True)
        self._driver.flush_log()
        if self._driver.curriculum is not None:
            pending = None
            if self._pending is not None:
                tensors = to_numpy({name: self._pending[name] for name in ("correct", "rewards", "tokens")})
                pending = {"keys": self._pending["keys"], "step": self._pending["step"], **tensors}
            state = {"driver": self._driver.state_dict(), "pending": pending}
            save_state(os.path.join(output_dir, STATE_FILE), state)
        inside = self._step % (self.args.steps_per_generation * self.num_iterations) != 0
        save_rank(
            output_dir,
            self.accelerator.process_index,
            {
                "step": self._step,
                "world": self.accelerator.num_processes,
                "completion_tokens_generated": self.completion_tokens_generated,
                "buffered": self._buffered_inputs if inside else None,
                "waits": self._pending is not None,
                "logprob": self._logprob_B_2,
            },
        )

    def _load_optimizer_and_scheduler(self, checkpoint: str | None) -> None:
        super()._load_optimizer_and_scheduler(checkpoint)
        if checkpoint is None:
            return
        self._restart_epoch_order()
        rank_state = load_rank(checkpoint, self.accelerator.process_index, self.accelerator.device)
        if rank_state is None:
            self._explain_missing_state(checkpoint)
            return
        self._step = rank_state["step"]
        self.completion_tokens_generated = rank_state["completion_tokens_generated"]
        self._buffered_inputs, self._logprob_B_2 = rank_state["buffered"], rank_state["logprob"]
        self._check_world(rank_state)
        self._pending = {"keys": [], "step": 0} if rank_state["waits"] else None
        pending_step = self._driver.on_main(lambda: self._load_curriculum(checkpoint))
        self._driver.open_log(self._log_path, resume_after=min(self.state.global_step, pending_step))

    def _load_curriculum(self, checkpoint: str) -> int:
        """Main process only. The step of the groups that wait for log-probabilities, or the present one."""
        state = load_state(os.path.join(checkpoint, STATE_FILE))
        self._driver.load_state_dict(state["driver"])
        if state["pending"] is None:
            return int(self.state.global_step)
        tensors = {name: torch.from_numpy(state["pending"][name]) for name in ("correct", "rewards", "tokens")}
        self._pending = {"keys": state["pending"]["keys"], "step": state["pending"]["step"], **tensors}
        return int(state["pending"]["step"])

    def _check_world(self, rank_state: dict[str, Any]) -> None:
        world = self.accelerator.num_processes
        if rank_state["buffered"] is not None and rank_state["world"] != world:
            raise CheckpointError(
                f"the checkpoint was saved inside a generation by {rank_state['world']} processes and cannot go on with "
                f"{world}: use {rank_state['world']} processes, or a checkpoint saved between generations"
            )

    def _explain_missing_state(self, checkpoint: str) -> None:
        if os.path.exists(os.path.join(checkpoint, STATE_FILE)) and not self._driver.wants_logprobs:
            self._driver.on_main(lambda: self._load_curriculum(checkpoint))  # more processes than when it was saved
            return
        warnings.warn(
            f"{checkpoint} holds no curriculum state (saved by GRPOTrainer or with save_only_model): the policy resumes, "
            "the curriculum starts anew",
            stacklevel=2,
        )
        self._driver.open_log(self._log_path, resume_after=self.state.global_step)

    def _get_train_sampler(self, dataset: Any = None) -> Any:
        self._own_sampler = super()._get_train_sampler(dataset)
        return self._own_sampler

    def _restart_epoch_order(self) -> None:
        """TRL's sampler would replay epoch 0's order after a resume in a later epoch: advance its generator to there."""
        generator = getattr(getattr(self, "_own_sampler", None), "generator", None)
        if generator is not None:
            for _ in range(int((self.state.epoch or 0.0) + 1e-6)):
                torch.randperm(len(self._own_sampler.data_source), generator=generator)


def _as_depo_config(args: GRPOConfig | None, model: Any) -> DEPOConfig:
    """A ``DEPOConfig`` with the values of ``args``."""
    if isinstance(args, DEPOConfig):
        return args
    if args is None:
        name = model if isinstance(model, str) else getattr(getattr(model, "config", None), "_name_or_path", "") or "model"
        return DEPOConfig(f"{name.split('/')[-1]}-DEPO")
    promoted = copy.copy(args)  # values are kept as they are: __post_init__ has run and would refuse to run twice
    promoted.__class__ = DEPOConfig
    for field in dataclasses.fields(DEPOConfig):
        if not hasattr(args, field.name):
            setattr(promoted, field.name, field.default)
    promoted.curriculum_config()
    return promoted


def _loss_mask(inputs: dict[str, Any]) -> torch.Tensor:
    mask: torch.Tensor = inputs["completion_mask"]
    return mask if inputs.get("tool_mask") is None else mask * inputs["tool_mask"]


def _sums(logps_B_T: torch.Tensor, mask_B_T: torch.Tensor) -> torch.Tensor:
    """Per completion: sum of its token log-probabilities (unknown ones left out) and their number, shape (B, 2)."""
    known_B_T = (mask_B_T > 0) & logps_B_T.isfinite()
    return torch.stack([logps_B_T.masked_fill(~known_B_T, 0.0).sum(1), known_B_T.sum(1).to(logps_B_T.dtype)], dim=1)


def _known_logprobs(output: dict[str, Any]) -> torch.Tensor | None:
    """From the sampling engine (vLLM) or TRL's pass before the update, if either has them; else None."""
    for name in ("sampling_per_token_logps", "old_per_token_logps"):
        if output.get(name) is not None:
            return _sums(output[name], _loss_mask(output))
    return None


def _explained(error: RuntimeError, step: int, output_dir: str) -> Exception:
    if "probability tensor contains" not in str(error):
        return error
    return EngineError(
        f"step {step}: the policy's probabilities are NaN or infinite, so nothing can be sampled: training has diverged. "
        f"Lower learning_rate or max_grad_norm, then resume from a checkpoint in {output_dir} from before"
    )


def _is_disk_error(error: Exception) -> bool:
    """torch and safetensors report a full disk as errors of their own."""
    text = str(error)
    return isinstance(error, OSError) or any(s in text for s in ("PytorchStreamWriter", "No space left", "I/O error"))
