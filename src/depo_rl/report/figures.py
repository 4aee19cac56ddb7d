"""The figures of a report. Each function takes the runs and returns a matplotlib ``Figure``;
``FIGURES`` lists them.

A line is the median over seeds, a band reaches from the lowest seed to the highest, thin lines are
the seeds.
"""

from __future__ import annotations

import math
import os
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING

from ..files import write_atomically
from .by_source import accuracy_by_source, shown_sources
from .curves import Curve, accuracy_curve, as_curve, merge_bins, smooth, window_for
from .drawing import (
    Results,
    by_method,
    compact,
    dashed,
    draw,
    draw_evaluations,
    legend_labels,
    methods_of,
    percent,
    solid,
    time_unit,
)
from .form import form
from .results import RunResult
from .skips import skipped_groups
from .style import LIGHT, Theme, add_legend, blank, new_figure, strokes, style_axes, to_png

if TYPE_CHECKING:
    from matplotlib.figure import Figure

_UNITS = {
    "rollouts": "completions sampled", "tokens": "completion tokens", "seconds": "wall-clock time", "step": "step",
}  # fmt: skip


def accuracy_over(results: Results, unit: str = "rollouts", theme: Theme = LIGHT) -> Figure:
    """Held-out accuracy against ``unit`` (rollouts, tokens, seconds or step), with a line at the
    target accuracy."""
    curves = by_method(results, lambda run: accuracy_curve(run, unit))
    if not curves:
        return blank(theme, f"Accuracy against {_UNITS[unit]} was not measured.")
    figure = new_figure(theme)
    scale, suffix = time_unit(curves) if unit == "seconds" else (1.0, "")
    whole = all(run.accuracy_whole is not None for run in results if run.accuracy)
    of_what = "held-out accuracy, whole pool" if whole else "held-out accuracy"
    axes = style_axes(figure.add_subplot(), theme, _UNITS[unit] + suffix, of_what)
    scaled = {m: [(x / scale, y) for x, y in each] for m, each in curves.items()}
    handles = draw_evaluations(axes, scaled, strokes(methods_of(results), theme))
    for target in sorted({run.target for run in results if run.target is not None}):
        axes.axhline(target, color=theme.ink, linewidth=1, linestyle=(0, (3, 3)), zorder=1)
        axes.annotate(
            f"target {form(target, 'share')}", (0, target), xycoords=("axes fraction", "data"), xytext=(3, 3),
            textcoords="offset points", color=theme.ink, fontsize=8.5,
        )  # fmt: skip
    axes.set_xlim(left=0)
    percent(axes)
    compact(axes)
    add_legend(figure, list(handles.values()), legend_labels(results, handles, theme), theme)
    return figure


def group_shares(results: Results, theme: Theme = LIGHT) -> Figure:
    """Shares of mixed, all-right and all-wrong groups over steps: what the rollouts were spent
    on."""
    panels = (
        ("mixed_share", "mixed"),
        ("all_pass_share", "all right"),
        ("all_fail_share", "all wrong"),
    )
    return _over_steps(
        results, panels, "share of groups", "The shares of groups were not measured.", theme, True
    )


def breadth(results: Results, theme: Theme = LIGHT) -> Figure:
    """How much of what was chosen lately were different prompts, and how much of the pool never
    was, over steps."""
    panels = (
        ("distinct_share", "different, of the last 20 batches"),
        ("unseen_share", "never chosen, of the pool"),
    )
    return _over_steps(
        results, panels, "share of prompts", "How widely was chosen was not measured.", theme, True
    )


def training_reward(results: Results, theme: Theme = LIGHT) -> Figure:
    """Mean training reward of the groups rolled out, over steps (the paper's figure 8)."""
    return _over_steps(
        results,
        (("reward", ""),),
        "training reward",
        "The training reward was not measured.",
        theme,
    )


def _over_steps(
    results: Results,
    panels: Sequence[tuple[str, str]],
    ylabel: str,
    empty: str,
    theme: Theme,
    shares: bool = False,
) -> Figure:
    """One panel for each (series of the history, title), side by side with one scale."""
    window = window_for(results)

    def curve(name: str, run: RunResult) -> Curve:
        return smooth(as_curve(run.series(name)), window)

    data = {name: by_method(results, partial(curve, name)) for name, _ in panels}
    if not any(data.values()):
        return blank(theme, empty)
    figure = new_figure(theme, 7.2 if len(panels) == 1 else 9.6, 4.2 if len(panels) == 1 else 3.9)
    grid = figure.subplots(1, len(panels), sharey=True, squeeze=False)[0]
    handles: dict[str, object] = {}
    for i, (axes, (name, title)) in enumerate(zip(grid, panels, strict=True)):
        averaged = f"step (rolling mean of {window})" if window > 1 else "step"
        style_axes(axes, theme, averaged, "" if i else ylabel, title)
        handles |= draw(axes, data[name], strokes(methods_of(results), theme))
        compact(axes)
        if shares:
            axes.set_ylim(0, 1.02)  # a line at 100 % is seen whole
            percent(axes)
    add_legend(figure, list(handles.values()), legend_labels(results, handles, theme), theme)
    return figure


def predicted_against_observed(results: Results, theme: Theme = LIGHT) -> Figure:
    """Mean predicted and mean observed pass rate over steps, a panel per method (the paper's figure
    4)."""
    window = window_for(results)
    series = {
        name: by_method(results, lambda r, n=name: smooth(as_curve(r.series(n)), window))  # type: ignore[misc]
        for name in ("observed_mean", "predicted_mean")
    }
    methods = [m for m in methods_of(results) if m in series["predicted_mean"]]
    if not methods:
        return blank(theme, "No predicted pass rates were recorded.")
    columns = min(len(methods), 3 if len(methods) <= 6 else 4)
    n_rows = math.ceil(len(methods) / columns)
    figure = new_figure(theme, max(2.6 * columns, 6.0), 0.9 + 2.3 * n_rows if n_rows > 1 else 3.4)
    grid = figure.subplots(n_rows, columns, sharex=True, sharey=True, squeeze=False)
    looks = strokes(methods_of(results), theme)
    highest = max(
        float(y.max()) for each in series.values() for m in methods for _, y in each.get(m, ())
    )
    for axes, method in zip(grid.flat, methods, strict=False):
        style_axes(axes, theme, title=looks[method].label)
        for name, faded in (("observed_mean", False), ("predicted_mean", True)):
            if method in series[name]:
                look = looks[method]
                draw(
                    axes,
                    {method: series[name][method]},
                    {method: dashed(look) if faded else solid(look)},
                )
        axes.set_ylim(0, min(1.0, 1.15 * highest + 0.01))
        percent(axes)
        compact(axes)
    for axes in list(grid.flat)[len(methods) :]:
        axes.set_visible(False)
    averaged = f", rolling mean of {window}" if window > 1 else ""
    figure.supxlabel(f"step (dashed: predicted before the rollout; solid: observed{averaged})",
                     color=theme.faint, fontsize=9.5)  # fmt: skip
    figure.supylabel("mean pass rate", color=theme.faint, fontsize=9.5)
    return figure


def reliability_diagram(results: Results, theme: Theme = LIGHT) -> Figure:
    """Predicted probability of a mixed group against how often one came, and how many groups each
    point stands for."""
    bins = {m: merge_bins([r for r in results if r.method == m]) for m in methods_of(results)}
    bins = {method: rows for method, rows in bins.items() if rows}
    if not bins:
        return blank(theme, "The reliability of the predictions was not measured.")
    figure = new_figure(theme, 6.4, 6.0)
    top, bottom = figure.subplots(2, 1, sharex=True, height_ratios=[3.2, 1])
    style_axes(top, theme, ylabel="share that was mixed")
    style_axes(bottom, theme, "predicted probability of a mixed group", "groups")
    top.plot([0, 1], [0, 1], color=theme.faint, linewidth=1, linestyle=(0, (3, 3)), zorder=1)
    top.annotate(
        "perfect",
        (1, 1),
        (0, 3),
        textcoords="offset points",
        ha="right",
        color=theme.faint,
        fontsize=8.5,
    )
    looks = strokes(methods_of(results), theme)
    handles = {}
    most = max(row.count for rows in bins.values() for row in rows)
    for method, rows in bins.items():
        look = looks[method]
        x = [row.predicted for row in rows]
        (handles[method],) = top.plot(
            x, [row.observed for row in rows], color=look.color, linestyle=look.dash, linewidth=1.6, marker=look.marker,
            markersize=4,
        )  # fmt: skip
        sizes = [12 + 160 * row.count / most for row in rows]
        top.scatter(
            x, [row.observed for row in rows], s=sizes, color=look.color, alpha=0.25, linewidths=0
        )
        bottom.plot(x, [row.count for row in rows], color=look.color, linestyle=look.dash, linewidth=1.4,
                    marker=look.marker, markersize=3.5)  # fmt: skip
    top.set_xlim(-0.02, 1.02)
    top.set_ylim(-0.02, 1.06)
    bottom.set_ylim(bottom=0)
    percent(top)
    compact(bottom, "y")
    add_legend(figure, list(handles.values()), legend_labels(results, handles, theme), theme)
    return figure


@dataclass(frozen=True, slots=True)
class FigureSpec:
    """A figure of the report: file name, heading, what to see in it, how it is drawn, whether there
    is data for it."""

    name: str
    title: str
    explanation: str
    draw: Callable[[Results, Theme], Figure]
    has_data: Callable[[Results], bool]


def _accuracy_spec(unit: str, title: str, explanation: str) -> FigureSpec:
    return FigureSpec(
        f"accuracy_{unit}",
        title,
        explanation,
        lambda results, theme: accuracy_over(results, unit, theme),
        lambda results: bool(by_method(results, lambda run: accuracy_curve(run, unit))),
    )


def _has_series(name: str) -> Callable[[Results], bool]:
    return lambda results: any(run.series(name)[0] for run in results)


FIGURES = (
    _accuracy_spec(
        "rollouts",
        "Accuracy against completions sampled",
        "Held-out accuracy against the completions that were paid for, those of discarded groups included. A curve "
        "further to the left reaches the same accuracy for less. Of many evaluations (of a single run: the dots) "
        "the line is the rolling mean: from one to the next a policy moves as much as methods differ. Where the axis "
        "says “whole pool”, it is the accuracy on problems of all sources, weighted as the sources are in the pool: "
        "what is forgotten counts as much as what is learnt.",
    ),
    FigureSpec(
        "accuracy_by_source",
        "What was learnt, and what was forgotten",
        "The same source by source, each with a scale of its own. Above the dashed line, where all began, a method "
        "has learnt; below it, it has forgotten. A method that gains on one source and loses on another may be no "
        "better on the whole.",
        accuracy_by_source,
        lambda results: bool(shown_sources(results)),
    ),
    _accuracy_spec(
        "tokens",
        "Accuracy against tokens",
        "The same against completion tokens. If a method prefers prompts with long answers, its saving in completions "
        "is smaller here.",
    ),
    _accuracy_spec(
        "seconds",
        "Accuracy against wall-clock time",
        "The same against time on this machine: everything is in it, choosing prompts and teaching the estimator too.",
    ),
    _accuracy_spec(
        "step",
        "Accuracy against steps",
        "The same against optimiser steps. It shows how much a step teaches, not what it costs: a method that samples "
        "more per step looks better here than it is.",
    ),
    FigureSpec(
        "group_shares",
        "What the rollouts were spent on",
        "Only a mixed group, with right and wrong answers, teaches under GRPO. In a group that is all right or all "
        "wrong every advantage is zero: its rollouts are wasted.",
        group_shares,
        _has_series("mixed_share"),
    ),
    FigureSpec(
        "breadth",
        "How widely was chosen",
        "Left: of the places of the last 20 batches, how many went to different prompts; the rest are repeats. Right: "
        "how much of the pool was never chosen. A method that returns to few prompts teaches those, and may forget "
        "the others.",
        breadth,
        _has_series("distinct_share"),
    ),
    FigureSpec(
        "predicted_observed",
        "Predicted and observed pass rate",
        "Mean pass rate of the groups rolled out, as predicted before the rollout (dashed) and as it then was (solid). "
        "The two should meet soon and stay together while the policy improves.",
        predicted_against_observed,
        _has_series("predicted_mean"),
    ),
    FigureSpec(
        "reliability",
        "Can the prediction be trusted?",
        "Where the estimator said that a group would be mixed with a probability of 70 %, were 70 % of the groups "
        "mixed? On the diagonal it is right; below it promises too much. The lower panel and the size of the dots show "
        "how many groups a point stands for: do not read much into a point that stands for few.",
        reliability_diagram,
        lambda results: any(row.count for run in results for row in run.reliability or ()),
    ),
    FigureSpec(
        "skipped",
        "What was skipped",
        "A share of the groups is rolled out whatever the prediction. Of those that the method would have skipped, how "
        "many were mixed (filled dot, with a 95 % interval over all seeds)? Of those that it would have rolled out "
        "(open dot)? The line is their mixed share in all, what a uniform draw gives. The further the filled dot is to "
        "the left of the open one, the more the prediction knows.",
        skipped_groups,
        lambda results: any(run.skip_audit is not None for run in results),
    ),
    FigureSpec(
        "training_reward",
        "Training reward",
        "Mean reward of the groups rolled out. It mixes two things, how good the policy is and how hard the chosen "
        "prompts are: a selector that avoids easy prompts lowers it. Judge methods by the accuracy.",
        training_reward,
        _has_series("reward"),
    ),
)


def save_figures(results: Results, out_dir: str | os.PathLike[str]) -> list[Path]:
    """Writes ``<name>.png`` for every figure there is data for, each all at once; returns the
    paths.

    Raises ConfigError without matplotlib, CheckpointError if the disk fails.
    """
    paths = []
    for spec in FIGURES:
        if spec.has_data(results):
            path = Path(out_dir) / f"{spec.name}.png"
            write_atomically(path, to_png(spec.draw(results, LIGHT)))
            paths.append(path)
    return paths
