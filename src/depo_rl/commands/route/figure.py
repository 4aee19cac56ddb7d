"""The cost-quality curves of a router, drawn."""

from __future__ import annotations

from pathlib import Path

import numpy as np

from ...errors import CheckpointError, ConfigError
from ...routing.curves import curve, ranks
from ...routing.scores import Scores
from ...types import FloatArray

_LABELS = {"": "predicted gain", "paper_rule_": "the paper's rule", "oracle_": "oracle"}


def draw_curves(path: Path, predicted_PM: FloatArray, scores: Scores) -> None:
    """Mean score against the share of queries on the cheapest model. Raises ConfigError without
    matplotlib, CheckpointError if the disk fails."""
    try:
        from matplotlib.figure import Figure
    except ImportError:
        raise ConfigError("--figure needs matplotlib: install depo-rl[report]") from None
    small_P = scores.score_PM[:, 0]
    large_P = scores.score_PM[:, -1]
    figure = Figure(figsize=(6, 4), layout="constrained")
    axes = figure.subplots()
    for name, rank_P in ranks(predicted_PM, scores.score_PM).items():
        share, quality = curve(rank_P, small_P, large_P)
        axes.plot(100 * share, 100 * quality, label=_LABELS[name])
    ends = np.array([large_P.mean(), small_P.mean()])
    axes.plot([0, 100], 100 * ends, "--", color="grey", label="chance")
    axes.set_xlabel(f"queries on {scores.models[0]} (%)")
    axes.set_ylabel("mean score (%)")
    axes.legend()
    try:
        path.parent.mkdir(parents=True, exist_ok=True)
        figure.savefig(path)
    except (OSError, ValueError) as error:
        raise CheckpointError(f"cannot write {path}: {error}") from None
