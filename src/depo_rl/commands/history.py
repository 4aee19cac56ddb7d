"""What every record of a TRL run has in common: the log as rows of its history, the curriculum's own figures."""

from __future__ import annotations

import math
from collections.abc import Mapping
from typing import Any

import numpy as np

from ..config import ConstantSettings
from ..curriculum import Curriculum
from ..metrics import reliability
from ..report import ReliabilityBin

OF_A_STEP = ("sources_in_batch", "distinct_share", "unseen_share", "effective_prompts", "most_visits")
OF_A_RUN = ("sources_per_batch", "distinct_share", "unseen_share", "effective_prompts", "most_visits")
"""Figures of breadth: what a row of the history has, and what ``RunResult`` has."""

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


def history_row(entry: Mapping[str, Any], step: int) -> dict[str, float | None] | None:
    """One entry of ``log_history`` as a row; None if it is not of a training step. What was not measured is None."""
    if "depo/rollouts" not in entry:
        return None
    entry = {new: entry[old] for new, old in _OLD_NAMES.items() if old in entry} | dict(entry)
    return {"step": float(step)} | {name: finite(entry.get(key)) for name, key in _LOGGED.items()}


def finite(value: Any) -> float | None:
    """``value`` as a float; None if it is missing, not a number, NaN or infinite."""
    return float(value) if isinstance(value, (int, float)) and math.isfinite(value) else None


def own_figures(curriculum: Curriculum) -> dict[str, Any]:
    """The fields of ``RunResult`` that a curriculum knows of itself. A constant belief is no prediction to judge."""
    metrics, size = curriculum.metrics(), curriculum.config.group_size
    groups = int(metrics["admitted"] + metrics["rejected"] + metrics["failed"])
    found = {"method": curriculum.method, "groups": groups, "rollouts": groups * size}
    found |= {name: finite(metrics[name]) for name in ("explored_share", "fallback_share", "guarded_share", *OF_A_RUN)}
    found["distinct_prompts"] = int(np.count_nonzero(curriculum.breadth.visits))
    if isinstance(curriculum.config.estimator, ConstantSettings):
        return found
    _, p_mixed, _, mixed = curriculum.track.columns()
    found |= {name: finite(metrics[name]) for name in ("auc_mixed", "log_loss", "ece", "ece_floor")}
    bins = [ReliabilityBin(**row) for row in reliability(p_mixed, mixed)]  # type: ignore[arg-type]
    return found | {"candidates_scored": int(metrics["drawn"]), "reliability": bins}
