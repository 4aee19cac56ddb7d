"""What every engine does besides its trainer's own affairs. An adapter for a trainer is built on
this.

    fixed = {"group_size": ("num_generations", 8), "seed": ("seed", 0)}
    config = engine_config("depo+", given, fixed, "curriculum")
    session = Session(live_curriculum("depo+", prompts, config), Patience(limit=10))
    session.open_log(folder / "outcomes.jsonl", resume_after=None)
    while training:
        prompts = session.propose(n)              # before the trainer generates
        outcomes = [GroupOutcome.of(...), ...]    # of what it generated and scored
        settled = session.settle(outcomes, step)  # train on the admitted ones
        of_step, so_far = session.figures()       # for the trainer's log
    session.close_log()

``docs/write_an_adapter.md`` leads through it; ``engines.trl`` and ``engines.verl`` are two.
"""

from __future__ import annotations

import math
import time
import warnings
from collections.abc import Collection, Iterable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import Any, NamedTuple

from ..breadth import BREADTH
from ..config import CurriculumConfig
from ..curriculum import Curriculum
from ..errors import ConfigError, EngineError, RewardError, expect_fields
from ..methods import METHODS, curriculum_of, get_method
from ..metrics import batch_shares
from ..outcomes import LogRow, OutcomeLogWriter
from ..parts import MakeEstimator, make_estimator
from ..pool import PromptPool
from ..protocols import Gate, ScreeningGate
from ..survival import SurvivingEstimator
from ..types import GroupOutcome, Prompt, Settlement, State

COUNTS = ("drawn", "skipped", "explored", "fallback", "guarded", "failed", "duplicates")
SO_FAR = (
    *("log_loss", "auc_mixed", "ece", "ece_floor", "rollouts_saved", "tokens_saved", "in_flight"),
    *BREADTH,
)
"""Names of what ``Session.figures`` tells of the curriculum: what a step added, and what stands
since the start."""
STATE = ("curriculum", "unscorable_streak")
"""Fields of a session's state."""


def engine_config(
    method: str, given: Mapping[str, Any], owned: Mapping[str, tuple[str, Any]], where: str
) -> CurriculumConfig:
    """The curriculum's settings where some are the engine's own: the group size, the seed.

    owned: of such a setting, what the engine calls it and its value there. where: what the engine
    calls the given ones. Raises ConfigError, also where a given value contradicts the engine's.
    """
    given = dict(given)
    for name, (home, value) in owned.items():
        if given.setdefault(name, value) != value:
            raise ConfigError(
                f"{where}.{name} = {given[name]!r} contradicts {home} = {value!r}: set {home} only"
            )
    return get_method(method).config(given, where=f"method {method!r}, {where}")


def live_curriculum(
    method: str,
    prompts: Sequence[Prompt],
    config: CurriculumConfig,
    make: MakeEstimator = make_estimator,
) -> Curriculum:
    """As ``make_curriculum``, for a run that a failing estimator must not end
    (``SurvivingEstimator``).

    config: of ``engine_config``. make: the estimator, in the place of what ``config.estimator``
    describes.
    """

    def surviving(pool: PromptPool, config: CurriculumConfig) -> SurvivingEstimator:
        return SurvivingEstimator(make(pool, config))

    return curriculum_of(method, prompts, config, surviving)


def refuse_screening(method: str, gate: Gate, engine: str, but: Collection[str] = ()) -> None:
    """Raises EngineError if the method extends groups, for an engine that cannot. but: what it
    cannot run either."""
    if isinstance(gate, ScreeningGate):
        able = ", ".join(name for name in sorted(METHODS) if name != method and name not in but)
        raise EngineError(
            f"method {method!r} extends a group after its first {gate.screen} completions, which {engine} cannot: on "
            f"{engine} choose one of {able}; 'depo replay' runs {method!r}"
        )


def next_round(n: int, n_admitted: int, n_drawn: int) -> int:
    """Groups to draw for a batch of ``n`` next, at most ``n``, where a gate rejects some.

    As many as should fill what is missing, by the share admitted so far: it wastes less than rounds
    of a whole batch.
    """
    wanted = (
        n - n_admitted
    ) * n_drawn  # times the share: in whole numbers, for a rounding error would be a group
    return min(n, -(-wanted // max(n_admitted, 1))) if n_drawn else n


class Proposal(NamedTuple):
    """What to roll out: rows of the training set, and in the same order the keys that their groups
    are settled by."""

    rows: list[int]
    keys: list[str]


class Patience(NamedTuple):
    """How long a run goes on while nothing of it can be scored, and the engine's words for that.

    limit: steps in a row. setting: what sets it. step: what a step is called. look_at: where the
    fault will lie.
    """

    limit: int = 10
    setting: str = "limit"
    step: str = "step"
    look_at: str = "the verifier"


class Session:
    """One run of a curriculum on some engine: times, figures, the outcome log, the state of a
    checkpoint.

    patience: when to end a run of which nothing can be scored; None: never. log: where groups are
    written; see also ``open_log``. clocks: what the engine times itself, by ``timed``.
    """

    def __init__(
        self,
        curriculum: Curriculum,
        patience: Patience | None = None,
        log: OutcomeLogWriter | None = None,
        clocks: Iterable[str] = (),
    ) -> None:
        self.curriculum = curriculum
        self.log = log
        self._patience = patience
        self._unscorable_streak = 0
        # of this step, which ends with ``figures``
        self._received: list[GroupOutcome] = []
        self._predicted: list[float] = []
        self._seconds = dict.fromkeys(("selecting", "learning", *clocks), 0.0)
        self._before: dict[str, float] = {}

    # -- choose and observe ------------------------------------------------------------------------

    def propose(self, n: int) -> list[Prompt]:
        """``n`` distinct prompts to roll out, none of them in flight. Raises PoolExhausted."""
        with self.timed("selecting"):
            return self.curriculum.propose(n)

    def settle(self, outcomes: Iterable[GroupOutcome], step: int) -> list[Settlement]:
        """Receives finished groups and learns from them; one settlement per outcome, in order.

        step: what the outcome log calls it; of the batch that the groups were rolled out for.
        Raises RewardError if nothing could be scored for too long.
        """
        outcomes = list(outcomes)
        self.receive(outcomes)
        return self.learn(outcomes, step)

    def receive(self, outcomes: Sequence[GroupOutcome]) -> None:
        """The first half of ``settle``, for an engine that learns later: this step's figures are of
        these groups."""
        scale = self.curriculum.config.reward_range
        judged = (
            list(outcomes) if scale is None else [outcome.graded(*scale) for outcome in outcomes]
        )
        scored = [outcome for outcome in judged if outcome.n_scored]
        self._received += judged
        self._predicted += self.curriculum.predicted(outcome.key for outcome in scored)
        if outcomes and self._patience is not None:
            self._unscorable_streak = 0 if scored else self._unscorable_streak + 1
            self._check_streak(self._patience, len(outcomes))

    def _check_streak(self, patience: Patience, n_groups: int) -> None:
        if self._unscorable_streak == 1:
            warnings.warn(
                f"no reward of a whole {patience.step} ({n_groups} groups) could be scored: nothing was learnt from "
                f"it. Check {patience.look_at}",
                stacklevel=2,
            )
        if self._unscorable_streak >= patience.limit:
            raise RewardError(
                f"no reward could be scored in {self._unscorable_streak} {patience.step}s in a row (the limit, "
                f"{patience.setting}, is {patience.limit}): each was None or NaN, or nothing came back. Mend "
                f"{patience.look_at}, then resume from the last checkpoint"
            )

    def learn(
        self, outcomes: Iterable[GroupOutcome], step: int, dropped: Collection[str] | None = None
    ) -> list[Settlement]:
        """The second half of ``settle``.

        dropped: keys of the groups that an engine with a filter of its own does not train on, for
        the log; None: the curriculum's gate admits.
        """
        with self.timed("learning"):
            settled = self.curriculum.settle(outcomes)
        if self.log is not None:
            self.log.write(self._row(s, step, dropped) for s in settled if s.because != "duplicate")
        return settled

    def _row(self, s: Settlement, step: int, dropped: Collection[str] | None) -> LogRow:
        key = s.outcome.key
        trained_on = (
            s.admitted if dropped is None else s.outcome.n_scored > 0 and key not in dropped
        )
        return LogRow.from_settlement(self.curriculum.pool[key], s, step, trained_on)

    # -- tell --------------------------------------------------------------------------------------

    @contextmanager
    def timed(self, what: str) -> Iterator[None]:
        """Adds the seconds of the block to this step's ``seconds_<what>``."""
        started = time.perf_counter()
        try:
            yield
        finally:
            self._seconds[what] += time.perf_counter() - started

    def figures(self) -> tuple[dict[str, float], dict[str, float]]:
        """What this step came to, and what stands since the start; begins the next step. What is
        unknown is left out.

        Names and meanings are those of ``Curriculum.metrics``; besides:

        groups: settled since the start. log_rows_dropped: rows that the outcome log had to give up.
        log_write_errors: attempts at writing it that failed.
        """
        now = self.curriculum.metrics()
        of_step = {name: now[name] - self._before.get(name, 0.0) for name in COUNTS}
        of_step |= batch_shares(self._received)
        known = [rate for rate in self._predicted if not math.isnan(rate)]
        of_step["predicted_mean"] = sum(known) / len(known) if known else math.nan
        of_step |= {f"seconds_{what}": seconds for what, seconds in self._seconds.items()}
        so_far = {name: now[name] for name in SO_FAR}
        so_far["groups"] = now["admitted"] + now["rejected"] + now["failed"]
        so_far |= {name: value for name, value in now.items() if name.startswith("estimator/")}
        if self.log is not None:
            counts = self.log.metrics()
            so_far |= {f"log_{name}": counts[name] for name in ("rows_dropped", "write_errors")}
        self._begin_step(now)
        return _known(of_step), _known(so_far)

    def _begin_step(self, now: dict[str, float]) -> None:
        self._before = now
        self._received = []
        self._predicted = []
        self._seconds = dict.fromkeys(self._seconds, 0.0)

    # -- the log, save and resume ------------------------------------------------------------------

    def open_log(self, path: Path, resume_after: int | None) -> None:
        """Starts ``path`` anew, an older file moved aside, or goes on with it after step
        ``resume_after``."""
        if resume_after is None and path.exists() and path.stat().st_size:
            path.replace(path.with_name(f"{path.stem}.previous{path.suffix}"))
        self.log = OutcomeLogWriter(path)
        if resume_after is not None:
            self.log.resume(resume_after)

    def close_log(self) -> None:
        """Finishes what is waiting to be written. Closing twice is allowed."""
        if self.log is not None:
            self.log.close()

    def state_dict(self) -> State:
        """For ``checkpoint.save_state``, or a checkpoint of the trainer's own; what is logged is on
        the disk before."""
        if self.log is not None:
            self.log.flush()
        return {
            "curriculum": self.curriculum.state_dict(),
            "unscorable_streak": self._unscorable_streak,
        }

    def load_state_dict(self, state: State) -> None:
        """Strict: StateMismatch, with nothing changed, if the state is of another run."""
        expect_fields("session", state, STATE)
        streak = int(state["unscorable_streak"])
        self.curriculum.load_state_dict(state["curriculum"])
        self._unscorable_streak = streak
        self._begin_step(self.curriculum.metrics())


def _known(figures: dict[str, float]) -> dict[str, float]:
    return {name: float(value) for name, value in figures.items() if not math.isnan(value)}
