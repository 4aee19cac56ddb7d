"""``DEPOTrainer``: TRL's ``GRPOTrainer`` with prompts chosen before the rollout.

It wraps a few methods of the trainer through ``super()`` and copies none. The stock dataloader is only a clock that
says how many rows are due: prompts are chosen when completions are generated, with the newest estimator, because the
dataloader reads ahead and would decide a generation too early. Rows of the ranks are contiguous, rank r holding the
global samples [r*B, (r+1)*B); a group may straddle two ranks. Method ``grpo`` leaves TRL's own order alone, bit for
bit.
"""

from __future__ import annotations

import copy
import dataclasses
from pathlib import Path
from typing import Any

import torch
from accelerate.utils import gather_object
from trl import GRPOConfig
from trl.trainer.utils import get_config_model_id

from ...curriculum import Curriculum
from ...errors import EngineError
from ...importance import effective_share
from ...types import GroupOutcome
from ..rows import occurrence_keys
from ..session import Proposal
from .callbacks import TokenBudget
from .config import DEPOConfig
from .correctness import CorrectFn, Correctness, group_outcomes
from .driver import TrlDriver
from .policy_states import attach_policy_states
from .prompts import has_random_access, key_of
from .resume import ResumableTrainer
from .rollouts import known_logprobs, logprob_sums, loss_mask
from .sampling import DynamicSampler


class DEPOTrainer(ResumableTrainer):
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
        self._driver: TrlDriver | None = None  # method grpo on a stream of rows has none: it is GRPOTrainer
        self._sampler: DynamicSampler | None = None
        self._rolled: tuple[tuple[Any, ...], torch.Tensor] | None = None  # generated before, to be scored now
        self._scored: dict[str, torch.Tensor] = {}  # of the generation under way: correct, rewards, tokens; all ranks'
        self._waiting: dict[str, Any] | None = None  # a finished generation that waits for the loss's log-probabilities
        self._logprob_B_2 = torch.empty(0, 2)
        self._capturing: dict[str, Any] | None = None
        self.completion_tokens_generated = 0  # for training, on all ranks, groups discarded later included
        super().__init__(model, reward_funcs, args, train_dataset, *positional, **kwargs)
        self._correctness = Correctness(self.reward_func_names, args, correct_fn)
        if not args.own_order or has_random_access(self.train_dataset):
            self._rows = self._training_rows()
            # the estimator reads all columns, whatever TRL removes; method grpo knows a prompt by the row it is given
            known = self._rows if args.own_order else self.train_dataset
            self._driver = TrlDriver(
                self.accelerator, known, args, args.curriculum_config(), self.environment_factories is None
            )
            attach_policy_states(self)
            if self.max_rounds > 1:
                self._sampler = DynamicSampler(self)

    @property
    def curriculum(self) -> Curriculum | None:
        """The run's curriculum on the main process, None on the others."""
        return self._driver.curriculum if self._driver else None

    @property
    def max_rounds(self) -> int:
        """Rounds of generation that one batch may take; 1 without dynamic sampling."""
        return self._driver.max_rounds if self._driver else 1

    def _training_rows(self) -> Any:
        """The rows as the dataloader would give them."""
        if self.args.remove_unused_columns and hasattr(self.train_dataset, "column_names"):
            return self._remove_unused_columns(self.train_dataset, description="training")
        return self.train_dataset

    # -- choose, before the rollout -----------------------------------------------------------------------------------

    def _generate_and_score_completions(self, inputs: list[dict[str, Any]]) -> dict[str, Any]:
        if not self.model.training or self._driver is None or self._rolled is not None:
            return super()._generate_and_score_completions(inputs)
        if self._waiting is not None:  # the loss never came, so its log-probabilities never will
            self._settle_waiting(None)
        n_groups = len(inputs) * self.accelerator.num_processes // self.num_generations
        if self._sampler is not None:
            output = self._sampler.fill(n_groups, len(inputs))
            self._publish()
            return output
        if self.args.own_order:
            keys = self._adopt(inputs)
            output = super()._generate_and_score_completions(inputs)
        else:
            rows, keys = self._driver.propose(n_groups)
            inputs = self.local_rows(rows, len(inputs))
            output = super()._generate_and_score_completions(inputs)
            self.weigh(output, self.importance(keys), n_groups)
        self._settle_or_wait(keys, output)
        return output

    def propose(self, n_groups: int) -> Proposal:
        """What to roll out, the same on all ranks."""
        assert self._driver is not None
        return self._driver.propose(n_groups)

    def importance(self, keys: list[str]) -> list[float]:
        """Importance of each group, the same on all ranks; asked for before the group is settled."""
        assert self._driver is not None
        return self._driver.importance(keys)

    def weigh(self, output: dict[str, Any], weights: list[float], n_groups: int) -> None:
        """Multiplies the advantages of this rank's completions in a scored batch by their groups' weights, once.

        weights: of all groups of all ranks, in order. n_groups: how many of them are trained on, the first ones.

        Logged with ``importance`` above 0. importance_max: largest weight of the batch. effective_share: effective
        sample size over the number of groups, 1 for equal weights.
        """
        assert self._driver is not None
        if not self._driver.weighs:
            return
        weight_B = self._of_completions(weights, output["advantages"])
        output["advantages"] = output["advantages"] * weight_B
        if trained := weights[:n_groups]:
            logged = self._metrics["train"]
            logged["depo/importance_max"].append(max(trained))
            logged["depo/effective_share"].append(effective_share(trained))

    def _of_completions(self, weights: list[float], like: torch.Tensor) -> torch.Tensor:
        """The weight of each of this rank's completions, of the shape and kind that multiplies ``like``."""
        start = self.accelerator.process_index * len(like)
        group_B = torch.arange(start, start + len(like)) // self.num_generations
        weight_B = torch.tensor(weights, dtype=torch.float64)[group_B].to(like)
        return weight_B.view(-1, *[1] * (like.dim() - 1))

    def local_rows(self, rows: list[int], n_local: int) -> list[dict[str, Any]]:
        """This rank's rows, each read afresh: TRL and reward functions write into them."""
        start = self.accelerator.process_index * n_local
        return [self._rows[rows[i // self.num_generations]] for i in range(start, start + n_local)]

    def prompts_of(self, keys: list[str]) -> list[Any]:
        """What the policy reads, as the data set has it; main process only."""
        assert self._driver is not None
        return [self._rows[self._driver.row_of(key)]["prompt"] for key in keys]

    def _adopt(self, inputs: list[dict[str, Any]]) -> list[str]:
        """Method grpo: the keys of the groups that TRL's order chose."""
        assert self._driver is not None
        local = [key_of(row, self.args.source_column) for row in inputs]
        samples = gather_object(local) if self.accelerator.num_processes > 1 else local
        keys = samples[:: self.num_generations]
        if [key for key in keys for _ in range(self.num_generations)] != samples:
            raise EngineError(
                "the rows of a group are not of one prompt: was TRL's sampler replaced? Do not override it"
            )
        keys = occurrence_keys(keys)
        self._driver.adopt(keys)
        return keys

    def _generate(self, prompts: list[Any]) -> tuple[Any, ...]:
        if self._rolled is not None:
            return self._rolled[0]
        try:
            generated: tuple[Any, ...] = super()._generate(prompts)
        except RuntimeError as error:
            if "probability tensor contains" not in str(error):
                raise
            raise EngineError(
                f"step {self.state.global_step}: the policy's probabilities are NaN or infinite, so nothing can be "
                "sampled: training has diverged. Lower learning_rate or max_grad_norm, then resume from a checkpoint "
                f"in {self.args.output_dir} from before"
            ) from error
        return generated

    # -- observe, after the rewards -----------------------------------------------------------------------------------

    def _calculate_rewards(self, inputs: Any, prompts: Any, completions: Any, completion_ids_list: Any) -> torch.Tensor:
        if self._rolled is not None:
            return self._rolled[1]
        rewards_S_F = super()._calculate_rewards(inputs, prompts, completions, completion_ids_list)
        if self.model.training and self._driver is not None:
            self._record(inputs, prompts, completions, completion_ids_list, rewards_S_F)
        return rewards_S_F

    def _record(
        self, inputs: Any, prompts: Any, completions: Any, completion_ids: Any, rewards_S_F: torch.Tensor
    ) -> None:
        device, gather = rewards_S_F.device, self.accelerator.gather
        call = {"prompts": prompts, "completions": completions, "completion_ids": completion_ids}
        call |= {"trainer_state": self.state, "log_extra": self._log_completion_extra, "log_metric": self._log_metric}
        own_B = self._correctness.local(inputs, call, device)
        total_S = (rewards_S_F * self.reward_weights.to(device)).nansum(dim=1)
        total_S[rewards_S_F.isnan().all(dim=1)] = torch.nan
        tokens_S = gather(torch.tensor([len(ids) for ids in completion_ids], device=device))
        self.completion_tokens_generated += int(tokens_S.sum())
        correct_S = self._correctness.judge(rewards_S_F, None if own_B is None else gather(own_B))
        self._scored = {"correct": correct_S, "rewards": total_S, "tokens": tokens_S}

    def score_rolled(
        self, rows: list[dict[str, Any]], rolled: tuple[Any, ...], rewards_S_F: torch.Tensor
    ) -> dict[str, Any]:
        """TRL's scoring of completions generated before. rewards_S_F: of all ranks, shape (S, reward functions)."""
        self._rolled = (rolled, rewards_S_F)
        try:
            output: dict[str, Any] = super()._generate_and_score_completions(rows)
        finally:
            self._rolled = None
        return output

    def settle(self, keys: list[str]) -> list[bool]:
        """Hands the groups that were just rewarded to the curriculum; True for each one admitted."""
        assert self._driver is not None
        return self._settle(keys, self._scored, self.state.global_step, None)

    def _settle(
        self, keys: list[str], scored: dict[str, torch.Tensor], step: int, logprob_B_2: torch.Tensor | None
    ) -> list[bool]:
        assert self._driver is not None
        logprob_S_2 = None if logprob_B_2 is None else self.accelerator.gather(logprob_B_2)

        def outcomes() -> list[GroupOutcome]:
            return group_outcomes(keys, scored["correct"], scored["rewards"], scored["tokens"], logprob_S_2, step)

        return self._driver.settle(outcomes, step)

    def _publish(self) -> None:
        """Hands the figures of the generation to TRL's log, under ``depo/``.

        completion_tokens: generated for training since the start, on all ranks, groups dropped later included.
        """
        assert self._driver is not None
        of_generation, so_far = self._driver.figures()
        so_far["completion_tokens"] = float(self.completion_tokens_generated)
        logged = self._metrics["train"]  # of which TRL logs means
        for name, value in of_generation.items():
            logged[f"depo/{name}"].append(value)
        logged.update({f"depo/{name}": [value] for name, value in so_far.items()})

    # -- the policy's own log-probabilities, from the loss that computes them anyway ----------------------------------

    def _settle_or_wait(self, keys: list[str], output: dict[str, Any]) -> None:
        """Settles at once, unless the estimator wants log-probabilities that only the loss will compute.

        That is so where TRL updates the policy only after it has seen the whole generation: the loss's
        log-probabilities are then those of the policy that sampled. Elsewhere TRL computes them beforehand.
        """
        assert self._driver is not None
        step, device = self.state.global_step, output["advantages"].device
        logprob_B_2 = known_logprobs(output)
        if logprob_B_2 is None and self._driver.wants_logprobs:
            output["depo_sample"] = torch.arange(len(output["advantages"]), device=device)  # TRL shuffles the batch
            self._logprob_B_2 = torch.full((len(output["advantages"]), 2), torch.nan, device=device)
            self._waiting = {"keys": keys, "scored": self._scored, "step": step}
        else:
            self._settle(keys, self._scored, step, logprob_B_2)
            self._publish()

    def _settle_waiting(self, logprob_B_2: torch.Tensor | None) -> None:
        assert self._waiting is not None
        waiting, self._waiting = self._waiting, None
        self._settle(**waiting, logprob_B_2=logprob_B_2)
        self._publish()

    def _compute_loss(self, model: Any, inputs: dict[str, Any]) -> torch.Tensor:
        if self._waiting is not None and self.model.training and "depo_sample" in inputs:
            self._capturing = inputs
        try:
            return super()._compute_loss(model, inputs)
        finally:
            self._capturing = None

    def _get_per_token_logps_and_entropies(self, *args: Any, **kwargs: Any) -> Any:
        result = super()._get_per_token_logps_and_entropies(*args, **kwargs)
        if self._capturing is not None:
            inputs, self._capturing = self._capturing, None
            self._logprob_B_2[inputs["depo_sample"]] = logprob_sums(result[0].detach(), loss_mask(inputs))
        return result

    def training_step(self, *args: Any, **kwargs: Any) -> torch.Tensor:
        loss = super().training_step(*args, **kwargs)
        if self._waiting is not None and not self._logprob_B_2.isnan().any():
            self._settle_waiting(self._logprob_B_2)
        return loss

    # -- run, save and resume -----------------------------------------------------------------------------------------

    def train(self, resume_from_checkpoint: str | bool | None = None, *args: Any, **kwargs: Any) -> Any:
        """As ``Trainer.train``; True resumes from the newest *complete* checkpoint, "auto" also starts anew."""
        for callback in self.callback_handler.callbacks:
            if isinstance(callback, TokenBudget):
                callback.trainer = self
        try:
            return super().train(resume_from_checkpoint, *args, **kwargs)
        finally:
            if self._driver is not None:
                self._driver.close_log()

    def _starts_anew(self) -> None:
        if self._driver is not None:
            if self._waiting is None:
                self._driver.release()  # proposals of an earlier call that was interrupted
            self._driver.open_log(self._log_path, resume_after=None)

    @property
    def _log_path(self) -> Path:
        return Path(self.args.output_dir) / "outcomes.jsonl"

    def _save_cycle(self, output_dir: str) -> None:
        if self._waiting is not None:  # a checkpoint has no place for a generation half seen
            self._settle_waiting(None)
        super()._save_cycle(output_dir)

    def _own_state(self) -> dict[str, Any]:
        tokens = {"completion_tokens_generated": self.completion_tokens_generated}
        if self._driver is None:
            return tokens
        return tokens | {"driver": self._driver.state_dict()}

    def _load_own_state(self, state: dict[str, Any]) -> int:
        if self._driver is not None and "driver" in state:
            self._driver.load_state_dict(state["driver"])
        return int(state["completion_tokens_generated"])

    def _resumed(self, shared: int | None) -> None:
        self._waiting = None
        self.completion_tokens_generated = shared or 0
        if self._driver is not None:
            self._driver.open_log(self._log_path, resume_after=self.state.global_step)


def _as_depo_config(args: GRPOConfig | None, model: Any) -> DEPOConfig:
    """A ``DEPOConfig`` with the values of ``args``."""
    if isinstance(args, DEPOConfig):
        return args
    if args is None:
        name = model if isinstance(model, str) else get_config_model_id(model.config)
        return DEPOConfig(f"{name.split('/')[-1]}-DEPO")
    promoted = copy.copy(args)  # values are kept as they are: __post_init__ has run and would refuse to run twice
    promoted.__class__ = DEPOConfig
    for field in dataclasses.fields(DEPOConfig):
        if not hasattr(args, field.name):
            setattr(promoted, field.name, field.default)
    promoted.curriculum_config()
    return promoted
