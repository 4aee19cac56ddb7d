"""Published pass rates, as data sets write them."""

from __future__ import annotations

import json
import math
from pathlib import Path
from typing import Any

import pytest

from depo_rl.cli import main
from depo_rl.config import CurriculumConfig
from depo_rl.errors import DataError
from depo_rl.estimators.simple import OracleEstimator
from depo_rl.labels import Label, is_missing, keep_the_middle, read_label
from depo_rl.outcomes.tables import (
    LabelledPool,
    SourceOptions,
    hidden_columns,
    read_lesson,
    read_source,
)
from depo_rl.rivals.bots import BOTSEstimator
from depo_rl.rivals_config import BOTSSettings
from depo_rl.types import Prompt, prompt_key

Row = dict[str, Any]


@pytest.mark.parametrize(
    ("value", "label"),
    [
        (0.25, Label(0.25)),
        (1, Label(1.0)),
        ("0.375", Label(0.375)),
        (".5", Label(0.5)),
        ("1", Label(1.0)),
        ("1e-3", Label(0.001)),
        ("3/8", Label(0.375, 8)),
        (" 3 / 8 ", Label(0.375, 8)),
        ("0/16", Label(0.0, 16)),
        ("37.5%", Label(0.375)),
        ("100 %", Label(1.0)),
    ],
    ids=repr,
)
def test_a_label_is_a_rate_a_share_or_counts(value, label):
    assert read_label(value) == label


@pytest.mark.parametrize(
    "value",
    [1.5, -0.1, math.nan, True, None, "", "half", "9/8", "1/0", "0/0", "-1/8", "3/8/9", "3.5/8", "101%", "-5%", "%",
     "1.5", "nan", "inf", "1_0", "٣/٨", "3/8%", "1e999", [0.5], {"a": 1}],
    ids=repr,
)  # fmt: skip
def test_anything_else_is_no_label(value):
    assert read_label(value) is None


@pytest.mark.parametrize(("value", "missing"), [(None, True), (math.nan, True), (" ", True), (0, False)])  # fmt: skip
def test_null_nan_and_blanks_are_no_label_rather_than_a_wrong_one(value, missing):
    assert is_missing(value) is missing


def pool(path: Path, rows: list[Row], **options: Any) -> LabelledPool:
    path.write_text("".join(json.dumps(row) + "\n" for row in rows))
    source = read_source(path, SourceOptions(**options))
    assert isinstance(source, LabelledPool)
    return source


def test_counts_in_a_pool_say_how_many_samples_a_label_has(tmp_path):
    rows = [{"prompt": f"p{i}", "difficulty": f"{i}/8", "level": 1} for i in range(3)]
    source = pool(tmp_path / "p.jsonl", rows, pass_rate_column="difficulty")
    assert source.rate_P.tolist() == [0.0, 0.125, 0.25]
    assert dict(source.prompts[2].fields) == {"difficulty": 0.25, "k": 8, "level": 1}
    assert hidden_columns(source) == ("difficulty", "k")


def test_labels_of_one_prompt_are_averaged_by_the_samples_that_they_say(tmp_path):
    rows = [{"prompt": "p", "pass_rate": label} for label in ("1/2", "0/6", "100%")]
    assert pool(tmp_path / "p.jsonl", rows).rate_P.tolist() == pytest.approx([2 / 9])


def test_a_lesson_weighs_a_label_by_its_samples(tmp_path):
    pool(tmp_path / "p.jsonl", [{"prompt": "p", "pass_rate": "3/16"}])
    assert read_lesson(str(tmp_path / "p.jsonl"), "warm_start").counts_P2.tolist() == [[3.0, 16.0]]


@pytest.mark.parametrize("empty", [None, math.nan, "", "  ", ...], ids=repr)
def test_rows_without_a_label_are_left_out_and_counted(tmp_path, empty):
    rows: list[Row] = [
        {"prompt": f"p{i}", "pass_rate": "50%" if i % 2 else empty} for i in range(6)
    ]
    rows = [{n: v for n, v in row.items() if v is not ...} for row in rows]
    source = pool(tmp_path / "p.jsonl", rows)
    assert [p.text for p in source.prompts] == ["p1", "p3", "p5"]
    assert source.notes == ("3 of 6 rows have no label (pass_rate): left out.",)
    says = "can replay" if empty is ... else "row 1: pass_rate = .*: no row has a pass rate there"
    with pytest.raises(DataError, match=says):
        pool(tmp_path / "p.jsonl", rows[::2])


def test_chats_are_prompts_of_a_pool_and_of_a_history_with_the_key_of_their_text(tmp_path):
    chat = [{"role": "system", "content": "Be brief."}, {"role": "user", "content": "1+1"}]
    parts = [chat[0], {"role": "user", "content": [{"type": "text", "text": "1+1"}]}]
    for prompt in (chat, parts):
        source = pool(tmp_path / "p.jsonl", [{"prompt": prompt, "pass_rate": 0.5}])
        assert [(p.text, p.key) for p in source.prompts] == [
            ("Be brief.\n1+1", prompt_key("Be brief.\n1+1"))
        ]
    group = {"prompt": chat, "n_correct": 1, "group_size": 4}
    assert pool(tmp_path / "p.jsonl", [group]).prompts[0].text == "Be brief.\n1+1"


@pytest.mark.parametrize(
    "prompt",
    [[], [1], [{"role": "user", "content": 7}], [{"role": "user", "content": [3]}], [{"role": "user", "content": ""}]],
    ids=repr,
)  # fmt: skip
def test_a_chat_that_says_nothing_or_is_none_is_refused_by_its_row(tmp_path, prompt):
    rows = [{"prompt": "p", "pass_rate": 0.5}, {"prompt": prompt, "pass_rate": 0.5}]
    with pytest.raises(DataError, match=r"row 2: prompt = .*a text or a list of messages"):
        pool(tmp_path / "p.jsonl", rows)


def test_the_prompt_s_column_may_have_any_name(tmp_path, capsys):
    rows = [{"problem": f"{i}+1", "prompt": "ignored", "rate": i / 20} for i in range(20)]
    source = pool(tmp_path / "p.jsonl", rows, prompt_column="problem", pass_rate_column="rate")
    assert source.prompts[3].text == "3+1" and dict(source.prompts[3].fields) == {"rate": 0.15}
    options = ["--prompt-column", "problem", "--pass-rate-column", "rate", "--methods", "grpo"]
    options += ["--steps", "2", "--prompts-per-step", "4", "--out", str(tmp_path / "out")]
    assert main(["replay", str(tmp_path / "p.jsonl"), *options]) == 0
    assert "20 prompts" in capsys.readouterr().out


def test_methods_read_labels_that_are_texts():
    prompts = [Prompt(f"k{i}", f"p{i}", fields={"d": f"{i}/4", "w": "25%"}) for i in range(5)]
    assert OracleEstimator("d", 8.0).predict(prompts[1:4]).mean_P.tolist() == [0.25, 0.5, 0.75]
    config = CurriculumConfig(pass_rate_field="d", keep=(0.2, 0.6))
    assert [p.key for p in keep_the_middle(prompts, config)] == ["k1", "k2"]
    estimator = BOTSEstimator(prompts, BOTSSettings(weak="w", strong="d"), 8)
    assert estimator._label_N2.tolist()[2] == [0.25, 0.5]


@pytest.mark.parametrize(
    ("explore", "steps", "says", "not_said"),
    [
        ("0.05", "4", "these are too few groups after the warm-up to explore one", "explores nothing"),
        ("0", "4", "explores nothing", "too few"),
        ("0.5", "8", "labelled pool", "explore"),
    ],
)  # fmt: skip
def test_why_false_skips_were_not_measured(tmp_path, capsys, explore, steps, says, not_said):
    rows = [{"prompt": f"p{i}", "pass_rate": i / 20} for i in range(20)]
    pool(tmp_path / "p.jsonl", rows)
    options = ["--methods", "depo", "--steps", steps, "--prompts-per-step", "4", "--seeds", "0"]
    options += ["--set", f"explore={explore}", "--out", str(tmp_path / "o"), "--json"]
    assert main(["replay", str(tmp_path / "p.jsonl"), *options]) == 0
    notes = " ".join(json.loads(capsys.readouterr().out)["notes"])
    assert says in notes and not_said not in notes
