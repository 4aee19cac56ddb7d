"""What is done to the product on purpose, and what held: the table of docs/reliability.md.

    python benchmarks/bench_reliability.py                     # everything, some 40 minutes of two cores
    python benchmarks/bench_reliability.py --only checkpoints  # one part; several: checkpoints,inputs
    python benchmarks/bench_reliability.py --table --page docs/reliability.md  # what is there, put into the page

Cases are added to OUT/rows.jsonl as they end and are not repeated, so that a campaign cut short
goes on; ``--again`` does those of the chosen parts once more. Everything that is random is seeded.
Exit code 1 if a case did not hold. ``--toy``: a few cases of each part, to see that the command
works.
"""

from __future__ import annotations

import argparse
import shutil
import sys
import time
import traceback
from collections.abc import Sequence
from contextlib import redirect_stdout
from importlib import import_module
from pathlib import Path
from typing import Any

from reliability import PARTS
from reliability.book import Book, Case, Result, Row, put_into, table


def run(book: Book, part: str, case: Case, folder: Path) -> None:
    """Does ``case`` and writes it down; one that raises did not hold."""
    place = folder / "work" / part
    shutil.rmtree(place, ignore_errors=True)
    place.mkdir(parents=True)
    started = time.perf_counter()
    try:
        with redirect_stdout(sys.stderr):  # libraries print; stdout is for the table
            result = case.run(place)
    except Exception as error:
        traceback.print_exc()
        result = Result(1, 0, f"{type(error).__name__}: {' '.join(str(error).split())[:200]}")
    seconds = round(time.perf_counter() - started, 1)
    book.add(Row(part, case.what, case.name, *result, seconds=seconds))
    shutil.rmtree(place, ignore_errors=True)
    print(f"{part}: {case.name}: {result.held} of {result.tried}, {result.figure} [{seconds} s]")


def chosen(only: str | None) -> Sequence[str]:
    parts = only.split(",") if only else PARTS
    if unknown := [part for part in parts if part not in PARTS]:
        sys.exit(f"--only {unknown[0]}: no such part; known: {', '.join(PARTS)}")
    return parts


def arguments(argv: list[str] | None) -> Any:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--only", help=f"comma-separated parts: {', '.join(PARTS)}")
    parser.add_argument("--out", type=Path, default=Path("reliability"), help="folder of the rows")
    parser.add_argument("--again", action="store_true", help="do the chosen parts once more")
    parser.add_argument("--table", action="store_true", help="only print the table")
    parser.add_argument("--page", type=Path, help="put the table between the marks of this file")
    parser.add_argument("--toy", action="store_true", help="a few cases of each part")
    return parser.parse_args(argv)


def main(argv: list[str] | None = None) -> int:
    given = arguments(argv)
    given.out.mkdir(parents=True, exist_ok=True)
    book = Book(given.out / "rows.jsonl")
    for part in () if given.table else chosen(given.only):
        if given.again:
            book.forget(part)
        for case in import_module(f"reliability.{part}").cases(given.toy):
            if not book.has(part, case):
                run(book, part, case, given.out.resolve())
    told = table(book.rows, PARTS)
    if given.page:
        put_into(given.page, told)
    print(told)
    return int(any(row.held < row.tried for row in book.rows))


if __name__ == "__main__":
    sys.exit(main())
