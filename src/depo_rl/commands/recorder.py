"""Watches a TRL run and turns it into a ``RunResult``: what was spent, what was reached, and one
row per step."""

from __future__ import annotations

import time
from collections.abc import Callable
from typing import Any

from transformers import TrainerCallback

from ..engines.trl import DEPOTrainer
from ..report import AccuracyPoint, RunResult, SourceAccuracy
from ..report.results import forgotten_sources
from .evaluation import Evaluation
from .runs import HistoryRow, history_row, rollouts_of, trl_result


class Recorder(TrainerCallback):
    """Add it to a ``DEPOTrainer`` with ``logging_steps=1``.

    evaluate: gives the present policy's accuracy in [0, 1], as one number, or by source as an
    ``Evaluation``, of which it is the accuracy on the whole pool; called before the first step,
    every ``every`` steps and after the last. Its seconds are left out of the run's. target:
    accuracy whose first crossing is noted. on_change: told after each step.
    """

    def __init__(
        self,
        evaluate: Callable[[], float | Evaluation] | None = None,
        every: int = 10,
        target: float | None = None,
        on_change: Callable[[Recorder], None] | None = None,
    ) -> None:
        self._evaluate = evaluate
        self._every = every
        self._target = target
        self._on_change = on_change
        self.trainer: DEPOTrainer | None = None
        self.history: list[HistoryRow] = []
        self.accuracy: list[AccuracyPoint] = []
        self.evaluations: list[
            Evaluation
        ] = []  # where ``evaluate`` tells the sources, as many as ``accuracy``
        self._started = time.perf_counter()
        self._away = 0.0

    @property
    def seconds(self) -> float:
        """Wall-clock of the run so far, evaluations left out."""
        return time.perf_counter() - self._started - self._away

    def on_train_begin(self, args: Any, state: Any, control: Any, **kwargs: Any) -> None:
        self._started = time.perf_counter()
        self._away = 0.0
        self._measure(0)

    def on_log(self, args: Any, state: Any, control: Any, logs: Any = None, **kwargs: Any) -> None:
        row = history_row(logs or {}, state.global_step)
        if row is None:
            return
        self.history.append(row)
        self._tell_sources()
        if self._on_change is not None:
            self._on_change(self)

    def on_step_end(self, args: Any, state: Any, control: Any, **kwargs: Any) -> None:
        if state.global_step % self._every == 0:
            self._measure(state.global_step)

    def on_train_end(self, args: Any, state: Any, control: Any, **kwargs: Any) -> None:
        if self.accuracy and self.accuracy[-1].step != state.global_step:
            self._measure(state.global_step)

    def _measure(self, step: int) -> None:
        if self._evaluate is None or self.trainer is None:
            return
        seconds = self.seconds
        started = time.perf_counter()
        tokens = self.trainer.completion_tokens_generated
        rollouts = (
            rollouts_of(self.trainer.curriculum)["rollouts"] if self.trainer.curriculum else None
        )
        found = self._evaluate()
        accuracy = found.whole if isinstance(found, Evaluation) else found
        self.accuracy.append(
            AccuracyPoint(
                rollouts=rollouts, tokens=tokens, seconds=seconds, accuracy=accuracy, step=step
            )
        )
        if isinstance(found, Evaluation):
            self.evaluations.append(found)
            self._tell_sources()
        self._away += time.perf_counter() - started

    def _tell_sources(self) -> None:
        """Adds the latest evaluation to its step's row: whichever of the two comes later calls."""
        if not (
            self.history and self.evaluations and self.history[-1]["step"] == self.accuracy[-1].step
        ):
            return
        self.history[-1] |= {
            f"accuracy_{name}": value for name, value in self.evaluations[-1].accuracy.items()
        }

    def result(self) -> RunResult:
        """The run so far."""
        assert self.trainer is not None and self.trainer.curriculum is not None
        crossed = next(
            (
                p
                for p in self.accuracy
                if self._target is not None and (p.accuracy or 0) >= self._target
            ),
            None,
        )
        return trl_result(
            self.trainer,
            history=self.history,
            accuracy=self.accuracy or None,
            **self._by_source(),
            rollouts_to_target=crossed.rollouts if crossed else None,
            seconds_to_target=crossed.seconds if crossed else None,
            seconds_total=self.seconds,
            target=self._target,
        )

    def _by_source(self) -> dict[str, Any]:
        """What is known of the whole pool and of each source of it; nothing if ``evaluate`` gives
        one number."""
        if not self.evaluations:
            return {}
        first = self.evaluations[0]
        last = self.evaluations[-1]
        by_source = {
            name: SourceAccuracy(start=first.accuracy[name], end=end)
            for name, end in last.accuracy.items()
        }
        return {
            "accuracy_whole": last.whole,
            "accuracy_by_source": by_source,
            "forgotten": forgotten_sources(by_source),
            "pass_at_8_whole": last.pass_at_8_whole,
        }
