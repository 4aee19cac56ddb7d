"""The adapter of docs/write_an_adapter.md is run from the page, against what the page promises of
it."""

from __future__ import annotations

import json
import re
from pathlib import Path
from types import SimpleNamespace

import numpy as np
import pytest

from depo_rl.errors import ConfigError, EngineError, RewardError, StateMismatch
from depo_rl.outcomes import read_log

PAGE = Path(__file__).resolve().parents[1] / "docs" / "write_an_adapter.md"
ROWS = [
    {"prompt": f"task {i}", "source": ("easy", "hard")[i % 2], "level": float(level)}
    for i, level in enumerate(np.random.default_rng(1).normal(0.0, 3.0, 200))
]
PLUS = {"estimator": {"n_buckets": 2**10, "n_random": 8}}


@pytest.fixture(scope="module")
def page() -> SimpleNamespace:
    names: dict = {"__name__": "my_adapter"}
    trainer, adapter = re.findall(r"```python\n(.*?)```", PAGE.read_text(), flags=re.DOTALL)
    exec(trainer + adapter, names)
    return SimpleNamespace(**names, lines=len(adapter.splitlines()))


def trained(page, folder, n_steps, resume=False, **settings):
    folder.mkdir(exist_ok=True)
    made = page.CurriculumTrainer(ROWS, folder, **{"curriculum": PLUS, **settings})
    if resume:
        made.load()
    made.train(n_steps)
    return made


def test_it_chooses_what_can_teach(page, tmp_path):
    made, uniform = (
        trained(page, tmp_path / "a", 40),
        trained(page, tmp_path / "b", 40, method="grpo", curriculum={}),
    )
    plain = page.ToyTrainer(ROWS, tmp_path)
    plain.train(40)
    assert made.skill > 1.1 * max(plain.skill, uniform.skill)
    mixed, by_chance = (
        np.mean([row["depo/mixed_share"] for row in each.logged[-20:]]) for each in (made, uniform)
    )
    assert mixed > by_chance + 0.1
    last = made.logged[-1]
    assert (
        last["depo/groups"] == 320
        and last["depo/auc_mixed"] > 0.6
        and last["depo/estimator/failed_updates"] == 0
    )


def test_the_log_counts_verdicts_and_not_rewards(page, tmp_path):
    trained(page, tmp_path, 10)
    rows = list(read_log(tmp_path / "outcomes.jsonl"))
    assert len(rows) == 80 and {row.step for row in rows} == set(range(1, 11))
    wrong = [row for row in rows if row.n_scored and row.n_correct == 0]
    assert wrong and all(row.reward_mean == pytest.approx(0.1) for row in wrong)
    assert any(row.n_failed for row in rows), "time-outs"


@pytest.mark.parametrize("method", ["depo+", "depo", "dapo"])
def test_a_resumed_run_is_the_run_that_was_never_interrupted(page, tmp_path, method):
    settings = {"method": method, "curriculum": PLUS if method == "depo+" else {}}
    whole = trained(page, tmp_path / "whole", 12, **settings)
    first = trained(page, tmp_path / "again", 6, **settings)
    first.save()
    first.train(8)  # beyond the checkpoint: these rows of the log must go
    again = trained(page, tmp_path / "again", 12, resume=True, **settings)
    assert (again.skill, again.step) == (whole.skill, whole.step)
    logs = [
        json.loads(line)
        for line in (tmp_path / "whole" / "outcomes.jsonl").read_text().splitlines()
    ]
    assert [
        json.loads(line)
        for line in (tmp_path / "again" / "outcomes.jsonl").read_text().splitlines()
    ] == logs


def test_what_the_page_says_is_refused_is_refused(page, tmp_path):
    with pytest.raises(
        ConfigError, match=r"group_size = 8 contradicts group_size = 4: set group_size only"
    ):
        page.CurriculumTrainer(ROWS, tmp_path, curriculum={"group_size": 8})
    with pytest.raises(EngineError, match=r"'speed' extends .* which the toy trainer cannot"):
        page.CurriculumTrainer(ROWS, tmp_path, method="speed")
    trained(page, tmp_path, 2).save()
    with pytest.raises(StateMismatch, match=r"method 'depo\+', this run has 'dapo'"):
        trained(page, tmp_path, 4, resume=True, method="dapo", curriculum={})


def test_a_run_in_which_nothing_can_be_scored_ends(page, tmp_path):
    made = page.CurriculumTrainer(ROWS, tmp_path, curriculum=PLUS)
    made.roll_out = lambda row: [None] * 4
    with (
        pytest.warns(UserWarning, match="nothing was learnt"),
        pytest.raises(RewardError, match=r"in 10 steps in a row .*max_unscorable_steps, is 10"),
    ):
        made.train(40)
    assert made.skill == 0.0 and made.step == 9


def test_a_failing_estimator_does_not_end_it(page, tmp_path):
    made = page.CurriculumTrainer(ROWS, tmp_path, curriculum=PLUS)

    def broken(*given):
        raise RuntimeError("a bug")

    made.session.curriculum.estimator.inner.predict = broken
    made.train(4)
    assert made.logged[-1]["depo/estimator/failed_predictions"] >= 4


def test_it_is_as_short_as_the_page_says(page):
    assert page.lines < 80
