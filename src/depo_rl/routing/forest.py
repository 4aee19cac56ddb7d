"""Extremely randomised trees (Geurts, Ernst, Wehenkel 2006), grown by scikit-learn and kept as plain
arrays: no pickle, and a single query needs no more than a few numpy calls.

Axes: ``_N`` nodes of all trees, ``_T`` trees, ``_P`` queries, ``_M`` models.
"""

from __future__ import annotations

import numpy as np
from numpy.typing import NDArray

from ..types import State

N_TREES = 150
LEAF = 8  # queries at least
FEATURE_SHARE = 0.3  # tried at each split
_AT_ONCE = 2_000_000  # cells of (queries, trees) walked together


class Forest:
    """Trees whose leaves hold a mean for each model, so that all models split by the same rules and
    what they have in common cancels in their differences."""

    def __init__(self, state: State) -> None:
        self._root_T: NDArray[np.int32] = state["root"]
        self._feature_N: NDArray[np.int32] = state["feature"]
        self._threshold_N: NDArray[np.float32] = state["threshold"]
        self._left_N: NDArray[np.int32] = state["left"]
        self._right_N: NDArray[np.int32] = state["right"]
        self._value_NM: NDArray[np.float32] = state["value"]
        self._depth = int(state["depth"])

    def state_dict(self) -> State:
        return {
            "root": self._root_T,
            "feature": self._feature_N,
            "threshold": self._threshold_N,
            "left": self._left_N,
            "right": self._right_N,
            "value": self._value_NM,
            "depth": self._depth,
        }

    @classmethod
    def grow(cls, dense_PD: NDArray[np.float32], score_PM: NDArray[np.float64]) -> Forest:
        from sklearn.ensemble import ExtraTreesRegressor

        forest = ExtraTreesRegressor(
            N_TREES, min_samples_leaf=LEAF, max_features=FEATURE_SHARE, random_state=0
        ).fit(dense_PD, score_PM)
        trees = [estimator.tree_ for estimator in forest.estimators_]
        size_T = [tree.node_count for tree in trees]
        root_T = np.concatenate([[0], np.cumsum(size_T)[:-1]])
        own_N = np.arange(sum(size_T))
        leaf_N = np.concatenate([tree.feature for tree in trees]) < 0
        shift_N = np.repeat(root_T, size_T)

        def child(name: str) -> NDArray[np.int32]:
            """A leaf's child is itself, so that a walk may go on past it."""
            child_N = np.concatenate([getattr(tree, name) for tree in trees]) + shift_N
            return np.where(leaf_N, own_N, child_N).astype(np.int32)

        value_NM = np.concatenate([tree.value for tree in trees])[:, :, 0]
        return cls(
            {
                "root": root_T.astype(np.int32),
                "feature": np.where(
                    leaf_N, 0, np.concatenate([tree.feature for tree in trees])
                ).astype(np.int32),
                "threshold": np.concatenate([tree.threshold for tree in trees]).astype(np.float32),
                "left": child("children_left"),
                "right": child("children_right"),
                "value": value_NM.astype(np.float32),
                "depth": max(tree.max_depth for tree in trees),
            }
        )

    def predict(self, dense_PD: NDArray[np.float32]) -> NDArray[np.float64]:
        """Mean over the trees, shape (P, M)."""
        step = max(_AT_ONCE // len(self._root_T), 1)
        parts = [
            self._value_NM[self._leaves(dense_PD[at : at + step])].mean(1, dtype=np.float64)
            for at in range(0, len(dense_PD), step)
        ]
        return np.concatenate(parts)

    def _leaves(self, dense_PD: NDArray[np.float32]) -> NDArray[np.int32]:
        row_P = np.arange(len(dense_PD))[:, None]
        node_PT = np.broadcast_to(self._root_T, (len(dense_PD), len(self._root_T)))
        for _ in range(self._depth):
            goes_left = dense_PD[row_P, self._feature_N[node_PT]] <= self._threshold_N[node_PT]
            following = np.where(goes_left, self._left_N[node_PT], self._right_N[node_PT])
            if np.array_equal(following, node_PT):
                break
            node_PT = following
        return node_PT
