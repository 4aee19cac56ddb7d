"""Summaries over seeds: medians, spreads, ratios, and what a run that never reached its target may say."""

from __future__ import annotations

import io
import json
import operator
from itertools import pairwise
from typing import Any

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from depo_rl.errors import DataError
from depo_rl.report import RunResult, summarise
from depo_rl.report.table import MEASURES, Ratio, Spread, form, form_ratio, form_spread, ratio_of, spread_of


def run(method: str, seed: int, reached: int | None = None, spent: int = 1000, **changes: Any) -> RunResult:
    points = [{"rollouts": spent * i // 4, "tokens": spent * i * 25, "seconds": spent * i / 40, "accuracy": 0.1 * i}
              for i in range(5)]  # fmt: skip
    values = {"accuracy": points, "rollouts_to_target": reached, "target": 0.5, "rollouts": spent} | changes
    return RunResult.model_validate({"method": method, "seed": seed} | values)


def median_text(*observations: tuple[float, bool] | None) -> str:
    return form_spread(spread_of(observations), "count")


def exactly(*values: float) -> list[tuple[float, bool]]:
    return [(value, False) for value in values]


@pytest.mark.parametrize(
    ("observations", "text"),
    [
        (exactly(10, 12, 20), "12 [10-20]"),
        (exactly(10, 12), "11 [10-12]"),
        (exactly(10), "10"),
        (exactly(10, 10), "10"),
        ([None, None], "-"),
        ([(10, False), None], "10"),
        # the median seed reached the target: it is exact whatever the last one would have needed
        ([(10, False), (12, False), (20, True)], "12 [10 - > 20]"),
        # the median seed did not: only a bound is known
        ([(10, False), (20, True), (20, True)], "> 20 [10 - > 20]"),
        ([(20, True), (20, True), (20, True)], "> 20"),
        ([(20, True)], "> 20"),
        # of two, one reached: their mean is above the mean of the bounds
        ([(10, False), (20, True)], "> 15 [10 - > 20]"),
        # stopped early: the true median lies between 10 and 20
        ([(10, False), (5, True), (20, False)], ">= 10 [> 5 - >= 20]"),
        # reached exactly where the others stopped
        ([(20, False), (20, True), (20, True)], "> 20 [20 - > 20]"),
    ],
)
def test_medians_with_censored_runs(observations: list[tuple[float, bool] | None], text: str) -> None:
    assert median_text(*observations) == text


@settings(max_examples=200, deadline=None, derandomize=True)
@given(st.lists(st.tuples(st.integers(1, 50), st.integers(1, 50)), min_size=1, max_size=6))
def test_the_bound_is_never_wrong(pairs: list[tuple[int, int]]) -> None:
    """(what the target truly costs, where the run was stopped): the claim made must hold for the true median."""
    from statistics import median

    truth = median(cost for cost, _ in pairs)
    spread = spread_of([(cost, False) if cost <= stop else (stop, True) for cost, stop in pairs])
    holds = {"=": operator.eq, ">": operator.gt, ">=": operator.ge}
    assert holds[spread.bound](truth, spread.median)
    assert holds[spread.low_bound](min(cost for cost, _ in pairs), spread.low)
    assert holds[spread.high_bound](max(cost for cost, _ in pairs), spread.high)


@pytest.mark.parametrize(
    ("own", "base", "text"),
    [
        (exactly(50), exactly(100), "0.50x"),
        (exactly(50), [(100, True)], "< 0.50x"),
        ([(100, True)], exactly(50), "> 2.00x"),
        ([(100, True)], [(50, True)], "-"),
        ([None], exactly(50), "-"),
        (exactly(50), exactly(0), "-"),
        (exactly(5), [(10, False), (5, True), (20, False)], "<= 0.50x"),
    ],
)
def test_ratios_of_censored_medians(own: list[Any], base: list[Any], text: str) -> None:
    assert form_ratio(ratio_of(spread_of(own), spread_of(base))) == text


def test_a_run_that_missed_the_target_is_censored_where_it_stopped() -> None:
    results = [run("grpo", 0), run("grpo", 1), run("grpo", 2, 800), *(run("depo", i, 300 + i) for i in range(3))]
    grpo, depo = summarise(results).rows
    assert grpo.spreads["rollouts_to_target"] == Spread(1000, 800, 1000, ">", "=", ">", 3, 2, 0)
    assert depo.spreads["rollouts_to_target"] == Spread(301, 300, 302, "=", "=", "=", 3, 0, 0)
    assert depo.ratios["grpo"]["rollouts_to_target"] == Ratio(0.301, "<")
    # tokens and seconds are read off the evaluations around it
    assert depo.spreads["tokens_to_target"].median == pytest.approx(30_100)
    assert depo.spreads["seconds_to_target"].median == pytest.approx(30.1)
    assert grpo.spreads["seconds_to_target"].bound == ">"


def test_without_a_target_or_a_policy_nothing_is_censored() -> None:
    (row,) = summarise([run("grpo", 0, target=None)]).rows
    assert row.spreads["rollouts_to_target"] == Spread(missing=1)
    replayed = run("depo", 0, accuracy=None)
    (row,) = summarise([replayed]).rows
    assert row.spreads["rollouts_to_target"].n == 0 and row.spreads["final_accuracy"].n == 0


def test_accuracies_are_compared_at_equal_cost() -> None:
    summary = summarise([run("grpo", 0, spent=1000), run("dapo", 0, spent=4000)])
    assert (summary.budget, summary.budget_unit) == (100_000, "tokens")
    grpo, dapo = (row.spreads["accuracy_at_budget"].median for row in summary.rows)
    assert (grpo, dapo) == (pytest.approx(0.4), pytest.approx(0.1))
    blind = run("depo", 0, accuracy=[{"rollouts": 500, "accuracy": 0.3}])
    summary = summarise([run("grpo", 0), blind])
    assert (summary.budget, summary.budget_unit) == (500, "rollouts")


def test_order_and_headline() -> None:
    names = ["zeta", "depo-no-ranking", "depo", "alpha", "dapo", "grpo"]
    summary = summarise([run(name, 0) for name in names])
    assert [row.method for row in summary.rows] == ["grpo", "dapo", "depo", "depo-no-ranking", "alpha", "zeta"]
    assert summary.baselines == ("grpo", "dapo")
    # no run reached the target: comparing bounds with bounds would say nothing
    assert summary.headline is not None and summary.headline.name == "accuracy_at_budget"
    assert summarise([RunResult(method="depo", seed=0)]).headline is None


@pytest.mark.parametrize("results", [[], [RunResult(method="x|y\n", seed=0)], [run("grpo", 0)]])
def test_every_rendering_of_little(results: list[RunResult]) -> None:
    from rich.console import Console

    summary = summarise(results)
    out = io.StringIO()
    Console(file=out, width=100).print(summary.to_rich())
    assert "Median [min-max]" in out.getvalue()
    lines = summary.to_markdown().splitlines()
    assert len(lines) == 2 + len(results)
    assert len({line.replace("\\|", "").count("|") for line in lines}) == 1
    json.dumps(summary.to_dict(), allow_nan=False)


def test_the_terminal_table_shows_text_as_it_is() -> None:
    from rich.console import Console

    out = io.StringIO()
    results = [run(f"[bold]m{i}[/]", s, 400 + s, mixed_share=0.4 + s / 100) for i in range(20) for s in range(3)]
    Console(file=out, width=120).print(summarise(results).to_rich())
    assert "[bold]m19[/]" in out.getvalue() and "[40.0-42.0]" in out.getvalue()


def test_the_dictionary_holds_every_measure() -> None:
    (method,) = summarise([run("grpo", 3, 700)]).to_dict()["methods"]
    assert method["seeds"] == [3]
    assert list(method["measures"]) == [measure.name for measure in MEASURES]
    assert method["measures"]["auc_mixed"]["median"] is None
    assert method["measures"]["rollouts_to_target"]["median"] == 700
    assert method["ratios"]["grpo"]["rollouts_to_target"] == {"value": 1.0, "bound": "="}


def test_a_seed_counted_twice_is_refused() -> None:
    with pytest.raises(DataError, match="twice"):
        summarise([run("grpo", 0), run("grpo", 0)])


@pytest.mark.parametrize(
    ("value", "unit", "text"),
    [
        (None, "share", "-"), (0.41234, "share", "41.2 %"), (9999, "count", "9,999"), (12_345, "count", "12.3k"),
        (999_999, "count", "1M"), (1_234_567, "count", "1.23M"), (38_700_000, "count", "38.7M"),
        (5e12, "count", "5,000G"), (0.5, "count", "0"), (0.0123, "seconds", "0.0123 s"), (59.9, "seconds", "59.9 s"),
        (60, "seconds", "1 min"), (3599.6, "seconds", "1 h"), (5400, "seconds", "1 h 30 min"), (0.5, "number", "0.500"),
    ],
)  # fmt: skip
def test_numbers_for_people(value: float | None, unit: str, text: str) -> None:
    assert form(value, unit) == text


def test_larger_counts_never_look_smaller() -> None:
    def number(text: str) -> float:
        scale = {"k": 1e3, "M": 1e6, "G": 1e9}.get(text[-1], 1.0)
        return float(text.rstrip("kMG").replace(",", "")) * scale

    shown = [number(form(1.07**i, "count")) for i in range(400)]
    assert all(a <= b for a, b in pairwise(shown))
