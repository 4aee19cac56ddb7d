"""The curriculum of a TRL run: held by the main process, which decides and broadcasts; every rank holds a driver."""

from __future__ import annotations

import time
import warnings
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

from ...breadth import BREADTH
from ...config import EncoderSettings
from ...curriculum import Curriculum, Settlement
from ...errors import EngineError, PoolExhausted, RewardError
from ...methods import METHODS
from ...metrics import batch_shares
from ...outcomes import LogRow, OutcomeLogWriter
from ...types import Gate, GroupOutcome, Prompt, ScreeningGate
from ..session import live_curriculum
from .config import DEPOConfig
from .prompts import prompts_of
from .ranks import on_main

if TYPE_CHECKING:
    from accelerate import Accelerator

_COUNTS = ("drawn", "skipped", "explored", "fallback", "guarded", "failed")
_LOG_NAME = {"all_pass_share": "all_pass", "all_fail_share": "all_fail"}
_SO_FAR = ("log_loss", "auc_mixed", "ece", "ece_floor", "rollouts_saved", "tokens_saved", *BREADTH)


def check_gate(method: str, gate: Gate) -> None:
    """Raises EngineError if the method extends groups."""
    if isinstance(gate, ScreeningGate):
        able = ", ".join(name for name in sorted(METHODS) if name != method)
        raise EngineError(
            f"method {method!r} extends a group after its first {gate.screen} completions, which TRL cannot: on TRL "
            f"choose one of {able}; 'depo replay' runs {method!r}"
        )


class CurriculumDriver:
    """Proposes rows of the data set and settles their outcomes, the same on all ranks.

    On the main process ``curriculum`` is the run's curriculum; elsewhere it is None and decisions arrive by broadcast.
    """

    def __init__(self, accelerator: Accelerator, dataset: Any, args: DEPOConfig, needs_prompt: bool = True) -> None:
        self._accelerator, self._args = accelerator, args
        self.weighs = args.curriculum_config().importance > 0
        self.curriculum: Curriculum | None = None
        self.log: OutcomeLogWriter | None = None
        self._prompts: list[Prompt] = []
        self._row_of: dict[str, int] = {}
        self._outcomes: list[GroupOutcome] = []  # of this generation
        self._seconds = {"seconds_selecting": 0.0, "seconds_learning": 0.0}
        self._published: dict[str, float] = {}
        self.max_rounds: int = on_main(self._accelerator, lambda: self._start(dataset, needs_prompt))
        self._unscorable_streak = 0

    def _start(self, dataset: Any, needs_prompt: bool) -> int:
        config = self._args.curriculum_config()
        self._prompts = prompts_of(dataset, self._args.source_column, needs_prompt)
        self._row_of = {prompt.key: row for row, prompt in enumerate(self._prompts)}
        self.curriculum = live_curriculum(self._args.method, self._prompts, config)
        self._check_size(len(self.curriculum.pool))
        check_gate(self._args.method, self.curriculum.gate)
        return self.curriculum.gate.max_rounds

    def _check_size(self, n_prompts: int) -> None:
        """TRL's dataloader gives no batch at all if the data set is smaller: training would end before it began."""
        n_groups = self._args.generation_batch_size // self._args.num_generations
        if not self._args.own_order and n_prompts < n_groups:
            raise PoolExhausted(
                f"the pool has {n_prompts} prompts, but each generation takes {n_groups} (generation_batch_size "
                f"{self._args.generation_batch_size} / num_generations {self._args.num_generations}): use a smaller "
                "batch or more prompts"
            )

    @property
    def wants_logprobs(self) -> bool:
        """True if the estimator learns from the policy's confidence (the paper's distillation target)."""
        estimator = self._args.curriculum_config().estimator
        return isinstance(estimator, EncoderSettings) and estimator.distill_weight > 0

    def propose(self, n: int) -> list[int]:
        """Rows of the data set to roll out next."""

        def work() -> list[int]:
            assert self.curriculum is not None
            started = time.perf_counter()
            prompts = self.curriculum.propose(n)
            self._seconds["seconds_selecting"] += time.perf_counter() - started
            return [self._row_of[prompt.key] for prompt in prompts]

        return on_main(self._accelerator, work)

    def importance(self, rows: Sequence[int]) -> list[float]:
        """What to multiply the advantages of each row's group by, between its proposal and its settlement."""

        def work() -> list[float]:
            assert self.curriculum is not None
            return self.curriculum.importance(self.keys_of(rows))

        return on_main(self._accelerator, work) if self.weighs else [1.0] * len(rows)

    def adopt(self, keys: Sequence[str]) -> None:
        """Method grpo: the trainer's own order chose these prompts."""
        if self.curriculum is not None:
            self.curriculum.adopt(keys)

    def keys_of(self, rows: Sequence[int]) -> list[str]:
        """Keys of the rows' prompts; on other ranks than the main one there are none to know."""
        return [self._prompts[row].key for row in rows] if self.curriculum is not None else []

    def row_of(self, key: str) -> int:
        """Row of a prompt; main process only."""
        return self._row_of[key]

    def settle(self, outcomes: Callable[[], list[GroupOutcome]], step: int) -> list[bool]:
        """Learns from finished groups (``outcomes`` is called on the main process only); True where admitted.

        step: the optimiser step whose policy sampled them; the log says for which step they were rolled out, the next.
        """

        def work() -> list[bool]:
            assert self.curriculum is not None
            finished = outcomes()
            started = time.perf_counter()
            settled = self.curriculum.settle(finished)
            self._seconds["seconds_learning"] += time.perf_counter() - started
            self._outcomes += [s.outcome for s in settled if s.because != "duplicate"]
            self._check_scorable(settled)
            self._write_log(settled, step)
            return [s.admitted for s in settled]

        return on_main(self._accelerator, work)

    def _check_scorable(self, settled: Sequence[Settlement]) -> None:
        scored = any(s.outcome.n_scored for s in settled)
        self._unscorable_streak = 0 if scored else self._unscorable_streak + 1
        if self._unscorable_streak == 1:
            warnings.warn(
                f"no reward of a whole generation ({len(settled)} groups) could be scored: nothing was learnt from it. "
                "Check the reward function and its answer column",
                stacklevel=2,
            )
        if self._unscorable_streak >= self._args.max_unscorable_generations:
            raise RewardError(
                f"no reward could be scored in {self._unscorable_streak} generations in a row (the limit, "
                f"max_unscorable_generations, is {self._args.max_unscorable_generations}): every reward function "
                "returned None or NaN for every completion. Mend the reward function or its answer column, then resume "
                "from the last checkpoint"
            )

    def _write_log(self, settled: Sequence[Settlement], step: int) -> None:
        if self.log is None or self.curriculum is None:
            return
        self.log.write(
            LogRow.from_settlement(self.curriculum.pool[s.outcome.key], s, step + 1, s.admitted)
            for s in settled
            if s.because != "duplicate"
        )

    def open_log(self, path: Path, resume_after: int | None) -> None:
        """Starts ``path`` anew, an older file moved aside, or goes on with it after step ``resume_after``."""
        if self.curriculum is None or not self._args.outcome_log:
            return
        if resume_after is None and path.exists() and path.stat().st_size:
            path.replace(path.with_name(f"{path.stem}.previous{path.suffix}"))
        self.log = OutcomeLogWriter(path)
        if resume_after is not None:
            self.log.resume(resume_after)

    def flush_log(self) -> None:
        if self.log is not None:
            self.log.flush()

    def close_log(self) -> None:
        if self.log is not None:
            self.log.close()
            self.log = None

    def metrics(self) -> tuple[dict[str, float], dict[str, float]]:
        """For TRL's log: figures of this generation, and figures since the start of the run; begins the next one.

        Empty on other ranks than the main one. What the curriculum tells is in ``Ledger.metrics``; besides:

        all_pass: share of the scored groups that are all right. all_fail: share that is all wrong. rollouts:
        completions of settled groups since the start. log_rows_dropped: rows that the outcome log had to give up.
        log_write_errors: attempts at writing it that failed.
        """
        if self.curriculum is None:
            return {}, {}
        now = self.curriculum.metrics()
        generation = {name: now[name] - self._published.get(name, 0.0) for name in _COUNTS}
        shares = batch_shares(self._outcomes)
        generation |= {_LOG_NAME.get(name, name): value for name, value in shares.items()}
        generation |= {"predicted_mean": now["predicted_mean"]} | self._seconds
        so_far = {name: now[name] for name in _SO_FAR}
        so_far["rollouts"] = (now["admitted"] + now["rejected"] + now["failed"]) * self.curriculum.config.group_size
        so_far |= {name: value for name, value in now.items() if name.startswith("estimator/")}
        if self.log is not None:
            so_far |= {f"log_{name}": value for name, value in self.log.metrics().items() if name != "rows_written"}
        self._published, self._outcomes = now, []
        self._seconds = dict.fromkeys(self._seconds, 0.0)
        return generation, so_far

    def state_dict(self) -> dict[str, Any]:
        """Main process only."""
        assert self.curriculum is not None
        return {"curriculum": self.curriculum.state_dict(), "unscorable_streak": self._unscorable_streak}

    def load_state_dict(self, state: dict[str, Any]) -> None:
        assert self.curriculum is not None
        self.curriculum.load_state_dict(state["curriculum"])
        self._unscorable_streak = int(state["unscorable_streak"])
        self._published = self.curriculum.metrics()

    def release(self) -> None:
        """Gives up on proposals whose rollouts an interrupted ``train`` never finished."""
        if self.curriculum is not None:
            self.curriculum.release()
