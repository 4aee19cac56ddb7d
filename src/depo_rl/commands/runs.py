"""What a run was, as a ``RunResult``: what its curriculum knows of itself, and a whole run on TRL.

Of a run on TRL everything comes from what checkpoints carry (the trainer's log, the curriculum, the
outcome log), so that a resumed run sums up to the same as one that never stopped.
"""

from __future__ import annotations

import itertools
import math
import os
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np

from ..config import ConstantSettings
from ..curriculum import Curriculum
from ..errors import ConfigError
from ..metrics import PredictionTrack, reliability
from ..outcomes import LogRow
from ..report import ReliabilityBin, RunResult
from ..types import finite

OF_A_STEP = (
    "sources_in_batch",
    "distinct_share",
    "unseen_share",
    "effective_prompts",
    "most_visits",
)
"""Figures of breadth that a row of the history has."""

_OF_A_RUN = (
    *("explored_share", "fallback_share", "guarded_share"),
    *("sources_per_batch", "distinct_share", "unseen_share", "effective_prompts", "most_visits"),
)
_LOGGED = {
    "rollouts": "depo/rollouts",
    "tokens": "depo/completion_tokens",
    "mixed_share": "depo/mixed_share",
    "all_pass_share": "depo/all_pass_share",
    "all_fail_share": "depo/all_fail_share",
    "predicted_mean": "depo/predicted_mean",
    "observed_mean": "depo/observed_mean",
    **{name: f"depo/{name}" for name in OF_A_STEP},
    "seconds_selecting": "depo/seconds_selecting",
    "seconds_learning": "depo/seconds_learning",
    "seconds_step": "step_time",
    "reward": "reward",
    "grad_norm": "grad_norm",
}
_OLD_NAMES = {"depo/all_pass_share": "depo/all_pass", "depo/all_fail_share": "depo/all_fail"}
"""As version 0.1 logged them: a run that it began may go on, and its checkpoint holds its log."""

HistoryRow = dict[str, float | None]


def check_folder(folder: Path, setting: str) -> None:
    """Raises ConfigError, which begins with ``setting``, if ``folder`` cannot be made or written to."""
    there = next(path for path in (folder, *folder.parents) if path.exists())
    if not there.is_dir() or not os.access(there, os.W_OK):
        raise ConfigError(
            f"{setting}: {there} is not a folder that can be written to; choose another"
        )


def predicts(curriculum: Curriculum) -> bool:
    """Whether there is something to judge: a constant belief is no prediction."""
    return not isinstance(curriculum.config.estimator, ConstantSettings)


def own_figures(curriculum: Curriculum) -> dict[str, Any]:
    """The fields of ``RunResult`` that a curriculum knows of itself, but how good its predictions
    were."""
    metrics = curriculum.metrics()
    return {
        "method": curriculum.method,
        **{name: finite(metrics[name]) for name in _OF_A_RUN},
        "distinct_prompts": int(np.count_nonzero(curriculum.breadth.visits)),
        "candidates_scored": int(metrics["drawn"]) if predicts(curriculum) else None,
    }


def judgement(track: PredictionTrack) -> dict[str, Any]:
    """The fields of ``RunResult`` about the predictions of the groups in ``track``; none if there
    is no group."""
    if not len(track):
        return {}
    _, p_mixed_P, _, mixed_P = track.columns()
    bins = [ReliabilityBin(**row) for row in reliability(p_mixed_P, mixed_P)]  # type: ignore[arg-type]
    return {**{name: finite(value) for name, value in track.metrics().items()}, "reliability": bins}


def rollouts_of(curriculum: Curriculum) -> dict[str, Any]:
    """groups and rollouts that came back so far, of an engine whose groups are all of one size."""
    metrics = curriculum.metrics()
    groups = int(metrics["admitted"] + metrics["rejected"] + metrics["failed"])
    return {"groups": groups, "rollouts": groups * curriculum.config.group_size}


# ---- on TRL


def history_row(entry: Mapping[str, Any], step: int) -> HistoryRow | None:
    """One entry of ``log_history`` as a row; None if it is not of a training step. What was not
    measured is None."""
    if "depo/rollouts" not in entry:
        return None
    entry = {new: entry[old] for new, old in _OLD_NAMES.items() if old in entry} | dict(entry)
    return {"step": float(step)} | {name: finite(entry.get(key)) for name, key in _LOGGED.items()}


def trl_result(
    trainer: Any,
    outcomes: Sequence[LogRow] = (),
    history: list[HistoryRow] | None = None,
    **measured: Any,
) -> RunResult:
    """The record of a ``DEPOTrainer``'s run so far; main process only. A value that was not
    measured is None.

    outcomes: the run's outcome log, where there is one, for exact shares of groups. history: its
    rows, if they are more than what the trainer logged. measured: further fields.
    """
    if history is None:
        found = (
            history_row(entry, entry["step"])
            for entry in trainer.state.log_history
            if "step" in entry
        )
        history = [row for row in found if row is not None]
    curriculum = trainer.curriculum
    args = trainer.args
    per_generation = (
        args.steps_per_generation * args.num_iterations / args.gradient_accumulation_steps
    )
    sums: dict[str, Any] = {
        f"{name}_share": _share(name, outcomes, history)
        for name in ("mixed", "all_pass", "all_fail")
    }
    sums |= {
        f"seconds_{name}": _seconds(name, history, per_generation)
        for name in ("selecting", "learning")
    }
    return RunResult(
        **own_figures(curriculum),
        **rollouts_of(curriculum),
        **(judgement(curriculum.track) if predicts(curriculum) else {}),
        seed=int(args.seed),
        steps=int(trainer.state.global_step),
        tokens=int(trainer.completion_tokens_generated),
        **sums,
        history=history or None,
        **measured,
    )


def _share(name: str, outcomes: Sequence[LogRow], history: Sequence[HistoryRow]) -> float | None:
    """Of the scored groups; without an outcome log, each step's share weighs by the rollouts of
    that step."""
    if outcomes:
        scored = [row.to_outcome() for row in outcomes if row.n_scored]
        return sum(getattr(outcome, name) for outcome in scored) / len(scored) if scored else None
    spent = [0.0, *(row["rollouts"] or 0.0 for row in history)]
    weights = [after - before for before, after in itertools.pairwise(spent)]
    rows = [(w, row[f"{name}_share"]) for w, row in zip(weights, history, strict=True)]
    known = [(w, value) for w, value in rows if value is not None and w > 0]
    total = sum(w for w, _ in known)
    return sum(w * value for w, value in known) / total if total else None


def _seconds(name: str, history: Sequence[HistoryRow], steps_per_generation: float) -> float | None:
    """Seconds over the run: the log holds the mean over the generations since the entry before."""
    total = 0.0
    before = 0  # generations
    for row in history:
        step = row["step"]
        value = row[f"seconds_{name}"]
        if value is not None and step is not None:
            generations = math.ceil(step / steps_per_generation)
            total += value * (generations - before)
            before = generations
    return total if before else None
