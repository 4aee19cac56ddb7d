"""The curriculum of a verl run, between the dataset that chooses and the replay buffer that observes; free of verl.

Book-keeping is done at once, learning in a thread of its own while verl updates the actor; whoever needs the
curriculum next waits for it, so that what is chosen depends on nothing but what was observed.
"""

from __future__ import annotations

import math
import time
import warnings
from collections.abc import Callable, Iterable, Mapping, Sequence
from concurrent.futures import Future, ThreadPoolExecutor
from pathlib import Path

from ...breadth import BREADTH
from ...config import CurriculumConfig
from ...errors import RewardError, StateMismatch, expect_fields, expect_same
from ...importance import effective_share
from ...methods import get_method, make_estimator
from ...metrics import batch_shares
from ...outcomes import LogRow, OutcomeLogWriter
from ...pool import PromptPool
from ...types import GroupOutcome, PassRateEstimator, Prompt, Settlement, State
from ..session import live_curriculum
from .outcomes import Completion, Judge, group_outcome
from .rows import GROUP_SIZE_COLUMN, PromptTable
from .settings import VerlSettings

_VERSION = 1
_FIELDS = ("version", "curriculum", "queue", "asked", "unscorable_streak", "step")
_COUNTS = ("drawn", "skipped", "explored", "fallback", "guarded", "failed", "duplicates")
_SO_FAR = ("log_loss", "auc_mixed", "ece", "ece_floor", "rollouts_saved", "tokens_saved", "in_flight", *BREADTH)
MakeHost = Callable[[Sequence[Prompt], VerlSettings, CurriculumConfig], PassRateEstimator]
_LOG_NAME = {"all_pass_share": "all_pass", "all_fail_share": "all_fail"}


class CurriculumDriver:
    """Chooses rows of the training set and learns from the completions that verl made for them.

    batch_size: prompts of a training step. log_path: the outcome log, None for none. make_host: builds the estimator
    elsewhere, given how to build it here; None keeps it in this process.
    """

    def __init__(
        self,
        table: PromptTable,
        settings: VerlSettings,
        config: CurriculumConfig,
        batch_size: int,
        log_path: Path | None = None,
        make_host: MakeHost | None = None,
    ) -> None:
        self.settings, self.batch_size = settings, batch_size
        self.judge = Judge(settings.correct_key, settings.correct_threshold)
        self._table, self._log_path = table, log_path
        self._log: OutcomeLogWriter | None = None

        def make(pool: PromptPool, config: CurriculumConfig) -> PassRateEstimator:
            return make_host(table.prompts, settings, config) if make_host else make_estimator(pool, config)

        self.curriculum = live_curriculum(settings.method, table.prompts, config, make)
        self.own_order = get_method(settings.method).own_order  # verl's: then the run is GRPO, row by row
        self._queue: list[str] = []  # proposed, not handed to verl yet
        self._asked: dict[str, int] = {}  # key in flight -> completions asked for
        self._expected = 0  # prompts that verl is about to fetch, if it was said
        self._waiting: list[GroupOutcome] = []  # of groups that were dropped since the last step, not learnt from yet
        self._dropped: set[str] = set()
        self._unscorable_streak = 0
        self.step = 0  # the last one learnt from
        self.resumed_at: int | None = None  # verl's step of the state that was loaded
        self._learning: Future[None] | None = None
        self._thread = ThreadPoolExecutor(1, thread_name_prefix="depo-learning")
        self._seconds = dict.fromkeys(("selecting", "waiting", "reading", "learning"), 0.0)
        self._published: dict[str, float] = {}
        self._weights: list[float] = []  # of the batch that is about to be finished

    # -- choose -------------------------------------------------------------------------------------------------------

    def choose(self, rows: Sequence[int]) -> list[int]:
        """Rows to roll out in place of those that verl drew; as many, distinct, none of them in flight.

        verl may fetch a batch in one call or row by row: a batch is always chosen as a whole. Raises PoolExhausted.
        """
        self.join()
        started = time.perf_counter()
        if self.own_order:
            keys = [self._table.key_of_row[row] for row in rows]
            self.curriculum.adopt(keys)
            chosen = list(rows)
        else:
            while len(self._queue) < len(rows):
                self._refill(len(rows) - len(self._queue))
            keys, self._queue = self._queue[: len(rows)], self._queue[len(rows) :]
            chosen = [self._table.row_of[key] for key in keys]
        self._asked |= {key: self.group_size(self.curriculum.pool[key]) for key in keys if key in self.curriculum.pool}
        self._expected = max(self._expected - len(rows), 0)
        self._seconds["selecting"] += time.perf_counter() - started
        return chosen

    def expect(self, n: int) -> None:
        """verl is about to fetch ``n`` prompts beside its batches: to replace groups that it dropped."""
        self._expected = n

    def _refill(self, needed: int) -> None:
        if self._free < needed and self._waiting:  # what was dropped may be chosen again rather than end the run
            self._learn(self._take_waiting(), self.step, in_background=False)
        wanted = max(needed, self._expected if self._expected and not self._warming_up else self.batch_size)
        prompts = self.curriculum.propose(max(needed, min(wanted, self._free)))
        self._queue += [prompt.key for prompt in prompts]

    @property
    def _warming_up(self) -> bool:
        """The curriculum counts its warm-up in batches of the size that it is asked for: then ask for whole ones."""
        now = self.curriculum.metrics()
        return now["admitted"] + now["rejected"] < self.curriculum.config.warmup_steps * self.batch_size

    @property
    def _free(self) -> int:
        return len(self.curriculum.pool) - len(self.curriculum.in_flight)

    @property
    def sizes_vary(self) -> bool:
        """Whether groups may differ in size: the method says so, or the data set has a column for it."""
        by_method = callable(getattr(self.curriculum.selector, "group_size_of", None))
        return by_method or GROUP_SIZE_COLUMN in self._table.prompts[0].fields

    def group_size(self, prompt: Prompt) -> int:
        """Completions to roll out: what the method asks for, else the row's own column, else the run's."""
        asks = getattr(self.curriculum.selector, "group_size_of", None)
        size = asks(prompt) if callable(asks) else prompt.fields.get(GROUP_SIZE_COLUMN)
        return int(size) if size else self.curriculum.config.group_size

    # -- observe ------------------------------------------------------------------------------------------------------

    def drop(self, groups: Mapping[int, Sequence[Completion]], failed_rows: Iterable[int] = ()) -> None:
        """Notes groups that verl rolled out and will not train on, and rows of which nothing came back."""
        started = time.perf_counter()
        nothing: dict[int, Sequence[Completion]] = dict.fromkeys(failed_rows, ())
        outcomes = self._outcomes(nothing | dict(groups))
        self._waiting += outcomes
        self._dropped |= {outcome.key for outcome in outcomes}
        self.spent("reading", time.perf_counter() - started)

    def finish(
        self, groups: Mapping[int, Sequence[Completion]], step: int, nothing_in_flight: bool = False
    ) -> dict[str, float]:
        """Learns from the groups of a training batch and from those dropped meanwhile; figures for verl's log.

        step: verl's ``global_steps``. nothing_in_flight: verl holds no other prompt, so proposals that did not come
        back never will. Raises RewardError if nothing says what is correct, or nothing could be scored for too long.
        """
        outcomes = self._take_waiting() + self._outcomes(groups)
        self._check_scorable(outcomes)
        self.join()
        metrics = self._metrics(outcomes)
        self._learn(outcomes, step, self.settings.learn_in_background, release=nothing_in_flight)
        return metrics

    @property
    def weighs(self) -> bool:
        """Whether advantages are to be multiplied by importance weights."""
        return self.curriculum.config.importance > 0

    def importance(self, rows: Sequence[int]) -> list[float]:
        """What to multiply the advantages of these rows' groups by, each > 0; ask before ``finish``."""
        self.join()
        self._weights = self.curriculum.importance([self._table.key_of_row[row] for row in rows])
        return self._weights

    def spent(self, what: str, seconds: float) -> None:
        """Adds to the seconds of this step: "reading" what verl holds."""
        self._seconds[what] += seconds

    def _take_waiting(self) -> list[GroupOutcome]:
        outcomes, self._waiting = self._waiting, []
        return outcomes

    def _outcomes(self, groups: Mapping[int, Sequence[Completion]]) -> list[GroupOutcome]:
        self.judge.check_key([completion for group in groups.values() for completion in group])
        return [
            group_outcome(self._table.key_of_row[row], group, self.asked_of(row), self.judge)
            for row, group in groups.items()
        ]

    def asked_of(self, row: int) -> int:
        """Completions asked for when the row was chosen."""
        return self._asked.get(self._table.key_of_row[row], self.curriculum.config.group_size)

    def _learn(self, outcomes: list[GroupOutcome], step: int, in_background: bool, release: bool = False) -> None:
        dropped, self._dropped, self.step = self._dropped, set(), step
        for outcome in outcomes:
            self._asked.pop(outcome.key, None)
        if release:
            self._asked = {}

        def work() -> None:
            started = time.perf_counter()
            settled = self.curriculum.settle(outcomes)
            if release:
                self.curriculum.release(self.curriculum.in_flight - set(self._queue))
            self._write_log(settled, step, dropped)
            self._seconds["learning"] = time.perf_counter() - started

        if in_background:
            self._learning = self._thread.submit(work)
        else:
            work()

    def join(self) -> None:
        """Waits until everything observed is learnt."""
        if self._learning is not None:
            started = time.perf_counter()
            learning, self._learning = self._learning, None
            learning.result()
            self._seconds["waiting"] += time.perf_counter() - started

    def close(self) -> None:
        """Learns what is left and finishes the log; a process that just ends loses at most its last rows."""
        self.join()
        if self._log is not None:
            self._log.close()

    def _check_scorable(self, outcomes: Sequence[GroupOutcome]) -> None:
        if not outcomes:
            return
        scored = any(outcome.n_scored for outcome in outcomes)
        self._unscorable_streak = 0 if scored else self._unscorable_streak + 1
        limit = self.settings.max_unscorable_steps
        if self._unscorable_streak == 1:
            warnings.warn(
                f"no completion of a whole step ({len(outcomes)} groups) could be scored: nothing was learnt from it. "
                f"Check the reward function's {self.judge.key!r}",
                stacklevel=2,
            )
        if self._unscorable_streak >= limit:
            raise RewardError(
                f"no completion could be scored in {limit} steps in a row (the limit, data.depo.max_unscorable_steps): "
                f"reward_extra_info[{self.judge.key!r}] was None or NaN for each, or nothing came back. Mend the "
                "reward function, then resume from the last checkpoint"
            )

    # -- tell ---------------------------------------------------------------------------------------------------------

    def _metrics(self, outcomes: Sequence[GroupOutcome]) -> dict[str, float]:
        """Of this step, and of the run up to what was learnt last; begins the next step.

        What the curriculum tells is in ``Ledger.metrics``; besides:

        all_pass: share of the scored groups that are all right. all_fail: share that is all wrong. seconds_waiting: for
        the learner, before the next choice. seconds_reading: reading outcomes from what verl holds. importance_max:
        largest weight of the batch, with ``importance`` above 0. effective_share: effective sample size over the number
        of groups, 1 for equal weights. log_rows_dropped: rows that the outcome log had to give up. log_write_errors:
        attempts at writing it that failed.
        """
        now = self.curriculum.metrics()
        told = {_LOG_NAME.get(name, name): value for name, value in batch_shares(outcomes).items()}
        told |= {name: now[name] - self._published.get(name, 0.0) for name in _COUNTS}
        told |= {name: now[name] for name in _SO_FAR}
        told |= {name: value for name, value in now.items() if name.startswith("estimator/")}
        if self._weights:
            told |= {"importance_max": max(self._weights), "effective_share": effective_share(self._weights)}
        told |= {f"seconds_{name}": value for name, value in self._seconds.items()}
        if self._log is not None:
            told |= {f"log_{name}": value for name, value in self._log.metrics().items() if name != "rows_written"}
        self._published, self._weights = now, []
        self._seconds = dict.fromkeys(self._seconds, 0.0)
        return {f"depo/{name}": float(value) for name, value in told.items() if not math.isnan(value)}

    def _write_log(self, settled: Sequence[Settlement], step: int, dropped: set[str]) -> None:
        if self._log_path is None:
            return
        if self._log is None:
            self._log = _open_log(self._log_path, self.resumed_at)
        self._log.write(
            LogRow.from_settlement(
                self.curriculum.pool[s.outcome.key],
                s,
                step,
                admitted=s.outcome.n_scored > 0 and s.outcome.key not in dropped,
            )
            for s in settled
            if s.because != "duplicate"
        )

    # -- save and resume ----------------------------------------------------------------------------------------------

    def state_dict(self) -> State:
        """Plain values and arrays; verl stores them in its own ``data.pt``."""
        self.join()
        if self._waiting:
            self._learn(self._take_waiting(), self.step, in_background=False)
        if self._log is not None:
            self._log.flush()
        return {
            "version": _VERSION,
            "curriculum": self.curriculum.state_dict(),
            "queue": list(self._queue),
            "asked": dict(self._asked),
            "unscorable_streak": self._unscorable_streak,
            "step": self.step,
        }

    def load_state_dict(self, state: State, keeps_in_flight: bool = True) -> None:
        """Goes on from ``state``. Raises StateMismatch, with nothing changed, if it is of another run.

        keeps_in_flight: False for trainers that do not save what they are rolling out: it is given up as failed.
        """
        expect_fields("data.depo", state, _FIELDS)
        expect_same("data.depo", "version", state["version"], _VERSION)
        unknown = [key for key in state["queue"] if key not in self.curriculum.pool]
        if unknown:
            raise StateMismatch(
                f"data.depo state: {len(unknown)} queued prompts are not in this data set: resume with "
                "the data set the run was started with"
            )
        self.curriculum.load_state_dict(state["curriculum"])
        self._queue, self._asked = list(state["queue"]), {k: int(n) for k, n in state["asked"].items()}
        self._unscorable_streak, self.step = int(state["unscorable_streak"]), int(state["step"])
        self.resumed_at = self.step
        if not keeps_in_flight:
            self.curriculum.release(self.curriculum.in_flight - set(self._queue))
        self._published = self.curriculum.metrics()


def _open_log(path: Path, resumed_at: int | None) -> OutcomeLogWriter:
    """Starts the log anew, an older file moved aside, or goes on with it after step ``resumed_at``."""
    if resumed_at is None and path.exists() and path.stat().st_size:
        path.replace(path.with_name(f"{path.stem}.previous{path.suffix}"))
    log = OutcomeLogWriter(path)
    if resumed_at is not None:
        log.resume(resumed_at)
    return log
