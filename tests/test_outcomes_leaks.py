"""Columns that tell the outcome are named, so that no estimator reads what it is to predict."""

from __future__ import annotations

import json
import os
from pathlib import Path
from typing import Any

import pytest

from depo_rl.outcomes.tables import SourceOptions, hidden_columns, read_source

DATA = Path(os.environ.get("DEPO_DATA", Path(__file__).parents[2] / "shared" / "data"))


def hidden(folder: Path, rows: list[dict[str, Any]], column: str = "pass_rate") -> set[str]:
    (folder / "t.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows))
    return set(
        hidden_columns(read_source(folder / "t.jsonl", SourceOptions(pass_rate_column=column)))
    )


def test_of_a_labelled_pool(tmp_path):
    rows = [
        {
            "prompt": f"p{i}",
            "pass_rate": i / 8,
            "k": 8,
            "right": i,
            "difficulty": 1 - i / 8,
            "percent": 12.5 * i,
        }
        | {"level": i % 5, "other_policy": (i * 3 % 8) / 8, "answer": str(i), "blank": None}
        for i in range(9)
    ]
    assert hidden(tmp_path, rows) == {"pass_rate", "k", "right", "difficulty", "percent"}
    assert hidden(tmp_path, rows, "other_policy") == {"other_policy", "k"}


def test_the_label_is_hidden_where_repeats_were_averaged(tmp_path):
    rows = [{"prompt": "p", "pass_rate": rate, "k": 4} for rate in (0.0, 0.5)] + [
        {"prompt": "q", "pass_rate": 1.0}
    ]
    assert hidden(tmp_path, rows) == {"pass_rate", "k"}


HISTORY = [
    {
        "prompt": f"p{i}",
        "n_correct": (i + s) % 5,
        "group_size": 4,
        "step": s,
        "visit": s,
        "level": i,
        "answer": str(i),
    }
    | {"reward_mean": 0.5, "acc": (i + s) % 5 / 4}
    for i in range(6)
    for s in (1, 2)
]


def test_of_a_history_and_what_never_becomes_a_field(tmp_path):
    assert hidden(tmp_path, HISTORY) == {"visit", "acc"}
    once = [row for row in HISTORY if row["step"] == 1]
    assert hidden(tmp_path, once) == {
        "acc"
    }  # each prompt has one visit: only the outcome itself gives it away
    assert set(read_source(tmp_path / "t.jsonl").prompts[0].fields) == {
        "visit",
        "level",
        "answer",
        "acc",
    }


@pytest.mark.parametrize("own", [True, False])
def test_of_groups_without_steps(own, tmp_path):
    rows = [{k: v for k, v in row.items() if k != "step"} for row in HISTORY]
    if own:
        extra = {"visit", "level", "answer", "acc"}
        rows = [
            {(f"fields.{k}" if k in extra else k): v for k, v in row.items()} | {"n_scored": 4}
            for row in rows
        ]
    assert hidden(tmp_path, rows) == {"visit", "acc"}


@pytest.mark.skipif(not DATA.exists(), reason=f"no data set in {DATA} (set DEPO_DATA)")
@pytest.mark.parametrize(
    ("file", "names"),
    [
        ("pass_rates/deepscaler_qwen2.5-math-7b.parquet", ("pass_rate", "k")),
        ("histories/one_shot_rlvr_dsr1209.parquet", ("visit",)),
    ],
)
def test_of_real_files(file, names):
    assert hidden_columns(read_source(DATA / file)) == names
