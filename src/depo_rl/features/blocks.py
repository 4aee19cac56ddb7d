"""A block of features: its rows, what they are multiplied by, and the weights that a model of them
begins with.

A new one is a class or a function in a file of its own, and a line of ``table.make_blocks``.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any, Protocol, runtime_checkable

import numpy as np
from numpy.typing import NDArray

from ..types import FloatArray, Prompt

Floats = NDArray[np.float32]
CHUNK = 2048  # prompts at a time; never changes the result


@runtime_checkable
class FeatureBlock(Protocol):
    """Some dense features of every prompt of a pool.

    width: number of features. nbytes: of what is kept. scale: what the rows are multiplied by,
    where a row's words have norm 1. origin: what the features come from beside the prompts, which a
    checkpoint must agree with.
    """

    @property
    def width(self) -> int: ...

    @property
    def nbytes(self) -> int: ...

    @property
    def scale(self) -> float: ...

    @property
    def origin(self) -> Mapping[str, str | None]: ...

    def rows(self, index_P: NDArray[np.int64]) -> Floats:
        """Features of the prompts at ``index_P``, shape (P, width), not scaled yet."""
        ...

    def start(self, slope: float) -> FloatArray:
        """Weights of these rows, shape (width,); slope: on the logit of a published pass rate."""
        ...


@dataclass(frozen=True)
class StoredBlock:
    """Rows that are kept as they are, (N, width); of their weights nothing is known beforehand."""

    values: NDArray[np.float16]
    scale: float
    origin: Mapping[str, str | None] = field(default_factory=dict)

    @property
    def width(self) -> int:
        return int(self.values.shape[1])

    @property
    def nbytes(self) -> int:
        return self.values.nbytes

    def rows(self, index_P: NDArray[np.int64]) -> Floats:
        return self.values[index_P].astype(np.float32)

    def start(self, slope: float) -> FloatArray:
        return np.zeros(self.width)


def chunks(n: int) -> Iterator[slice]:
    """Slices of 0..n, in order; an empty one if ``n`` is 0."""
    for start in range(0, max(n, 1), CHUNK):
        yield slice(start, start + CHUNK)


def in_chunks(
    prompts: Sequence[Prompt], make: Callable[[Sequence[Prompt]], NDArray[Any]]
) -> NDArray[np.float16]:
    """``make`` of all prompts, a chunk at a time: in full precision the whole would be several
    times as large."""
    return np.concatenate([make(prompts[part]).astype(np.float16) for part in chunks(len(prompts))])
