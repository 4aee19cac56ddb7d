"""benchmarks/bench_reliability.py: each part runs, at toy size; what did is not done again; a case
that raises did not hold."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from pathlib import Path

import pytest

BENCHMARKS = Path(__file__).resolve().parents[1] / "benchmarks"
sys.path.insert(0, str(BENCHMARKS))

from bench_reliability import main, run  # noqa: E402
from reliability import PARTS  # noqa: E402
from reliability.book import MARK, Book, Case, Result, Row, put_into, table  # noqa: E402

from limits import HANG_S  # noqa: E402


def rows(*counts: tuple[int, int, str]) -> list[Row]:
    return [Row("disks", "full", str(i), *count, seconds=1.0) for i, count in enumerate(counts)]


def test_cases_of_one_kind_are_one_line_of_the_table():
    told = table(rows((1000, 999, "a"), (500, 500, "b"), (1, 1, "b")), PARTS)
    assert told.splitlines()[-1] == "| full | 1,501 | 1,500 | b (2 times)<br>a |"


def test_a_case_that_is_in_the_book_is_known_when_it_is_opened_again(tmp_path):
    for row in rows((1, 1, ""), (1, 0, "")):
        Book(tmp_path / "rows.jsonl").add(row)
    book = Book(tmp_path / "rows.jsonl")
    assert book.has("disks", Case("full", "1", lambda folder: Result(1, 1, "")))
    assert not book.has("disks", Case("full", "2", lambda folder: Result(1, 1, "")))
    book.forget("disks")
    assert book.rows == Book(tmp_path / "rows.jsonl").rows == []


def test_a_case_that_raises_did_not_hold(tmp_path, capsys):
    def fails(folder: Path) -> Result:
        raise OSError("no\nroom")

    book = Book(tmp_path / "rows.jsonl")
    run(book, "disks", Case("full", "0", fails), tmp_path)
    assert (book.rows[0].tried, book.rows[0].held) == (1, 0)
    assert book.rows[0].figure == "OSError: no room"
    assert main(["--table", "--out", str(tmp_path)]) == 1, "not all held"


def test_the_table_goes_between_the_marks_of_a_page(tmp_path):
    page = tmp_path / "page.md"
    page.write_text(f"before\n{MARK}\nold\n{MARK}\nafter\n")
    put_into(page, "new")
    assert page.read_text() == f"before\n{MARK}\nnew\n{MARK}\nafter\n"


@pytest.mark.slow
@pytest.mark.skipif(not Path("/proc/self/statm").exists(), reason="reads its memory there")
def test_each_part_at_toy_size(tmp_path):
    pytest.importorskip("trl")
    pytest.importorskip("peft")
    environment = os.environ | {"OMP_NUM_THREADS": "1", "PYTHONPATH": os.pathsep.join(sys.path)}
    command = [sys.executable, str(BENCHMARKS / "bench_reliability.py"), "--toy"]
    done = subprocess.run(
        [*command, "--out", str(tmp_path)],
        env=environment,
        capture_output=True,
        text=True,
        timeout=HANG_S,
    )
    assert done.returncode == 0, done.stdout[-2000:] + done.stderr[-2000:]
    found = [json.loads(line) for line in (tmp_path / "rows.jsonl").read_text().splitlines()]
    assert {row["part"] for row in found} == set(PARTS)
    assert all(row["tried"] == row["held"] > 0 for row in found)
    again = subprocess.run(
        [*command, "--table", "--out", str(tmp_path)],
        env=environment,
        capture_output=True,
        text=True,
        timeout=HANG_S,
    )
    assert done.stdout.endswith(again.stdout)
