"""Summaries over seeds: medians, spreads, ratios, and what a run that never reached its target may
say."""

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
from depo_rl.report.form import form, form_changes, form_points, form_ratio, form_spread
from depo_rl.report.measures import MEASURES
from depo_rl.report.spread import Ratio, Spread, ratio_of, spread_of


def run(
    method: str, seed: int, reached: int | None = None, spent: int = 1000, **changes: Any
) -> RunResult:
    points = [{"rollouts": spent * i // 4, "tokens": spent * i * 25, "seconds": spent * i / 40, "accuracy": 0.1 * i}
              for i in range(5)]  # fmt: skip
    values = {
        "accuracy": points,
        "rollouts_to_target": reached,
        "target": 0.5,
        "rollouts": spent,
    } | changes
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
def test_medians_with_censored_runs(
    observations: list[tuple[float, bool] | None], text: str
) -> None:
    assert median_text(*observations) == text


@settings(max_examples=200, deadline=None, derandomize=True)
@given(st.lists(st.tuples(st.integers(1, 50), st.integers(1, 50)), min_size=1, max_size=6))
def test_the_bound_is_never_wrong(pairs: list[tuple[int, int]]) -> None:
    """(what the target truly costs, where the run was stopped): the claim made must hold for the
    true median."""
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
    results = [
        run("grpo", 0),
        run("grpo", 1),
        run("grpo", 2, 800),
        *(run("depo", i, 300 + i) for i in range(3)),
    ]
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
    assert [row.method for row in summary.rows] == [
        "grpo",
        "dapo",
        "depo",
        "depo-no-ranking",
        "alpha",
        "zeta",
    ]
    assert summary.baselines == ("grpo", "dapo")
    # no run reached the target: comparing bounds with bounds would say nothing
    assert summary.headline is not None and summary.headline.name == "accuracy_at_budget"
    assert summarise([RunResult(method="depo", seed=0)]).headline is None


def sources(**ends: float) -> dict[str, Any]:
    return {name: {"start": 0.5, "end": end} for name, end in ends.items()}


def test_the_whole_pool_comes_first_and_beside_it_what_changed() -> None:
    results = [
        run(
            "grpo",
            0,
            accuracy_whole=0.475,
            accuracy_by_source=sources(a=0.52, b=0.5),
            mixed_share=0.2,
        ),
        run(
            "depo",
            0,
            400,
            accuracy_whole=0.460,
            accuracy_by_source=sources(a=0.40, b=0.61),
            mixed_share=0.7,
        ),
        run(
            "depo",
            1,
            400,
            accuracy_whole=0.450,
            accuracy_by_source=sources(a=0.495, b=0.6),
            mixed_share=0.7,
        ),
    ]
    summary = summarise(results)
    assert summary.headline is not None and summary.headline.name == "accuracy_whole"
    head, (grpo, depo) = summary.cells(
        ["accuracy_whole", "changes", "rollouts_to_target", "mixed_share"]
    )
    assert head == [
        *("method", "seeds", "accuracy, whole pool", "vs grpo", "change by source"),
        *("rollouts to target", "mixed groups"),
    ]
    assert grpo == ["grpo", "1", "47.5 %", "0.0", "a +2.0, b 0.0", "> 1,000", "20.0 %"]
    assert depo == ["depo", "2", "45.5 % [45.0-46.0 %]", "-2.0", "a -5.2, b +10.5", "400", "70.0 %"]
    assert "percentage points" in summary.caption()
    found = summary.rows[1].sources["a"]
    assert (found.start.median, found.end.low, found.forgotten) == (
        0.5,
        0.40,
        1,
    )  # .495 is not forgotten
    written = summary.to_dict()["methods"][1]["sources"]["b"]
    assert written["change"]["median"] == pytest.approx(0.105) and written["forgotten"] == 0


def test_of_many_sources_those_that_changed_most_are_named() -> None:
    ends = {f"s{i}": 0.5 + 0.01 * i for i in range(8)} | {"lost": 0.1}
    (row,) = summarise([run("depo", 0, accuracy_by_source=sources(**ends))]).rows
    assert form_changes(row.sources) == "s5 +5.0, s6 +6.0, s7 +7.0, lost -40.0, 5 more"
    assert form_changes({}) == "-"


def test_a_source_that_one_seed_lacks_is_counted_where_it_is() -> None:
    results = [
        run("depo", s, accuracy_by_source=sources(**each))
        for s, each in enumerate(({"a": 0.4}, {"b": 0.6}))
    ]
    (row,) = summarise(results).rows
    assert {name: found.change.n for name, found in row.sources.items()} == {"a": 1, "b": 1}


def test_columns_stand_in_the_order_they_are_named_in_and_unmeasured_ones_are_left_out() -> None:
    summary = summarise([run("depo", 0, mixed_share=0.5, most_visits=9, effective_prompts=123.4)])
    head, (cells,) = summary.cells(
        ["most_visits", "changes", "unseen_share", "mixed_share", "effective_prompts"]
    )
    assert head == ["method", "seeds", "most visits", "mixed groups", "effective prompts"]
    assert cells == ["depo", "1", "9", "50.0 %", "123"]


@pytest.mark.parametrize("results", [[], [RunResult(method="x|y\n", seed=0)], [run("grpo", 0)]])
def test_every_rendering_of_little(results: list[RunResult]) -> None:
    from rich.console import Console

    summary = summarise(results)
    out = io.StringIO()
    Console(file=out, width=100).print(summary.to_rich())
    assert "Median [min-max]" in out.getvalue()
    head, body = summary.cells()
    assert len(body) == len(results) and all(len(cells) == len(head) for cells in body)
    json.dumps(summary.to_dict(), allow_nan=False)


def test_the_terminal_table_shows_text_as_it_is() -> None:
    from rich.console import Console

    out = io.StringIO()
    results = [
        run(f"[bold]m{i}[/]", s, 400 + s, mixed_share=0.4 + s / 100)
        for i in range(20)
        for s in range(3)
    ]
    Console(file=out, width=120).print(summarise(results).to_rich())
    assert "[bold]m19[/]" in out.getvalue() and "[40.0-42.0]" in out.getvalue()


def test_the_dictionary_holds_every_measure() -> None:
    (method,) = summarise([run("grpo", 3, 700)]).to_dict()["methods"]
    assert method["seeds"] == [3]
    assert list(method["measures"]) == [measure.name for measure in MEASURES]
    assert method["measures"]["auc_mixed"]["median"] is None
    assert method["measures"]["rollouts_to_target"]["median"] == 700
    assert method["ratios"]["grpo"]["rollouts_to_target"] == {"value": 1.0, "bound": "="}


@pytest.mark.parametrize(("width", "fits"), [(80, True), (40, False)])
def test_no_word_is_broken_where_there_is_room(width: int, fits: bool) -> None:
    from rich.console import Console

    results = [
        run(m, s, 400 + s, mixed_share=0.4 + s / 100, most_visits=9)
        for m in ("grpo", "depo")
        for s in range(3)
    ]
    out = io.StringIO()
    table = summarise(results).to_rich(
        ["rollouts_to_target", "mixed_share", "most_visits"], width, caption=False
    )
    Console(file=out, width=width).print(table)
    assert max(map(len, out.getvalue().splitlines())) <= width and "Median" not in out.getvalue()
    words = {
        "method",
        "seeds",
        "rollouts",
        "target",
        "groups",
        "visits",
        "[40.0-42.0]",
        "[400-402]",
    }
    assert (words <= set(out.getvalue().split())) is fits


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
        (3.957, "mean", "4.0"),
    ],
)  # fmt: skip
def test_numbers_for_people(value: float | None, unit: str, text: str) -> None:
    assert form(value, unit) == text


def test_points_for_people() -> None:
    texts = [form_points(value) for value in (0.0133, -0.09, 0.0004, -0.0004, None)]
    assert texts == ["+1.3", "-9.0", "0.0", "0.0", "-"]


def test_larger_counts_never_look_smaller() -> None:
    def number(text: str) -> float:
        scale = {"k": 1e3, "M": 1e6, "G": 1e9}.get(text[-1], 1.0)
        return float(text.rstrip("kMG").replace(",", "")) * scale

    shown = [number(form(1.07**i, "count")) for i in range(400)]
    assert all(a <= b for a, b in pairwise(shown))
