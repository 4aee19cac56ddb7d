"""Reading logs back: JSONL and parquet agree, a torn last line is counted, any other fault names
file and row."""

from __future__ import annotations

import json
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from depo_rl.errors import DataError
from depo_rl.outcomes import COLUMNS, LogRow, read_log
from depo_rl.outcomes.files import encode_line, heal

GOOD: dict[str, Any] = {"prompt": "1 + 1?", "n_correct": 2, "n_scored": 6}


def write_lines(path: Path, *lines: object) -> Path:
    path.write_bytes(
        b"".join(x if isinstance(x, bytes) else json.dumps(x).encode() + b"\n" for x in lines)
    )
    return path


def make_row(i: int, **changes: Any) -> LogRow:
    flat = {
        "key": f"k{i}",
        "prompt": f"{i} + 1?",
        "step": i,
        "n_correct": i % 3,
        "n_scored": 8,
        "tokens": 100 * i,
    }
    return LogRow.from_dict(flat | changes)


def write_parquet(rows: Sequence[LogRow], path: Path) -> None:
    """As version 0.1 wrote it: a data set's columns as JSON texts, null where a row has none, and
    marked."""
    arrays = {name: pa.array([getattr(row, name) for row in rows]) for name in COLUMNS}
    fields = [pa.field(name, array.type) for name, array in arrays.items()]
    for name in dict.fromkeys(name for row in rows for name in row.fields):
        texts = [json.dumps(row.fields[name]) if name in row.fields else None for row in rows]
        arrays[f"fields.{name}"] = pa.array(texts, pa.string())
        fields.append(pa.field(f"fields.{name}", pa.string(), metadata={b"depo_json": b"1"}))
    pq.write_table(pa.Table.from_arrays(list(arrays.values()), schema=pa.schema(fields)), path)


json_values = st.recursive(
    st.none() | st.booleans() | st.integers(-(2**70), 2**70) | st.floats(allow_nan=False, allow_infinity=False)
    | st.text(st.characters(exclude_categories=["Cs"])),
    lambda inner: st.lists(inner, max_size=3) | st.dictionaries(st.text("abc", max_size=3), inner, max_size=3),
    max_leaves=5,
)  # fmt: skip


@st.composite
def rows(draw: st.DrawFn) -> LogRow:
    n_scored, n_failed = draw(st.integers(0, 16)), draw(st.integers(0, 4))
    number = st.none() | st.floats(allow_nan=False, allow_infinity=False)
    text = st.text(st.characters(exclude_categories=["Cs"]), max_size=20)
    return LogRow(
        key=draw(text), prompt=draw(text), source=draw(text), step=draw(st.none() | st.integers(0, 2**40)),
        group_size=n_scored + n_failed + draw(st.integers(0, 2)), n_correct=draw(st.integers(0, n_scored)),
        n_scored=n_scored, n_failed=n_failed, reward_mean=draw(number), reward_std=draw(number),
        mean_logprob=draw(number), tokens=draw(st.none() | st.integers(0, 2**40)),
        predicted_mean=draw(st.none() | st.floats(0, 1)),
        predicted_strength=draw(st.none() | st.floats(0, 1e9, exclude_min=True)),
        chosen_because=draw(st.none() | text), admitted=draw(st.none() | st.booleans()),
        suspicion=draw(st.none() | st.floats(0, 1)),
        inclusion=draw(st.none() | st.floats(0, 1e9, exclude_min=True)),
        fields=draw(st.dictionaries(st.sampled_from(["level", "answer", "naïve key"]), json_values, max_size=3)),
    )  # fmt: skip


@settings(
    max_examples=60,
    deadline=None,
    suppress_health_check=[HealthCheck.function_scoped_fixture],
    derandomize=True,
)
@given(st.lists(rows(), min_size=1, max_size=5))
def test_jsonl_and_parquet_are_read_alike(tmp_path: Path, wanted: list[LogRow]) -> None:
    jsonl, parquet = tmp_path / "log.jsonl", tmp_path / "log.parquet"
    jsonl.write_bytes(b"".join(map(encode_line, wanted)))
    write_parquet(wanted, parquet)
    assert list(read_log(jsonl)) == wanted
    assert list(read_log(parquet)) == wanted


def test_logs_with_and_without_a_column_of_inclusion(tmp_path: Path) -> None:
    old, new = (
        write_lines(tmp_path / "old", GOOD),
        write_lines(tmp_path / "new", GOOD | {"inclusion": 2.5}),
    )
    assert read_log(old)[0].inclusion is None and read_log(new)[0].inclusion == 2.5
    mixed = write_lines(tmp_path / "mixed", GOOD, GOOD | {"inclusion": 2.5})
    write_parquet(list(read_log(mixed)), tmp_path / "mixed.parquet")
    assert [row.inclusion for row in read_log(tmp_path / "mixed.parquet")] == [None, 2.5]


def test_the_log_is_a_sequence(tmp_path: Path) -> None:
    log = read_log(write_lines(tmp_path / "a.jsonl", GOOD, GOOD | {"n_correct": 0}))
    assert (len(log), log[1].n_correct, len(log[:1]), log.torn_lines) == (2, 0, 1, 0)


@pytest.mark.parametrize("cut", [1, 2, 10, 40])
def test_a_torn_last_line_is_left_out_and_counted(tmp_path: Path, cut: int) -> None:
    whole = json.dumps(GOOD).encode()
    log = read_log(write_lines(tmp_path / "a.jsonl", GOOD, GOOD, whole[:cut]))
    assert (len(log), log.torn_lines, log.torn_bytes) == (2, 1, cut)


def test_a_last_line_lacking_only_its_newline_counts(tmp_path: Path) -> None:
    log = read_log(write_lines(tmp_path / "a.jsonl", GOOD, json.dumps(GOOD).encode()))
    assert (len(log), log.torn_lines) == (2, 0)


def test_a_blank_line_a_byte_order_mark_and_crlf_are_harmless(tmp_path: Path) -> None:
    line = json.dumps(GOOD).encode()
    log = read_log(
        write_lines(tmp_path / "a.jsonl", b"\xef\xbb\xbf", line, b"\r\n\r\n", line, b"\r\n")
    )
    assert len(log) == 2


@pytest.mark.parametrize(
    ("lines", "message"),
    [
        ([], "holds no row$"),
        ([b'{"prompt": "1'], "holds no row but 13 bytes of a torn one"),
        ([GOOD, b'{"prompt": "1\n', GOOD], "row 2: not a JSON object"),
        ([GOOD, b'{"prompt": "1\n'], "row 2: not a JSON object"),
        ([GOOD, b"\xff\xfe\n", GOOD], "row 2: not a JSON object"),
        ([b"[" * 100_000 + b"\n"], "row 1: not a JSON object"),
        ([b'{"prompt": "a", "n_correct": ' + b"9" * 5000 + b"}\n"], "row 1: not a JSON object"),
        ([[GOOD]], "row 1: .*a row is a JSON object"),
        ([GOOD, GOOD | {"n_correct": 7}], "row 2: n_correct = 7: must not exceed n_scored = 6"),
        ([GOOD, {"prompt": "b", "n_correct": 1}], "row 2: no column 'n_scored'"),
        ([GOOD, GOOD | {"level": 1}], "row 2: unknown column 'level'"),
        ([GOOD | {"predicted_mean": 3}], "row 1: predicted_mean = 3.0"),
        ([b"key,prompt,n_correct\n"], "row 1: not a JSON object"),
    ],
)
def test_bad_files_are_named_with_their_row(tmp_path: Path, lines: list[Any], message: str) -> None:
    path = write_lines(tmp_path / "bad.jsonl", *lines)
    with pytest.raises(DataError, match=f"bad.jsonl: .*{message}") as caught:
        read_log(path)
    assert "\n" not in str(caught.value) and len(str(caught.value)) < 300 + len(str(path))


def test_a_missing_file_and_a_folder_are_named(tmp_path: Path) -> None:
    with pytest.raises(DataError, match=r"no.jsonl: cannot read the outcome log: No such file"):
        read_log(tmp_path / "no.jsonl")
    with pytest.raises(DataError, match="Is a directory"):
        read_log(tmp_path)


def test_bad_parquet_files_are_named_with_their_row(tmp_path: Path) -> None:
    path = tmp_path / "bad.parquet"
    pq.write_table(pa.table({"prompt": ["a", "b"], "n_correct": [1, 9], "n_scored": [8, 8]}), path)
    with pytest.raises(
        DataError, match=r"bad.parquet: row 2: n_correct = 9: must not exceed n_scored = 8"
    ):
        read_log(path)
    pq.write_table(pa.table({"prompt": ["a"], "n_correct": ["1"], "n_scored": [8]}), path)
    with pytest.raises(
        DataError, match=r"bad.parquet: row 1: n_correct = '1': must be a whole number"
    ):
        read_log(path)
    pq.write_table(
        pa.table({"prompt": pa.array([], pa.string()), "n_correct": [], "n_scored": []}), path
    )
    with pytest.raises(DataError, match="holds no row"):
        read_log(path)
    path.write_bytes(b"PAR1 and then nothing of the kind")
    with pytest.raises(DataError, match=r"bad.parquet: not a readable parquet file"):
        read_log(path)


def test_pandas_parquet_with_holes_and_an_index(tmp_path: Path) -> None:
    pandas = pytest.importorskip("pandas")
    frame = pandas.DataFrame({"prompt": ["a", "b", "c"], "n_correct": [1, 2, 3], "n_scored": [4, 4, 4],
                              "tokens": [7, None, 9]})  # fmt: skip
    frame[frame.n_correct > 1].to_parquet(tmp_path / "log.parquet")
    assert [(r.prompt, r.tokens) for r in read_log(tmp_path / "log.parquet")] == [
        ("b", None),
        ("c", 9),
    ]


def test_half_a_surrogate_pair(tmp_path: Path) -> None:
    row = make_row(1, prompt="cut \ud83d")
    (tmp_path / "a.jsonl").write_bytes(encode_line(row))
    assert read_log(tmp_path / "a.jsonl")[0].prompt == "cut \ud83d"
    write_parquet([make_row(1, **{"fields.cut": "\ud83d"})], tmp_path / "b.parquet")
    assert read_log(tmp_path / "b.parquet")[0].fields == {"cut": "\ud83d"}


@pytest.mark.parametrize("torn", [b'{"prompt": "' + b"x" * 200_000, b"{", b"\x00" * 5000])
def test_healing_cuts_a_torn_line_of_any_length(tmp_path: Path, torn: bytes) -> None:
    path = write_lines(tmp_path / "a.jsonl", GOOD, GOOD)
    whole = path.read_bytes()
    path.write_bytes(whole + torn)
    assert heal(path) == len(torn)
    assert path.read_bytes() == whole
    path.write_bytes(torn)
    assert heal(path) == len(torn)
    assert path.read_bytes() == b""


def test_healing_keeps_a_row_that_lacks_its_newline(tmp_path: Path) -> None:
    path = write_lines(tmp_path / "a.jsonl", GOOD, json.dumps(GOOD).encode())
    assert heal(path) == 0
    assert path.read_bytes().endswith(b"}\n") and len(read_log(path)) == 2
    assert heal(path) == 0
