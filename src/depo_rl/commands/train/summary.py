"""What a finished run came to: the record of ``results.json`` and what ``depo train`` prints.

Everything comes from what checkpoints carry (the trainer's log, the curriculum, the outcome log), so that a resumed run
sums up to the same as one that never stopped.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from ...report import AccuracyPoint, RunResult
from ...types import finite
from ..history import history_row, own_figures
from .config import MathReward
from .plan import Prepared
from .rewards import reward_name


def run_result(trainer: Any, prepared: Prepared) -> RunResult:
    """The run's record; main process only. A value that was not measured is None."""
    history, rows = trainer.state.log_history, _logged(prepared)
    return RunResult(
        **own_figures(trainer.curriculum),
        seed=int(prepared.args.seed),
        steps=int(trainer.state.global_step),
        tokens=int(trainer.completion_tokens_generated),
        **{f"{name}_share": _share(rows, name) for name in ("mixed", "all_pass", "all_fail")},  # type: ignore[arg-type]
        **{name: _total(history, name, prepared) for name in ("seconds_selecting", "seconds_learning")},  # type: ignore[arg-type]
        accuracy=_accuracy(history, prepared, rows) or None,
        history=_history(history) or None,
    )


def describe_end(trainer: Any, result: RunResult, output: Path) -> dict[str, Any]:
    """What is printed: the record without its series, the last logged numbers, and where things are."""
    paths = {name: output / name for name in ("model", "outcomes.jsonl", "results.json", "run.json")}
    return {
        "results": result.model_dump(mode="json", exclude={"history", "reliability"}),
        "final": _final(trainer.state.log_history),
        "paths": {"output": str(output)} | {name: str(path) for name, path in paths.items() if path.exists()},
    }


def _logged(prepared: Prepared) -> Sequence[Any]:
    """The rows of the outcome log, none where it is off."""
    log = Path(prepared.config.output) / "outcomes.jsonl"
    if not prepared.config.outcome_log or not log.exists() or not log.stat().st_size:  # empty: the disk failed
        return ()
    from ...outcomes import read_log

    return read_log(log)


def _share(rows: Sequence[Any], name: str) -> float | None:
    scored = [row for row in rows if row.n_scored]
    return sum(getattr(row.to_outcome(), name) for row in scored) / len(scored) if scored else None


def _total(history: Sequence[Mapping[str, Any]], name: str, prepared: Prepared) -> float | None:
    """Seconds over the run: the log holds the mean over the generations since the entry before."""
    total, known, before = 0.0, False, 0
    for entry in history:
        value = finite(entry.get(f"depo/{name}"))
        if value is not None:
            total, known = total + value * (entry["step"] - before) / prepared.layout.steps_per_generation, True
            before = entry["step"]
    return total if known else None


def _history(history: Sequence[Mapping[str, Any]]) -> list[dict[str, float | None]]:
    rows = (history_row(entry, entry["step"]) for entry in history if "step" in entry)
    return [row for row in rows if row is not None]


def _accuracy(history: Sequence[Mapping[str, Any]], prepared: Prepared, rows: Sequence[Any]) -> list[AccuracyPoint]:
    """One point per evaluation. Only a verifier's mean is an accuracy; that of a function of yours may be anything."""
    kinds = {reward_name(f): r for f, r in zip(prepared.rewards, prepared.config.reward, strict=True)}
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
    names = ("loss", "reward", "grad_norm", "completions/mean_length", "frac_reward_zero_std", "eval_reward")
    last = {name: finite(entry[name]) for entry in history for name in names if name in entry}
    return {name: value for name, value in last.items() if value is not None}
