"""A row of the outcome log: conversion from what the curriculum knows, and every rule that a bad
row breaks."""

from __future__ import annotations

import math
import subprocess
import sys

import numpy as np
import pytest

from depo_rl.errors import DataError
from depo_rl.outcomes import COLUMNS, LogRow
from depo_rl.types import GroupOutcome, Prompt, prompt_key
from limits import HANG_S

PROMPT = Prompt("k1", "1 + 1?", "arith", {"level": 3, "answer": "2"})
MINIMAL = {"prompt": "1 + 1?", "n_correct": 2, "n_scored": 6}


def test_columns_are_those_of_the_design() -> None:
    assert ",".join(COLUMNS) == (
        "key,prompt,source,step,group_size,n_correct,n_scored,n_failed,reward_mean,reward_std,mean_logprob,tokens,"
        "predicted_mean,predicted_strength,suspicion,chosen_because,inclusion,admitted"
    )


def test_row_of_a_settled_group() -> None:
    outcome = GroupOutcome("k1", 2, 6, 2, 0.25, 0.4, -0.7, 812, policy_step=9)
    row = LogRow.from_outcome(
        PROMPT,
        outcome,
        step=10,
        predicted_mean=0.3,
        predicted_strength=5,
        chosen_because="selected",
        suspicion=0.25,
        inclusion=2.5,
        admitted=True,
    )
    assert row.to_dict() == {
        "key": "k1", "prompt": "1 + 1?", "source": "arith", "step": 10, "group_size": 8, "n_correct": 2, "n_scored": 6,
        "n_failed": 2, "reward_mean": 0.25, "reward_std": 0.4, "mean_logprob": -0.7, "tokens": 812,
        "predicted_mean": 0.3, "predicted_strength": 5.0, "suspicion": 0.25,
        "chosen_because": "selected", "inclusion": 2.5,
        "admitted": True, "fields.level": 3, "fields.answer": "2",
    }  # fmt: skip
    assert LogRow.from_dict(row.to_dict()) == row
    assert row.to_prompt() == PROMPT
    assert row.to_outcome() == GroupOutcome("k1", 2, 6, 2, 0.25, 0.4, -0.7, 812)


def test_what_is_unknown_is_null() -> None:
    outcome = GroupOutcome("k1", 0, 0, 8, reward_mean=math.nan, mean_logprob=-math.inf)
    flat = LogRow.from_outcome(
        PROMPT, outcome, step=None, predicted_mean=math.nan, inclusion=math.nan
    ).to_dict()
    unknown = {name for name, value in flat.items() if value is None}
    assert unknown == {
        "step", "reward_mean", "reward_std", "mean_logprob", "tokens", "predicted_mean", "predicted_strength",
        "suspicion", "chosen_because", "inclusion", "admitted",
    }  # fmt: skip


def test_outcome_of_another_prompt_is_refused() -> None:
    with pytest.raises(DataError, match=r"'k2'.*'k1'"):
        LogRow.from_outcome(PROMPT, GroupOutcome("k2", 0, 1), step=1)


def test_defaults_of_a_foreign_row() -> None:
    row = LogRow.from_dict(MINIMAL)
    assert (row.key, row.source) == (prompt_key("1 + 1?"), "default")
    assert (row.group_size, row.n_failed, row.step, row.admitted) == (6, 0, None, None)
    assert LogRow.from_dict(MINIMAL | {"group_size": 8}).n_failed == 2
    assert LogRow.from_dict(MINIMAL | {"n_failed": 1}).group_size == 7
    # what pandas makes of a column of counts with a hole in it
    assert LogRow.from_dict(MINIMAL | {"n_correct": 2.0, "tokens": math.nan}).tokens is None


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"n_correct": 7}, "n_correct = 7: must not exceed n_scored = 6"),
        ({"n_correct": -1}, "n_correct = -1: must be a whole number, 0 or more"),
        ({"n_correct": 1.5}, "n_correct = 1.5: must be a whole number"),
        ({"n_correct": True}, "n_correct = True: must be a whole number"),
        ({"n_correct": None}, "n_correct is null"),
        ({"n_scored": "6"}, "n_scored = '6': must be a whole number"),
        ({"n_scored": math.inf}, "n_scored = inf: must be a whole number"),
        ({"prompt": 5}, "prompt = 5: must be a string"),
        ({"prompt": None}, "prompt is null"),
        ({"group_size": 5}, "group_size = 5: must not be below n_scored"),
        ({"group_size": 8, "n_failed": 3}, "group_size = 8: must not be below"),
        ({"predicted_mean": 1.2}, "predicted_mean = 1.2: a pass rate lies in"),
        ({"predicted_mean": -0.1}, "predicted_mean = -0.1: a pass rate lies in"),
        ({"predicted_strength": 0}, "predicted_strength = 0.0: must be above 0"),
        ({"suspicion": 1.5}, "suspicion = 1.5: must lie in"),
        ({"inclusion": 0}, "inclusion = 0.0: must be above 0"),
        ({"inclusion": "often"}, "inclusion = 'often': must be a number"),
        ({"reward_mean": "high"}, "reward_mean = 'high': must be a number"),
        ({"reward_mean": True}, "reward_mean = True: must be a number"),
        ({"reward_mean": math.inf}, "reward_mean = inf: must be finite"),
        ({"reward_mean": 10**400}, "reward_mean = 1000.*: must be finite"),
        ({"admitted": "yes"}, "admitted = 'yes': must be true, false or null"),
        ({"n_corect": 2}, "unknown column 'n_corect': did you mean 'n_correct'"),
        ({"zzz": 2}, "unknown column 'zzz': a data set's own column is called 'fields.<name>'"),
        ({"prompt": ["x" * 500]}, r"prompt = \['x{50,60}\.\.\.: must be a string"),
    ],
)
def test_bad_values_are_named(change: dict[str, object], message: str) -> None:
    with pytest.raises(DataError, match=f"^{message}") as caught:
        LogRow.from_dict(MINIMAL | change)
    assert "\n" not in str(caught.value) and len(str(caught.value)) < 200


@pytest.mark.parametrize("name", sorted(MINIMAL))
def test_required_columns(name: str) -> None:
    with pytest.raises(
        DataError, match=f"no column '{name}': every row needs prompt, n_correct, n_scored"
    ):
        LogRow.from_dict({k: v for k, v in MINIMAL.items() if k != name})


def test_a_labelled_pool_is_called_by_its_name() -> None:
    with pytest.raises(DataError, match="labelled pool"):
        LogRow.from_dict({"prompt": "a", "pass_rate": 0.5, "k": 8})


def test_importing_is_light() -> None:
    heavy = "torch", "matplotlib", "jinja2", "pyarrow", "pandas", "transformers"
    code = f"import sys, depo_rl.outcomes, depo_rl.report.results; print([m for m in {heavy} if m in sys.modules])"
    done = subprocess.run(
        [sys.executable, "-c", code], capture_output=True, text=True, timeout=HANG_S, check=True
    )
    assert done.stdout.strip() == "[]"


def test_numpy_values_become_plain() -> None:
    outcome = GroupOutcome("k1", 1, 2)
    row = LogRow.from_outcome(
        PROMPT, outcome, step=1, predicted_mean=np.float32(0.5), admitted=np.bool_(True)
    )
    assert type(row.predicted_mean) is float and row.admitted is True
