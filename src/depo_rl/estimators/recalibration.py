"""Mends probabilities online by what became of the latest ones."""

from __future__ import annotations

from collections import deque
from typing import Any

import numpy as np
from numpy.typing import NDArray

from ..types import FloatArray, State

_WINDOW = 2048  # judged groups that the correction is fitted to
_PRECISION = 10.0  # of the normal prior that nothing needs mending, in judged groups of even odds
_NEWTON_STEPS = 4
_HALVINGS = 20
_LEAST_SLOPE = 0.01
_UNMENDED = np.array([1.0, 0.0, 0.0])  # slope, offset, offset of prompts seen before
_PENALTY = np.eye(3) * _PRECISION / 4.0


class Recalibration:
    """logit(mended) = slope * logit(p) + offset, by penalised logistic regression on the judged
    groups of a window.

    Prompts with and without groups of their own have an offset each: the prior and the evidence err
    differently.
    """

    def __init__(self) -> None:
        self._judged: deque[tuple[float, ...]] = deque(maxlen=_WINDOW)
        self.coefficients_3 = _UNMENDED.copy()

    def apply(self, p_P: FloatArray, seen_P: NDArray[Any]) -> FloatArray:
        """Probabilities of shape (P,) mended; seen_P: 1 for prompts with groups of their own, else
        0."""
        return _logistic(_design(p_P, seen_P) @ self.coefficients_3)

    def judge(self, p_P: FloatArray, seen_P: NDArray[Any], truth_P: NDArray[Any]) -> None:
        """Takes in what was predicted (before mending) and what became of it, and fits anew."""
        self._judged.extend(zip(p_P.tolist(), seen_P.tolist(), truth_P.tolist(), strict=True))
        judged = np.array(self._judged)
        design = _design(judged[:, 0], judged[:, 1])
        truth = judged[:, 2]
        for _ in range(_NEWTON_STEPS):
            p = _logistic(design @ self.coefficients_3)
            slope = design.T @ (truth - p) - _PENALTY @ (self.coefficients_3 - _UNMENDED)
            curvature = (design * (p * (1 - p))[:, None]).T @ design + _PENALTY
            self._step(np.linalg.solve(curvature, slope), design, truth)
        # never the other way round, for which there is the guard; nor level, where rounding would
        # choose
        self.coefficients_3[0] = max(self.coefficients_3[0], _LEAST_SLOPE)

    def _step(self, step_3: FloatArray, design: FloatArray, truth: FloatArray) -> None:
        """Goes the whole way, or the largest half, quarter, ... of it that makes nothing worse.

        Where nearly all groups are mixed and their probabilities near 1, whole Newton steps run
        off.
        """
        before = _loss(self.coefficients_3, design, truth)
        for halvings in range(_HALVINGS):
            moved_3 = self.coefficients_3 + step_3 / 2**halvings
            if _loss(moved_3, design, truth) <= before:
                self.coefficients_3 = moved_3
                return

    def state_dict(self) -> State:
        return {
            "judged": np.array(self._judged).reshape(-1, 3),
            "coefficients": self.coefficients_3.copy(),
        }

    def load_state_dict(self, state: State) -> None:
        judged = [
            tuple(row)
            for row in np.asarray(state["judged"], dtype=np.float64).reshape(-1, 3).tolist()
        ]
        self.coefficients_3 = np.array(state["coefficients"], dtype=np.float64).reshape(3)
        self._judged = deque(judged, _WINDOW)


def _loss(coefficients_3: FloatArray, design: FloatArray, truth: FloatArray) -> float:
    """What the fit makes least: negative log-likelihood of the judged groups and of the prior, in
    nats."""
    logit = design @ coefficients_3
    off_3 = coefficients_3 - _UNMENDED
    return float((np.logaddexp(0.0, logit) - truth * logit).sum() + 0.5 * off_3 @ _PENALTY @ off_3)


def _logistic(logit_P: FloatArray) -> FloatArray:
    result: FloatArray = 0.5 + 0.5 * np.tanh(0.5 * logit_P)  # neither overflows nor minds NaN
    return result


def _design(p_P: FloatArray, seen_P: NDArray[Any]) -> FloatArray:
    p = np.clip(p_P, 1e-4, 1 - 1e-4)
    return np.column_stack([np.log(p / (1 - p)), np.ones(len(p)), seen_P])
