"""``depo route calibrate``: a threshold that keeps a promise, on rows that were not learnt from."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np

from ...errors import DataError
from ...files import plain
from ...routing.guarantee import Labelled, Promise, choose, promised_threshold
from ...routing.scores import read_scores
from ...routing.store import Threshold, add_threshold, data_hash, load_router, now
from .options import parse_on


def calibrate_router(
    folder: Path, on: Sequence[str], promise: Promise, where: Mapping[str, Mapping[str, str]]
) -> dict[str, Any]:
    """Finds the threshold, adds it to the router and returns what to show.

    Raises DataError if all rows were learnt from, or they are too few for the promise.
    """
    stored = load_router(folder)
    scores = read_scores(parse_on(on, stored.card.models), where)
    new_P = ~stored.seen(scores.texts)
    if not new_P.any():
        raise DataError(
            f"the router learnt from all {len(new_P)} rows: a promise needs rows that it has not seen"
        )
    texts = [text for text, new in zip(scores.texts, new_P.tolist(), strict=True) if new]
    score_PM = scores.score_PM[new_P]
    predicted = stored.model.predict(texts)
    rows = Labelled(predicted[:, -1:] - predicted[:, :-1], score_PM).shuffled()
    value = promised_threshold(promise, stored.candidate_C, rows)
    chosen = choose(rows.gain_RK, value)
    threshold = Threshold(
        version=len(stored.thresholds) + 1,
        value=None if math.isinf(value) else value,
        promise=promise.kind,
        of=promise.value,
        confidence=promise.confidence,
        n_rows=len(rows),
        data=data_hash(texts, score_PM),
        share_large=float((chosen == len(scores.models) - 1).mean()),
        created=now(),
        model=stored.card.model,
    )
    add_threshold(folder, threshold)
    routed = rows.score_RM[np.arange(len(rows)), chosen]
    shown: dict[str, Any] = plain(
        {
            "threshold": threshold.value,
            "threshold_version": threshold.version,
            "promise": f"{promise.kind} {promise.value:g} with confidence {promise.confidence:g}",
            "rows": len(rows),
            "rows_left_out_learnt_from": int((~new_P).sum()),
            "share": {
                name: float((chosen == k).mean()) for k, name in enumerate(stored.card.models)
            },
            "mean_score": float(routed.mean()),
            "mean_score_large": float(rows.score_RM[:, -1].mean()),
            "data": threshold.data,
        }
    )
    return shown
