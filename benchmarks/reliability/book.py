"""What was tried and what held, one JSON line a case, and the table that ``docs/reliability.md``
holds."""

from __future__ import annotations

import json
from collections import Counter
from collections.abc import Callable, Iterable
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import NamedTuple

MARK = "<!-- bench_reliability.py -->"


class Result(NamedTuple):
    """Of ``tried``, how many were as they have to be; ``figure``: what was measured, in words."""

    tried: int
    held: int
    figure: str


class Case(NamedTuple):
    """One thing to do. ``what``: its line of the table, which several cases may share.

    run: does it in a folder of its own, which is empty and goes afterwards.
    """

    what: str
    name: str
    run: Callable[[Path], Result]


@dataclass(frozen=True)
class Row:
    part: str
    what: str
    case: str
    tried: int
    held: int
    figure: str
    seconds: float


class Book:
    """The rows of one file; a case that is in it is not done again."""

    def __init__(self, path: Path) -> None:
        self.path = path
        lines = path.read_text().splitlines() if path.exists() else []
        self.rows = [Row(**json.loads(line)) for line in lines]

    def has(self, part: str, case: Case) -> bool:
        return any(
            (row.part, row.what, row.case) == (part, case.what, case.name) for row in self.rows
        )

    def add(self, row: Row) -> None:
        self.rows.append(row)
        with open(self.path, "a") as file:
            file.write(json.dumps(asdict(row)) + "\n")

    def forget(self, part: str) -> None:
        """So that ``part`` is done again."""
        self.rows = [row for row in self.rows if row.part != part]
        text = "".join(json.dumps(asdict(row)) + "\n" for row in self.rows)
        self.path.write_text(text)


def put_into(page: Path, text: str) -> None:
    """Replaces what stands between the two ``MARK`` lines of ``page``."""
    before, _, after = page.read_text().split(MARK)
    page.write_text(f"{before}{MARK}\n{text}\n{MARK}{after}")


def table(rows: Iterable[Row], order: Iterable[str]) -> str:
    """Markdown: a line for each ``what``, parts in ``order``."""
    by_what: dict[str, list[Row]] = {}
    for row in sorted(rows, key=lambda row: list(order).index(row.part)):
        by_what.setdefault(row.what, []).append(row)
    head = ["| what was done | tried | held | figures |", "|---|---|---|---|"]
    return "\n".join(head + [_line(what, same) for what, same in by_what.items()])


def _line(what: str, rows: list[Row]) -> str:
    tried = sum(row.tried for row in rows)
    held = sum(row.held for row in rows)
    figures = Counter(row.figure for row in rows if row.figure)
    told = [f"{figure} ({n} times)" if n > 1 else figure for figure, n in figures.most_common()]
    return f"| {what} | {tried:,} | {held:,} | {'<br>'.join(told)} |"
