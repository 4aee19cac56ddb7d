"""``depo route calibrate``: a threshold that keeps a promise, on rows that were not learnt from."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np

from ...errors import ConfigError, DataError
from ...files import plain
from ...routing.guarantee import Labelled, Promise, broken, choose, promised_threshold
from ...routing.scores import read_scores
from ...routing.store import Stored, Threshold, add_threshold, data_hash, load_router, now
from .options import parse_on


class _Fresh(NamedTuple):
    """Rows that the router did not learn from, in the order of the file, and their hash."""

    rows: Labelled
    data: str
    learnt_from: int


def _fresh(stored: Stored, on: Sequence[str], where: Mapping[str, Mapping[str, str]]) -> _Fresh:
    scores = read_scores(parse_on(on, stored.card.models), where)
    new_P = ~stored.seen(scores.texts)
    if not new_P.any():
        raise DataError(
            f"the router learnt from all {len(new_P)} rows: a promise needs rows that it has not seen"
        )
    texts = [text for text, new in zip(scores.texts, new_P.tolist(), strict=True) if new]
    score_PM = scores.score_PM[new_P]
    predicted = stored.model.predict(texts)
    rows = Labelled(predicted[:, -1:] - predicted[:, :-1], score_PM)
    return _Fresh(rows, data_hash(texts, score_PM), int((~new_P).sum()))


def check_router(
    folder: Path, on: Sequence[str], where: Mapping[str, Mapping[str, str]]
) -> dict[str, Any]:
    """Whether later rows, in the order in which they came, speak against the threshold in force.

    Raises ConfigError if there is none, DataError if all rows were learnt from.
    """
    stored = load_router(folder)
    if not stored.thresholds:
        raise ConfigError(f"{folder}: has no threshold yet: run `depo route calibrate`")
    threshold = stored.thresholds[-1]
    rows = _fresh(stored, on, where).rows
    promise = Promise(threshold.promise, threshold.of, threshold.confidence)
    chosen = choose(rows.gain_RK, threshold.gain)
    shown: dict[str, Any] = plain(
        {
            "alarm": broken(promise, threshold.gain, rows),
            "promise": f"{promise.kind} {promise.value:g} with confidence {promise.confidence:g}",
            "threshold_version": threshold.version,
            "rows": len(rows),
            "share_large": float((chosen == len(stored.card.models) - 1).mean()),
            "share_large_calibrated": threshold.share_large,
            "mean_score": float(rows.score_RM[np.arange(len(rows)), chosen].mean()),
            "mean_score_large": float(rows.score_RM[:, -1].mean()),
        }
    )
    return shown


def calibrate_router(
    folder: Path, on: Sequence[str], promise: Promise, where: Mapping[str, Mapping[str, str]]
) -> dict[str, Any]:
    """Finds the threshold, adds it to the router and returns what to show.

    Raises DataError if all rows were learnt from, or they are too few for the promise.
    """
    stored = load_router(folder)
    fresh = _fresh(stored, on, where)
    rows = fresh.rows.shuffled()
    value = promised_threshold(promise, stored.candidate_C, rows)
    chosen = choose(rows.gain_RK, value)
    threshold = Threshold(
        version=len(stored.thresholds) + 1,
        value=None if math.isinf(value) else value,
        promise=promise.kind,
        of=promise.value,
        confidence=promise.confidence,
        n_rows=len(rows),
        data=fresh.data,
        share_large=float((chosen == len(stored.card.models) - 1).mean()),
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
            "rows_left_out_learnt_from": fresh.learnt_from,
            "share": {
                name: float((chosen == k).mean()) for k, name in enumerate(stored.card.models)
            },
            "mean_score": float(routed.mean()),
            "mean_score_large": float(rows.score_RM[:, -1].mean()),
            "data": threshold.data,
        }
    )
    return shown
