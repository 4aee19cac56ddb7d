"""The curriculum of a TRL run: held by the main process, which decides and broadcasts; every rank
holds a driver."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any, cast

from ...config import CurriculumConfig, EncoderSettings
from ...curriculum import Curriculum
from ...errors import PoolExhausted
from ...parts import make_estimator
from ...pool import PromptPool
from ...protocols import Gate, PassRateEstimator
from ...types import GroupOutcome, State
from ..session import Patience, Proposal, Session, live_curriculum, refuse_screening
from .config import DEPOConfig
from .policy_states import Readings
from .prompts import prompts_of
from .ranks import on_main

if TYPE_CHECKING:
    from accelerate import Accelerator


def check_gate(method: str, gate: Gate) -> None:
    """Raises EngineError if the method extends groups."""
    refuse_screening(method, gate, "TRL")


class TrlDriver:
    """Proposes rows of the data set and settles their outcomes, the same on all ranks.

    The main process has the run's ``session``; on the others it is None, and decisions arrive by
    broadcast. readings: of the policy, for an estimator whose settings ask for them.
    """

    def __init__(
        self,
        accelerator: Accelerator,
        dataset: Any,
        args: DEPOConfig,
        config: CurriculumConfig,
        needs_prompt: bool = True,
        readings: Readings | None = None,
    ) -> None:
        self._accelerator = accelerator
        self._args = args
        self._config = config
        self._row_of: dict[str, int] = {}
        self.session: Session | None = None
        self.max_rounds: int = on_main(
            accelerator, lambda: self._start(dataset, needs_prompt, readings)
        )

    def _start(self, dataset: Any, needs_prompt: bool, readings: Readings | None) -> int:
        args = self._args
        prompts = prompts_of(dataset, args.source_column, needs_prompt, decoded=args.own_order)
        self._row_of = {prompt.key: row for row, prompt in enumerate(prompts)}

        def make(pool: PromptPool, config: CurriculumConfig) -> PassRateEstimator:
            estimator = make_estimator(pool, config)
            if readings is not None:
                cast(Any, estimator).read_policy(*readings)
            return estimator

        curriculum = live_curriculum(args.method, prompts, self._config, make)
        self._check_size(len(curriculum.pool))
        check_gate(args.method, curriculum.gate)
        patience = Patience(
            args.max_unscorable_generations,
            "max_unscorable_generations",
            "generation",
            "the reward function and its answer column",
        )
        self.session = Session(curriculum, patience)
        return curriculum.gate.max_rounds

    def _check_size(self, n_prompts: int) -> None:
        """TRL's dataloader gives no batch at all if the data set is smaller: training would end
        before it began."""
        n_groups = self._args.generation_batch_size // self._args.num_generations
        if not self._args.own_order and n_prompts < n_groups:
            raise PoolExhausted(
                f"the pool has {n_prompts} prompts, but each generation takes {n_groups} (generation_batch_size "
                f"{self._args.generation_batch_size} / num_generations {self._args.num_generations}): use a smaller "
                "batch or more prompts"
            )

    @property
    def curriculum(self) -> Curriculum | None:
        """The run's curriculum on the main process, None on the others."""
        return self.session.curriculum if self.session else None

    @property
    def weighs(self) -> bool:
        """Whether advantages are multiplied by importance weights."""
        return self._config.importance > 0

    @property
    def wants_logprobs(self) -> bool:
        """Whether the estimator learns from the policy's confidence (the paper's distillation
        target)."""
        estimator = self._config.estimator
        return isinstance(estimator, EncoderSettings) and estimator.distill_weight > 0

    def propose(self, n: int) -> Proposal:
        """What to roll out next."""

        def work() -> Proposal:
            assert self.session is not None
            keys = [prompt.key for prompt in self.session.propose(n)]
            return Proposal([self._row_of[key] for key in keys], keys)

        return on_main(self._accelerator, work)

    def importance(self, keys: Sequence[str]) -> list[float]:
        """What to multiply the advantages of each prompt's group by, between its proposal and its
        settlement."""

        def work() -> list[float]:
            assert self.session is not None
            return self.session.curriculum.importance(keys)

        return on_main(self._accelerator, work) if self.weighs else [1.0] * len(keys)

    def named(self, rows: Sequence[tuple[str, str]]) -> list[str]:
        """Keys of rows that are known by key of text and hash of content."""

        def work() -> list[str]:
            own = (f"{key}-{content}" for key, content in rows)
            return [
                name if name in self._row_of else key
                for name, (key, _) in zip(own, rows, strict=True)
            ]

        return on_main(self._accelerator, work)

    def adopt(self, keys: Sequence[str]) -> None:
        """Method grpo: the trainer's own order chose these prompts."""
        if self.session is not None:
            self.session.curriculum.adopt(keys)

    def row_of(self, key: str) -> int:
        """Row of a prompt; main process only."""
        return self._row_of[key]

    def settle(self, outcomes: Callable[[], list[GroupOutcome]], step: int) -> list[bool]:
        """Learns from finished groups (``outcomes`` is called on the main process only); True where
        admitted.

        step: the optimiser step whose policy sampled them; the log says for which step they were
        rolled out, the next.
        """

        def work() -> list[bool]:
            assert self.session is not None
            return [settled.admitted for settled in self.session.settle(outcomes(), step + 1)]

        return on_main(self._accelerator, work)

    def figures(self) -> tuple[dict[str, float], dict[str, float]]:
        """As ``Session.figures``; empty on other ranks than the main one. Besides:

        rollouts: completions of settled groups since the start.
        """
        if self.session is None:
            return {}, {}
        of_generation, so_far = self.session.figures()
        so_far["rollouts"] = so_far["groups"] * self._config.group_size
        return of_generation, so_far

    def open_log(self, path: Path, resume_after: int | None) -> None:
        """As ``Session.open_log``, if an outcome log is asked for."""
        if self.session is not None and self._args.outcome_log:
            self.session.open_log(path, resume_after)

    def close_log(self) -> None:
        if self.session is not None:
            self.session.close_log()

    def release(self) -> None:
        """Gives up on proposals whose rollouts an interrupted ``train`` never finished."""
        if self.session is not None:
            self.session.curriculum.release()

    def state_dict(self) -> State:
        """Main process only."""
        assert self.session is not None
        return self.session.state_dict()

    def load_state_dict(self, state: State) -> None:
        """Main process only. Raises StateMismatch if the state is of another run."""
        assert self.session is not None
        self.session.load_state_dict(state)
