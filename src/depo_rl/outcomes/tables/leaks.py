"""Which columns of a data set tell the outcome that is to be predicted: never features of an
estimator.

A column tells it if its values are one function of the outcome (the pass rate p itself, 1 - p,
either in per cent, the number right, the number wrong), or if they differ between visits of one
prompt, for then they belong to the visit and not to the prompt. A column hidden by chance costs a
feature; one that leaks would make every figure worthless.
"""

from __future__ import annotations

import math
from collections.abc import Iterable, Mapping, Sequence
from typing import Any, NamedTuple

from ...types import finite

_TOLERANCE = 1e-4  # of rates, which may have been written in few digits


class Told(NamedTuple):
    """What one row knows: a prompt's columns, and its outcome: rate in [0, 1], of n completions (0:
    unknown)."""

    key: str
    fields: Mapping[str, Any]
    rate: float
    n: float


def telling_columns(rows: Sequence[Told]) -> tuple[str, ...]:
    """Columns that tell the outcome or belong to the visit, in the order of the rows."""
    names = dict.fromkeys(name for row in rows for name in row.fields)
    return tuple(name for name in names if _of_the_visit(name, rows) or _of_the_outcome(name, rows))


def _of_the_visit(name: str, rows: Iterable[Told]) -> bool:
    first: dict[str, str] = {}
    return any(
        first.setdefault(row.key, shown) != shown
        for row in rows
        for shown in [repr(row.fields.get(name))]
    )


def _of_the_outcome(name: str, rows: Iterable[Told]) -> bool:
    """Whether one and the same function of the outcome gives all values that are there."""
    known = [
        (finite(row.fields.get(name)), row) for row in rows if row.fields.get(name) is not None
    ]
    if any(value is None for value, _ in known):
        return False
    pairs = [(value, _functions(row)) for value, row in known if value is not None]
    return bool(pairs) and any(
        all(
            abs(value - functions[i]) <= _TOLERANCE * max(1.0, abs(value))
            for value, functions in pairs
        )
        for i in range(len(pairs[0][1]))
    )


def _functions(row: Told) -> tuple[float, ...]:
    p, n = row.rate, row.n or math.nan  # NaN equals nothing
    return (p, 1 - p, 100 * p, 100 * (1 - p), n * p, n * (1 - p))
