"""The figure of accuracy by source: what was learnt, and what was forgotten for it."""

from __future__ import annotations

import math
from typing import TYPE_CHECKING

import numpy as np

from .curves import Curve, as_curve
from .drawing import (
    Results,
    by_method,
    compact,
    draw_evaluations,
    legend_labels,
    methods_of,
    percent,
)
from .results import RunResult
from .style import LIGHT, Theme, add_legend, blank, new_figure, strokes, style_axes

if TYPE_CHECKING:
    from matplotlib.axes import Axes
    from matplotlib.figure import Figure

_MOST = 8  # panels; of more sources, those that changed most
_LEAST_HEIGHT = 0.06  # of a panel, in accuracy: noise must not look like news


def source_curve(run: RunResult, source: str) -> Curve:
    """Accuracy on ``source`` against completions sampled, from the start on; empty if it was not
    measured."""
    known = (run.accuracy_by_source or {}).get(source)
    points = [(0.0, known.start)] if known else []
    points += [(row.get("rollouts"), row.get(f"accuracy_{source}")) for row in run.history or ()]  # type: ignore[misc]
    told = sorted((float(x), float(y)) for x, y in points if x is not None and y is not None)
    return as_curve(([x for x, _ in told], [y for _, y in told]))


def shown_sources(results: Results) -> list[str]:
    """The sources to draw, in their order: at most eight, those whose accuracy changed most in some
    run."""
    moved: dict[str, float] = {}
    for run in results:
        for source, accuracy in (run.accuracy_by_source or {}).items():
            moved[source] = max(moved.get(source, 0.0), abs(accuracy.change or 0.0))
    most = sorted(moved, key=lambda source: -moved[source])[:_MOST]
    return [source for source in moved if source in most]


def accuracy_by_source(results: Results, theme: Theme = LIGHT) -> Figure:
    """A panel per source, each with a scale of its own, and a line where all began."""
    sources = shown_sources(results)
    if not sources:
        return blank(theme, "Accuracy by source was not measured.")
    columns = min(len(sources), 2 if len(sources) <= 4 else 4)
    n_rows = math.ceil(len(sources) / columns)
    figure = new_figure(theme, max(4.0 * columns, 6.0) if columns < 4 else 10.4, 0.8 + 2.3 * n_rows)
    grid = figure.subplots(n_rows, columns, squeeze=False, sharex=True)
    looks = strokes(methods_of(results), theme)
    handles: dict[str, object] = {}
    for axes, source in zip(grid.flat, sources, strict=False):
        style_axes(axes, theme, title=source)
        curves = by_method(results, lambda run, s=source: source_curve(run, s))  # type: ignore[misc]
        handles |= draw_evaluations(axes, curves, looks)
        _frame(axes, results, source, theme)
    for axes in list(grid.flat)[len(sources) :]:
        axes.set_visible(False)
    figure.supxlabel(
        "completions sampled (dashed: where all began)", color=theme.faint, fontsize=9.5
    )
    figure.supylabel("held-out accuracy", color=theme.faint, fontsize=9.5)
    add_legend(figure, list(handles.values()), legend_labels(results, handles, theme), theme)
    return figure


def _frame(axes: Axes, results: Results, source: str, theme: Theme) -> None:
    """The line of the start, and limits that show a fall without blowing up noise."""
    known = [(run.accuracy_by_source or {}).get(source) for run in results]
    starts = [a.start for a in known if a is not None and a.start is not None]
    if starts:
        axes.axhline(
            float(np.median(starts)), color=theme.ink, linewidth=1, linestyle=(0, (3, 3)), zorder=1
        )
    low, high = axes.get_ylim()
    middle = (low + high) / 2
    half = max(high - low, _LEAST_HEIGHT) / 2
    axes.set_ylim(max(middle - half, -0.004), min(middle + half, 1.004))
    axes.set_xlim(left=0)
    percent(axes)
    compact(axes)
