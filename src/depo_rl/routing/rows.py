"""What a router reads of a query: hashed n-grams of words and of characters, a few dozen numbers on
its shape, and its topics (principal components of the n-grams).

Axes: ``_P`` queries, ``_W`` buckets of the n-grams, ``_D`` dense numbers.
"""

from __future__ import annotations

import re
from collections.abc import Sequence
from typing import Any, NamedTuple
from zlib import crc32

import numpy as np
from numpy.typing import NDArray

from ..features.text import mix
from ..types import State
from .shape import query_shape

MAX_CHARS = 4096  # of a query that are read
BUCKETS = 1 << 17  # of words and bigrams, and as many again of characters
N_TOPICS = 64
CHAR_LENGTHS = (3, 4, 5)
_TOKEN = re.compile(r"\w+|[^\w\s]")
_PRIME = np.uint64(0x9E3779B97F4A7C15)
_CLIP = 3.0  # deviations

Floats = NDArray[np.float32]
Texts = Sequence[str]


class Rows(NamedTuple):
    """grams: CSR (P, 2 * BUCKETS), words and characters each of norm 1. shape: (P, D), of mean 0
    and deviation 1 over the queries learnt from. topics: (P, N_TOPICS)."""

    grams: Any
    shape: Floats
    topics: Floats

    def take(self, index_P: NDArray[Any]) -> Rows:
        return Rows(self.grams[index_P], self.shape[index_P], self.topics[index_P])

    @property
    def dense(self) -> Floats:
        return np.hstack([self.shape, self.topics])


class QueryRows:
    """How texts become rows; ``learn`` fixes frequencies, scales and topics."""

    def __init__(self, state: State) -> None:
        self._idf: Floats = state["idf"]
        self._mean: Floats = state["mean"]
        self._std: Floats = state["std"]
        self._topics: NDArray[np.float16] = state["topics"]

    def state_dict(self) -> State:
        return {"idf": self._idf, "mean": self._mean, "std": self._std, "topics": self._topics}

    @classmethod
    def learn(cls, texts: Texts) -> tuple[QueryRows, Rows]:
        """What is learnt from the texts, no labels, and the rows of the texts themselves."""
        from sklearn.decomposition import TruncatedSVD

        counts = _counts(texts)
        frequency = np.bincount(counts.indices, minlength=2 * BUCKETS)
        idf = (np.log((1 + len(texts)) / (1 + frequency)) + 1).astype(np.float32)
        shape = _shapes(texts)
        grams = _weighed(counts, idf)
        topics = TruncatedSVD(min(N_TOPICS, len(texts) - 1), random_state=0).fit(grams)
        axes = np.zeros((2 * BUCKETS, N_TOPICS), np.float16)
        axes[:, : len(topics.components_)] = topics.components_.T
        rows = cls({"idf": idf, "mean": shape.mean(0), "std": shape.std(0), "topics": axes})
        return rows, rows._rows(counts, shape)

    def rows(self, texts: Texts) -> Rows:
        return self._rows(_counts(texts), _shapes(texts))

    def _rows(self, counts: Any, shape: Floats) -> Rows:
        grams = _weighed(counts, self._idf)
        scaled = np.clip((shape - self._mean) / (self._std + 1e-6), -_CLIP, _CLIP)
        return Rows(grams, scaled.astype(np.float32), _project(grams, self._topics))


def _project(grams: Any, axes: NDArray[np.float16]) -> Floats:
    """grams @ axes; of a few rows without a copy of all axes in single precision."""
    if grams.shape[0] > 64:
        return np.asarray(grams @ axes.astype(np.float32))
    parts = np.split(np.arange(grams.nnz), grams.indptr[1:-1])
    return np.stack(
        [grams.data[part] @ axes[grams.indices[part]].astype(np.float32) for part in parts]
    )


def _counts(texts: Texts) -> Any:
    """CSR (P, 2 * BUCKETS) of how often each n-gram stands in each text."""
    from scipy.sparse import csr_matrix

    found = [np.unique(_buckets(text), return_counts=True) for text in texts]
    indptr = np.concatenate([[0], np.cumsum([len(buckets) for buckets, _ in found])])
    indices = np.concatenate([buckets for buckets, _ in found]).astype(np.int32)
    data = np.concatenate([counts for _, counts in found]).astype(np.float32)
    return csr_matrix((data, indices, indptr.astype(np.int32)), shape=(len(texts), 2 * BUCKETS))


def _buckets(text: str) -> NDArray[np.int64]:
    """Of the 1- and 2-grams of words, then of the 3- to 5-grams of characters."""
    text = text[:MAX_CHARS].lower()
    codes = [crc32(token.encode("utf-8", "surrogatepass")) for token in _TOKEN.findall(text)]
    characters = np.frombuffer(text.encode("utf-32-le", "surrogatepass"), np.uint32)
    words = _grams(np.array(codes, np.uint64), (1, 2))
    return np.concatenate([words, _grams(characters.astype(np.uint64), CHAR_LENGTHS) + BUCKETS])


def _grams(codes: NDArray[np.uint64], lengths: Sequence[int]) -> NDArray[np.int64]:
    rolling = codes
    kept = []
    for n in range(1, max(lengths) + 1):
        if n > 1:
            rolling = rolling[:-1] * _PRIME + codes[n - 1 :]
        if n in lengths:
            kept.append(mix(rolling + np.uint64(n)) >> np.uint64(40))
        if len(rolling) < 2:
            break
    joined = np.concatenate(kept) if kept else np.empty(0, np.uint64)
    return (joined & np.uint64(BUCKETS - 1)).astype(np.int64)


def _weighed(counts: Any, idf: Floats) -> Any:
    """(1 + log count) * idf, words and characters of a row each scaled to norm 1."""
    from scipy.sparse import csr_matrix

    data = (1 + np.log(counts.data)) * idf[counts.indices]
    row = np.repeat(np.arange(counts.shape[0]), np.diff(counts.indptr))
    part = 2 * row + (counts.indices >= BUCKETS)
    norm = np.sqrt(np.bincount(part, data.astype(np.float64) ** 2, 2 * counts.shape[0]))
    data = (data / norm[part]).astype(np.float32)
    return csr_matrix((data, counts.indices, counts.indptr), shape=counts.shape)


def _shapes(texts: Texts) -> Floats:
    return np.array([query_shape(text[:MAX_CHARS]) for text in texts], np.float32)
