"""``depo route evaluate``: what a router is worth on rows, beside what else one could do."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import Any

import numpy as np

from ...errors import ConfigError
from ...files import plain
from ...metrics import ece
from ...routing.curves import POINTS, Estimate, area, chance, ranks, share_within
from ...routing.guarantee import choose
from ...routing.scores import Scores, read_scores
from ...routing.store import Stored, load_router
from ...types import FloatArray

_SHARES = (0.25, 0.35, 0.55, 0.7)  # kept on cheaper models, about those of the paper's Table 3
_SWEEP = 20


def evaluate_router(
    folder: Path,
    sources: Mapping[str, Path],
    where: Mapping[str, Mapping[str, str]],
    by: str | None = None,
    figure: Path | None = None,
) -> dict[str, Any]:
    """All measures, JSON values. The areas and shares are of the cheapest and the large model; the
    sweep and the tables are of all.

    sources: a log for each model of the router. Raises ConfigError if they are not its models.
    """
    stored = load_router(folder)
    if set(sources) != set(stored.card.models):
        raise ConfigError(
            f"--model: {folder} was fitted for {', '.join(stored.card.models)}, got {', '.join(sources)}"
        )
    scores = read_scores({name: sources[name] for name in stored.card.models}, where)
    predicted = stored.model.predict(scores.texts)
    if figure is not None:
        from .figure import draw_curves

        draw_curves(figure, predicted, scores)
    shown: dict[str, Any] = plain(
        {
            "queries": len(scores.texts),
            "queries_learnt_from": int(stored.seen(scores.texts).sum()),
            "queries_left_out": scores.left_out,
            "always": dict(zip(scores.models, scores.score_PM.mean(0).tolist(), strict=True)),
            **_areas(predicted, scores.score_PM),
            "money": _money(predicted, scores, stored.card.costs),
            "in_force": _in_force(stored, predicted, scores),
            "calibration": _calibration(predicted, scores),
            "table": _table(predicted, scores, by),
            "sweep": _sweep(predicted, scores, stored.card.costs),
        }
    )
    return shown


def readable(result: Mapping[str, Any]) -> dict[str, Any]:
    """Without the sweep, which is for a program."""
    return {name: value for name, value in result.items() if name != "sweep"}


def _areas(predicted_PM: FloatArray, score_PM: FloatArray) -> dict[str, Any]:
    small_P = score_PM[:, 0]
    large_P = score_PM[:, -1]
    found: dict[str, Any] = {}
    for name, rank_P in ranks(predicted_PM, score_PM).items():
        found |= _named(f"{name}area", area(rank_P, small_P, large_P))
    found |= _named("random_area", chance(small_P, large_P))
    for name, rank_P in ranks(predicted_PM, score_PM).items():
        found[f"{name}share_within"] = share_within(rank_P, small_P, large_P)
    return found


def _named(name: str, estimate: Estimate) -> dict[str, Any]:
    return {name: estimate.value, f"{name}_interval": [estimate.low, estimate.high]}


def _money(predicted_PM: FloatArray, scores: Scores, costs: Mapping[str, float]) -> dict[str, Any]:
    """Mean cost of a query within some points of the large model, and what that saves."""
    if not costs:
        return {}
    small = costs[scores.models[0]]
    large = costs[scores.models[-1]]
    rank_P = predicted_PM[:, -1] - predicted_PM[:, 0]
    shares = share_within(rank_P, scores.score_PM[:, 0], scores.score_PM[:, -1], POINTS)
    spent = {points: share * small + (1 - share) * large for points, share in shares.items()}
    return {
        "always": dict(costs),
        "within": spent,
        "saved": {points: 1 - cost / large for points, cost in spent.items()} if large else {},
    }


def _in_force(stored: Stored, predicted_PM: FloatArray, scores: Scores) -> dict[str, Any]:
    if not stored.thresholds:
        return {}
    threshold = stored.thresholds[-1]
    return {
        "version": threshold.version,
        "promise": f"{threshold.promise} {threshold.of:g}",
        **_at(predicted_PM, scores, threshold.gain, stored.card.costs),
    }


def _at(
    predicted_PM: FloatArray, scores: Scores, threshold: float, costs: Mapping[str, float]
) -> dict[str, Any]:
    chosen_P = choose(predicted_PM[:, -1:] - predicted_PM[:, :-1], threshold)
    share = {name: float((chosen_P == k).mean()) for k, name in enumerate(scores.models)}
    found: dict[str, Any] = {
        "threshold": threshold,
        "share": share,
        "quality": float(scores.score_PM[np.arange(len(chosen_P)), chosen_P].mean()),
    }
    if costs:
        found["cost"] = sum(share[name] * costs[name] for name in share)
    return found


def _sweep(
    predicted_PM: FloatArray, scores: Scores, costs: Mapping[str, float]
) -> list[dict[str, Any]]:
    gain = predicted_PM[:, -1:] - predicted_PM[:, :-1]
    thresholds = np.quantile(gain, np.arange(_SWEEP + 1) / _SWEEP).tolist()
    return [_at(predicted_PM, scores, threshold, costs) for threshold in thresholds]


def _calibration(predicted_PM: FloatArray, scores: Scores) -> dict[str, Any]:
    clipped = np.clip(predicted_PM, 0.0, 1.0)
    return {
        name: {
            "mean_predicted": float(clipped[:, k].mean()),
            "mean_score": float(scores.score_PM[:, k].mean()),
            "ece": float(ece(clipped[:, k], scores.score_PM[:, k])),
            "brier": float(((clipped[:, k] - scores.score_PM[:, k]) ** 2).mean()),
        }
        for k, name in enumerate(scores.models)
    }


def _table(predicted_PM: FloatArray, scores: Scores, by: str | None) -> dict[str, Any]:
    """The layout of the paper's Table 3: a row for each model alone and for some thresholds, a
    column for each value of ``by``, then the mean of those and the share kept on cheaper models."""
    if by is None:
        return {}
    values = [fields.get(by) for fields in scores.fields]
    if all(value is None for value in values):
        raise ConfigError(f"--by {by}: the first model's log has no such column")
    names_P = np.array(["none" if value is None else str(value) for value in values])
    last = len(scores.models) - 1
    rows = {f"{name} alone": np.full(len(names_P), k) for k, name in enumerate(scores.models)}
    gain = predicted_PM[:, -1:] - predicted_PM[:, :-1]
    for share in _SHARES:
        threshold = float(np.quantile(gain.min(1), share))
        rows[f"gain above {threshold:.3f}"] = choose(gain, threshold)
    return {
        row: _table_row(scores.score_PM[np.arange(len(names_P)), chosen_P], names_P)
        | {"kept": float((chosen_P != last).mean())}
        for row, chosen_P in rows.items()
    }


def _table_row(score_P: FloatArray, names_P: Any) -> dict[str, float]:
    row = {str(name): float(score_P[names_P == name].mean()) for name in np.unique(names_P)}
    return row | {"avg": sum(row.values()) / len(row)}
