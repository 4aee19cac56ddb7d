"""Ridge regression of all models' scores on n-grams and on random features of a query's shape,
solved by conjugate gradients in the queries: it never builds a matrix of buckets by buckets.

Axes: ``_P`` queries, ``_M`` models, ``_W`` buckets, ``_D`` numbers of the shape, ``_R`` random
features.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import numpy as np
from numpy.typing import NDArray

from ..types import State
from .rows import Rows

STRENGTH = 5.0  # of the penalty
N_RANDOM = 512
GAMMA = 0.5  # of the Gaussian kernel that the random features stand for, over D
_GRAM_SHARE = 0.4  # of words and of characters in the kernel
_LINEAR_SHARE = 0.1
_RANDOM_SHARE = 0.2
_TOLERANCE = 1e-3
_MAX_STEPS = 200

Floats = NDArray[np.float32]


class Ridge:
    def __init__(self, state: State) -> None:
        self._gram_WM: Floats = state["grams"]
        self._dense_RM: Floats = state["dense"]
        self._mean_M: Floats = state["mean"]
        self._basis = _basis(int(state["shape_width"]))

    def state_dict(self) -> State:
        return {
            "grams": self._gram_WM,
            "dense": self._dense_RM,
            "mean": self._mean_M,
            "shape_width": len(self._basis[0]),
        }

    @classmethod
    def solve(cls, rows: Rows, score_PM: NDArray[np.float64]) -> Ridge:
        width = rows.shape.shape[1]
        dense = _dense(rows.shape, _basis(width))
        grams = rows.grams * np.float32(_GRAM_SHARE**0.5)
        turned = grams.T.tocsr()
        mean_M = score_PM.mean(0)

        def kernel(x_PM: Floats) -> Floats:
            result: Floats = grams @ (turned @ x_PM) + dense @ (dense.T @ x_PM) + STRENGTH * x_PM
            return result

        dual_PM = _conjugate_gradients(kernel, (score_PM - mean_M).astype(np.float32))
        return cls(
            {
                "grams": np.asarray(turned @ dual_PM * np.float32(_GRAM_SHARE**0.5)),
                "dense": dense.T @ dual_PM,
                "mean": mean_M.astype(np.float32),
                "shape_width": width,
            }
        )

    def predict(self, rows: Rows) -> NDArray[np.float64]:
        """Shape (P, M), not confined to [0, 1]."""
        dense = _dense(rows.shape, self._basis) @ self._dense_RM
        return np.asarray(rows.grams @ self._gram_WM + dense + self._mean_M, np.float64)


def _basis(width: int) -> tuple[Floats, Floats]:
    """Frequencies (D, R) and phases (R,) of the random features; the same for the same width."""
    rng = np.random.default_rng(0)
    frequency = rng.normal(size=(width, N_RANDOM)) * np.sqrt(2 * GAMMA / width)
    return frequency.astype(np.float32), rng.uniform(0, 2 * np.pi, N_RANDOM).astype(np.float32)


def _dense(shape_PD: Floats, basis: tuple[Floats, Floats]) -> Floats:
    frequency, phase = basis
    random = np.cos(shape_PD @ frequency + phase) * np.float32(
        np.sqrt(2 * _RANDOM_SHARE / N_RANDOM)
    )
    linear = shape_PD * np.float32(np.sqrt(_LINEAR_SHARE / shape_PD.shape[1]))
    return np.hstack([linear, random])


def _conjugate_gradients(apply: Callable[[Floats], Floats], target_PM: Floats) -> Any:
    """x with apply(x) = target, a column at a time and all columns at once (Hestenes, Stiefel
    1952)."""
    x = np.zeros_like(target_PM)
    residual = target_PM.copy()
    direction = residual.copy()
    size_M = (residual**2).sum(0)
    enough_M = size_M * _TOLERANCE**2
    for _ in range(_MAX_STEPS):
        if (size_M <= enough_M).all():
            break
        image = apply(direction)
        step_M = size_M / np.maximum((direction * image).sum(0), 1e-30)
        x += step_M * direction
        residual -= step_M * image
        before_M = size_M
        size_M = (residual**2).sum(0)
        direction = residual + direction * (size_M / np.maximum(before_M, 1e-30))
    return x
