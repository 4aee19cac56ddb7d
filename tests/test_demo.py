"""`depo demo`: the real thing at a small budget."""

from __future__ import annotations

import io
import json

import pytest
from rich.console import Console

from depo_rl import cli
from depo_rl.commands.demo import arithmetic
from depo_rl.commands.demo import run as demo_module
from depo_rl.commands.demo.run import DemoPlan, run_demo
from depo_rl.errors import ConfigError
from depo_rl.report import read_results, summarise

BUDGET = 7_000  # completion tokens: six steps of grpo, so that depo leaves its warm-up

pytestmark = [
    pytest.mark.slow,
    pytest.mark.filterwarnings(
        "ignore::FutureWarning:transformers", "ignore:.*multi-threaded.*fork:DeprecationWarning"
    ),
]


@pytest.fixture(scope="module")
def demo(tmp_path_factory):
    """A finished demo: its folder, results and the news told of it."""
    pytest.importorskip("trl")
    out, news = tmp_path_factory.mktemp("demo"), []
    plan = DemoPlan(out, ("grpo", "dapo", "depo"), (3,), BUDGET)
    return out, {r.method: r for r in run_demo(plan, news.append)}, news


def test_every_method_spends_the_same_budget_from_the_same_start(demo):
    _, results, _ = demo
    assert set(results) == {"grpo", "dapo", "depo"}
    starts = {r.accuracy[0].accuracy for r in results.values()}
    assert len(starts) == 1 and 0.46 < starts.pop() < arithmetic.SETTINGS.target_accuracy
    for r in results.values():
        # dapo: ten rounds of one step
        before_last_step = r.history[-2]["tokens"] if len(r.history) > 1 else 0.0
        assert before_last_step < BUDGET <= r.tokens
        assert r.rollouts == r.groups * 4 and r.steps == len(r.history)


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
    # it predicts nothing
    assert results["grpo"].auc_mixed is None and results["grpo"].candidates_scored is None


def test_accuracy_is_that_of_the_whole_pool_level_by_level(demo):
    _, results, _ = demo
    for r in results.values():
        assert list(r.accuracy_by_source) == ["add2", "add3", "add4", "add5"]
        for end, point in (("start", r.accuracy[0]), ("end", r.accuracy[-1])):
            levels = {name: getattr(found, end) for name, found in r.accuracy_by_source.items()}
            weighted = sum(
                share * levels[f"add{digits}"] for digits, share in arithmetic.POOL_MIX.items()
            )
            assert point.accuracy == pytest.approx(weighted)
        assert r.accuracy_whole == r.accuracy[-1].accuracy < r.pass_at_8_whole < 1
        assert r.forgotten == [
            name for name, a in r.accuracy_by_source.items() if a.end < a.start - 0.01
        ]
        assert r.target == arithmetic.SETTINGS.target_accuracy
        steps, add3 = r.series("accuracy_add3")
        assert steps == [point.step for point in r.accuracy[1:]] and steps[-1] == r.steps
        assert add3[-1] == r.accuracy_by_source["add3"].end


def test_breadth_is_measured_of_every_method(demo):
    _, results, _ = demo
    for r in results.values():
        assert 1 - r.groups / 4000 <= r.unseen_share < 1
        assert 1 <= r.effective_prompts <= round((1 - r.unseen_share) * 4000) + 1e-6
        assert 1 <= r.sources_per_batch <= 4 and r.most_visits >= 1 and 0 < r.distinct_share <= 1
        assert r.history[-1]["unseen_share"] == r.unseen_share
        assert r.distinct_prompts == pytest.approx((1 - r.unseen_share) * 4000)
    grpo = results["grpo"]
    assert (grpo.most_visits, grpo.distinct_share, grpo.sources_per_batch) == (1, 1.0, 4.0)
    assert grpo.effective_prompts == pytest.approx(grpo.groups)


def test_the_table_begins_with_the_whole_and_fits_a_narrow_terminal(demo):
    _, results, _ = demo
    out = io.StringIO()
    summary = summarise(list(results.values()))
    head, _ = summary.cells(demo_module._NARROW)
    assert head == [
        *("method", "seeds", "accuracy, whole pool", "vs grpo", "vs dapo", "change by source"),
        *("rollouts to target", "mixed groups"),
    ]
    Console(file=out, width=80).print(summary.to_rich(demo_module._NARROW, 80))
    shown = out.getvalue()
    assert max(map(len, shown.splitlines())) <= 80
    words = {word for title in head for word in title.split()}
    assert words <= set(shown.replace(",", ", ").split()) | {"accuracy,"}  # no word is broken
    assert shown.count("add2") == shown.count("add5") == 3


def test_files_and_news(demo):
    out, results, news = demo
    assert {r.method for r in read_results(out / "results.json")} == set(results)
    page = (out / "report.html").read_text()
    assert (
        "Choosing prompts before the rollout" in page
        and "What was learnt, and what was forgotten" in page
    )
    assert all(
        f"<li>{m} forgot " in page or f'<li class="warn">{m} forgot ' in page for m in results
    )
    assert page.index("accuracy, whole pool") < page.index("mixed groups")
    assert (out / "accuracy_by_source.png").stat().st_size > 10_000
    assert (out / "accuracy_rollouts.png").stat().st_size > 10_000
    assert {(step.method, step.seed) for step in news} == {(m, 3) for m in results}
    assert all(step.tokens > 0 for step in news)


def test_same_seed_same_run_in_another_process(demo, tmp_path):
    _, results, _ = demo
    again = run_demo(DemoPlan(tmp_path, ("depo",), (3,), BUDGET, jobs=2))[0]

    def facts(r):
        breadth = r.effective_prompts, r.most_visits, r.accuracy_by_source
        return (
            [(p.rollouts, p.tokens, p.accuracy) for p in r.accuracy],
            r.mixed_share,
            r.log_loss,
            breadth,
        )

    assert facts(again) == facts(results["depo"])


def test_json_on_stdout_and_nothing_else(tmp_path, capsys):
    pytest.importorskip("trl")
    options = ["--methods", "grpo", "--budget-tokens", "1000", "--jobs", "1", "--json"]
    assert cli.main(["demo", "--out", str(tmp_path), *options]) == 0
    summary = json.loads(capsys.readouterr().out)
    assert (
        summary["methods"][0]["method"] == "grpo"
        and summary["target"] == arithmetic.SETTINGS.target_accuracy
    )


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


def test_a_folder_that_cannot_be_is_refused_before_anything_trains(tmp_path, capsys):
    (tmp_path / "taken").write_text("mine")
    for out in (tmp_path / "taken", tmp_path / "taken" / "below"):
        assert cli.main(["demo", "--out", str(out)]) == 2
        assert "taken is not a folder that can be written to" in capsys.readouterr().err
    assert (tmp_path / "taken").read_text() == "mine"


def test_a_plan_refuses_nonsense(tmp_path):
    with pytest.raises(ConfigError, match="jobs = 0"):
        DemoPlan(tmp_path, jobs=0)
    with pytest.raises(ConfigError, match="device = 'gpu': must be 'cpu' or 'cuda'"):
        DemoPlan(tmp_path, device="gpu")
