"""What a finished run came to: the record of ``results.json`` and what ``depo train`` prints."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from ...report import AccuracyPoint, RunResult
from ...types import finite
from ..runs import trl_result
from .config import MathReward
from .plan import Prepared
from .rewards import reward_name


def run_result(trainer: Any, prepared: Prepared) -> RunResult:
    """The run's record; main process only. A value that was not measured is None."""
    rows = _logged(prepared)
    return trl_result(
        trainer, rows, accuracy=_accuracy(trainer.state.log_history, prepared, rows) or None
    )


def describe_end(trainer: Any, result: RunResult, output: Path) -> dict[str, Any]:
    """What is printed: the record without its series, the last logged numbers, and where things
    are."""
    paths = {
        name: output / name for name in ("model", "outcomes.jsonl", "results.json", "run.json")
    }
    return {
        "results": result.model_dump(mode="json", exclude={"history", "reliability"}),
        "final": _final(trainer.state.log_history),
        "paths": {"output": str(output)}
        | {name: str(path) for name, path in paths.items() if path.exists()},
    }


def _logged(prepared: Prepared) -> Sequence[Any]:
    """The rows of the outcome log, none where it is off."""
    log = Path(prepared.config.output) / "outcomes.jsonl"
    if (
        not prepared.config.outcome_log or not log.exists() or not log.stat().st_size
    ):  # empty: the disk failed
        return ()
    from ...outcomes import read_log

    return read_log(log)


def _accuracy(
    history: Sequence[Mapping[str, Any]], prepared: Prepared, rows: Sequence[Any]
) -> list[AccuracyPoint]:
    """One point per evaluation. Only a verifier's mean is an accuracy; that of a function of yours
    may be anything."""
    kinds = {
        reward_name(f): r for f, r in zip(prepared.rewards, prepared.config.reward, strict=True)
    }
    if not isinstance(kinds[prepared.named], MathReward):
        return []
    points = []
    for entry in history:
        accuracy = finite(entry.get(f"eval_rewards/{prepared.named}/mean"))
        if accuracy is None:
            continue
        before = [row for row in rows if row.step is not None and row.step <= entry["step"]]
        tokens = [row.tokens for row in before]
        points.append(
            AccuracyPoint(
                step=int(entry["step"]),
                accuracy=accuracy,
                rollouts=sum(row.group_size for row in before) if rows else None,
                tokens=sum(tokens) if rows and None not in tokens else None,
            )
        )
    return points


def _final(history: Sequence[Mapping[str, Any]]) -> dict[str, float]:
    """The last logged value of the numbers people look at."""
    names = (
        "loss",
        "reward",
        "grad_norm",
        "completions/mean_length",
        "frac_reward_zero_std",
        "eval_reward",
    )
    last = {name: finite(entry[name]) for entry in history for name in names if name in entry}
    return {name: value for name, value in last.items() if value is not None}
