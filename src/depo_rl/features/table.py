"""The features of a whole pool, built once and kept compact: sparse n-grams, and blocks of dense
numbers beside them.

Axes: ``_P`` prompts asked for, ``_D`` features, ``_K`` heads of a linear model.
"""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from typing import Any

import numpy as np
from numpy.typing import NDArray

from ..config import FeatureSettings
from ..errors import UnknownPrompt
from ..types import FloatArray, Prompt
from .blocks import FeatureBlock, Floats, in_chunks
from .columns import column_block
from .experimental.encoder import embedding_block
from .ngrams import HashedNgrams
from .random_features import RandomFeatures
from .shape import shape_block


def make_blocks(prompts: Sequence[Prompt], settings: FeatureSettings) -> list[FeatureBlock]:
    """The dense blocks, in the order of a row. Raises ConfigError for a column or an encoder that
    cannot be used."""
    shape = shape_block(prompts, settings.answer_field)
    columns = column_block(prompts, settings)
    numeric = in_chunks(prompts, columns.columns.numeric)
    return [
        shape,
        columns,
        RandomFeatures((shape.values, numeric), settings.n_random, settings.gamma),
        embedding_block(prompts, settings.encoder),
    ]


class FeatureRows:
    """Rows of a table: a sparse part (P, n_buckets) CSR and a dense part (P, rest), float32, side
    by side."""

    def __init__(self, sparse: Any, dense: Floats) -> None:
        self.sparse = sparse
        self.dense = dense

    def __len__(self) -> int:
        return len(self.dense)

    @property
    def width(self) -> int:
        return int(self.sparse.shape[1] + self.dense.shape[1])

    def beside(self, raw_PD: NDArray[Any], scale: float | FloatArray) -> FeatureRows:
        """These rows and more dense columns, which are not scaled yet."""
        return FeatureRows(self.sparse, np.hstack([self.dense, _scaled(raw_PD, scale)]))

    def dot(self, weights_DK: NDArray[Any]) -> NDArray[Any]:
        """X @ weights: (D, K) -> (P, K), or (D,) -> (P,)."""
        split = self.sparse.shape[1]
        return np.asarray(self.sparse @ weights_DK[:split] + self.dense @ weights_DK[split:])

    def t_dot(self, slopes_PK: NDArray[Any]) -> NDArray[Any]:
        """X.T @ slopes: (P, K) -> (D, K), or (P,) -> (D,)."""
        return np.concatenate([self.sparse.T @ slopes_PK, self.dense.T @ slopes_PK])


class FeatureTable:
    """Features of every prompt of a pool. Raises ConfigError as ``make_blocks``."""

    def __init__(self, prompts: Sequence[Prompt], settings: FeatureSettings | None = None) -> None:
        settings = settings or FeatureSettings.model_validate({})
        self._position = {prompt.key: i for i, prompt in enumerate(prompts)}
        self.blocks = make_blocks(prompts, settings)
        self._ngrams = HashedNgrams(prompts, settings.n_buckets, settings.answer_field)

    def __len__(self) -> int:
        return len(self._ngrams)

    @property
    def width(self) -> int:
        return self._ngrams.width + sum(block.width for block in self.blocks)

    @property
    def nbytes(self) -> int:
        """Bytes of the arrays; the index of the keys comes on top."""
        return self._ngrams.nbytes + sum(block.nbytes for block in self.blocks)

    @property
    def origin(self) -> dict[str, str | None]:
        """What the blocks' meaning comes from, by name."""
        return {name: value for block in self.blocks for name, value in block.origin.items()}

    def start(self, slope: float) -> FloatArray:
        """Weights of a row, shape (width,), of a linear model of published pass rates alone."""
        dense = [block.start(slope) / block.scale for block in self.blocks]
        return np.concatenate([np.zeros(self._ngrams.width), *dense])

    def index_of(self, keys: Iterable[str]) -> NDArray[np.int64]:
        """Positions of prompts in the table, for ``rows``. Raises UnknownPrompt for a key that is
        not in the pool."""
        try:
            return np.array([self._position[key] for key in keys], np.int64)
        except KeyError as error:
            raise UnknownPrompt(
                f"prompt {error.args[0]!r} is not in the feature table of {len(self)}"
            ) from None

    def rows(self, index_P: NDArray[Any]) -> FeatureRows:
        """Features of the prompts at ``index_P`` (P,), each in 0..len-1, repeats allowed."""
        index_P = np.asarray(index_P, np.int64)
        dense = [_scaled(block.rows(index_P), block.scale) for block in self.blocks]
        return FeatureRows(self._ngrams.rows(index_P), np.hstack(dense))


def _scaled(raw_PD: NDArray[Any], scale: float | FloatArray) -> Floats:
    result: Floats = raw_PD.astype(np.float32, copy=False) * np.asarray(scale, np.float32)
    return result
