"""Bad input to `depo replay`: exit code 2, one line that says where and what, and no output
folder."""

from __future__ import annotations

import gzip
import json
import math
from collections.abc import Callable
from decimal import Decimal
from pathlib import Path
from typing import Any

import pyarrow as pa
import pyarrow.parquet as pq
import pytest

from depo_rl.cli import main

Row = dict[str, Any]
OPTIONS = [
    *(
        "--methods",
        "grpo,depo",
        "--group-size",
        "4",
        "--prompts-per-step",
        "4",
        "--steps",
        "2",
        "--seeds",
        "0",
    ),
    *("--set", "depo.warmup_steps=1"),
]
LOG: Row = {"n_correct": 1, "n_scored": 4, "group_size": 4, "step": 1}
HISTORY: Row = {"n_correct": 1, "group_size": 4, "step": 1}
POOL: Row = {"pass_rate": 0.5}
HUGE = 10**400


def rows(kind: Row, **wrong: Any) -> list[Row]:
    """Eight good rows and, if there is something wrong, a ninth."""
    good = [{"prompt": f"p{i}", **kind} for i in range(8)]
    return [*good, {"prompt": "p8", **kind, **wrong}] if wrong else good


def lines(table: list[Row]) -> bytes:
    return b"".join(json.dumps(row).encode() + b"\n" for row in table)


def replay(path: Path, *options: str) -> int:
    return main(["replay", str(path), "--out", str(path.parent / "out"), *OPTIONS, *options])


def refused(path: Path, says: list[str], capsys: pytest.CaptureFixture[str], *options: str) -> None:
    assert replay(path, *options) == 2
    out, err = capsys.readouterr()
    assert out == "" and err.startswith("depo: ") and err.count("\n") == 1 and err.endswith("\n"), (
        err
    )
    assert len(err) < 600
    assert all(part in err for part in says), err
    assert not (path.parent / "out").exists()


COUNTS: list[tuple[str, Row, list[str]]] = [
    ("text for a count", {"n_correct": "x"}, ["n_correct = 'x'", "whole number"]),
    ("more right than there are", {"n_correct": 9}, ["n_correct = 9", "must not exceed"]),
    ("truth value for a count", {"n_correct": True}, ["n_correct = True", "whole number"]),
    ("NaN for a count", {"n_correct": math.nan}, ["n_correct is null"]),
    ("null for a count", {"n_correct": None}, ["n_correct is null"]),
    ("fraction for a count", {"n_correct": 1.5}, ["n_correct = 1.5"]),
    ("negative count", {"n_correct": -1}, ["n_correct = -1", "0 or more"]),
    ("list for a count", {"n_correct": [1]}, ["n_correct = [1]"]),
    ("negative step", {"step": -1}, ["step = -1", "0 or more"]),
    ("infinite step", {"step": math.inf}, ["step = inf"]),
    ("prompt that is no text", {"prompt": {"a": 1}}, ["prompt = {'a': 1}"]),
    ("prompt missing", {"prompt": None}, ["prompt"]),
    ("key that is no text", {"key": 5}, ["key = 5"]),
    ("source that is no text", {"source": 5}, ["source = 5"]),
    ("text for failures", {"n_failed": "x"}, ["n_failed = 'x'"]),
    ("more failures than there are", {"n_failed": 9}, ["n_failed"]),
    ("negative tokens", {"tokens": -5}, ["tokens = -5"]),
]
HUGE_COUNTS: list[tuple[str, Row, list[str]]] = [
    ("huge group", {"group_size": HUGE}, ["group_size = 1000", "below"]),
    (
        "group beyond the sampler",
        {"group_size": 10**9},
        ["group_size = 1000000000", "below 1,000,000,000"],
    ),
    ("huge step", {"step": HUGE}, ["step = 1000", "below"]),
    ("huge failures", {"n_failed": HUGE}, ["n_failed = 1000", "below"]),
]
LABELS: list[tuple[str, Row, list[str]]] = [
    ("text for a rate", {"pass_rate": "half"}, ["pass_rate = 'half'", "[0, 1]"]),
    ("more right than samples", {"pass_rate": "9/8"}, ["pass_rate = '9/8'"]),
    ("no samples", {"pass_rate": "0/0"}, ["pass_rate = '0/0'"]),
    ("more than 100 %", {"pass_rate": "101%"}, ["pass_rate = '101%'"]),
    ("rate above 1", {"pass_rate": 1.5}, ["pass_rate = 1.5"]),
    ("rate below 0", {"pass_rate": -0.1}, ["pass_rate = -0.1"]),
    ("truth value for a rate", {"pass_rate": True}, ["pass_rate = True"]),
    ("nested rate", {"pass_rate": {"a": 1}}, ["pass_rate = {'a': 1}"]),
    ("negative k", {"k": -1}, ["k = -1"]),
    ("text for k", {"k": "x"}, ["k = 'x'"]),
    ("NaN for k", {"k": math.nan}, ["k = nan"]),
    ("truth value for k", {"k": True}, ["k = True"]),
    ("empty prompt", {"prompt": ""}, ["prompt = ''"]),
    ("key that is no text", {"key": 5}, ["key = 5"]),
    ("source that is no text", {"source": 5}, ["source = 5"]),
]
HUGE_LABELS: list[tuple[str, Row, list[str]]] = [
    ("huge rate", {"pass_rate": HUGE}, ["pass_rate = 1000"]),
    ("huge k", {"k": HUGE}, ["k = 1000"]),
]
VALUES = [(f"{name}: {case}", kind, wrong, says)
          for name, kind, cases in (("log", LOG, COUNTS), ("history", HISTORY, COUNTS), ("pool", POOL, LABELS))
          for case, wrong, says in cases]  # fmt: skip
JSON_ONLY = [(f"{name}: {case}", kind, wrong, says)
             for name, kind, cases in (
                 ("log", LOG, HUGE_COUNTS), ("history", HISTORY, HUGE_COUNTS), ("pool", POOL, HUGE_LABELS))
             for case, wrong, says in cases]  # fmt: skip


@pytest.mark.parametrize(
    ("kind", "wrong", "says"), [pytest.param(*c[1:], id=c[0]) for c in VALUES + JSON_ONLY]
)
def test_a_wrong_value_in_json_lines(kind, wrong, says, tmp_path, capsys):
    path = tmp_path / "t.jsonl"
    path.write_bytes(lines(rows(kind, **wrong)))
    refused(path, [f"{path}: row 9: ", *says], capsys)


@pytest.mark.parametrize(("kind", "wrong", "says"), [pytest.param(*c[1:], id=c[0]) for c in VALUES])
def test_a_wrong_value_in_parquet(kind, wrong, says, tmp_path, capsys):
    """A column has one type there: all rows are wrong, so the first is named."""
    path = tmp_path / "t.parquet"
    pq.write_table(pa.Table.from_pylist([rows(kind, **wrong)[-1]] * 9), path)
    refused(path, [f"{path}: row 1: ", *says], capsys)


GOOD = lines(rows(POOL))
FILES: list[tuple[str, str, bytes, list[str]]] = [
    ("empty file", "t.jsonl", b"", ["t.jsonl: holds no row"]),
    ("blank lines", "t.jsonl", b"\n\n  \n", ["t.jsonl: holds no row"]),
    ("empty parquet", "t.parquet", b"", ["t.parquet: holds no row"]),
    ("nothing but a torn line", "t.jsonl", b'{"prompt": "x", "pa', ["t.jsonl", "torn"]),
    ("torn line in the middle", "t.jsonl", b'{"prompt": "x", "pa\n' + GOOD, ["row 1: not a JSON object"]),
    ("not UTF-8", "t.jsonl", GOOD + b'{"prompt": "\xff", "pass_rate": 1}\n' + GOOD, ["row 9", "utf-8"]),
    ("UTF-16", "t.jsonl", GOOD.decode().encode("utf-16"), ["t.jsonl: row 1", "not a JSON object"]),
    ("zeros", "t.jsonl", b"\0" * 500, ["t.jsonl"]),
    ("gzip", "t.jsonl", gzip.compress(GOOD), ["t.jsonl: a gzip file: unpack it"]),
    ("gzip under another name", "t.parquet", gzip.compress(GOOD), ["t.parquet: a gzip file"]),
    ("gzip in pieces", "t.jsonl", gzip.compress(GOOD)[5:], ["t.jsonl: row "]),
    ("CSV", "t.csv", b"prompt,pass_rate\np,0.5\n", ["t.csv: row 1", "not CSV"]),
    ("CSV as parquet", "t.parquet", b"prompt,pass_rate\np,0.5\n", ["t.parquet: row 1", "not CSV"]),
    ("empty CSV", "t.csv", b"", ["t.csv: holds no row"]),
    ("a JSON list", "t.json", json.dumps(rows(POOL)).encode(), ["t.json: row 1", "on a line"]),
    ("a JSON list over lines", "t.json", json.dumps(rows(POOL), indent=1).encode(), ["row 1", "not CSV or a JSON"]),
    ("a number", "t.jsonl", b"3\n", ["row 1: 3: a row is a JSON object"]),
    ("a number of 5000 digits", "t.jsonl", b'{"prompt":"a","pass_rate":' + b"1" * 5000 + b"}\n", ["row 1"]),
    ("a value nested without end", "t.jsonl", GOOD + b'{"a":' + b"[" * 10**5 + b"]" * 10**5 + b"}\n", ["row 9"]),
    ("parquet of its magic alone", "t.parquet", b"PAR1" + b"\0" * 99 + b"PAR1", ["not a readable parquet file"]),
    ("half a parquet file", "t.parquet", b"PAR1" + b"\1" * 999, ["not a readable parquet file"]),
    ("unknown columns", "t.jsonl", b'{"a": 1}\n', ["columns a: can replay"]),
    ("misspelt column of a log", "t.jsonl", lines(rows({**LOG, "tokenss": 1})), ["row 1", "'tokenss'", "'tokens'"]),
    ("pool after history", "t.jsonl", lines(rows(HISTORY) + rows(POOL)), ["row 9: no column 'n_correct'"]),
    ("log after pool", "t.jsonl", lines(rows(POOL) + rows(LOG)), ["row 9: no column 'pass_rate'"]),
    ("pool after log", "t.jsonl", lines(rows(LOG) + rows(POOL)), ["row 9", "labelled pool"]),
    ("steps for some", "t.jsonl", lines(rows(HISTORY, step=None)), ["row 9: step = None"]),
    ("nothing scored", "t.jsonl", lines(rows({"n_correct": 0, "n_scored": 0})), ["no group has a scored completion"]),
    *(
        (f"one key, two prompts: {name}", "t.jsonl", b"\n" + lines(rows({**kind, "key": "k"})), ["row 3", "one key"])
        for name, kind in (("log", LOG), ("history", HISTORY), ("pool", POOL))
    ),
]  # fmt: skip


@pytest.mark.parametrize(
    ("name", "content", "says"), [pytest.param(*f[1:], id=f[0]) for f in FILES]
)
def test_a_file_that_is_not_what_it_should_be(name, content, says, tmp_path, capsys):
    (tmp_path / name).write_bytes(content)
    refused(tmp_path / name, says, capsys)


def test_a_parquet_file_whose_names_are_damaged(tmp_path, capsys):
    path = tmp_path / "t.parquet"
    pq.write_table(pa.Table.from_pylist(rows(POOL)), path)
    path.write_bytes(path.read_bytes().replace(b"pass_rate", b"pass\xffrate"))
    refused(path, ["t.parquet: not a readable parquet file", "utf-8"], capsys)


def table(**columns: Any) -> pa.Table:
    return pa.table({"prompt": [f"p{i}" for i in range(9)], **columns})


TWICE = pa.table(
    [pa.array(["a"]), pa.array(["b"]), pa.array([0.5])], names=["prompt", "prompt", "pass_rate"]
)
TABLES: list[tuple[str, pa.Table, list[str]]] = [
    ("no rows", table(pass_rate=[0.5] * 9).slice(0, 0), ["holds no row"]),
    ("a column twice", TWICE, ["column 'prompt' is there twice"]),
    ("decimal rates", table(pass_rate=[Decimal("0.5")] * 9), ["row 1", "Decimal('0.5')"]),
    ("prompts as chats", pa.table({"prompt": [[{"role": "user"}]], "pass_rate": [0.5]}), ["row 1", "prompt = [{"]),
    ("no label at all", table(pass_rate=pa.nulls(9)), ["row 1", "pass_rate = None", "no row has a pass rate"]),
    ("nothing but NaN", table(pass_rate=[math.nan] * 9), ["row 1", "pass_rate = nan", "no row has a pass rate"]),
    ("prompts as bytes", pa.table({"prompt": [b"\xff"], "pass_rate": [0.5]}), ["row 1", "prompt = b'"]),
]  # fmt: skip


@pytest.mark.parametrize(("content", "says"), [pytest.param(*t[1:], id=t[0]) for t in TABLES])
def test_a_parquet_file_of_another_kind(content, says, tmp_path, capsys):
    pq.write_table(content, tmp_path / "t.parquet")
    refused(tmp_path / "t.parquet", ["t.parquet", *says], capsys)


def _fill(**files: bytes) -> Callable[[Path], None]:
    def fill(folder: Path) -> None:
        for name, content in files.items():
            (folder / name.replace("__", ".")).write_bytes(content)

    return fill


FOLDERS: list[tuple[str, Callable[[Path], None], list[str]]] = [
    ("empty", _fill(), ["no .parquet or .jsonl file"]),
    ("nothing of use", _fill(a__txt=b"x"), ["no .parquet or .jsonl file"]),
    (
        "two kinds",
        _fill(a__jsonl=GOOD, b__jsonl=lines(rows(HISTORY))),
        ["b.jsonl: row 1: no column 'pass_rate'"],
    ),
    (
        "one is junk",
        _fill(a__jsonl=GOOD, b__parquet=b"junk"),
        ["b.parquet: row 1: not a JSON object"],
    ),
    ("one is empty", _fill(a__jsonl=GOOD, b__jsonl=b""), ["b.jsonl: holds no row"]),
]


@pytest.mark.parametrize(("fill", "says"), [pytest.param(*f[1:], id=f[0]) for f in FOLDERS])
def test_a_folder(fill, says, tmp_path, capsys):
    folder = tmp_path / "data"
    folder.mkdir()
    fill(folder)
    refused(folder, says, capsys)


def test_a_file_that_is_not_there(tmp_path, capsys):
    refused(tmp_path / "none.jsonl", ["none.jsonl: cannot be read"], capsys)


COLUMNS = [
    ({"problem": "p", "rate": 0.5}, [], ["columns problem, rate: can replay"]),
    ({"problem": "p", "pass_rate": 0.5}, [], ["no column 'prompt'", "--prompt-column problem?"]),
    ({"problem": "p", "rate": 0.5}, ["--pass-rate-column", "rate"], ["no column 'prompt'", "--prompt-column problem?"]),
    ({"q": "p", **HISTORY}, [], ["no column 'prompt'", "--prompt-column"]),
    ({"problem": "p", "pass_rate": 0.5}, ["--prompt-column", "problme"], ["no column 'problme'", "'problem'"]),
    ({"prompt": "p", "rate": 0.5}, ["--pass-rate-column", "rat"], ["--pass-rate-column rat", "'rate'"]),
]  # fmt: skip


@pytest.mark.parametrize(("row", "options", "says"), COLUMNS)
def test_a_column_that_is_missing_is_the_one_that_is_named(row, options, says, tmp_path, capsys):
    (tmp_path / "t.jsonl").write_bytes(lines([row] * 8))
    refused(tmp_path / "t.jsonl", says, capsys, *options)


LATE = [
    (["--methods", "grpo,oracle"], ["'oracle'", "'pass_rate'"]),
    (
        ["--methods", "depo+", "--set", "depo+.estimator={type: fused, policy_features: 8}"],
        ["= 8: a replay has no"],
    ),
    (["--methods", "grpo,polaris", "--set", "polaris.keep=[0.8,0.9]"], ["'polaris'"]),
    (["--methods", "grpo", "--group-size", "9"], ["group_size = 9", "at most 4"]),
]


@pytest.mark.parametrize(("options", "says"), LATE)
def test_what_a_later_method_refuses_is_said_before_the_first_one_runs(
    options, says, tmp_path, capsys
):
    (tmp_path / "t.jsonl").write_bytes(lines(rows(HISTORY)))
    refused(tmp_path / "t.jsonl", says, capsys, *options)


def test_an_output_that_is_a_file(tmp_path, capsys):
    (tmp_path / "t.jsonl").write_bytes(GOOD)
    taken = tmp_path / "taken"
    taken.write_text("mine")
    refused(
        tmp_path / "t.jsonl",
        ["taken is not a folder that can be written to"],
        capsys,
        "--out",
        str(taken),
    )
    assert taken.read_text() == "mine"


FEATURES = [
    {"level": math.nan}, {"level": None}, {}, {"level": "hard"}, {"level": math.inf}, {"level": [1, {"a": None}]},
    {"level": HUGE}, {"level": True},
]  # fmt: skip


@pytest.mark.parametrize("kind", [HISTORY, POOL], ids=["history", "pool"])
def test_missing_and_odd_feature_values_are_no_error(kind, tmp_path, capsys):
    table = [{"prompt": f"p{i}", **kind, **extra} for i, extra in enumerate(FEATURES)]
    (tmp_path / "t.jsonl").write_bytes(lines(table))
    assert replay(tmp_path / "t.jsonl") == 0
    assert capsys.readouterr().err == ""


TOLERATED = [
    ("a torn last line", "t.jsonl", GOOD + b'{"prompt": "x", "pa', "half a line"),
    ("zeros after a power cut", "t.jsonl", GOOD + b"\0" * 64, "half a line"),
    (
        "half a surrogate pair",
        "t.jsonl",
        GOOD + b'{"prompt": "\\ud800", "pass_rate": 0.5}\n',
        "9 prompts",
    ),
    ("JSON lines under another name", "t.parquet", GOOD, "8 prompts"),
    ("failures that are NaN", "t.jsonl", lines(rows(HISTORY, n_failed=math.nan)), "9 prompts"),
]


@pytest.mark.parametrize(
    ("name", "content", "says"), [pytest.param(*t[1:], id=t[0]) for t in TOLERATED]
)
def test_what_is_forgiven_and_told(name, content, says, tmp_path, capsys):
    (tmp_path / name).write_bytes(content)
    assert replay(tmp_path / name) == 0
    out, err = capsys.readouterr()
    assert says in " ".join(out.split()) and err == ""
