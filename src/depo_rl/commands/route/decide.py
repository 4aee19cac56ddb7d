"""``depo route decide``: decisions for many queries, a JSON line each."""

from __future__ import annotations

import json
from collections.abc import Iterable, Iterator
from dataclasses import asdict
from itertools import islice
from pathlib import Path
from typing import Any

from ...errors import DataError
from ...files import plain
from ...routing import Router

_AT_ONCE = 64  # lines


def decide_lines(folder: Path, lines: Iterable[bytes]) -> Iterator[str]:
    """A JSON text for each line that is not blank, in order; an ``id`` of the line comes back.

    Raises DataError naming the line for what is no query.
    """
    router = Router(folder)
    numbered = ((n, line) for n, line in enumerate(lines, start=1) if line.strip())
    while batch := list(islice(numbered, _AT_ONCE)):
        queries = [_query(n, line) for n, line in batch]
        for query in queries:
            decision = asdict(router.route(query["messages"]))
            own = {"id": query["id"]} if "id" in query else {}
            yield json.dumps(plain(own | decision), ensure_ascii=False)


def _query(number: int, line: bytes) -> dict[str, Any]:
    try:
        value = json.loads(line)
    except (ValueError, RecursionError) as error:
        raise DataError(f"line {number}: not JSON ({error})") from None
    if isinstance(value, dict) and isinstance(value.get("messages"), list):
        return value
    if isinstance(value, dict) and isinstance(value.get("prompt"), str):
        return value | {"messages": [{"role": "user", "content": value["prompt"]}]}
    raise DataError(f"line {number}: needs a text in prompt, or a list in messages")
