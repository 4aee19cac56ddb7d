"""Hashed n-grams of a prompt: words, characters and number shapes, with length; sparse, stateless, no download."""

from __future__ import annotations

import re
from collections import OrderedDict
from collections.abc import Iterator, Sequence
from typing import Any

import numpy as np

from ..types import Prompt

_TOKEN = re.compile(r"\d+|[^\W\d_]+|[^\w\s]|_")
_MAX_CHARS = 4096  # of a prompt that are read; the tail of a longer one changes little and costs much


class NgramFeatures:
    """``transform(prompts)`` gives a scipy CSR matrix of shape (P, n_features), rows of unit length, float32.

    Four views of the text share the buckets, each token with a prefix of its view: words 1-2, characters 3-5 within
    words, *shapes* 1-2 (digits written as 0, so that "123 + 456" and "789 + 12" are comparable by size), and the
    length in log2 buckets. The source is a feature too. Rows are cached, the least recently used dropped first.
    """

    def __init__(self, n_features: int, cache_prompts: int) -> None:
        from sklearn.feature_extraction import FeatureHasher

        self.n_features, self._cache_prompts = n_features, cache_prompts
        self._hasher = FeatureHasher(n_features=n_features, input_type="pair", dtype=np.float32)
        self._cache: OrderedDict[str, tuple[Any, Any]] = OrderedDict()

    def transform(self, prompts: Sequence[Prompt]) -> Any:
        from scipy.sparse import csr_matrix

        missing = [p for p in prompts if p.key not in self._cache]
        fresh = dict(zip([p.key for p in missing], self._rows(missing), strict=True))
        rows = []
        for prompt in prompts:
            row = fresh.get(prompt.key) or self._cache[prompt.key]
            self._cache[prompt.key] = row
            self._cache.move_to_end(prompt.key)
            rows.append(row)
        while len(self._cache) > self._cache_prompts:
            self._cache.popitem(last=False)
        indptr = np.cumsum([0] + [len(indices) for indices, _ in rows])
        indices = np.concatenate([i for i, _ in rows]) if rows else np.empty(0, np.int32)
        data = np.concatenate([d for _, d in rows]) if rows else np.empty(0, np.float32)
        return csr_matrix((data, indices, indptr), shape=(len(rows), self.n_features))

    def _rows(self, prompts: Sequence[Prompt]) -> list[tuple[Any, Any]]:
        if not prompts:
            return []
        matrix = self._hasher.transform(weighted_tokens(p) for p in prompts)
        return [
            (matrix.indices[a:b].copy(), matrix.data[a:b].copy())
            for a, b in zip(matrix.indptr[:-1], matrix.indptr[1:], strict=True)
        ]


def weighted_tokens(prompt: Prompt) -> list[tuple[str, float]]:
    """Every view's tokens; each view weighs the same however many tokens it has (rows: sum of squares about 1)."""
    text = _encodable(prompt.text[:_MAX_CHARS].lower())
    words = _TOKEN.findall(text)
    shapes = ["0" * len(w) if w.isdigit() else w for w in words if not w.isalpha()]
    views = [
        [f"s:{_encodable(prompt.source)}"],
        [f"l:{len(prompt.text).bit_length()}", f"L:{len(prompt.text)}" if len(prompt.text) < 32 else "L:long"],
        list(_ngrams("w", words, 1, 2)),
        list(_ngrams("n", shapes, 1, 3)),
        [f"c:{word[i : i + n]}" for word in words for n in (3, 4, 5) for i in range(max(len(word) - n + 1, 0))],
    ]
    filled = [list(dict.fromkeys(view)) for view in views if view]  # each token once, in an order that repeats
    return [(token, (1.0 / (len(filled) * len(view))) ** 0.5) for view in filled for token in view]


def _encodable(text: str) -> str:
    """Half a surrogate pair, as tokenisers cut them, becomes '?': the hasher takes valid Unicode only."""
    return text.encode("utf-8", "replace").decode("utf-8")


def _ngrams(prefix: str, tokens: Sequence[str], low: int, high: int) -> Iterator[str]:
    for n in range(low, high + 1):
        for i in range(len(tokens) - n + 1):
            yield f"{prefix}:" + " ".join(tokens[i : i + n])
