"""The sparse part of a prompt's features: hashed n-grams of its text and answer, weighed by how
rare they are."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import numpy as np
from numpy.typing import NDArray

from ..types import Prompt
from .blocks import Floats, chunks
from .text import N_VIEWS, HashedTexts, answer_text, hash_texts

VIEW_WEIGHTS = np.array([1.0, 0.5, 0.7], np.float32)  # norm of a row's words, shapes, answer
IDF_PROMPTS = 100_000  # the first ones of the pool, from which document frequencies are counted


class HashedNgrams:
    """N-grams of every prompt. width: a power of two, the number of buckets. answer_field: column
    of the answer."""

    def __init__(self, prompts: Sequence[Prompt], width: int, answer_field: str) -> None:
        self.width = width
        texts = [prompt.text for prompt in prompts]
        hashed = hash_texts(
            texts, width, [answer_text(prompt.fields.get(answer_field)) for prompt in prompts]
        )
        idf = _inverse_frequencies(hashed, width)
        self._indptr = hashed.indptr
        self._buckets = hashed.buckets
        self._values = np.concatenate(
            [_weights(hashed, part, idf) for part in chunks(len(prompts))]
        )

    def __len__(self) -> int:
        return len(self._indptr) - 1

    @property
    def nbytes(self) -> int:
        return self._indptr.nbytes + self._buckets.nbytes + self._values.nbytes

    def rows(self, index_P: NDArray[np.int64]) -> Any:
        """CSR of shape (P, width), float32."""
        from scipy.sparse import csr_matrix

        begin_P = self._indptr[index_P]
        length_P = self._indptr[index_P + 1] - begin_P
        indptr = np.concatenate([[0], np.cumsum(length_P)])
        take = np.repeat(begin_P - indptr[:-1], length_P) + np.arange(indptr[-1])
        values = self._values[take].astype(np.float32)
        buckets = self._buckets[take].astype(np.int32)
        return csr_matrix(
            (values, buckets, indptr.astype(np.int32)), shape=(len(index_P), self.width)
        )


def _inverse_frequencies(hashed: HashedTexts, width: int) -> Floats:
    """log((1 + prompts) / (1 + prompts with the bucket)) + 1, shape (width,)."""
    n = min(len(hashed.indptr) - 1, IDF_PROMPTS)
    frequency = np.zeros(width, np.int64)
    for part in chunks(n):
        inside = slice(hashed.indptr[part.start], hashed.indptr[min(part.stop, n)])
        frequency += np.bincount(hashed.buckets[inside], minlength=width)
    # two views may share a bucket, which then counts twice in a prompt
    return (np.log((1 + n) / (1 + np.minimum(frequency, n))) + 1).astype(np.float32)


def _weights(hashed: HashedTexts, part: slice, idf: Floats) -> NDArray[np.float16]:
    """(1 + log count) * idf of a part of the rows, each view's share of a row scaled to its own
    norm."""
    indptr = hashed.indptr[part.start : part.stop + 1]
    inside = slice(indptr[0], indptr[-1])
    view = hashed.view[inside]
    value = (1 + np.log(hashed.counts[inside].astype(np.float32))) * idf[hashed.buckets[inside]]
    n_rows = len(indptr) - 1
    group = np.repeat(np.arange(n_rows), np.diff(indptr)) * N_VIEWS + view
    square = np.bincount(group, value.astype(np.float64) ** 2, n_rows * N_VIEWS)
    norm = np.sqrt(square).astype(np.float32)
    weights: NDArray[np.float16] = (value * VIEW_WEIGHTS[view] / norm[group]).astype(np.float16)
    return weights
