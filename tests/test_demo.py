"""`depo demo`: the real thing at a small budget."""

from __future__ import annotations

import json

import pytest

from depo_rl import cli
from depo_rl.errors import ConfigError
from depo_rl.experiments import arithmetic
from depo_rl.experiments.demo import DemoPlan, run_demo
from depo_rl.report import read_results

BUDGET = 7_000  # completion tokens: six steps of grpo, so that depo leaves its warm-up

pytestmark = pytest.mark.filterwarnings(
    "ignore::FutureWarning:transformers", "ignore:.*multi-threaded.*fork:DeprecationWarning"
)


@pytest.fixture(scope="module")
def demo(tmp_path_factory):
    """A finished demo: its folder, results and the news told of it."""
    out, news = tmp_path_factory.mktemp("demo"), []
    plan = DemoPlan(out, ("grpo", "dapo", "depo"), (3,), BUDGET)
    return out, {r.method: r for r in run_demo(plan, news.append)}, news


def test_every_method_spends_the_same_budget_from_the_same_start(demo):
    _, results, _ = demo
    assert set(results) == {"grpo", "dapo", "depo"}
    starts = {r.accuracy[0].accuracy for r in results.values()}
    assert len(starts) == 1 and 0.4 < starts.pop() < 0.62
    for r in results.values():
        before_last_step = r.history[-2]["tokens"]
        assert before_last_step < BUDGET <= r.tokens
        assert r.rollouts == r.groups * 8 and r.steps == len(r.history)


def test_dapo_pays_for_what_it_drops(demo):
    _, results, _ = demo
    per_step = {name: r.rollouts / r.steps for name, r in results.items()}
    assert per_step["grpo"] == per_step["depo"] == 256
    assert per_step["dapo"] > 512


def test_depo_spends_its_rollouts_on_mixed_groups(demo):
    _, results, _ = demo
    after_warmup = [row["mixed_share"] for row in results["depo"].history[4:]]
    assert min(after_warmup) > results["grpo"].mixed_share


def test_shares_are_over_all_groups_of_the_run(demo):
    _, results, _ = demo
    for r in results.values():
        assert r.mixed_share + r.all_pass_share + r.all_fail_share == pytest.approx(1.0)
    assert results["depo"].explored_share == pytest.approx(0.05, abs=0.02)
    assert results["grpo"].auc_mixed is None and results["grpo"].candidates_scored is None  # it predicts nothing


def test_files_and_news(demo):
    out, results, news = demo
    assert {r.method for r in read_results(out / "results.json")} == set(results)
    assert "Choosing prompts before the rollout" in (out / "report.html").read_text()
    assert (out / "accuracy_rollouts.png").stat().st_size > 10_000
    assert {(step.method, step.seed) for step in news} == {(m, 3) for m in results}
    assert all(step.tokens > 0 for step in news)


def test_same_seed_same_run_in_another_process(demo, tmp_path):
    _, results, _ = demo
    again = run_demo(DemoPlan(tmp_path, ("depo",), (3,), BUDGET, jobs=2))[0]

    def facts(r):
        return [(p.rollouts, p.tokens, p.accuracy) for p in r.accuracy], r.mixed_share, r.log_loss

    assert facts(again) == facts(results["depo"])


def test_json_on_stdout_and_nothing_else(tmp_path, capsys):
    options = ["--methods", "grpo", "--budget-tokens", "1000", "--jobs", "1", "--json"]
    assert cli.main(["demo", "--out", str(tmp_path), *options]) == 0
    summary = json.loads(capsys.readouterr().out)
    assert summary["methods"][0]["method"] == "grpo" and summary["target"] == arithmetic.SETTINGS.target_accuracy


@pytest.mark.parametrize(
    ("argument", "says"),
    [
        (["--methods", "grpo,depp"], "Did you mean 'depo'?"),
        (["--methods", "grpo,grpo"], "each once"),
        (["--methods", ","], "name at least one"),
        (["--budget-tokens", "0"], "--budget-tokens"),
        (["--seeds", "x"], "--seeds"),
    ],
)
def test_bad_input_is_one_line_and_exit_2(argument, says, tmp_path, capsys):
    assert cli.main(["demo", "--out", str(tmp_path / "new"), *argument]) == 2
    captured = capsys.readouterr()
    assert captured.out == "" and captured.err.count("\n") == 1 and says in captured.err
    assert not (tmp_path / "new").exists()


def test_a_plan_refuses_nonsense(tmp_path):
    with pytest.raises(ConfigError, match="jobs = 0"):
        DemoPlan(tmp_path, jobs=0)
    with pytest.raises(ConfigError, match="device = 'gpu': must be 'cpu' or 'cuda'"):
        DemoPlan(tmp_path, device="gpu")
