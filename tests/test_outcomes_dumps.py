"""Readers of what others leave behind: TRL's completions, verl's rollouts, foreign histories,
labelled pools."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pyarrow as pa
import pyarrow.parquet as pq
import pytest

from depo_rl.errors import ConfigError, DataError
from depo_rl.outcomes import LogRow
from depo_rl.outcomes.tables import (
    GroupHistory,
    LabelledPool,
    SourceOptions,
    Verdict,
    parse_where,
    read_source,
)

Row = dict[str, Any]


def write_jsonl(path: Path, rows: list[Row]) -> Path:
    path.write_text("".join(json.dumps(row) + "\n" for row in rows))
    return path


def write_table(path: Path, rows: list[Row]) -> Path:
    path.parent.mkdir(parents=True, exist_ok=True)
    pq.write_table(pa.Table.from_pylist(rows), path)
    return path


def trl_rows(step: int, groups: dict[str, list[float | None]], **extra: Any) -> list[Row]:
    """Rows as ``GRPOTrainer`` logs them; the rewards of each prompt's group."""
    return [
        {
            "step": step,
            "prompt": p,
            "completion": f"{p}-{step}-{i}",
            "math": r,
            **extra,
            "advantage": 0.1,
        }
        for p, rewards in groups.items()
        for i, r in enumerate(rewards)
    ]


def verl_rows(step: int, groups: dict[str, list[float]], **extra: Any) -> list[Row]:
    """Rows as verl's ``_dump_generations`` writes them; interleaved, as balancing over ranks leaves
    them."""
    rows = [
        {"input": p, "output": f"{p}{i}", "gts": "1", "score": s, "step": step, **extra}
        for p, scores in groups.items()
        for i, s in enumerate(scores)
    ]
    return rows[::2] + rows[1::2]


def counts(history: Any) -> dict[str, list[tuple[int | None, int, int, int]]]:
    """prompt -> [(step, n_correct, n_scored, group_size)]."""
    assert isinstance(history, GroupHistory)
    return {
        rows[0].prompt: [(r.step, r.n_correct, r.n_scored, r.group_size) for r in rows]
        for rows in history.visits.values()
    }


def test_trl_completions_become_groups(tmp_path):
    folder = tmp_path / "completions"
    write_table(
        folder / "completions_00001.parquet",
        trl_rows(1, {"a": [1.0, 0.0, 1.0, None], "b": [0.0] * 4}),
    )
    write_table(folder / "completions_00010.parquet", trl_rows(10, {"a": [1.0] * 4}))
    write_table(folder / "completions_00002.parquet", trl_rows(2, {"b": [0.0, 0.0, 0.0, 1.0]}))
    for path in (folder, tmp_path):  # TRL's output folder is as good
        assert counts(read_source(path)) == {
            "a": [(1, 2, 3, 4), (10, 4, 4, 4)],
            "b": [(1, 0, 4, 4), (2, 1, 4, 4)],
        }


def test_completions_that_trl_logs_again_are_left_out(tmp_path):
    rows = trl_rows(1, {"a": [1.0, 0.0]})
    write_table(tmp_path / "completions_00001.parquet", rows)
    write_table(tmp_path / "completions_00002.parquet", [row | {"step": 2} for row in rows])
    source = read_source(tmp_path)
    assert counts(source) == {"a": [(1, 1, 2, 2)]}
    assert "1 steps of the dump repeat" in source.notes[0]


def test_a_prompt_twice_in_a_step_is_two_groups(tmp_path):
    path = write_table(
        tmp_path / "c.parquet",
        trl_rows(1, {"a": [1.0, 1.0, 0.0, 0.0], "b": [1.0, 0.0], "c": [0, 0.0]}),
    )
    assert counts(read_source(path))["a"] == [(1, 2, 2, 2), (1, 0, 2, 2)]


def test_chats_and_several_rewards_of_trl(tmp_path):
    chat = [{"role": "system", "content": "Be brief."}, {"role": "user", "content": "1+1"}]
    rows = [
        {"step": 1, "prompt": chat, "completion": "x", "math": r, "length": 0.3, "advantage": 0.0}
        for r in (1.0, 0.0)
    ]
    path = write_table(tmp_path / "c.parquet", rows)
    assert counts(read_source(path)) == {"Be brief.\n1+1": [(1, 1, 2, 2)]}
    options = SourceOptions(verdict=Verdict("length", at=0.5))
    assert counts(read_source(path, options)) == {"Be brief.\n1+1": [(1, 0, 2, 2)]}


def test_the_verdict_must_be_clear(tmp_path):
    two = write_table(tmp_path / "two.parquet", trl_rows(1, {"a": [1.0, 0.0]}, format=1.0))
    with pytest.raises(ConfigError, match=r"2 columns could say .*math, format.*--correct-reward"):
        read_source(two)
    with pytest.raises(ConfigError, match="no column 'maths'"):
        read_source(two, SourceOptions(verdict=Verdict("maths")))
    graded = write_table(tmp_path / "graded.parquet", trl_rows(1, {"a": [1.0, 0.5]}))
    with pytest.raises(ConfigError, match="0 columns could say"):
        read_source(graded)
    with pytest.raises(
        DataError,
        match=r"graded.parquet: row 2: math = 0.5: a verdict is 0 or 1.*--correct-threshold",
    ):
        read_source(graded, SourceOptions(verdict=Verdict("math")))


@pytest.mark.parametrize(
    "words", [("--correct-reward", "--correct-threshold"), ("--correct-column", "--correct-at")]
)
def test_a_replay_is_told_what_is_correct_in_the_words_of_training_or_in_older_ones(
    monkeypatch, tmp_path, words
):
    from depo_rl.cli import main
    from depo_rl.commands.replay import run

    plans: list[Any] = []
    monkeypatch.setattr(run, "show_replay", lambda plan, *_, **__: plans.append(plan) or {})
    path = write_table(tmp_path / "c.parquet", trl_rows(1, {"a": [1.0, 0.0]}))
    assert main(["replay", str(path), words[0], "math", words[1], "0.25"]) == 0
    assert plans[0].options.verdict == Verdict("math", 0.25)


def test_verl_rollouts_become_groups(tmp_path):
    write_jsonl(tmp_path / "2.jsonl", verl_rows(2, {"a": [1.0, 0.0, 0.0, 0.0]}))
    write_jsonl(tmp_path / "10.jsonl", verl_rows(10, {"a": [1.0] * 4, "b": [0.0] * 4}))
    assert counts(read_source(tmp_path)) == {
        "a": [(2, 1, 4, 4), (10, 4, 4, 4)],
        "b": [(10, 0, 4, 4)],
    }


def test_verl_trusts_acc_more_than_a_shaped_score(tmp_path):
    rows = verl_rows(1, {"a": [0.7, -1.0]})
    path = write_jsonl(tmp_path / "1.jsonl", [row | {"acc": row["score"] > 0} for row in rows])
    source = read_source(path)
    assert counts(source) == {"a": [(1, 1, 2, 2)]}
    assert isinstance(source, GroupHistory)
    assert next(iter(source.visits.values()))[0].reward_mean == pytest.approx(-0.15)
    signed = write_jsonl(tmp_path / "signed.jsonl", verl_rows(1, {"a": [1.0, -1.0]}))
    assert counts(read_source(signed)) == {"a": [(1, 1, 2, 2)]}


@pytest.mark.parametrize("where", [{}, {"step": "3"}])
def test_a_log_is_parsed_once(tmp_path, monkeypatch, where):
    rows = [LogRow(f"k{i % 2}", f"p{i % 2}", "s", i, 4, i % 5, 4, 0).to_dict() for i in range(6)]
    path = write_jsonl(tmp_path / "own.jsonl", rows)
    parsed = []
    loads = json.loads
    monkeypatch.setattr(
        "json.loads", lambda text, **options: parsed.append(text) or loads(text, **options)
    )
    read_source(path, SourceOptions(where=where))
    assert len(parsed) == len(set(parsed)) == 6


def test_our_own_log_and_a_foreign_history(tmp_path):
    rows = [
        LogRow(f"k{i % 2}", f"p{i % 2}", "s", i, 4, i % 5, 4, 0, fields={"x": i}) for i in range(6)
    ]
    write_table(tmp_path / "own.parquet", [row.to_dict() for row in rows])
    assert counts(read_source(tmp_path / "own.parquet"))["p1"] == [
        (1, 1, 4, 4),
        (3, 3, 4, 4),
        (5, 0, 4, 4),
    ]
    kept = read_source(tmp_path / "own.parquet", SourceOptions(where={"fields.x": "3"}))
    assert counts(kept) == {"p1": [(3, 3, 4, 4)]}
    foreign = [
        {"prompt": "p", "n_correct": 3, "group_size": 4, "step": s, "policy": "m"} for s in (7, 5)
    ]
    source = read_source(write_table(tmp_path / "h.parquet", foreign))
    assert counts(source) == {"p": [(5, 3, 4, 4), (7, 3, 4, 4)]}
    assert source.prompts[0].fields == {"policy": "m"}


def test_groups_without_steps_are_pooled(tmp_path):
    rows = [{"prompt": "p", "n_correct": k, "group_size": 4} for k in (1, 3)]
    source = read_source(write_jsonl(tmp_path / "h.jsonl", rows))
    assert isinstance(source, LabelledPool)
    assert source.rate_P.tolist() == [0.5]


def test_a_labelled_pool_keeps_its_other_columns(tmp_path):
    rows = [
        {"prompt": f"p{i}", "pass_rate": i / 4, "k": 4, "level": i, "source": "s"} for i in range(3)
    ]
    source = read_source(write_table(tmp_path / "pool.parquet", rows))
    assert isinstance(source, LabelledPool)
    assert source.rate_P.tolist() == [0.0, 0.25, 0.5]
    assert dict(source.prompts[2].fields) == {"pass_rate": 0.5, "k": 4, "level": 2}
    assert source.prompts[2].source == "s"
    other = read_source(
        write_jsonl(tmp_path / "o.jsonl", [{"prompt": "p", "p7b": 1}]), SourceOptions({}, "p7b")
    )
    assert isinstance(other, LabelledPool) and other.rate_P.tolist() == [1.0]


def test_repeated_labels_are_averaged_but_policies_are_not(tmp_path):
    same = [{"prompt": "p", "pass_rate": 0.2, "k": 30}, {"prompt": "p", "pass_rate": 0.6, "k": 10}]
    source = read_source(write_jsonl(tmp_path / "same.jsonl", same))
    assert isinstance(source, LabelledPool)
    assert source.rate_P.tolist() == pytest.approx([0.3])
    assert "1 rows repeat" in source.notes[0]
    path = write_jsonl(
        tmp_path / "two.jsonl", [row | {"policy": f"m{i}"} for i, row in enumerate(same)]
    )
    with pytest.raises(
        DataError, match=r"row 2: repeats the prompt of row 1 with another policy .*--where policy="
    ):
        read_source(path)
    one = read_source(path, SourceOptions(where={"policy": "m1"}))
    assert isinstance(one, LabelledPool) and one.rate_P.tolist() == [0.6]


def test_where_says_what_there_is():
    assert parse_where(["a=b", "c = d=e"]) == {"a": "b", "c": "d=e"}
    with pytest.raises(ConfigError, match="column=value"):
        parse_where(["policy"])


POOL = {"prompt": "p", "pass_rate": 0.5}
GROUP = {"prompt": "p", "n_correct": 1, "group_size": 4, "step": 1}
OWN = {"prompt": "p", "n_correct": 1, "n_scored": 4, "step": 1}
VERL = {"input": "p", "output": "x", "score": 1.0, "step": 1}
BAD: list[tuple[str, list[Any], list[str]]] = [
    (
        "pass rate above 1",
        [POOL, POOL | {"pass_rate": 1.5}],
        ["row 2", "pass_rate = 1.5", "[0, 1]"],
    ),
    ("negative pass rate", [POOL | {"pass_rate": -0.1}], ["row 1", "-0.1"]),
    ("NaN pass rate", [POOL | {"pass_rate": float("nan")}], ["row 1", "nan"]),
    ("null pass rate", [POOL | {"pass_rate": None}], ["row 1", "None"]),
    ("text pass rate", [POOL | {"pass_rate": "half"}], ["row 1", "'half'", "3/8"]),
    ("true pass rate", [POOL | {"pass_rate": True}], ["row 1", "True"]),
    ("no prompt", [POOL | {"prompt": None}], ["row 1", "prompt = None"]),
    ("prompt of a wrong type", [POOL | {"prompt": 7}], ["row 1", "prompt = 7"]),
    ("no samples behind a label", [POOL | {"k": 0}], ["row 1", "k = 0"]),
    ("mixed schemas", [POOL, GROUP | {"prompt": "q"}], ["row 2", "no column 'pass_rate'"]),
    ("mixed schemas, history", [GROUP, POOL], ["row 2", "no column 'n_correct'"]),
    (
        "more correct than the group",
        [GROUP, GROUP | {"n_correct": 5}],
        ["row 2", "n_correct = 5", "group_size = 4"],
    ),
    (
        "more correct than scored",
        [OWN | {"n_correct": 5}],
        ["row 1", "n_correct = 5", "n_scored = 4"],
    ),
    (
        "count of a wrong type",
        [GROUP | {"n_correct": "one"}],
        ["row 1", "n_correct = 'one'", "whole number"],
    ),
    ("fractional count", [GROUP | {"n_correct": 0.5}], ["row 1", "n_correct = 0.5"]),
    (
        "group size of a wrong type",
        [GROUP | {"group_size": "four"}],
        ["row 1", "group_size = 'four'"],
    ),
    ("negative step", [GROUP | {"step": -1}], ["row 1", "step = -1"]),
    (
        "steps for some only",
        [GROUP, GROUP | {"step": None}],
        ["row 2", "step = None", "all or none"],
    ),
    (
        "one key, two prompts",
        [OWN | {"key": "k"}, OWN | {"key": "k", "prompt": "q"}],
        ["row 2", "'k'"],
    ),
    ("verdict of a wrong type", [VERL | {"score": "yes"}], ["row 1", "score = 'yes'"]),
    ("infinite verdict", [VERL | {"score": float("inf")}], ["row 1", "score = inf", "finite"]),
    (
        "graded verdict",
        [VERL, VERL | {"score": 0.4}],
        ["row 2", "score = 0.4", "--correct-threshold"],
    ),
    ("dump without a step", [VERL | {"step": "one"}], ["row 1", "step = 'one'"]),
    ("columns of nothing", [{"question": "p", "rate": 1}], ["question, rate", "pass_rate"]),
    ("row that is no object", [POOL, 7], ["row 2", "JSON object"]),
]


@pytest.mark.parametrize(
    ("rows", "said"), [case[1:] for case in BAD], ids=[case[0] for case in BAD]
)
def test_bad_rows_are_named(tmp_path, rows, said):
    path = write_jsonl(tmp_path / "bad.jsonl", rows)
    with pytest.raises(DataError) as caught:
        read_source(path)
    for part in ["bad.jsonl", *said]:
        assert part in str(caught.value)


@pytest.mark.parametrize("content", [b"", b"\n\n"], ids=["empty", "blank lines"])
def test_empty_files(tmp_path, content):
    (tmp_path / "x.jsonl").write_bytes(content)
    with pytest.raises(DataError, match=r"x\.jsonl: holds no row"):
        read_source(tmp_path / "x.jsonl")


def test_files_that_cannot_be_read(tmp_path):
    with pytest.raises(DataError, match=r"nowhere\.parquet.*No such file"):
        read_source(tmp_path / "nowhere.parquet")
    with pytest.raises(DataError, match=r"no \.parquet or \.jsonl file"):
        read_source(tmp_path)
    (tmp_path / "broken.parquet").write_bytes(b"PAR1 and no more")
    with pytest.raises(DataError, match=r"broken\.parquet: not a readable parquet file"):
        read_source(tmp_path)


def test_a_torn_last_line_is_forgiven_and_told(tmp_path):
    path = tmp_path / "pool.jsonl"
    path.write_text(json.dumps(POOL) + "\n" + json.dumps(POOL | {"prompt": "q"})[:-7])
    source = read_source(path)
    assert len(source.prompts) == 1
    assert "half a line" in source.notes[0]
    path.write_text(json.dumps(POOL)[:-7])
    with pytest.raises(DataError, match="half a one"):
        read_source(path)
    # torn in the middle is not forgiven
    path.write_text('{"prompt": "p", "pass_\n' + json.dumps(POOL) + "\n")
    with pytest.raises(DataError, match="row 1: not a JSON object"):
        read_source(path)
