"""How likely each of several models is to solve a query, predicted jointly from its text.

A mean of two predictors that err differently: ``Forest`` on numbers and topics, ``Ridge`` on
n-grams. Both learn all models' scores with the same weights per query, so that the difference of
two predictions is the prediction of the difference, the gain. Folds of the data then give a line
per model that calibrates the mean, and honest gains from which a threshold's candidates are taken.

Axes: ``_P`` queries, ``_M`` models.
"""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
from numpy.typing import NDArray

from ..types import FloatArray, State
from .forest import Forest
from .ridge import Ridge
from .rows import QueryRows, Rows

MIN_QUERIES = 100
FOREST_SHARE = 0.6
N_FOLDS = 3
_AT_ONCE = 4096  # queries


class SuccessModel:
    """Predictions of the cheapest model first, as in the scores that it learnt from."""

    def __init__(self, state: State) -> None:
        self._rows = QueryRows(state["rows"])
        self._parts = _Parts(Forest(state["forest"]), Ridge(state["ridge"]))
        self._slope = float(state["slope"])
        self._offset_M: FloatArray = state["offset"]

    def state_dict(self) -> State:
        return {
            "rows": self._rows.state_dict(),
            "forest": self._parts.forest.state_dict(),
            "ridge": self._parts.ridge.state_dict(),
            "slope": self._slope,
            "offset": self._offset_M,
        }

    @classmethod
    def fit(cls, texts: Sequence[str], score_PM: FloatArray) -> tuple[SuccessModel, FloatArray]:
        """The model, and its predictions (P, M) of each query by parts that had not seen it.

        texts: distinct, at least MIN_QUERIES. score_PM: in [0, 1], a share of right answers or a
        grade. The same input gives the same bits on the same machine.
        """
        score_PM = np.asarray(score_PM, np.float64)
        rows, own = QueryRows.learn(texts)
        unseen_PM = _unseen(own, score_PM)
        slope, offset_M = _line(unseen_PM, score_PM)
        parts = _Parts.fit(own, score_PM)
        model = cls(
            {
                "rows": rows.state_dict(),
                "forest": parts.forest.state_dict(),
                "ridge": parts.ridge.state_dict(),
                "slope": slope,
                "offset": offset_M,
            }
        )
        return model, slope * unseen_PM + offset_M

    @property
    def n_models(self) -> int:
        return len(self._offset_M)

    def predict(self, texts: Sequence[str]) -> FloatArray:
        """Shape (P, M), calibrated, not confined to [0, 1]: clipped, equal gains would no longer be
        equal."""
        raw = [
            self._parts.predict(self._rows.rows(texts[at : at + _AT_ONCE]))
            for at in range(0, len(texts), _AT_ONCE)
        ]
        return self._slope * np.concatenate(raw) + self._offset_M


class _Parts:
    def __init__(self, forest: Forest, ridge: Ridge) -> None:
        self.forest = forest
        self.ridge = ridge

    @classmethod
    def fit(cls, rows: Rows, score_PM: FloatArray) -> _Parts:
        return cls(Forest.grow(rows.dense, score_PM), Ridge.solve(rows, score_PM))

    def predict(self, rows: Rows) -> FloatArray:
        forest = self.forest.predict(rows.dense)
        return FOREST_SHARE * forest + (1 - FOREST_SHARE) * self.ridge.predict(rows)


def _unseen(rows: Rows, score_PM: FloatArray) -> FloatArray:
    n = len(score_PM)
    fold_P: NDArray[np.int64] = np.random.default_rng(0).permutation(n) % N_FOLDS
    unseen_PM = np.empty_like(score_PM)
    for fold in range(N_FOLDS):
        parts = _Parts.fit(rows.take(fold_P != fold), score_PM[fold_P != fold])
        unseen_PM[fold_P == fold] = parts.predict(rows.take(fold_P == fold))
    return unseen_PM


def _line(predicted_PM: FloatArray, score_PM: FloatArray) -> tuple[float, FloatArray]:
    """One slope for all models, so that gains keep their order, and an offset each: least
    squares."""
    predicted = predicted_PM - predicted_PM.mean(0)
    score = score_PM - score_PM.mean(0)
    slope = float((predicted * score).sum() / max((predicted**2).sum(), 1e-12))
    slope = max(slope, 0.05)  # a model that knows nothing still ranks
    return slope, score_PM.mean(0) - slope * predicted_PM.mean(0)
