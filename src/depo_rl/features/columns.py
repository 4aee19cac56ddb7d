"""Columns of the data set as features: levels, types, sources, published pass rates."""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from numbers import Real
from typing import Any, Literal

import numpy as np
from numpy.typing import NDArray

from ..config import FeatureSettings
from ..errors import ConfigError
from ..types import FloatArray, Prompt
from ..validation import nearest
from .blocks import StoredBlock, in_chunks

SCALE = 0.5
MAX_LEVELS = 64
MIN_REPEATS = 20  # of a level, on average: below that a string column is free text or a name
MAX_KNOTS = 9
_TURNED_ROUND = (
    "difficult",
    "hard",
    "fail",
    "error",
    "wrong",
)  # in the name of a column that falls as pass rates rise
Block = NDArray[np.float32]


@dataclass(frozen=True)
class NumericColumn:
    """[standardised, hat basis, logit if a rate, missing]; knots: (K,) increasing, K >= 2 or none
    if constant."""

    name: str
    mean: float
    std: float
    knots: NDArray[np.float64]
    is_rate: bool

    @property
    def width(self) -> int:
        return 2 + len(self.knots) + self.is_rate

    def start(self, slope: float) -> NDArray[np.float64]:
        """Weights of the block: ``slope`` for the logit of a published rate; 0 for what is no rate,
        or only 0 and 1."""
        weights = np.zeros(self.width)
        if self.is_rate and len(self.knots) > 2:
            weights[1 + len(self.knots)] = (
                -slope if any(w in self.name.lower() for w in _TURNED_ROUND) else slope
            )
        return weights

    def standardised(self, value_P: NDArray[np.float64]) -> NDArray[np.float64]:
        """Shape (P,), within +-3; 0 where not finite."""
        return np.where(np.isfinite(value_P), np.clip((value_P - self.mean) / self.std, -3, 3), 0.0)

    def transform(self, value_P: NDArray[np.float64]) -> Block:
        known_P = np.isfinite(value_P)
        safe_P = np.where(known_P, value_P, self.mean)
        parts = [self.standardised(value_P)]
        for unit in np.eye(len(self.knots)):
            parts.append(np.interp(safe_P, self.knots, unit))
        if self.is_rate:
            rate_P = np.clip(safe_P, 0.01, 0.99)
            parts.append(np.log(rate_P / (1 - rate_P)))
        block = np.column_stack(parts) * known_P[:, None]
        return np.column_stack([block, ~known_P]).astype(np.float32)


@dataclass(frozen=True)
class CategoricalColumn:
    """One-hot of ``levels``, then missing; a value never seen in fit is all zeros."""

    name: str
    levels: tuple[str, ...]

    @property
    def width(self) -> int:
        return len(self.levels) + 1

    def start(self, slope: float) -> NDArray[np.float64]:
        """Nothing is known beforehand."""
        return np.zeros(self.width)

    def transform(self, values: Sequence[Any]) -> Block:
        place = {level: i for i, level in enumerate(self.levels)}
        block = np.zeros((len(values), self.width), np.float32)
        for row, value in enumerate(values):
            column = len(self.levels) if _absent(value) else place.get(str(value))
            if column is not None:
                block[row, column] = 1.0
        return block


@dataclass(frozen=True)
class ColumnFeatures:
    """What ``fit`` found; ``transform`` gives (P, width) float32, ``numeric`` (P, number of numeric
    columns)."""

    columns: tuple[NumericColumn | CategoricalColumn, ...]

    @property
    def width(self) -> int:
        return sum(column.width for column in self.columns)

    @property
    def names(self) -> tuple[str, ...]:
        return tuple(column.name for column in self.columns)

    @classmethod
    def fit(
        cls,
        prompts: Sequence[Prompt],
        columns: Literal["auto"] | Sequence[str] = "auto",
        exclude: Iterable[str] = (),
    ) -> ColumnFeatures:
        """Chooses ("auto") or takes the named columns, never those in ``exclude``.

        Raises ConfigError if a named column is in no prompt, holds no usable value or is excluded
        too.
        """
        known = {name: None for prompt in prompts for name in prompt.fields}
        excluded = set(exclude)
        if columns == "auto":
            found = [_fit(prompts, name) for name in sorted(known) if name not in excluded]
            return cls(tuple(column for column in found if column is not None))
        fitted = []
        for name in dict.fromkeys(columns):
            if name in excluded:
                raise ConfigError(
                    f"column {name!r} is both named and excluded: take it out of one list"
                )
            if name not in known:
                hint = nearest(name, known) if known else " The prompts have no columns."
                raise ConfigError(
                    f"column {name!r} is in none of the {len(prompts)} prompts.{hint}"
                )
            column = _fit(prompts, name, named=True)
            if column is None:
                others = [other for other in known if other != name]
                hint = nearest(name, others) if others else ""
                raise ConfigError(
                    f"column {name!r} holds no number or text that could be a feature.{hint}"
                )
            fitted.append(column)
        return cls(tuple(fitted))

    def start(self, slope: float) -> NDArray[np.float64]:
        """Weights, shape (width,), of the mean of slope * logit(rate) over the columns that hold
        published pass rates.

        How other models did is the best guess at how this one will, before anything was learnt.
        """
        weights = [column.start(slope) for column in self.columns]
        n_rates = sum(bool(own.any()) for own in weights)
        return np.concatenate([np.zeros(0), *weights]) / max(n_rates, 1)

    def transform(self, prompts: Sequence[Prompt]) -> Block:
        blocks = [
            column.transform(numbers(values))
            if isinstance(column, NumericColumn)
            else column.transform(values)
            for column in self.columns
            for values in [[prompt.fields.get(column.name) for prompt in prompts]]
        ]
        return np.hstack([np.zeros((len(prompts), 0), np.float32), *blocks])

    def numeric(self, prompts: Sequence[Prompt]) -> Block:
        """The standardised numeric columns alone, within +-3."""
        found = [column for column in self.columns if isinstance(column, NumericColumn)]
        block = [
            c.standardised(numbers([prompt.fields.get(c.name) for prompt in prompts]))
            for c in found
        ]
        return np.array(block, np.float32).reshape(len(found), len(prompts)).T


@dataclass(frozen=True, kw_only=True)
class ColumnBlock(StoredBlock):
    """Their rows; what the columns of published pass rates say is believed from the start."""

    columns: ColumnFeatures

    def start(self, slope: float) -> FloatArray:
        return self.columns.start(slope)


def column_block(prompts: Sequence[Prompt], settings: FeatureSettings) -> ColumnBlock:
    """Raises ConfigError as ``ColumnFeatures.fit``."""
    exclude = set(settings.exclude)
    if (
        settings.columns == "auto"
    ):  # the answer has features of its own; as a number it would be read twice
        exclude.add(settings.answer_field)
    columns = ColumnFeatures.fit(prompts, settings.columns, exclude)
    return ColumnBlock(in_chunks(prompts, columns.transform), SCALE, columns=columns)


def numbers(values: Sequence[Any]) -> NDArray[np.float64]:
    """Shape (P,); NaN where a value is no number."""
    return np.fromiter((_number(value) for value in values), float, len(values))


def _number(value: Any) -> float:
    if not isinstance(value, (Real, np.bool_)):
        return float("nan")
    try:
        return float(value)
    except OverflowError:  # an int beyond a float
        return float("nan")


def _absent(value: Any) -> bool:
    return value is None or value == "" or (isinstance(value, float) and value != value)


def _fit(
    prompts: Sequence[Prompt], name: str, named: bool = False
) -> NumericColumn | CategoricalColumn | None:
    """The column, or None if it cannot be a feature. named: the user asked for it, so repeats are
    not required."""
    values = [value for prompt in prompts if not _absent(value := prompt.fields.get(name))]
    if values and all(isinstance(value, (Real, np.bool_)) for value in values):
        value_P = numbers(values)
        return _fit_numeric(name, value_P[np.isfinite(value_P)])
    counts = Counter(value for value in values if isinstance(value, str))
    if not counts or (not named and (len(counts) < 2 or len(values) < MIN_REPEATS * len(counts))):
        return None
    if len(counts) > MAX_LEVELS and not named:
        return None
    common = sorted(counts, key=lambda level: (-counts[level], level))[:MAX_LEVELS]
    return CategoricalColumn(name, tuple(sorted(common)))


def _fit_numeric(name: str, value_P: NDArray[np.float64]) -> NumericColumn | None:
    if not len(value_P) or value_P.min() == value_P.max():
        return None
    with np.errstate(over="ignore", invalid="ignore"):
        mean = float(value_P.mean())
        std = float(value_P.std())
    if not (np.isfinite(mean) and np.isfinite(std) and std > 0):
        return None
    knots = np.unique(np.quantile(value_P, np.linspace(0, 1, MAX_KNOTS)))
    return NumericColumn(name, mean, std, knots, bool(value_P.min() >= 0 and value_P.max() <= 1))
