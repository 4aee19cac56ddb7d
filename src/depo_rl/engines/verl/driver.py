"""The curriculum of a verl run, between the dataset that chooses and the replay buffer that
observes; free of verl.

Book-keeping is done at once, learning in a thread of its own while verl updates the actor; whoever
needs the curriculum next waits for it, so that what is chosen depends on nothing but what was
observed.
"""

from __future__ import annotations

import logging
from collections.abc import Callable, Iterable, Mapping, Sequence
from concurrent.futures import Future, ThreadPoolExecutor
from dataclasses import replace
from pathlib import Path

from ...config import CurriculumConfig
from ...curriculum import Curriculum
from ...errors import DataError, RewardError, StateMismatch, expect_fields, expect_same
from ...importance import effective_share
from ...methods import get_method
from ...outcomes import LogRow, read_log
from ...parts import make_estimator
from ...pool import PromptPool
from ...protocols import PassRateEstimator
from ...types import GroupOutcome, Prompt, State
from ..session import STATE, Patience, Session, live_curriculum
from .outcomes import Completion, Judge, group_outcome
from .rows import GROUP_SIZE_COLUMN, PromptTable
from .settings import VerlSettings

_log = logging.getLogger(__name__)
_VERSION = 1
_OWN_STATE = ("version", "queue", "asked", "step", "keyed")
MakeHost = Callable[[Sequence[Prompt], VerlSettings, CurriculumConfig], PassRateEstimator]


class VerlDriver:
    """Chooses rows of the training set and learns from the completions that verl made for them.

    batch_size: prompts of a training step. log_path: the outcome log, None for none. make_host:
    builds the estimator elsewhere, given how to build it here; None keeps it in this process.
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
        self.settings = settings
        self.batch_size = batch_size
        self.judge = Judge(settings.correct_key, settings.correct_threshold)
        self._table = table
        self._log_path = log_path
        patience = Patience(
            settings.max_unscorable_steps,
            "data.depo.max_unscorable_steps",
            look_at=f"reward_extra_info[{self.judge.key!r}] of the reward function",
        )

        def make(pool: PromptPool, config: CurriculumConfig) -> PassRateEstimator:
            return (
                make_host(table.prompts, settings, config)
                if make_host
                else make_estimator(pool, config)
            )

        curriculum = live_curriculum(settings.method, table.prompts, config, make)
        self.session = Session(curriculum, patience, clocks=("waiting", "reading"))
        self.own_order = get_method(
            settings.method
        ).own_order  # verl's: then the run is GRPO, row by row
        self._queue: list[str] = []  # proposed, not handed to verl yet
        self._asked: dict[str, int] = {}  # key in flight -> completions asked for
        self._expected = 0  # prompts that verl is about to fetch, if it was said
        self._waiting: list[
            GroupOutcome
        ] = []  # of groups that were dropped since the last step, not learnt from yet
        self._dropped: set[str] = set()
        self._n_lost = 0  # groups in a row of which nothing could be scored, dropped since a batch
        self.step = 0  # the last one learnt from
        self.resumed_at: int | None = None  # verl's step of the state that was loaded
        self._learning: Future[None] | None = None
        self._thread = ThreadPoolExecutor(1, thread_name_prefix="depo-learning")
        self._n_sources = len({prompt.source for prompt in table.prompts})
        self._keyed: dict[
            str, bool
        ] = {}  # source -> whether a completion of it ever had the correct key
        self._told: set[str] = set()
        self._n_by_score = 0  # groups judged by their score since the last figures
        self._weights: list[float] = []  # of the batch that is about to be finished

    @property
    def curriculum(self) -> Curriculum:
        """The run's curriculum; while it learns, ``join`` first."""
        return self.session.curriculum

    # -- choose ------------------------------------------------------------------------------------

    def choose(self, rows: Sequence[int]) -> list[int]:
        """Rows to roll out in place of those that verl drew; as many, distinct, none of them in
        flight.

        verl may fetch a batch in one call or row by row: a batch is always chosen as a whole.
        Raises PoolExhausted.
        """
        self.join()
        if self.own_order:
            keys = [self._table.key_of_row[row] for row in rows]
            with self.session.timed("selecting"):
                self.curriculum.adopt(keys)
            chosen = list(rows)
        else:
            keys = self._take(len(rows))
            chosen = [self._table.row_of[key] for key in keys]
        pool = self.curriculum.pool
        self._asked |= {key: self.group_size(pool[key]) for key in keys if key in pool}
        self._expected = max(self._expected - len(rows), 0)
        return chosen

    def expect(self, n: int) -> None:
        """verl is about to fetch ``n`` prompts beside its batches: to replace groups that it
        dropped."""
        self._expected = n

    def _take(self, n: int) -> list[str]:
        """The next ``n`` of the queue, which is refilled as it needs."""
        while len(self._queue) < n:
            self._refill(n - len(self._queue))
        taken = self._queue[:n]
        self._queue = self._queue[n:]
        return taken

    def _refill(self, needed: int) -> None:
        if (
            self._free < needed and self._waiting
        ):  # what was dropped may be chosen again rather than end the run
            self._learn(self._take_waiting(), self.step, in_background=False)
        whole_batch = self._warming_up or not self._expected
        wanted = max(needed, self.batch_size if whole_batch else self._expected)
        prompts = self.session.propose(max(needed, min(wanted, self._free)))
        self._queue += [prompt.key for prompt in prompts]

    @property
    def _warming_up(self) -> bool:
        """The curriculum counts its warm-up in batches of the size that it is asked for: then ask
        for whole ones."""
        now = self.curriculum.metrics()
        return (
            now["admitted"] + now["rejected"]
            < self.curriculum.config.warmup_steps * self.batch_size
        )

    @property
    def _free(self) -> int:
        return len(self.curriculum.pool) - len(self.curriculum.in_flight)

    @property
    def sizes_vary(self) -> bool:
        """Whether groups may differ in size: the data set has a column for it."""
        return GROUP_SIZE_COLUMN in self._table.prompts[0].fields

    def group_size(self, prompt: Prompt) -> int:
        """Completions to roll out: as the row's own column says, else the run's."""
        size = prompt.fields.get(GROUP_SIZE_COLUMN)
        return int(size) if size else self.curriculum.config.group_size

    # -- observe -----------------------------------------------------------------------------------

    def drop(
        self, groups: Mapping[int, Sequence[Completion]], failed_rows: Iterable[int] = ()
    ) -> None:
        """Notes groups that verl rolled out and will not train on, and rows of which nothing came
        back.

        Raises RewardError if that was all for too long: verl replaces them without end.
        """
        nothing: dict[int, Sequence[Completion]] = dict.fromkeys(failed_rows, ())
        with self.session.timed("reading"):
            outcomes = self._outcomes(nothing | dict(groups))
        self._waiting += outcomes
        self._dropped |= {outcome.key for outcome in outcomes}
        self._n_lost = 0 if any(o.n_scored for o in outcomes) else self._n_lost + len(outcomes)
        if self._n_lost >= self.settings.max_unscorable_steps * self.batch_size:
            raise RewardError(
                f"nothing that could be scored came back of {self._n_lost} prompts in a row (the limit is "
                f"data.depo.max_unscorable_steps = {self.settings.max_unscorable_steps} batches): the reward "
                "function or the rollout fails; the log of verl's workers has the reason (Error in _run_prompt)"
            )

    def finish(
        self, groups: Mapping[int, Sequence[Completion]], step: int, nothing_in_flight: bool = False
    ) -> dict[str, float]:
        """Learns from the groups of a training batch and from those dropped meanwhile; figures for
        verl's log.

        step: verl's ``global_steps``. nothing_in_flight: verl holds no other prompt, so proposals
        that did not come back never will. Raises RewardError if nothing says what is correct, or
        nothing could be scored for too long.
        """
        outcomes = self._take_waiting() + self._outcomes(groups)
        self._n_lost = 0
        self.join()
        self.session.receive(outcomes)
        figures = self._figures()
        self._learn(outcomes, step, self.settings.learn_in_background, release=nothing_in_flight)
        return figures

    @property
    def weighs(self) -> bool:
        """Whether advantages are to be multiplied by importance weights."""
        return self.curriculum.config.importance > 0

    def importance(self, rows: Sequence[int]) -> list[float]:
        """What to multiply the advantages of these rows' groups by, each > 0; ask before
        ``finish``."""
        self.join()
        self._weights = self.curriculum.importance([self._table.key_of_row[row] for row in rows])
        return self._weights

    def _take_waiting(self) -> list[GroupOutcome]:
        outcomes = self._waiting
        self._waiting = []
        return outcomes

    def _outcomes(self, groups: Mapping[int, Sequence[Completion]]) -> list[GroupOutcome]:
        """A source whose completions never had the correct key is judged by its score, if another
        source has the key.

        Raises RewardError if no source of the data set has it.
        """
        for row, group in groups.items():
            if group:
                source = self._source_of(row)
                self._keyed[source] = self._keyed.get(source, False) or any(
                    self.judge.key in c.info for c in group
                )
        if not any(self._keyed.values()) and len(self._keyed) == self._n_sources:
            self.judge.check_key([completion for group in groups.values() for completion in group])
        self._tell_unkeyed()
        return [self._outcome(row, group) for row, group in groups.items()]

    def _outcome(self, row: int, group: Sequence[Completion]) -> GroupOutcome:
        by_score = not self._keyed.get(self._source_of(row), True)
        self._n_by_score += by_score and len(group) > 0
        judge = replace(self.judge, by_score=by_score)
        return group_outcome(self._table.key_of_row[row], group, self.asked_of(row), judge)

    def _source_of(self, row: int) -> str:
        return self.curriculum.pool[self._table.key_of_row[row]].source

    def _tell_unkeyed(self) -> None:
        """Says once for each source that it is judged by its score."""
        for source in sorted(
            name for name, keyed in self._keyed.items() if not keyed and name not in self._told
        ):
            self._told.add(source)
            _log.warning(
                "source %r: no completion has %r in reward_extra_info: judged by 'score', else the reward, from %s on",
                source,
                self.judge.key,
                self.judge.threshold,
            )

    def asked_of(self, row: int) -> int:
        """Completions asked for when the row was chosen."""
        return self._asked.get(self._table.key_of_row[row], self.curriculum.config.group_size)

    def _learn(
        self, outcomes: list[GroupOutcome], step: int, in_background: bool, release: bool = False
    ) -> None:
        dropped = self._dropped
        self._dropped = set()
        self.step = step
        for outcome in outcomes:
            self._asked.pop(outcome.key, None)
        if release:
            self._asked = {}

        def work() -> None:
            self._open_log()
            self.session.learn(outcomes, step, dropped)
            if release:
                self.curriculum.release(self.curriculum.in_flight - set(self._queue))

        if in_background:
            self._learning = self._thread.submit(work)
        else:
            work()

    def join(self) -> None:
        """Waits until everything observed is learnt."""
        if self._learning is not None:
            learning = self._learning
            self._learning = None
            with self.session.timed("waiting"):
                learning.result()

    def _figures(self) -> dict[str, float]:
        """As ``Session.figures``: of this step, and of the run up to what was learnt last. Besides:

        seconds_waiting: for the learner, before the next choice. seconds_reading: reading outcomes
        from what verl holds. importance_max: largest weight of the batch, with ``importance`` above
        0. effective_share: effective sample size over the number of groups, 1 for equal weights.
        judged_by_score: groups of sources that never have the correct key, judged by their score.
        """
        of_step, so_far = self.session.figures()
        told = of_step | so_far | {"judged_by_score": float(self._n_by_score)}
        self._n_by_score = 0
        if self._weights:
            told |= {
                "importance_max": max(self._weights),
                "effective_share": effective_share(self._weights),
            }
        self._weights = []
        return {f"depo/{name}": value for name, value in told.items()}

    # -- the log, save and resume ------------------------------------------------------------------

    def _open_log(self) -> None:
        """With the first groups: a data set that is only looked at must not move the log of a run
        aside."""
        if self._log_path is not None and self.session.log is None:
            self.session.open_log(self._log_path, self.resumed_at)

    def close(self) -> None:
        """Learns what is left and finishes the log; a process that just ends loses at most its last
        rows."""
        self.join()
        self.session.close_log()

    def state_dict(self) -> State:
        """Plain values and arrays; verl stores them in its own ``data.pt``."""
        self.join()
        if self._waiting:
            self._learn(self._take_waiting(), self.step, in_background=False)
        return {
            "version": _VERSION,
            "queue": list(self._queue),
            "asked": dict(self._asked),
            "step": self.step,
            "keyed": dict(self._keyed),
            **self.session.state_dict(),
        }

    def load_state_dict(self, state: State, keeps_in_flight: bool = True) -> None:
        """Goes on from ``state``. Raises StateMismatch, with nothing changed, if it is of another
        run.

        keeps_in_flight: False for trainers that do not save what they are rolling out, and save
        before they tell of the batch that they have just trained on (``_catch_up``).
        """
        state = {"keyed": {}, **state}  # not in 0.1's
        expect_fields("data.depo", state, (*_OWN_STATE, *STATE))
        expect_same("data.depo", "version", state["version"], _VERSION)
        unknown = [key for key in state["queue"] if key not in self.curriculum.pool]
        if unknown:
            raise StateMismatch(
                f"data.depo state: {len(unknown)} queued prompts are not in this data set: resume with "
                "the data set the run was started with"
            )
        self.session.load_state_dict({name: state[name] for name in STATE})
        self._queue = list(state["queue"])
        self._asked = {key: int(n) for key, n in state["asked"].items()}
        self.step = int(state["step"])
        self._keyed = {source: bool(keyed) for source, keyed in state["keyed"].items()}
        self.resumed_at = self.step
        if not keeps_in_flight:
            self._catch_up()

    def _catch_up(self) -> None:
        """The batch that was told of after the checkpoint is learnt from the outcome log; what is
        not there never comes back, and counts as failed."""
        missing = self.curriculum.in_flight - set(self._queue)
        told = [row for row in self._logged(self.step + 1) if row.key in missing]
        if told:
            outcomes = [row.to_outcome() for row in told]
            self.session.receive(outcomes)
            self._figures()  # ends that step
            self.session.learn(outcomes, self.step + 1)
            self.step += 1
            self.resumed_at = self.step
        self.curriculum.release(missing - {row.key for row in told})
        self._asked = {key: n for key, n in self._asked.items() if key not in missing}

    def _logged(self, step: int) -> list[LogRow]:
        """Rows of a step in the log of the run that is resumed; empty if it cannot be read."""
        if self._log_path is None or not self._log_path.exists():
            return []
        try:
            return [row for row in read_log(self._log_path).rows if row.step == step]
        except DataError as error:
            _log.warning("the groups of step %d count as failed: %s", step, error)
            return []
