"""The data of `depo train`: one file, several, globs, packed files, folders as the hub has them;
and their answers."""

from __future__ import annotations

import csv
import gzip
import json
from pathlib import Path
from typing import Any

import pyarrow as pa
import pyarrow.parquet as pq
import pytest

from depo_rl.cli import main
from depo_rl.commands.train.config import DataSettings
from depo_rl.commands.train.data import PromptTable, load_eval_prompts, load_prompts, to_dataset
from depo_rl.errors import ConfigError, DataError
from test_train_cli import settings, write_run
from test_train_cli import tiny_model as _tiny_model

tiny_model = _tiny_model  # the fixture
# torch, transformers and TRL warn about each other
pytestmark = pytest.mark.filterwarnings("ignore")

Rows = list[dict[str, Any]]


def rows(*numbers: int, **more: Any) -> Rows:
    return [{"prompt": f"{i}+1=", "answer": str(i + 1)} | more for i in numbers]


def write(path: Path, data: Rows) -> Path:
    """A file of the kind that its name says."""
    path.parent.mkdir(parents=True, exist_ok=True)
    kind = path.name.removesuffix(".gz").rpartition(".")[2]
    if kind == "parquet":
        pq.write_table(pa.Table.from_pylist(data), path)
        return path
    if kind == "csv":
        lines = [",".join(data[0]), *(",".join(map(str, row.values())) for row in data)]
        text = "\n".join(lines) + "\n"
    else:
        text = (
            json.dumps(data) if kind == "json" else "".join(json.dumps(row) + "\n" for row in data)
        )
    path.write_bytes(gzip.compress(text.encode()) if path.name.endswith(".gz") else text.encode())
    return path


def load(path: Any, **more: Any) -> PromptTable:
    paths = [str(p) for p in path] if isinstance(path, list) else str(path)
    return load_prompts(DataSettings.model_validate({"path": paths} | more))


def prompts(table: PromptTable) -> list[int]:
    return [int(str(row["prompt"][0]["content"]).partition("+")[0]) for row in table.rows]


KINDS = ["parquet", "jsonl", "json", "csv", "jsonl.gz", "json.gz", "csv.gz"]


@pytest.mark.parametrize("kind", KINDS)
def test_every_kind_is_read_alone_and_with_others(tmp_path: Path, kind: str) -> None:
    one = write(tmp_path / f"one.{kind}", rows(1, 2))
    two = write(tmp_path / "two.jsonl", rows(3))
    assert (
        prompts(load(one)) == [1, 2]
        and load(one).where == f"one.{kind}"
        and load(one).rows[0]["source"] == "one"
    )
    both = load([two, one])
    assert prompts(both) == [3, 1, 2] and both.where == "two.jsonl and 1 other file"
    assert [row["source"] for row in both.rows] == [
        "two",
        "one",
        "one",
    ]  # each of a list is a data set of its own
    assert both.row_at(2) == f"one.{kind} row 2"


def test_a_packed_file_is_known_by_its_content(tmp_path: Path) -> None:
    write(tmp_path / "a.jsonl.gz", rows(1)).rename(tmp_path / "a.jsonl")
    write(tmp_path / "b.jsonl", rows(2)).rename(tmp_path / "b.jsonl.gz")
    assert prompts(load([tmp_path / "a.jsonl", tmp_path / "b.jsonl.gz"])) == [1, 2]


def test_a_glob_is_sorted_by_name_and_one_data_set(tmp_path: Path) -> None:
    for number in (2, 0, 1):
        write(tmp_path / "sums" / f"part{number}.jsonl", rows(number))
    table = load(tmp_path / "sums" / "*.jsonl")
    assert prompts(table) == [0, 1, 2] and {row["source"] for row in table.rows} == {"sums"}
    assert prompts(load(tmp_path / "**" / "part[01].jsonl")) == [0, 1]
    assert prompts(
        load([tmp_path / "sums" / "part2.jsonl", tmp_path / "sums" / "part[01].jsonl"])
    ) == [2, 0, 1]


def test_a_name_that_looks_like_a_pattern_is_a_name(tmp_path: Path) -> None:
    write(tmp_path / "run[1]" / "a*.jsonl", rows(1))
    write(tmp_path / "run[1]" / "ab.jsonl", rows(2))
    assert prompts(load(tmp_path / "run[1]" / "a*.jsonl")) == [1]
    assert prompts(load(tmp_path / "run[1]" / "?b.jsonl")) == [2]


def hub(
    folder: Path, split: str, n: int, kind: str = "parquet", first: int = 0, of: int | None = None
) -> Path:
    for i in range(n):
        write(folder / f"{split}-{i:05d}-of-{of or n:05d}.{kind}", rows(first + i))
    return folder


@pytest.mark.parametrize("below", ["", "data"])
def test_a_folder_as_the_hub_has_it(tmp_path: Path, below: str) -> None:
    folder = tmp_path / "gsm8k"
    hub(folder / below, "train", 3)
    hub(folder / below, "test", 1, first=7)
    hub(folder / below, "hard", 1, first=8)
    (folder / "README.md").write_text("x")
    (folder / "dataset_infos.json").write_text("{}")
    (folder / ".gitattributes").write_text("x")
    table = load(folder)
    assert prompts(table) == [0, 1, 2] and {row["source"] for row in table.rows} == {"gsm8k"}
    assert prompts(load(folder, split="test")) == [7] and prompts(load(folder, split="hard")) == [8]
    held_out = load_eval_prompts(
        DataSettings.model_validate({"path": str(folder), "eval": {"path": str(folder)}})
    )
    assert held_out is not None and prompts(held_out) == [7]
    with pytest.raises(
        ConfigError,
        match=r"no file of split 'dev'; there are hard, test, train .setting data.split",
    ):
        load(folder, split="dev")


def test_other_layouts_of_a_folder(tmp_path: Path) -> None:
    for kind in ("csv", "jsonl.gz"):
        write(tmp_path / kind / f"train.{kind}", rows(1))
        write(tmp_path / kind / f"test.{kind}", rows(2))
        assert prompts(load(tmp_path / kind)) == [1] and prompts(
            load(tmp_path / kind, split="test")
        ) == [2]
    # the hub's own conversion to parquet
    write(tmp_path / "nested" / "train" / "0000.parquet", rows(3))
    assert prompts(load(tmp_path / "nested")) == [3]
    write(tmp_path / "parts" / "b.jsonl", rows(5))
    write(tmp_path / "parts" / "a.jsonl", rows(4))
    assert prompts(load(tmp_path / "parts")) == [4, 5]  # no split named: all of it is for training
    with pytest.raises(ConfigError, match=r"no file of split 'test'"):
        load(tmp_path / "parts", split="test")
    hub(tmp_path / "sets" / "main", "train", 1)
    hub(tmp_path / "sets" / "socratic", "train", 1, first=6)
    assert prompts(load(tmp_path / "sets", subset="socratic")) == [6]
    with pytest.raises(
        ConfigError,
        match=r"no file of split 'train'; folders there: main, socratic .setting data.subs",
    ):
        load(tmp_path / "sets")
    with pytest.raises(ConfigError, match=r"has no folder 'man' .*folders there: main, socratic"):
        load(tmp_path / "sets", subset="man")


def test_a_folder_that_cannot_be_meant_is_refused(tmp_path: Path) -> None:
    hub(tmp_path / "half", "train", 2, of=4)
    with pytest.raises(
        ConfigError,
        match=r"2 of the 4 files train-.-of-00004 are missing .first: number 2.: download",
    ):
        load(tmp_path / "half")
    assert prompts(load(tmp_path / "half" / "train-*.parquet")) == [0, 1]  # asked for by name
    write(tmp_path / "twice" / "train.jsonl", rows(1))
    hub(tmp_path / "twice" / "data", "train", 1)
    with pytest.raises(
        ConfigError, match=r"split 'train' is there more than once .train.jsonl, data/train-00000"
    ):
        load(tmp_path / "twice")
    (tmp_path / "empty").mkdir()
    with pytest.raises(
        ConfigError, match=r"empty'.*no file of split 'train'.*must end in .parquet"
    ):
        load(tmp_path / "empty")


@pytest.mark.parametrize(
    "path, says",
    [
        ("none.jsonl", "data.path = '.*none.jsonl': no such file"),
        ("none/none.jsonl", "no such file"),
        ("*.csv", "data.path = '.*csv': no file matches"),
        ("*", "notes.txt': must end in .parquet, .jsonl, .json, .csv, .jsonl.gz"),
        ("notes.txt", "must end in"),
        (["a.jsonl", "a.jsonl"], "a.jsonl twice"),
        (["a.jsonl", "*.jsonl"], "a.jsonl twice"),
        (["a.jsonl", "none.jsonl"], "none.jsonl': no such file"),
    ],
)
def test_files_that_are_not_there_are_named(tmp_path: Path, path: Any, says: str) -> None:
    write(tmp_path / "a.jsonl", rows(1))
    (tmp_path / "notes.txt").write_text("x")
    with pytest.raises(ConfigError, match=says) as error:
        load([tmp_path / p for p in path] if isinstance(path, list) else tmp_path / path)
    assert "\n" not in str(error.value)


@pytest.mark.parametrize("path", [[], "", [""], 3, ["a.jsonl", 3], {"train": "a.jsonl"}])
def test_a_path_of_no_kind_is_one_line(
    tiny_model: str, tmp_path: Path, capsys: Any, path: Any
) -> None:
    config = settings(tiny_model)
    config["data"]["path"] = path
    assert main(["train", str(write_run(tmp_path, config)), "--dry-run"]) == 2
    (line,) = capsys.readouterr().err.splitlines()
    assert "data.path" in line and "must be a file, a glob or a folder, or a list of them" in line


def test_files_of_other_columns_are_refused_by_name(tmp_path: Path) -> None:
    write(tmp_path / "a.jsonl", rows(1))
    write(tmp_path / "b.jsonl", rows(2))
    write(tmp_path / "c.jsonl", [{"question": "3+1=", "answer": "4"}])
    with pytest.raises(
        DataError,
        match=r"^c.jsonl: other columns than a.jsonl .without 'prompt', with 'question'.:",
    ):
        load(tmp_path / "*.jsonl")
    write(tmp_path / "c.jsonl", rows(3, level=1))
    with pytest.raises(DataError, match=r"^c.jsonl: other columns than a.jsonl .with 'level'"):
        load(tmp_path / "*.jsonl")


def test_an_empty_file_is_named(tmp_path: Path) -> None:
    write(tmp_path / "a.jsonl", rows(1))
    for name, content in (("b.jsonl", ""), ("b.jsonl", "\n"), ("b.json", "[]"), ("b.csv", "")):
        (tmp_path / name).write_text(content)
        with pytest.raises(
            DataError,
            match=rf"^{name}: data.columns.prompt = 'prompt': no such column. There is none",
        ):
            load(tmp_path / name)
        for path in (
            [tmp_path / "a.jsonl", tmp_path / name],
            [tmp_path / name, tmp_path / "a.jsonl"],
        ):
            with pytest.raises(DataError, match=rf"^{name}: holds nothing, not one row"):
                load(path)


def test_errors_name_the_file_of_the_row(tmp_path: Path) -> None:
    write(tmp_path / "x" / "a.jsonl", rows(1, 2))
    write(tmp_path / "y" / "a.jsonl", [*rows(3), {"prompt": " ", "answer": "1"}, *rows(1)])
    both = [tmp_path / "x" / "a.jsonl", tmp_path / "y" / "a.jsonl"]
    with pytest.raises(
        DataError, match=r"1 row of 5 without a prompt or an answer .y/a.jsonl row 2.:"
    ):
        load(both)
    one_source = {"columns": {"source": "of"}, "drop_bad_rows": True}
    for path in both:
        write(
            path, [row | {"of": "sums"} for row in map(json.loads, path.read_text().splitlines())]
        )
    with pytest.raises(
        DataError,
        match=r"1 duplicate prompt in 5 rows .y/a.jsonl row 3 repeats x/a.jsonl row 1; 0 with",
    ):
        load(both, **one_source)
    write(both[1], rows(3, 4, of={"a": 1}))
    with pytest.raises(
        DataError,
        match=r"column 'of' mixes types .str in x/a.jsonl row 1, dict in y/a.jsonl row 1.:",
    ):
        to_dataset(load(both))
    write(both[1], [{"prompt": ["?"], "answer": "1", "of": "s"}])
    with pytest.raises(
        DataError, match=r"^y/a.jsonl row 1, column 'prompt', message 1: must be a mapping"
    ):
        load(both)


def test_paths_of_a_list_are_relative_to_the_configuration(
    tiny_model: str, tmp_path: Path, capsys: Any
) -> None:
    config = settings(tiny_model)
    config["data"] = {
        "path": ["sums/a.jsonl", "sums/[b-z].jsonl"],
        "chat": False,
        "eval": {"path": "sums/?.jsonl"},
    }
    run = write_run(tmp_path, config)
    for name, first in (("a", 0), ("b", 4), ("c", 8)):
        write(tmp_path / "sums" / f"{name}.jsonl", rows(*range(first, first + 4)))
    assert main(["train", str(run), "--dry-run", "--json"]) == 0
    plan = json.loads(capsys.readouterr().out)["data"]
    assert (
        plan["prompts"] == 12 and plan["files"] == 3 and plan["from"] == "a.jsonl and 2 other files"
    )
    assert plan["sources"] == {"sums": 8, "a": 4} and plan["eval_prompts_also_trained_on"] == 12
    again = [f"data.path=[{tmp_path}/sums/b.jsonl, {tmp_path}/sums/c.jsonl]", "data.eval=null"]
    assert main(["train", str(run), "--dry-run", "--json", *again]) == 0
    assert json.loads(capsys.readouterr().out)["data"]["prompts"] == 8


@pytest.mark.parametrize("length", [131_072, 131_073, 140_000, 3_000_000])
def test_a_long_csv_field_is_read(tmp_path: Path, length: int) -> None:
    limit = csv.field_size_limit()
    write(tmp_path / "a.csv", [*rows(1, notes="x" * length), *rows(2, notes="")])
    assert len(load(tmp_path / "a.csv").rows[0]["notes"]) == length
    assert csv.field_size_limit() == limit
    (tmp_path / "a.csv").write_text('prompt,answer\n"1,2\n')
    with pytest.raises(DataError, match=r"a.csv line 1: not CSV .unexpected end"):
        load(tmp_path / "a.csv")
    assert csv.field_size_limit() == limit


def test_damaged_files_are_one_line(tmp_path: Path) -> None:
    whole = write(tmp_path / "a.jsonl.gz", rows(*range(200))).read_bytes()
    for damaged in (
        whole[:100],
        whole[:-20] + b"\x00" * 20,
        whole[:30] + b"\xff" * 30 + whole[60:],
    ):
        (tmp_path / "a.jsonl.gz").write_bytes(damaged)
        with pytest.raises(DataError, match=r"^a.jsonl.gz: not a whole gzip file"):
            load(tmp_path / "a.jsonl.gz")
    (tmp_path / "b.parquet").write_text(
        "version https://git-lfs.github.com/spec/v1\noid sha256:0\nsize 9\n"
    )
    with pytest.raises(
        DataError, match=r"^b.parquet: not a parquet file .a Git LFS pointer: run git lfs pull"
    ):
        load(tmp_path / "b.parquet")
    data = bytearray(write(tmp_path / "c.parquet", rows(*range(2000))).read_bytes())
    data[8:200] = b"\xff" * 192  # the footer is whole, a page is not
    (tmp_path / "c.parquet").write_bytes(data)
    with pytest.raises(DataError, match=r"^c.parquet: "):
        load(tmp_path / "c.parquet")


# ---- answers


def answers(folder: Path, *given: Any) -> list[Any]:
    write(
        folder / "a.jsonl",
        [{"prompt": f"{i}?", "answer": answer} for i, answer in enumerate(given)],
    )
    return [row["answer"] for row in load(folder / "a.jsonl").rows]


def test_answers_have_one_type(tmp_path: Path) -> None:
    assert answers(tmp_path, 3, "4", 0.5, 1e-5, 1e20, True) == [
        "3",
        "4",
        "0.5",
        "0.00001",
        "1" + "0" * 20,
        "True",
    ]
    assert answers(tmp_path, [3], [4, 5]) == [
        [3],
        [4, 5],
    ]  # a function of the user's own reads them as they are
    assert answers(tmp_path, ["3"], "4", [5, "6"]) == [["3"], ["4"], ["5", "6"]]
    assert answers(tmp_path, ['["3"]'], {"a": 1}) == [['["3"]'], {"a": 1}]
    to_dataset(load(write(tmp_path / "m.jsonl", [*rows(1), {"prompt": "?", "answer": ["3", 4]}])))


def test_numbers_of_32_bits_are_what_was_written(tmp_path: Path) -> None:
    table = pa.table({"prompt": ["a", "b"], "answer": pa.array([0.3, 1e-5], pa.float32())})
    pq.write_table(table, tmp_path / "a.parquet")
    assert [row["answer"] for row in load(tmp_path / "a.parquet").rows] == ["0.3", "0.00001"]


def dry_run(model: str, folder: Path, capsys: Any, kind: str, *given: Any) -> tuple[int, Any]:
    config = settings(model)
    config["data"] = {"path": "train.jsonl", "chat": False}
    config["reward"] = [{"kind": kind, "n_workers": 1, "timeout_s": 60}]
    data = [{"prompt": f"{i}=", "answer": answer} for i, answer in enumerate(given)]
    code = main(["train", str(write_run(folder, config, data)), "--dry-run", "--json"])
    out, err = capsys.readouterr()
    return code, json.loads(out)["reward"]["own_answers"][
        f"{kind}_reward"
    ] if code == 0 else err.strip()


@pytest.mark.parametrize("kind", ["boxed", "math_verify"])
def test_the_dry_run_gives_answers_as_a_policy_writes_them(
    tiny_model: str, tmp_path: Path, capsys: Any, kind: str
) -> None:
    given = [
        ["1", "2"],
        '["3"]',
        "4",
        1e-7,
        "$\\{1,2\\}$",
        "we get \\boxed{7}",
        "2-1=1 #### 1",
        [[8]],
        "[0, 1]",
    ]
    code, found = dry_run(tiny_model, tmp_path, capsys, kind, *given)
    assert code == 0 and found == {"answers": 9, "judged": 9, "correct": 9}


@pytest.mark.parametrize("kind", ["boxed", "math_verify", "gsm8k"])
@pytest.mark.parametrize(
    "answer", [{"value": 3}, '{"value": 3}', [[1, 2], [3]], '["3", {}]', [None], "[]"], ids=repr
)
def test_an_answer_that_nothing_matches_is_refused_by_its_row(
    tiny_model: str, tmp_path: Path, capsys: Any, kind: str, answer: Any
) -> None:
    given = (
        [answer, answer, answer, answer] if isinstance(answer, dict) else ["1", "2", answer, "3"]
    )
    code, line = dry_run(tiny_model, tmp_path, capsys, kind, *given)
    row = 1 if isinstance(answer, dict) else 3
    assert (
        code == 2
        and f"train.jsonl row {row}: answer = " in line
        and "no completion can match it" in line
    )
    assert "\n" not in line


def test_what_gsm8k_cannot_judge_is_said(tiny_model: str, tmp_path: Path, capsys: Any) -> None:
    code, found = dry_run(
        tiny_model,
        tmp_path,
        capsys,
        "gsm8k",
        "1",
        "18 apples",
        "\\frac{1}{2}",
        "\\sqrt{2}",
        "1,000",
    )
    assert code == 0 and (found["answers"], found["judged"], found["correct"]) == (5, 4, 4)
    assert found["first_that_fails"] == "train.jsonl row 4, not judged: '\\\\sqrt{2}'"
    assert found["unscorable_rows"] == "1 of 5, first train.jsonl row 4"
    many = [str(i) for i in range(200)]
    many[101] = "2x"  # between the rows that are tried
    code, found = dry_run(tiny_model, tmp_path, capsys, "gsm8k", *many)
    assert (
        found["correct"] == found["answers"]
        and found["unscorable_rows"] == "1 of 200, first train.jsonl row 102"
    )
    code, line = dry_run(tiny_model, tmp_path, capsys, "gsm8k", "1", "2", ["3", "4"], "5")
    assert (
        code == 2
        and "train.jsonl row 3: answer = ['3', '4']: 2 answers, and reward 'gsm8k' compares one"
        in line
    )
    code, line = dry_run(tiny_model, tmp_path, capsys, "gsm8k", *["\\sqrt{2}"] * 4)
    assert code == 2 and "duplicate" not in line and "can judge none of 4 answers" in line


def test_a_solution_that_no_policy_writes_into_a_box_is_not_called_correct(
    tiny_model: str, tmp_path: Path, capsys: Any
) -> None:
    code, found = dry_run(
        tiny_model, tmp_path, capsys, "boxed", "1", "First we add.\n\nThen 2.", "3", "4"
    )
    assert code == 0 and (found["judged"], found["correct"]) == (4, 3)
    assert found["first_that_fails"].startswith("train.jsonl row 2, not called correct: 'First we")
    code, line = dry_run(tiny_model, tmp_path, capsys, "boxed", *["step by step " * 50] * 4)
    assert (
        code == 2
        and "can call correct none of 4 answers" in line
        and "every reward would be 0" in line
    )


def test_published_pass_rates_may_be_texts_or_missing(tmp_path: Path) -> None:
    labels = ["3/8", "37.5%", "0.375", 0.375, None, ""]
    path = write(tmp_path / "a.jsonl", [rows(i, rate=label)[0] for i, label in enumerate(labels)])
    table = load(path, columns={"pass_rate": "rate"})
    assert [row["pass_rate"] for row in table.rows] == [0.375] * 4 + [None] * 2
    wrong = write(tmp_path / "a.jsonl", rows(1, rate="1/8") + rows(2, rate="9/8"))
    with pytest.raises(DataError, match=r"a\.jsonl row 2, column 'rate': '9/8' is no pass rate"):
        load(wrong, columns={"pass_rate": "rate"})
