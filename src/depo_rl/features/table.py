"""The features of a whole pool, built once and kept compact: hashed n-grams, dense numbers, columns, random features
and, if asked for, a frozen encoder's embeddings.

Axes: ``_P`` prompts asked for, ``_D`` features, ``_K`` heads of a linear model.
"""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from typing import Any

import numpy as np
from numpy.typing import NDArray

from ..config import FeatureSettings
from ..errors import UnknownPrompt
from ..types import Prompt
from .columns import ColumnFeatures
from .shape import NAMES, shape_features
from .text import N_VIEWS, HashedTexts, answer_text, hash_texts

Floats = NDArray[np.float32]
VIEW_WEIGHTS = np.array([1.0, 0.5, 0.7], np.float32)  # norm of a row's words, shapes, answer
DENSE_SCALE, COLUMN_SCALE = 0.1, 0.5
ENCODER_SCALE = 0.5  # norm of a row's embedding, where its words have 1: at 1 it drowned them, in what was measured
IDF_PROMPTS = 100_000  # the first ones of the pool, from which document frequencies are counted
_CHUNK = 2048
_CLIP = 3.0


class FeatureRows:
    """Rows of a table: a sparse part (P, n_buckets) CSR and a dense part (P, rest), float32, side by side."""

    def __init__(self, sparse: Any, dense: Floats) -> None:
        self.sparse, self.dense = sparse, dense

    def __len__(self) -> int:
        return len(self.dense)

    @property
    def width(self) -> int:
        return int(self.sparse.shape[1]) + self.dense.shape[1]

    def dot(self, weights_D_K: NDArray[Any]) -> NDArray[Any]:
        """X @ weights: (D, K) -> (P, K), or (D,) -> (P,)."""
        split = self.sparse.shape[1]
        return np.asarray(self.sparse @ weights_D_K[:split] + self.dense @ weights_D_K[split:])

    def t_dot(self, slopes_P_K: NDArray[Any]) -> NDArray[Any]:
        """X.T @ slopes: (P, K) -> (D, K), or (P,) -> (D,)."""
        return np.concatenate([self.sparse.T @ slopes_P_K, self.dense.T @ slopes_P_K])


class FeatureTable:
    """Features of every prompt of a pool. encoder: what the embeddings are of, None without.

    Raises ConfigError for a column that cannot be used (``ColumnFeatures``) or an encoder (``experimental.encoder``).
    """

    def __init__(self, prompts: Sequence[Prompt], settings: FeatureSettings | None = None) -> None:
        self.settings = settings or FeatureSettings.model_validate({})
        self._position = {prompt.key: i for i, prompt in enumerate(prompts)}
        # the answer has its own view; as a number it would be read twice
        exclude = set(self.settings.exclude)
        if self.settings.columns == "auto":
            exclude.add(self.settings.answer_field)
        self.columns = ColumnFeatures.fit(prompts, self.settings.columns, exclude)
        self._build(prompts)
        self.encoder, self._embedded = self._embed(prompts)
        n_inputs = self._dense.shape[1] + self._numeric.shape[1]
        rng = np.random.default_rng(20240229)  # fixed: the same features in every run
        self._frequency = (rng.standard_normal((n_inputs, self.settings.n_random)) * self.settings.gamma).astype("f4")
        self._phase = rng.uniform(0, 2 * np.pi, self.settings.n_random).astype(np.float32)

    def __len__(self) -> int:
        return len(self._indptr) - 1

    @property
    def width(self) -> int:
        blocks = self._dense.shape[1] + self._columns.shape[1]
        return self.settings.n_buckets + blocks + self.settings.n_random + self._embedded.shape[1]

    def start(self, slope: float) -> NDArray[np.float64]:
        """Weights, shape (width,), of a linear model of published pass rates alone (``ColumnFeatures.start``)."""
        before, after = self.settings.n_buckets + self._dense.shape[1], self.settings.n_random
        after += self._embedded.shape[1]
        return np.concatenate([np.zeros(before), self.columns.start(slope) / COLUMN_SCALE, np.zeros(after)])

    @property
    def nbytes(self) -> int:
        """Bytes of the arrays; the index of the keys comes on top."""
        stored = (self._indptr, self._buckets, self._values, self._dense, self._numeric, self._columns, self._embedded)
        return sum(array.nbytes for array in stored)

    def index_of(self, keys: Iterable[str]) -> NDArray[np.int64]:
        """Positions of prompts in the table, for ``rows``. Raises UnknownPrompt for a key that is not in the pool."""
        try:
            return np.array([self._position[key] for key in keys], np.int64)
        except KeyError as error:
            raise UnknownPrompt(f"prompt {error.args[0]!r} is not in the feature table of {len(self)}") from None

    def rows(self, index_P: NDArray[Any]) -> FeatureRows:
        """Features of the prompts at ``index_P`` (P,), each in 0..len-1, repeats allowed."""
        from scipy.sparse import csr_matrix

        index_P = np.asarray(index_P, np.int64)
        begin_P = self._indptr[index_P]
        length_P = self._indptr[index_P + 1] - begin_P
        indptr = np.concatenate([[0], np.cumsum(length_P)])
        take = np.repeat(begin_P - indptr[:-1], length_P) + np.arange(indptr[-1])
        data, indices = self._values[take].astype(np.float32), self._buckets[take].astype(np.int32)
        shape = (len(index_P), self.settings.n_buckets)
        return FeatureRows(csr_matrix((data, indices, indptr.astype(np.int32)), shape=shape), self._dense_rows(index_P))

    def _dense_rows(self, index_P: NDArray[np.int64]) -> Floats:
        dense = self._dense[index_P].astype(np.float32)
        parts = [dense * np.float32(DENSE_SCALE), self._columns[index_P].astype(np.float32) * np.float32(COLUMN_SCALE)]
        if self.settings.n_random:
            angle = np.hstack([dense, self._numeric[index_P].astype(np.float32)]) @ self._frequency + self._phase
            parts.append(np.cos(angle) * np.float32((2.0 / self.settings.n_random) ** 0.5))
        if self.encoder is not None:
            parts.append(self._embedded[index_P].astype(np.float32) * np.float32(ENCODER_SCALE))
        return np.hstack(parts)

    def _embed(self, prompts: Sequence[Prompt]) -> tuple[str | None, NDArray[np.float16]]:
        """The encoder in words and the block of its features, (P, its dimensions)."""
        if self.settings.encoder is None:
            return None, np.zeros((len(prompts), 0), np.float16)
        from .experimental.encoder import encoder_features

        return encoder_features([prompt.text for prompt in prompts], self.settings.encoder)

    def _build(self, prompts: Sequence[Prompt]) -> None:
        waiting: list[HashedTexts] = []  # until the document frequencies are known
        lengths, buckets, values, dense, columns, numeric = [], [], [], [], [], []
        n, df = min(len(prompts), IDF_PROMPTS), np.zeros(self.settings.n_buckets, np.int64)
        idf: Floats | None = None
        for start in range(0, max(len(prompts), 1), _CHUNK):
            chunk = prompts[start : start + _CHUNK]
            texts = [prompt.text for prompt in chunk]
            answers = [answer_text(prompt.fields.get(self.settings.answer_field)) for prompt in chunk]
            hashed = hash_texts(texts, self.settings.n_buckets, answers, _CHUNK)
            dense.append(shape_features(texts, answers).astype(np.float16))
            columns.append(self.columns.transform(chunk).astype(np.float16))
            numeric.append(self.columns.numeric(chunk).astype(np.float16))
            lengths.append(np.diff(hashed.indptr))
            buckets.append(hashed.buckets)
            if idf is not None:
                values.append(_weights(hashed, idf))
                continue
            waiting.append(hashed)
            df += np.bincount(hashed.buckets[: hashed.indptr[min(n - start, len(chunk))]], minlength=len(df))
            if start + _CHUNK >= n:
                # two views may share a bucket, which then counts twice in a prompt
                idf = (np.log((1 + n) / (1 + np.minimum(df, n))) + 1).astype(np.float32)
                values, waiting = [_weights(one, idf) for one in waiting], []
        self._indptr = np.concatenate([[0], np.cumsum(np.concatenate(lengths))]).astype(np.int64)
        self._buckets, self._values = np.concatenate(buckets), np.concatenate(values)
        self._dense = _standardised(np.concatenate(dense))
        self._columns, self._numeric = np.concatenate(columns), np.concatenate(numeric)


def _weights(hashed: HashedTexts, idf: Floats) -> NDArray[np.float16]:
    """(1 + log count) * idf, each view's part of a row scaled to its own norm."""
    value = (1 + np.log(hashed.counts.astype(np.float32))) * idf[hashed.buckets]
    n_rows = len(hashed.indptr) - 1
    group = np.repeat(np.arange(n_rows), np.diff(hashed.indptr)) * N_VIEWS + hashed.view
    norm = np.sqrt(np.bincount(group, value.astype(np.float64) ** 2, n_rows * N_VIEWS)).astype(np.float32)
    return (value * VIEW_WEIGHTS[hashed.view] / norm[group]).astype(np.float16)


def _standardised(raw: NDArray[np.float16]) -> NDArray[np.float16]:
    """Columns of mean 0 and deviation 1 over the pool, clipped; a constant one is 0. In place: the block is large."""
    for column in range(len(NAMES) if len(raw) else 0):
        value = raw[:, column].astype(np.float64)
        std = float(value.std())
        centred = value - value.mean()
        raw[:, column] = np.clip(centred / std, -_CLIP, _CLIP) if std > 1e-6 else 0.0
    return raw
