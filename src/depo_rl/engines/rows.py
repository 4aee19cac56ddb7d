"""From rows of a data set to prompts: what the adapters of TRL and verl share."""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterable

SCALAR = (str, int, float, bool)
"""Types of a column that a prompt's ``fields`` keep."""


def occurrence_keys(keys: Iterable[str]) -> list[str]:
    """The keys in order, all different: the second occurrence of one is marked ``#2``, the third ``#3``, ..."""
    seen: Counter[str] = Counter()
    marked = []
    for key in keys:
        seen[key] += 1
        marked.append(key if seen[key] == 1 else f"{key}#{seen[key]}")
    return marked
