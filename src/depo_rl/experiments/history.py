"""The trainer's log as rows of ``RunResult.history``: one place that knows how TRL's log names things."""

from __future__ import annotations

import math
from collections.abc import Mapping
from typing import Any

_LOGGED = {
    "rollouts": "depo/rollouts",
    "tokens": "depo/completion_tokens",
    "mixed_share": "depo/mixed_share",
    "all_pass_share": "depo/all_pass",
    "all_fail_share": "depo/all_fail",
    "predicted_mean": "depo/predicted_mean",
    "observed_mean": "depo/observed_mean",
    "seconds_selecting": "depo/seconds_selecting",
    "seconds_learning": "depo/seconds_learning",
    "seconds_step": "step_time",
    "reward": "reward",
    "grad_norm": "grad_norm",
}


def history_row(entry: Mapping[str, Any], step: int) -> dict[str, float | None] | None:
    """One entry of ``log_history`` as a row; None if it is not of a training step. What was not measured is None."""
    if "depo/rollouts" not in entry:
        return None
    return {"step": float(step)} | {name: finite(entry.get(key)) for name, key in _LOGGED.items()}


def finite(value: Any) -> float | None:
    """``value`` as a float; None if it is missing, not a number, NaN or infinite."""
    return float(value) if isinstance(value, (int, float)) and math.isfinite(value) else None
