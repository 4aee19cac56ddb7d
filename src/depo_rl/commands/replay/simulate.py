"""One run of one method against an engine that needs no model: rounds, counts, judgements, and what
was skipped."""

from __future__ import annotations

import copy
import time
from collections.abc import Callable, Sequence
from typing import Any, Protocol

from ...curriculum import Curriculum
from ...engines.session import Session, next_round
from ...errors import ConfigError
from ...ledger import LAST_BATCH
from ...metrics import PredictionTrack
from ...outcomes import OutcomeLogWriter
from ...protocols import ScreeningGate
from ...report import RunResult
from ...types import GroupOutcome, Prompt, Settlement, finite
from ..runs import OF_A_STEP, judgement, own_figures, predicts
from .audit import SkipAuditor

_UNFILTERED = ("uniform", "warmup")
_EVERY_GROUP = 2**40  # size of a track that forgets nothing

Tell = Callable[[int, float | None], None]
"""tell(step, mixed_share): news after each step."""


class SteppingEngine(Protocol):
    """An engine that knows its step and is told what was trained on. extend: asked for by a
    ``ScreeningGate`` only."""

    def rollout(self, prompts: Sequence[Prompt], group_size: int) -> Sequence[GroupOutcome]: ...

    def extend(self, outcomes: Sequence[GroupOutcome], n: int) -> Sequence[GroupOutcome]: ...

    def advance(self, trained: Sequence[GroupOutcome]) -> None: ...

    def metrics(self) -> dict[str, float]: ...


def simulate(
    curriculum: Curriculum,
    engine: SteppingEngine,
    prompts_per_step: int,
    steps: int,
    tell: Tell | None = None,
    log: OutcomeLogWriter | None = None,
) -> RunResult:
    """``steps`` batches of ``prompts_per_step`` groups, with the rounds that the method's gate asks
    for.

    log: is given a row a group, and is flushed after each step. Raises ConfigError if the pool that
    the method keeps is smaller than a batch.
    """
    check_size(curriculum, prompts_per_step)
    run = _Run(Session(curriculum, log=log), engine, prompts_per_step)
    for step in range(1, steps + 1):
        run.step(step)
        if log is not None:
            log.flush()
        if tell is not None:
            tell(step, run.history[-1]["mixed_share"])
    return run.result()


def check_size(curriculum: Curriculum, prompts_per_step: int) -> None:
    """Raises ConfigError if the pool that the method keeps is smaller than a batch."""
    if len(curriculum.pool) < prompts_per_step:
        raise ConfigError(
            f"prompts_per_step = {prompts_per_step}: method {curriculum.method!r} has a pool of {len(curriculum.pool)} "
            "prompts: use a smaller batch or more prompts"
        )


class _Run:
    """What a run has done so far."""

    def __init__(self, session: Session, engine: SteppingEngine, prompts_per_step: int) -> None:
        self.session = session
        self.curriculum = curriculum = session.curriculum
        self.engine = engine
        self.n = prompts_per_step
        self.group_size = curriculum.config.group_size
        self.predicts = predicts(curriculum)
        self.track = PredictionTrack(_EVERY_GROUP)
        self.auditor = SkipAuditor(self.group_size, curriculum.config.seed)
        self.history: list[dict[str, float | None]] = []
        self.kept: list[
            GroupOutcome
        ] = []  # admitted beyond the last batch, of a method that trains on them later
        self.groups = 0
        self.rollouts = 0
        self.scored = dict.fromkeys(("all", "mixed", "all_pass", "all_fail"), 0)
        self.tokens: int | None = 0
        self.seconds = {"seconds_selecting": 0.0, "seconds_learning": 0.0}
        self.started = time.perf_counter()

    def step(self, number: int) -> None:
        """One batch: rounds as dynamic sampling on TRL makes them, each as large as should fill
        what is missing."""
        gate = self.curriculum.gate
        settled: list[Settlement] = []
        admitted = self.kept
        self.kept = []
        for _ in range(gate.max_rounds):
            if len(admitted) >= self.n:
                break
            fresh = self._round(self._size(len(admitted), len(settled)), number)
            settled += fresh
            admitted += [s.outcome for s in fresh if s.admitted]
        if isinstance(gate, ScreeningGate):
            self.kept = admitted[self.n :]
        # what else is beyond the batch is paid for and not trained on
        self.engine.advance(admitted[: self.n])
        self._note(number, settled)

    def _size(self, n_admitted: int, n_settled: int) -> int:
        """Prompts of the next round; a screening gate's rounds are all of one size."""
        if isinstance(gate := self.curriculum.gate, ScreeningGate):
            return min(gate.batches * self.n, len(self.curriculum.pool))
        return next_round(self.n, n_admitted, n_settled)

    def _roll_out(self, prompts: Sequence[Prompt]) -> list[GroupOutcome]:
        """A group for each prompt, in order; a screening gate's groups are extended only if they
        pass."""
        if not isinstance(gate := self.curriculum.gate, ScreeningGate):
            return list(self.engine.rollout(prompts, self.group_size))
        screened = self.engine.rollout(prompts, gate.screen)
        passed = [o for o in screened if gate.passes(o)]
        rest = self.group_size - gate.screen
        whole = {o.key: o for o in (self.engine.extend(passed, rest) if passed and rest else ())}
        return [whole.get(o.key, o) for o in screened]

    def _round(self, size: int, number: int) -> list[Settlement]:
        prompts = self.session.propose(size)
        outcomes = self._roll_out(prompts)
        selector = copy.deepcopy(self.curriculum.selector)  # before it learns from this batch
        settled = self.session.settle(outcomes, number)
        if self.predicts:
            self.track.add([s for s in settled if s.because not in _UNFILTERED])
            self.auditor.add(selector, prompts, settled)
        return settled

    def _note(self, number: int, settled: Sequence[Settlement]) -> None:
        outcomes = [s.outcome for s in settled]
        self.groups += len(outcomes)
        self.rollouts += sum(o.group_size for o in outcomes)
        self.scored["all"] += sum(o.n_scored > 0 for o in outcomes)
        for name in ("mixed", "all_pass", "all_fail"):
            self.scored[name] += sum(getattr(o, name) for o in outcomes)
        tokens = [o.n_tokens for o in outcomes]
        known = [t for t in tokens if t is not None]
        self.tokens = (
            None if self.tokens is None or len(known) < len(tokens) else self.tokens + sum(known)
        )
        of_step, so_far = self.session.figures()
        told = of_step | so_far
        if not self.predicts:
            told.pop("predicted_mean", None)
        for name in self.seconds:
            self.seconds[name] += of_step[name]
        row: dict[str, Any] = {"step": number, "rollouts": self.rollouts, "tokens": self.tokens}
        row |= {name: told.get(name) for name in (*LAST_BATCH, *self.seconds, *OF_A_STEP)}
        self.history.append({name: finite(value) for name, value in row.items()})

    def result(self) -> RunResult:
        engine = self.engine.metrics()
        total = self.scored["all"]
        return RunResult(
            **own_figures(self.curriculum),
            seed=self.curriculum.config.seed,
            steps=len(self.history),
            groups=self.groups,
            rollouts=self.rollouts,
            tokens=self.tokens,
            mixed_share=self.scored["mixed"] / total if total else None,
            all_pass_share=self.scored["all_pass"] / total if total else None,
            all_fail_share=self.scored["all_fail"] / total if total else None,
            seconds_selecting=self.seconds["seconds_selecting"],
            seconds_learning=self.seconds["seconds_learning"],
            **judgement(self.track),  # of all groups from the end of the warm-up on
            seconds_total=time.perf_counter() - self.started,
            history=self.history,
            skip_audit=self.auditor.result(),
            unanswered=int(engine["unanswered"]) if "unanswered" in engine else None,
        )
