"""From rows of a data set to prompts: what the adapters of TRL and verl share."""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterable
from typing import Any

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


def chat_text(messages: Iterable[Any]) -> str:
    """A conversation as one string, turn by turn; of typed content blocks the text, images have none."""
    return "\n".join(_content(message.get("content")) for message in messages)


def _content(content: Any) -> str:
    if isinstance(content, list):
        return " ".join(str(block.get("text") or "") for block in content)
    return str(content or "")
