"""The curriculum of a TRL run: held by the main process, which decides and broadcasts; every rank holds a driver."""

from __future__ import annotations

import time
import warnings
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any, TypeVar

import torch
from accelerate.utils import broadcast_object_list

from ...config import EncoderSettings
from ...curriculum import Curriculum, Settlement
from ...errors import RewardError
from ...methods import make_curriculum
from ...metrics import batch_shares
from ...outcomes import LogRow, OutcomeLogWriter
from ...types import GroupOutcome, Prompt
from .config import DEPOConfig
from .prompts import prompts_of

if TYPE_CHECKING:
    from accelerate import Accelerator

T = TypeVar("T")

_PER_GENERATION = ("drawn", "skipped", "explored", "fallback", "failed")
_LATEST = ("log_loss", "auc_mixed", "ece", "rollouts_saved", "tokens_saved", "seconds_selecting", "seconds_learning")


class CurriculumDriver:
    """Proposes rows of the data set and settles their outcomes, the same on all ranks.

    On the main process ``curriculum`` is the run's curriculum; elsewhere it is None and decisions arrive by broadcast.
    """

    def __init__(self, accelerator: Accelerator, dataset: Any, args: DEPOConfig) -> None:
        self._accelerator, self._args = accelerator, args
        self.curriculum: Curriculum | None = None
        self.log: OutcomeLogWriter | None = None
        self._prompts: list[Prompt] = []
        self._row_of: dict[str, int] = {}
        self._outcomes: list[GroupOutcome] = []  # of this generation
        self._seconds = {"seconds_selecting": 0.0, "seconds_learning": 0.0}
        self._published: dict[str, float] = {}
        self.max_rounds: int = self.on_main(lambda: self._start(dataset))
        self._unscorable_streak = 0

    def _start(self, dataset: Any) -> int:
        config = self._args.curriculum_config()
        self._prompts = prompts_of(dataset, self._args.source_column)
        self._row_of = {prompt.key: row for row, prompt in enumerate(self._prompts)}
        self.curriculum = make_curriculum(self._args.method, self._prompts, config)
        return self.curriculum.gate.max_rounds

    @property
    def wants_logprobs(self) -> bool:
        """True if the estimator learns from the policy's confidence (the paper's distillation target)."""
        estimator = self._args.curriculum_config().estimator
        return isinstance(estimator, EncoderSettings) and estimator.distill_weight > 0

    def on_main(self, work: Callable[[], T]) -> T:
        """``work()`` of the main process, on all ranks; an error there is raised on all of them, so none waits for ever."""
        result: list[Any] = [None, None]
        if self._accelerator.is_main_process:
            try:
                result[0] = work()
            except Exception as error:
                result[1] = error
        if self._accelerator.num_processes > 1:
            broadcast_object_list(result, from_process=0)
        if result[1] is not None:
            raise result[1]
        value: T = result[0]
        return value

    def propose(self, n: int) -> list[int]:
        """Rows of the data set to roll out next."""

        def work() -> list[int]:
            assert self.curriculum is not None
            started = time.perf_counter()
            prompts = self.curriculum.propose(n)
            self._seconds["seconds_selecting"] += time.perf_counter() - started
            return [self._row_of[prompt.key] for prompt in prompts]

        return self.on_main(work)

    def adopt(self, keys: Sequence[str]) -> None:
        """Method grpo: the trainer's own order chose these prompts."""
        if self.curriculum is not None:
            self.curriculum.adopt(keys)

    def keys_of(self, rows: Sequence[int]) -> list[str]:
        """Keys of the rows' prompts; on other ranks than the main one there are none to know."""
        return [self._prompts[row].key for row in rows] if self.curriculum is not None else []

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

        return self.on_main(work)

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
                f"no reward could be scored in {self._unscorable_streak} generations in a row (max_unscorable_generations "
                f"= {self._args.max_unscorable_generations}): every reward function returned None or NaN for every "
                "completion. Mend the reward function or its answer column, then resume from the last checkpoint"
            )

    def _write_log(self, settled: Sequence[Settlement], step: int) -> None:
        if self.log is None or self.curriculum is None:
            return
        self.log.write(
            LogRow.from_outcome(
                self.curriculum.pool[s.outcome.key],
                s.outcome,
                step=step + 1,
                predicted_mean=s.predicted_mean,
                predicted_strength=s.predicted_strength,
                chosen_because=s.because,
                admitted=s.admitted,
            )
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

    def metrics(self) -> dict[str, float]:
        """What this generation did, for TRL's log; empty on other ranks than the main one. Resets the generation."""
        if self.curriculum is None:
            return {}
        now = self.curriculum.metrics() | self._seconds
        shares = batch_shares(self._outcomes)
        values = {name: now[name] - self._published.get(name, 0.0) for name in _PER_GENERATION}
        values |= {name: now[name] for name in _LATEST} | shares | {"predicted_mean": now.get("predicted_mean", float("nan"))}
        values["rollouts"] = (now["admitted"] + now["rejected"] + now["failed"]) * self.curriculum.config.group_size
        values |= {name: v for name, v in now.items() if name.startswith("estimator/")}
        if self.log is not None:
            values |= {f"log_{k}": float(v) for k, v in self.log.metrics().items() if k != "rows_written"}
        self._published, self._outcomes = now, []
        self._seconds = dict.fromkeys(self._seconds, 0.0)
        return values

    def state_dict(self) -> dict[str, Any]:
        """Main process only."""
        assert self.curriculum is not None
        return {"curriculum": self.curriculum.state_dict(), "unscorable_streak": self._unscorable_streak}

    def load_state_dict(self, state: dict[str, Any]) -> None:
        assert self.curriculum is not None
        self.curriculum.load_state_dict(state["curriculum"])
        self._unscorable_streak = int(state["unscorable_streak"])
        self._published = self.curriculum.metrics()


def pad_to_world(n: int, group_size: int, world: int) -> int:
    """The smallest number of groups, at least ``n``, whose completions divide evenly over ``world`` ranks."""
    while (n * group_size) % world:
        n += 1
    return n


def to_numpy(tensors: dict[str, torch.Tensor]) -> dict[str, Any]:
    return {name: tensor.detach().double().cpu().numpy() for name, tensor in tensors.items()}
