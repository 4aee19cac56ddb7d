"""Random Fourier features (Rahimi and Recht, 2007): what a linear model needs to be one of a
Gaussian kernel."""

from __future__ import annotations

from collections.abc import Mapping, Sequence

import numpy as np
from numpy.typing import NDArray

from ..types import FloatArray
from .blocks import Floats


class RandomFeatures:
    """``n`` cosines of random projections of ``inputs``, (N, any) each: the kernel is exp(-gamma^2 |x - y|^2 / 2)."""

    origin: Mapping[str, str | None] = {}

    def __init__(self, inputs: Sequence[NDArray[np.float16]], n: int, gamma: float) -> None:
        self.width = n
        self.scale = (2.0 / max(n, 1)) ** 0.5
        self._inputs = inputs
        rng = np.random.default_rng(20240229)  # fixed: the same features in every run
        n_inputs = sum(values.shape[1] for values in inputs)
        self._frequency = (rng.standard_normal((n_inputs, n)) * gamma).astype("f4")
        self._phase = rng.uniform(0, 2 * np.pi, n).astype(np.float32)

    @property
    def nbytes(self) -> int:
        """The inputs are those of other blocks, but for the last."""
        return self._inputs[-1].nbytes

    def rows(self, index_P: NDArray[np.int64]) -> Floats:
        inputs = np.hstack([values[index_P].astype(np.float32) for values in self._inputs])
        rows: Floats = np.cos(inputs @ self._frequency + self._phase)
        return rows

    def start(self, slope: float) -> FloatArray:
        return np.zeros(self.width)
