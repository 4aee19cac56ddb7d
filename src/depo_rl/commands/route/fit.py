"""``depo route fit``: from logs to a router without a threshold."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import Any

import numpy as np

from ...errors import DataError
from ...files import plain
from ...routing.curves import area
from ...routing.guarantee import candidates
from ...routing.model import MIN_QUERIES, SuccessModel
from ...routing.scores import Scores, read_scores
from ...routing.store import save_router


def fit_router(
    sources: Mapping[str, Path],
    out: Path,
    costs: Mapping[str, float],
    where: Mapping[str, Mapping[str, str]],
) -> dict[str, Any]:
    """Fits and saves. Returns what to show, with the area on queries that each fold had not seen.

    Raises DataError if too few queries were scored by all models, or no two scores differ.
    """
    scores = read_scores(sources, where)
    _expect_enough(scores)
    model, unseen_PM = SuccessModel.fit(scores.texts, scores.score_PM)
    gain_PK = unseen_PM[:, -1:] - unseen_PM[:, :-1]
    card = save_router(out, scores, costs, model, candidates(gain_PK))
    found = area(gain_PK[:, 0], scores.score_PM[:, 0], scores.score_PM[:, -1])
    shown: dict[str, Any] = plain(
        {
            "router": str(out),
            "models": list(card.models),
            "queries": len(scores.texts),
            "queries_left_out": scores.left_out,
            "mean_score": dict(zip(scores.models, scores.score_PM.mean(0).tolist(), strict=True)),
            "area_unseen": found.value,
            "area_unseen_interval": [found.low, found.high],
            "data": card.data,
            "next": f"depo route calibrate {out} --quality 0.95 --on LOG",
        }
    )
    return shown


def _expect_enough(scores: Scores) -> None:
    n = len(scores.texts)
    if n < MIN_QUERIES:
        raise DataError(
            f"{n} queries were scored by all of {', '.join(scores.models)} ({scores.left_out} by some only): "
            f"a router learns from {MIN_QUERIES} or more"
        )
    if not np.ptp(scores.score_PM, axis=0).any():
        raise DataError("every query has the same score from each model: there is nothing to learn")
