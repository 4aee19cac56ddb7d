"""From rows of a data set to prompts: what the adapters of TRL and verl share."""

from __future__ import annotations

import hashlib
import json
from collections import Counter, defaultdict
from collections.abc import Callable, Iterable, Mapping, Sequence
from typing import Any

SCALAR = (str, int, float, bool)
"""Types of a column that a prompt's ``fields`` keep."""


def occurrence_keys(keys: Iterable[str]) -> list[str]:
    """The keys in order, all different: the second occurrence of one is marked ``#2``, the third
    ``#3``, ..."""
    seen: Counter[str] = Counter()
    marked = []
    for key in keys:
        seen[key] += 1
        marked.append(key if seen[key] == 1 else f"{key}#{seen[key]}")
    return marked


def source_of(row: Mapping[str, Any], column: str) -> str:
    """A row's source as text; "default" where the column is missing, None or an empty text. 0 and
    False are sources."""
    source = row.get(column)
    return "default" if source is None or source == "" else str(source)


def content_hash(row: Mapping[str, Any]) -> str:
    """8 hex digits of all that a row holds but its place in the file, ``index`` there and in
    ``extra_info``."""
    own = {name: value for name, value in row.items() if name != "index"}
    extra = own.get("extra_info")
    if isinstance(extra, Mapping):
        own["extra_info"] = {name: value for name, value in extra.items() if name != "index"}
    text = json.dumps(own, sort_keys=True, default=_plain)
    return hashlib.blake2b(text.encode("utf-8", "surrogatepass"), digest_size=4).hexdigest()


def keys_by_content(keys: Sequence[str], content_of: Callable[[int], str]) -> list[str]:
    """The keys in order, where rows of one key that differ in content get ``{key}-{content}``, all
    others their own.

    content_of: hash of row i, asked of rows that share a key only.
    """
    rows_of: dict[str, list[int]] = defaultdict(list)
    for i, key in enumerate(keys):
        rows_of[key].append(i)
    told = list(keys)
    for key, rows in rows_of.items():
        contents = [content_of(i) for i in rows] if len(rows) > 1 else []
        if len(set(contents)) > 1:
            for i, content in zip(rows, contents, strict=True):
                told[i] = f"{key}-{content}"
    return told


def _plain(value: Any) -> Any:
    """For JSON: arrays as lists, bytes and pixels by their hash, all else as its text."""
    if isinstance(value, bytes):
        return hashlib.blake2b(value, digest_size=16).hexdigest()
    if hasattr(value, "mode") and hasattr(value, "tobytes"):  # an image of PIL
        return [value.mode, *value.size, _plain(value.tobytes())]
    text = str(value)
    named = type(value).__name__ if " at 0x" in text else text  # an address differs in every run
    return value.tolist() if hasattr(value, "tolist") else named
