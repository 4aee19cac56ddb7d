"""Published pass rates of other models, as columns of the data set: how one is read, and pools that
need them."""

from __future__ import annotations

import math
import re
from collections.abc import Callable, Sequence
from typing import NamedTuple

from .config import CurriculumConfig, OracleSettings
from .errors import DataError
from .rivals_config import BOTSSettings
from .types import Prompt, as_rate

_PARTS = re.compile(r"([0-9]{1,9})\s*/\s*([0-9]{1,9})")
_NUMBER = re.compile(r"([0-9]+(?:\.[0-9]*)?|\.[0-9]+)(?:[eE]([+-]?[0-9]{1,3}))?\s*(%?)")


class Label(NamedTuple):
    """rate: in [0, 1]. k: samples behind it, where the label itself says so."""

    rate: float
    k: float | None = None


def read_label(value: object) -> Label | None:
    """A pass rate as data sets write it: a number in [0, 1], or as text ``0.375``, ``37.5%`` or
    ``3/8`` (3 right of 8 samples). None for anything else."""
    if not isinstance(value, str):
        rate = as_rate(value)
        return None if rate is None else Label(rate)
    text = value.strip()
    if parts := _PARTS.fullmatch(text):
        right = int(parts[1])
        k = int(parts[2])
        return Label(right / k, k) if 0 < k >= right else None
    if number := _NUMBER.fullmatch(text):
        rate = as_rate(float(text.rstrip("% ")) / (100 if number[3] else 1))
        return None if rate is None else Label(rate)
    return None


def label_rate(value: object) -> float | None:
    """The pass rate in [0, 1] that a label says; None if it says none."""
    label = read_label(value)
    return None if label is None else label.rate


def is_missing(value: object) -> bool:
    """Whether there is no label: null, NaN or a blank text."""
    blank = isinstance(value, str) and not value.strip()
    return value is None or blank or (isinstance(value, float) and math.isnan(value))


def _rates(method: str, setting: str, column: str, prompts: Sequence[Prompt]) -> list[float | None]:
    """Each prompt's label, None where it has none. Raises DataError if no prompt has one: a wrong
    column."""
    rates = [label_rate(p.fields.get(column)) for p in prompts]
    if prompts and all(rate is None for rate in rates):
        raise DataError(
            f"method {method!r} chooses by column {column!r}, which holds a pass rate in [0, 1] for none of the "
            f"{len(prompts)} prompts; columns there: {', '.join(sorted(prompts[0].fields)) or 'none'}: name the right "
            f"one with {setting}"
        )
    return rates


def keep_the_middle(prompts: Sequence[Prompt], config: CurriculumConfig) -> Sequence[Prompt]:
    """Prompts whose offline pass rate lies in ``keep``; one without a label is kept: unknown is not
    hard."""
    low, high = config.keep
    rates = _rates("polaris", "pass_rate_field", config.pass_rate_field, prompts)
    kept = [
        p for p, rate in zip(prompts, rates, strict=True) if rate is None or low <= rate <= high
    ]
    if not kept:
        raise DataError(
            f"method 'polaris': no prompt's {config.pass_rate_field} lies in keep = [{low}, {high}]"
        )
    return kept


def need_labels(method: str) -> Callable[[Sequence[Prompt], CurriculumConfig], Sequence[Prompt]]:
    """All prompts, once it is sure that the columns that the method's estimator reads hold
    something."""

    def check(prompts: Sequence[Prompt], config: CurriculumConfig) -> Sequence[Prompt]:
        settings = config.estimator
        if isinstance(settings, OracleSettings):
            _rates(method, "estimator.field", settings.field, prompts)
        if (
            isinstance(settings, BOTSSettings)
            and settings.weak is not None
            and settings.strong is not None
        ):
            _rates(method, "estimator.weak", settings.weak, prompts)
            _rates(method, "estimator.strong", settings.strong, prompts)
        return prompts

    return check
