"""The figures: what is drawn, for one seed, many methods, strange names, and nothing at all."""

from __future__ import annotations

import sys
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from depo_rl.errors import CheckpointError, ConfigError
from depo_rl.report import RunResult, save_figures
from depo_rl.report.by_source import accuracy_by_source, shown_sources
from depo_rl.report.curves import accuracy_curve, band, merge_bins, smooth, window_for
from depo_rl.report.figures import (
    FIGURES,
    accuracy_over,
    breadth,
    group_shares,
    predicted_against_observed,
    reliability_diagram,
    training_reward,
)
from depo_rl.report.style import DARK, LIGHT, strokes, to_png
from depo_rl.report.table import KNOWN_ORDER

AUDIT = {
    "explored": 40,
    "explored_mixed": 18,
    "skipped": 30,
    "skipped_mixed": 9,
    "low": 0.17,
    "high": 0.48,
}
PNG = b"\x89PNG\r\n\x1a\n"
EMPTY = {
    "accuracy_rollouts": "Accuracy against completions sampled was not measured.",
    "accuracy_by_source": "Accuracy by source was not measured.",
    "accuracy_tokens": "Accuracy against completion tokens was not measured.",
    "accuracy_seconds": "Accuracy against wall-clock time was not measured.",
    "accuracy_step": "Accuracy against step was not measured.",
    "group_shares": "The shares of groups were not measured.",
    "breadth": "How widely was chosen was not measured.",
    "predicted_observed": "No predicted pass rates were recorded.",
    "reliability": "The reliability of the predictions was not measured.",
    "skipped": "No group was explored: what was skipped cannot be judged.",
    "training_reward": "The training reward was not measured.",
}


def make_run(method: str = "depo", seed: int = 0, steps: int = 12, **changes: Any) -> RunResult:
    shares = {
        "mixed_share": 0.5,
        "all_pass_share": 0.2,
        "all_fail_share": 0.3,
        "distinct_share": 0.9,
    }
    history = [
        shares
        | {
            "step": s,
            "rollouts": 64 * s,
            "predicted_mean": 0.4,
            "observed_mean": s / steps,
            "reward": s + seed,
        }
        for s in range(1, steps + 1)
    ]
    for row in history[2::3]:
        row |= {"accuracy_add2": 0.9 - row["step"] / 100, "accuracy_add3": 0.5 + seed / 100}
    accuracy = [{"rollouts": 64 * s, "tokens": 6400 * s, "seconds": 2.0 * s, "accuracy": s / (2 * steps) + seed / 100}
                for s in range(0, steps + 1, 3)]  # fmt: skip
    bins = [
        {"predicted": 0.3, "observed": 0.2, "count": 10},
        {"predicted": 0.9, "observed": 1.0, "count": 30},
    ]
    values: dict[str, Any] = {
        "method": method, "seed": seed, "steps": steps, "rollouts": 64 * steps, "history": history, "target": 0.4,
        "accuracy": accuracy, "reliability": bins, "skip_audit": dict(AUDIT),
        "accuracy_by_source": {"add2": {"start": 0.9, "end": 0.78}, "add3": {"start": 0.5, "end": 0.5}},
    }  # fmt: skip
    return RunResult.model_validate(values | changes)


def lines(figure: Any) -> list[Any]:
    return [line for axes in figure.axes for line in axes.get_lines()]


def test_all_figures_are_saved_all_at_once(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    results = [make_run(m, s) for m in ("grpo", "depo") for s in (0, 1)]
    paths = save_figures(results, tmp_path / "figures")
    assert [path.stem for path in paths] == [spec.name for spec in FIGURES]
    assert all(path.read_bytes().startswith(PNG) for path in paths)
    assert sorted(p.name for p in (tmp_path / "figures").iterdir()) == sorted(
        path.name for path in paths
    )
    before = paths[0].read_bytes()
    monkeypatch.setattr(
        "os.replace", lambda *_: (_ for _ in ()).throw(OSError(28, "No space left on device"))
    )
    with pytest.raises(CheckpointError):
        save_figures(results[:2], tmp_path / "figures")
    assert paths[0].read_bytes() == before


def test_nothing_measured_saves_nothing_and_says_so(tmp_path: Path) -> None:
    results = [RunResult(method="depo", seed=0)]
    assert save_figures(results, tmp_path) == [] and save_figures([], tmp_path) == []
    for spec in FIGURES:
        for runs in (results, []):
            figure = spec.draw(runs, LIGHT)
            assert [text.get_text() for text in figure.axes[0].texts] == [EMPTY[spec.name]]


def test_a_figure_is_the_same_bytes_each_time() -> None:
    assert to_png(training_reward([make_run()])) == to_png(training_reward([make_run()]))


def test_median_band_and_seeds() -> None:
    figure = accuracy_over([make_run(seed=s) for s in (0, 1, 2)])
    (axes,) = figure.axes
    median = max(axes.get_lines(), key=lambda line: line.get_linewidth())
    expected = [s / 24 + 0.01 for s in range(0, 13, 3)]
    assert median.get_ydata() == pytest.approx(expected)
    assert median.get_xdata() == pytest.approx([64.0 * s for s in range(0, 13, 3)])
    assert len(axes.get_lines()) == 3 + 1 + 1  # seeds, median, target
    assert len(axes.collections) == 1
    assert [t.get_text() for t in axes.texts] == ["target 40.0 %"]


def test_one_seed_has_neither_band_nor_thin_lines() -> None:
    (axes,) = accuracy_over([make_run(target=None)]).axes
    assert len(axes.get_lines()) == 1 and not axes.collections


@pytest.mark.parametrize(
    ("unit", "label"), [("seconds", "wall-clock time (seconds)"), ("tokens", "completion tokens")]
)
def test_axes_say_their_unit(unit: str, label: str) -> None:
    assert accuracy_over([make_run()], unit).axes[0].get_xlabel() == label
    slow = make_run(accuracy=[{"seconds": 60.0 * i, "accuracy": 0.1} for i in range(200)])
    assert accuracy_over([slow], "seconds").axes[0].get_xlabel() == "wall-clock time (hours)"


def test_steps_are_derived_from_rollouts() -> None:
    assert accuracy_curve(make_run(), "step")[0] == pytest.approx([0, 3, 6, 9, 12])
    assert accuracy_curve(make_run(history=None), "step")[0] == pytest.approx([0, 3, 6, 9, 12])
    assert not len(accuracy_curve(make_run(history=None, rollouts=None), "step")[0])
    own = make_run(accuracy=[{"step": 7, "accuracy": 0.1}])
    assert accuracy_curve(own, "step")[0] == pytest.approx([7])


def test_shares_in_three_panels() -> None:
    figure = group_shares([make_run(m) for m in ("grpo", "depo")])
    assert [axes.get_title(loc="left") for axes in figure.axes] == [
        "mixed",
        "all right",
        "all wrong",
    ]
    assert [set(axes.get_lines()[0].get_ydata()) for axes in figure.axes] == [{0.5}, {0.2}, {0.3}]


def test_each_source_gets_a_panel_from_the_start_on_with_a_line_there() -> None:
    figure = accuracy_by_source([make_run(m) for m in ("grpo", "depo")])
    assert [axes.get_title(loc="left") for axes in figure.axes] == ["add2", "add3"]
    fell, held = figure.axes
    assert fell.get_lines()[0].get_xdata() == pytest.approx([0, 192, 384, 576, 768])
    assert fell.get_lines()[0].get_ydata() == pytest.approx([0.9, 0.87, 0.84, 0.81, 0.78])
    assert fell.get_lines()[-1].get_ydata() == pytest.approx([0.9, 0.9])  # where all began
    low, high = held.get_ylim()
    assert high - low >= 0.06  # nothing happened, and that is what is seen


def test_of_many_sources_those_that_changed_most_are_drawn() -> None:
    ends = {f"s{i}": {"start": 0.5, "end": 0.5 + 0.01 * i} for i in range(12)}
    assert shown_sources([make_run(accuracy_by_source=ends)]) == [f"s{i}" for i in range(4, 12)]
    figure = accuracy_by_source([make_run(accuracy_by_source=ends)])
    assert len([axes for axes in figure.axes if axes.get_visible()]) == 8
    three = accuracy_by_source([make_run(accuracy_by_source=dict(list(ends.items())[:3]))])
    assert [axes.get_visible() for axes in three.axes] == [True, True, True, False]


def test_many_evaluations_are_averaged_and_start_and_end_are_as_measured() -> None:
    accuracy = [{"rollouts": i, "accuracy": 0.4 + 0.1 * (i % 2)} for i in range(30)]
    figure = accuracy_over([make_run(accuracy=accuracy, target=None)])
    dots, line = sorted(lines(figure), key=lambda line: line.get_linestyle() != "None")
    assert dots.get_ydata() == pytest.approx([point["accuracy"] for point in accuracy])
    y = line.get_ydata()
    assert (y[0], y[-1]) == pytest.approx((0.4, 0.5)) and set(np.round(y[2:-2], 6)) == {0.44, 0.46}
    assert (
        len(
            lines(accuracy_over([make_run(seed=s, accuracy=accuracy, target=None) for s in (0, 1)]))
        )
        == 3
    )  # no dots


def test_the_whole_pool_is_named_where_it_was_measured() -> None:
    whole, unknown = make_run("grpo", accuracy_whole=0.5), make_run("depo")
    assert accuracy_over([whole]).axes[0].get_ylabel() == "held-out accuracy, whole pool"
    assert accuracy_over([whole, unknown]).axes[0].get_ylabel() == "held-out accuracy"


def test_breadth_in_two_panels() -> None:
    left, right = breadth([make_run()]).axes
    assert set(left.get_lines()[0].get_ydata()) == {0.9} and not right.get_lines()


def test_predictions_get_a_panel_each_and_only_where_there_are_some() -> None:
    silent = make_run("grpo")
    silent = silent.model_copy(
        update={"history": [{"step": 1.0, "observed_mean": 0.5, "predicted_mean": None}]}
    )
    figure = predicted_against_observed([silent, make_run("depo"), make_run("greso")])
    assert [axes.get_title(loc="left") for axes in figure.axes if axes.get_visible()] == [
        "greso",
        "depo",
    ]
    assert all(len(axes.get_lines()) == 2 for axes in figure.axes)


def test_reliability_merges_seeds_by_count() -> None:
    a = make_run(seed=0, reliability=[{"predicted": 0.30, "observed": 0.0, "count": 30}])
    b = make_run(seed=1, reliability=[{"predicted": 0.32, "observed": 1.0, "count": 10},
                                      {"predicted": 1.0, "observed": 1.0, "count": 0}])  # fmt: skip
    (merged,) = merge_bins([a, b])
    assert (merged.predicted, merged.observed, merged.count) == (
        pytest.approx(0.305),
        pytest.approx(0.25),
        40,
    )
    top, bottom = reliability_diagram([a, b]).axes
    assert top.get_lines()[1].get_ydata() == pytest.approx([0.25])
    assert bottom.get_lines()[0].get_ydata() == pytest.approx([40])


def test_strange_names_are_text_and_draw_without_warnings() -> None:
    names = ["_hidden", "a$b$c", "方法", "x" * 100, "line\nbreak"]
    results = [make_run(name) for name in names]
    for figure in (group_shares(results), predicted_against_observed(results)):
        assert to_png(figure).startswith(PNG)
    texts = [t.get_text() for t in accuracy_over(results).legends[0].get_texts()]
    assert " _hidden" in texts and "a$b$c" in texts and max(map(len, texts)) <= 29


def test_twenty_methods_are_told_apart() -> None:
    results = [make_run(f"method-{i:02d}") for i in range(17)] + [
        make_run(m) for m in ("grpo", "dapo", "depo")
    ]
    looks = strokes([run.method for run in results], LIGHT)
    assert len({(look.color, str(look.dash), look.marker) for look in looks.values()}) == 20
    figure = accuracy_over(results)
    assert to_png(figure).startswith(PNG)
    assert len(figure.legends[0].get_texts()) == 20


def test_a_known_method_always_looks_the_same() -> None:
    alone, among = strokes(["depo"], LIGHT), strokes(["zzz", "depo", "grpo"], LIGHT)
    assert alone["depo"] == among["depo"]
    assert strokes(["depo"], DARK)["depo"].color != alone["depo"].color


def luminance(color: str) -> float:
    rgb = np.array([int(color[i : i + 2], 16) / 255 for i in (1, 3, 5)])
    linear = np.where(rgb <= 0.03928, rgb / 12.92, ((rgb + 0.055) / 1.055) ** 2.4)
    return float(linear @ [0.2126, 0.7152, 0.0722])


@pytest.mark.parametrize("theme", [LIGHT, DARK])
def test_colours_stand_out_from_their_paper(theme: Any) -> None:
    names = [*KNOWN_ORDER, "a", "b", "c", "d"]
    colors = [(look.color, 3.0) for look in strokes(names, theme).values()] + [
        (theme.ink, 7.0),
        (theme.faint, 4.5),
    ]
    for color, least in colors:
        light, dark = sorted((luminance(color), luminance(theme.paper)), reverse=True)
        assert (light + 0.05) / (dark + 0.05) >= least, color


def test_bands_cover_what_every_seed_covers() -> None:
    def curve(*points: tuple[float, float]) -> Any:
        return np.array([x for x, _ in points]), np.array([y for _, y in points])

    found = band([curve((0, 0), (10, 10)), curve((2, 4), (8, 10)), curve((1, 0), (9, 0))])
    assert found is not None
    assert found.x.tolist() == [2, 8]
    assert (found.median.tolist(), found.low.tolist(), found.high.tolist()) == (
        [2, 8],
        [0, 0],
        [4, 10],
    )
    assert band([curve((0, 0), (1, 1)), curve((2, 0), (3, 1))]) is None
    assert band([]) is None
    long = band([curve(*((i, i) for i in range(1000)))])
    assert long is not None and len(long.x) == 200 and long.median == pytest.approx(long.x)


def test_seeds_that_do_not_overlap_are_drawn_one_by_one() -> None:
    early = make_run(
        seed=0, accuracy=[{"rollouts": 1, "accuracy": 0.1}, {"rollouts": 2, "accuracy": 0.2}]
    )
    late = make_run(
        seed=1, accuracy=[{"rollouts": 5, "accuracy": 0.1}, {"rollouts": 6, "accuracy": 0.2}]
    )
    assert len(lines(accuracy_over([early, late]))) == 3  # two seeds and the target


def test_smoothing() -> None:
    x, y = np.arange(5.0), np.array([0.0, 3.0, 0.0, 3.0, 0.0])
    assert smooth((x, y), 1)[1] is y
    assert smooth((x, y), 3)[1].tolist() == [1.5, 1.0, 2.0, 1.0, 1.5]
    assert smooth((x, y), 3, keep_ends=True)[1].tolist() == [0.0, 1.0, 2.0, 1.0, 0.0]
    assert window_for([make_run(steps=12)]) == 1 and window_for([make_run(steps=600)]) == 21


def test_without_matplotlib_the_mend_is_named(
    monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    monkeypatch.setitem(sys.modules, "matplotlib.figure", None)
    with pytest.raises(ConfigError, match=r"pip install './depo-rl\[report\]'"):
        save_figures([make_run()], tmp_path)
    assert not list(tmp_path.iterdir())
