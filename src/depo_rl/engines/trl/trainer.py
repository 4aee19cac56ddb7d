"""``DEPOTrainer``: TRL's ``GRPOTrainer`` with prompts chosen before the rollout.

It wraps a few methods of the trainer through ``super()`` and copies none. The stock dataloader is
only a clock that says how many rows are due: prompts are chosen when completions are generated,
with the newest estimator, because the dataloader reads ahead and would decide a generation too
early. Rows of the ranks are contiguous, rank r holding the global samples [r*B, (r+1)*B); a group
may straddle two ranks. Method ``grpo`` leaves TRL's own order alone, bit for bit.
"""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import Any

import torch
from accelerate.utils import gather_object
from trl import GRPOConfig

from ...curriculum import Curriculum
from ...errors import EngineError, expect_same
from ...importance import effective_share
from ..rows import occurrence_keys
from .callbacks import TokenBudget
from .compat import BY_UNSLOTH, with_total
from .config import DEPOConfig, as_depo_config
from .correctness import CorrectFn, Correctness
from .driver import TrlDriver
from .generation import Generation
from .listening import ListeningTrainer
from .policy_states import Readings, hindrance, policy_readings
from .prompts import has_random_access, identity_of, key_of
from .rollouts import (
    RolledGroup,
    add_columns,
    join,
    logged,
    split,
)
from .sampling import DynamicSampler, check_resampling


class DEPOTrainer(ListeningTrainer):
    """Drop-in for ``GRPOTrainer``; takes all its arguments.

    args: a ``DEPOConfig``; a plain ``GRPOConfig`` is taken with our defaults for the rest (method
    "depo"). correct_fn: says what is correct, instead of a threshold on a reward
    (``DEPOConfig.correct_reward``); called like a reward function, returns one bool, number or None
    (unscorable) per completion.
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
        args = as_depo_config(args, model)
        # once; a later change of ``args`` comes too late
        self._curriculum_config = args.curriculum_config()
        # method grpo on a stream of rows has none: it is GRPOTrainer
        self._driver: TrlDriver | None = None
        self._sampler: DynamicSampler | None = None
        self._generation: Generation | None = None  # the one under way, until it is settled
        # generated before, to be scored now
        self._rolled: tuple[tuple[Any, ...], torch.Tensor] | None = None
        # for training, on all ranks, groups discarded later included
        self.completion_tokens_generated = 0
        super().__init__(model, reward_funcs, args, train_dataset, *positional, **kwargs)
        graded = self._curriculum_config.reward_range is not None
        self._correctness = Correctness(self.reward_func_names, args, correct_fn, graded)
        if not args.own_order or has_random_access(self.train_dataset):
            self._start(args)

    def _start(self, args: DEPOConfig) -> None:
        self._rows = self._training_rows()
        # the estimator reads all columns, whatever TRL removes; method grpo knows a prompt by the
        # row it is given
        known = self._rows if args.own_order else self.train_dataset
        self._driver = TrlDriver(
            self.accelerator,
            known,
            args,
            self._curriculum_config,
            not self.in_environment,
            self._policy_readings(),
        )
        if self._driver.wants_logprobs and BY_UNSLOTH:
            raise EngineError(
                "estimator.distill_weight > 0: Unsloth's loss does not tell the policy's log-probabilities: set it to 0"
            )
        if self._driver.max_rounds > 1:
            self._check_resampling(args.method)
            self._sampler = DynamicSampler(self, self._driver.max_rounds)

    def _policy_readings(self) -> Readings | None:
        reason = hindrance(self.accelerator, self.in_environment, self.reads_images)
        if BY_UNSLOTH:
            reason = "Unsloth's forward passes are not those that it would be read by"
        return policy_readings(self, self._curriculum_config.estimator, reason)

    def _check_resampling(self, method: str) -> None:
        multi_turn = bool(self.tools) or self.in_environment
        columns = getattr(self._rows, "column_names", None) or list(self._rows[0])
        images = not {"image", "images"}.isdisjoint(columns)
        check_resampling(
            f"method {method!r} with gate {self._curriculum_config.gate!r}", multi_turn, images
        )

    def _training_rows(self) -> Any:
        """The rows as the dataloader would give them."""
        if self.args.remove_unused_columns and hasattr(self.train_dataset, "column_names"):
            return self._remove_unused_columns(self.train_dataset, description="training")
        return self.train_dataset

    @property
    def curriculum(self) -> Curriculum | None:
        """The run's curriculum on the main process, None on the others."""
        return self._driver.curriculum if self._driver else None

    # -- choose, before the rollout ----------------------------------------------------------------

    def _generate_and_score_completions(self, inputs: list[dict[str, Any]]) -> dict[str, Any]:
        output: dict[str, Any]
        if not self.model.training or self._driver is None or self._rolled is not None:
            output = super()._generate_and_score_completions(inputs)
            return output
        if self._waits:  # the loss never came, so its log-probabilities never will
            self._settle_and_publish(None)
        n_groups = len(inputs) * self.accelerator.num_processes // self.num_generations
        if self._sampler is not None:
            output = self._sampler.fill(n_groups, len(inputs))
            self._publish()
            return output
        if self.args.own_order:
            self._begin(self._adopt(inputs))
            output = super()._generate_and_score_completions(inputs)
        else:
            rows, keys = self.driver.propose(n_groups)
            self._begin(keys)
            output = super()._generate_and_score_completions(self.local_rows(rows, len(inputs)))
            self.weigh(output, self.driver.importance(keys), n_groups)
        self._settle_or_wait(output)
        return output

    def _begin(self, keys: list[str]) -> None:
        self._generation = Generation(keys, self.state.global_step)

    def local_rows(self, rows: list[int], n_local: int) -> list[dict[str, Any]]:
        """This rank's rows, each read afresh: TRL and reward functions write into them."""
        start = self.accelerator.process_index * n_local
        return [self._rows[rows[i // self.num_generations]] for i in range(start, start + n_local)]

    def tokens_of(self, keys: Sequence[str]) -> list[list[int]]:
        """What the policy would be given to go on from, tokenised by TRL itself; main process
        only."""
        return self.prompt_tokens([self._rows[self.driver.row_of(key)]["prompt"] for key in keys])

    def _adopt(self, inputs: list[dict[str, Any]]) -> list[str]:
        """Method grpo: the keys of the groups that TRL's order chose."""
        local = [(key_of(row, self.args.source_column), identity_of(row)) for row in inputs]
        samples = self._gathered(local)
        keys = samples[:: self.num_generations]
        if [key for key in keys for _ in range(self.num_generations)] != samples:
            raise EngineError(
                "the rows of a group are not of one prompt: was TRL's sampler replaced? Do not override it"
            )
        keys = occurrence_keys(self.driver.named(keys))
        self.driver.adopt(keys)
        return keys

    def _gathered(self, local: list[Any]) -> list[Any]:
        """Those of all ranks, in the order of the ranks."""
        return gather_object(local) if self.accelerator.num_processes > 1 else local

    def weigh(self, output: dict[str, Any], weights: list[float], n_groups: int) -> None:
        """Multiplies the advantages of this rank's completions in a scored batch by their groups'
        weights, once.

        weights: of all groups of all ranks, in order. n_groups: how many of them are trained on,
        the first ones.

        Logged with ``importance`` above 0. importance_max: largest weight of the batch.
        effective_share: effective sample size over the number of groups, 1 for equal weights.
        """
        if not self.driver.weighs:
            return
        weight_B = self._of_completions(weights, output["advantages"])
        output["advantages"] = output["advantages"] * weight_B
        if trained := weights[:n_groups]:
            self.note("importance_max", max(trained))
            self.note("effective_share", effective_share(trained))

    def _of_completions(self, weights: list[float], like: torch.Tensor) -> torch.Tensor:
        """The weight of each of this rank's completions, of the shape and kind that multiplies
        ``like``."""
        start = self.accelerator.process_index * len(like)
        group_B = torch.arange(start, start + len(like)) // self.num_generations
        weight_B = torch.tensor(weights, dtype=torch.float64)[group_B].to(like)
        return weight_B.view(-1, *[1] * (like.dim() - 1))

    def _generate(self, prompts: list[Any], *images: Any) -> tuple[Any, ...]:
        if self._rolled is not None:
            return self._rolled[0]
        try:
            generated: tuple[Any, ...] = super()._generate(prompts, *images)
        except RuntimeError as error:
            if "probability tensor contains" not in str(error):
                raise
            raise EngineError(
                f"step {self.state.global_step}: the policy's probabilities are NaN or infinite, so nothing can be "
                "sampled: training has diverged. Lower learning_rate or max_grad_norm, then resume from a checkpoint "
                f"in {self.args.output_dir} from before"
            ) from error
        return generated

    # -- rounds of dynamic sampling (``sampling.py``) ----------------------------------------------

    def roll_out(self, n_groups: int) -> list[RolledGroup]:
        """Chooses, generates, rewards and settles ``n_groups``; all of them, the same on all
        ranks."""
        rows, keys = self.driver.propose(n_groups)
        self._begin(keys)
        size = self.num_generations
        n_local = n_groups * size // self.accelerator.num_processes
        inputs = self.local_rows(rows, n_local)
        prompts = [row["prompt"] for row in inputs]
        self._pending_extra_logs.clear()
        generated = self.generate_from(prompts)
        add_columns(inputs, generated.extra)
        rewards_SF = self._calculate_rewards(
            inputs, prompts, generated.completions, generated.completion_ids
        )
        rewards_PGF = rewards_SF.view(n_groups, size, -1)
        samples = self._gathered(split(generated.fields, n_local, self._pending_extra_logs))
        weights = self.driver.importance(keys)  # before the groups are settled
        admitted = self._settle(None)
        return [
            RolledGroup(
                row, samples[i * size : (i + 1) * size], rewards_PGF[i], weights[i], admitted[i]
            )
            for i, row in enumerate(rows)
        ]

    def score_rolled(self, groups: list[RolledGroup], n_kept: int, n_local: int) -> dict[str, Any]:
        """TRL's own advantages, log-probabilities, masks and metrics for groups that were generated
        before.

        n_kept: how many of them are trained on, the first ones. n_local: completions of this rank.
        """
        start = self.accelerator.process_index * n_local
        mine = [completion for group in groups for completion in group.completions][
            start : start + n_local
        ]
        self._pending_extra_logs.clear()
        self._pending_extra_logs.update(logged(mine))
        fields = with_total(join(mine), [c.fields for group in groups for c in group.completions])
        self._rolled = (fields, torch.cat([group.rewards_GF for group in groups]))
        try:
            rows = self.local_rows([group.row for group in groups], n_local)
            output: dict[str, Any] = super()._generate_and_score_completions(rows)
        finally:
            self._rolled = None
        self.weigh(output, [group.weight for group in groups], n_kept)
        return output

    # -- observe, after the rewards ----------------------------------------------------------------

    def _calculate_rewards(
        self, inputs: Any, prompts: Any, completions: Any, completion_ids_list: Any
    ) -> torch.Tensor:
        if self._rolled is not None:
            return self._rolled[1]
        rewards_SF = super()._calculate_rewards(inputs, prompts, completions, completion_ids_list)
        # not self.model.training, which Unsloth switches while it generates
        if self._generation is not None and not self._generation.scored:
            self._record(inputs, prompts, completions, completion_ids_list, rewards_SF)
        return rewards_SF

    def _record(
        self,
        inputs: Any,
        prompts: Any,
        completions: Any,
        completion_ids: Any,
        rewards_SF: torch.Tensor,
    ) -> None:
        assert self._generation is not None
        device = rewards_SF.device
        gather = self.accelerator.gather
        call = {
            "prompts": prompts,
            "completions": completions,
            "completion_ids": completion_ids,
            "trainer_state": self.state,
            **self.logging_functions(),
        }
        own_B = self._correctness.local(inputs, call, device)
        total_S = (rewards_SF * self.reward_weights.to(device)).nansum(dim=1)
        total_S[rewards_SF.isnan().all(dim=1)] = torch.nan
        tokens_S = gather(torch.tensor([len(ids) for ids in completion_ids], device=device))
        self.completion_tokens_generated += int(tokens_S.sum())
        own_S = None if own_B is None else gather(own_B)
        self._generation.correct_S = self._correctness.judge(rewards_SF, own_S)
        self._generation.reward_S = total_S
        self._generation.tokens_S = tokens_S

    def _settle(self, logprob_B2: torch.Tensor | None) -> list[bool]:
        """Hands the generation to the curriculum; True for each group admitted."""
        assert self._generation is not None
        generation = self._generation
        self._generation = None
        logprob_S2 = None if logprob_B2 is None else self.accelerator.gather(logprob_B2)
        return self.driver.settle(lambda: generation.outcomes(logprob_S2), generation.step)

    def _publish(self) -> None:
        """Hands the figures of the generation to TRL's log, under ``depo/``.

        completion_tokens: generated for training since the start, on all ranks, groups dropped
        later included.
        """
        of_generation, so_far = self.driver.figures()
        so_far["completion_tokens"] = float(self.completion_tokens_generated)
        for name, value in of_generation.items():
            self.note(name, value)
        self._metrics["train"].update({f"depo/{name}": [value] for name, value in so_far.items()})

    def note(self, name: str, value: float) -> None:
        """For TRL's log, which tells the mean over ``logging_steps``."""
        self._metrics["train"][f"depo/{name}"].append(float(value))

    def _settle_and_publish(self, logprob_B2: torch.Tensor | None) -> None:
        self._settle(logprob_B2)
        self._publish()

    # -- run, save and resume ----------------------------------------------------------------------

    def train(
        self, resume_from_checkpoint: str | bool | None = None, *args: Any, **kwargs: Any
    ) -> Any:
        """As ``Trainer.train``; True resumes from the newest *complete* checkpoint, "auto" also
        starts anew."""
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
            if not self._waits:
                self._driver.release()  # proposals of an earlier call that was interrupted
            self._driver.open_log(self._log_path, resume_after=None)

    @property
    def _log_path(self) -> Path:
        return Path(self.args.output_dir) / "outcomes.jsonl"

    def _own_state(self) -> dict[str, Any]:
        own = {
            "completion_tokens_generated": self.completion_tokens_generated,
            "accompanying_rewards": self._correctness.accompanying,
            "num_generations": self.num_generations,
        }
        if self._driver is None:
            return own
        return own | {"driver": self._driver.state_dict()}

    def _load_own_state(self, state: dict[str, Any]) -> tuple[int, list[str]]:
        if self._driver is not None and "driver" in state:
            size = self.num_generations  # the totals count groups, which are of one size
            expect_same("trainer", "num_generations", state.get("num_generations", size), size)
            self._driver.load_state_dict(state["driver"])
        return int(state["completion_tokens_generated"]), list(
            state.get("accompanying_rewards", ())
        )

    def _resumed(self, shared: tuple[int, list[str]] | None, step: int) -> None:
        self._generation = None
        self.completion_tokens_generated, self._correctness.accompanying = shared or (0, [])
        if self._driver is not None:
            self._driver.open_log(self._log_path, resume_after=step)
