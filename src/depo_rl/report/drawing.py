"""What the figures have in common: a curve per run, a line and a band per method, axes in percent
and in thousands."""

from __future__ import annotations

from collections.abc import Callable, Collection, Sequence
from typing import TYPE_CHECKING

from .curves import Curve, band, evaluation_window, smooth
from .results import RunResult
from .style import Stroke, Theme, strokes
from .table import method_order

if TYPE_CHECKING:
    from matplotlib.axes import Axes

Results = Sequence[RunResult]
MANY = 6  # methods beyond which the single seeds are not drawn


def methods_of(results: Results) -> list[str]:
    """Distinct methods, in the order of every table and legend."""
    return method_order(run.method for run in results)


def legend_labels(results: Results, handles: dict[str, object], theme: Theme) -> list[str]:
    """A legend's texts for what ``draw`` returned."""
    looks = strokes(methods_of(results), theme)
    return [looks[method].label for method in handles]


def by_method(results: Results, curve: Callable[[RunResult], Curve]) -> dict[str, list[Curve]]:
    """The non-empty curves of each method that has one."""
    found = {m: [curve(run) for run in results if run.method == m] for m in methods_of(results)}
    kept = {m: [(x, y) for x, y in each if len(x)] for m, each in found.items()}
    return {m: each for m, each in kept.items() if each}


def draw(
    axes: Axes,
    curves: dict[str, list[Curve]],
    looks: dict[str, Stroke],
    marked: Collection[str] = (),
) -> dict[str, object]:
    """Draws every method, those ``marked`` with their points; returns the line that stands for it
    in the legend."""
    handles: dict[str, object] = {}
    for method, each in curves.items():
        look = looks[method]
        middle = band(each)
        thin = len(curves) <= MANY and len(each) > 1
        if thin or middle is None:
            for x, y in each:
                (handles[method],) = axes.plot(
                    x, y, color=look.color, linestyle=look.dash, linewidth=0.7, alpha=0.45
                )
        if middle is None:
            continue
        if len(each) > 1:
            alpha = 0.16 if thin else 0.06
            axes.fill_between(
                middle.x, middle.low, middle.high, color=look.color, alpha=alpha, linewidth=0
            )
        dots = (
            look.marker if len(middle.x) == 1 or (method in marked and len(middle.x) <= 40) else ""
        )
        (handles[method],) = axes.plot(
            middle.x,
            middle.median,
            color=look.color,
            linestyle=look.dash,
            linewidth=1.9,
            marker=dots,
            markersize=4,
        )
    return handles


def draw_evaluations(
    axes: Axes, curves: dict[str, list[Curve]], looks: dict[str, Stroke]
) -> dict[str, object]:
    """As ``draw``, for accuracies: of many evaluations, of a single run faint dots, the line is the
    rolling mean.

    From one evaluation to the next a policy moves about as much as methods differ.
    """
    many = [method for method, each in curves.items() if max(map(evaluation_window, each)) > 1]
    for method in many:
        if (
            len(curves[method]) == 1 and len(curves) <= MANY
        ):  # of several seeds the band shows the spread
            look = looks[method]
            axes.plot(
                *curves[method][0],
                color=look.color,
                linestyle="",
                marker=".",
                markersize=4,
                alpha=0.3,
            )
    smoothed = {
        m: [smooth(c, evaluation_window(c), keep_ends=True) for c in each]
        for m, each in curves.items()
    }
    return draw(axes, smoothed, looks, marked=[method for method in curves if method not in many])


def solid(look: Stroke) -> Stroke:
    """The same method, for what was observed."""
    return Stroke(look.label, look.color, "-", look.marker)


def dashed(look: Stroke) -> Stroke:
    """The same method, for what was predicted."""
    return Stroke(look.label, look.color, (0, (3, 1.6)), look.marker)


def time_unit(curves: dict[str, list[Curve]]) -> tuple[float, str]:
    """(seconds in the unit that suits these curves, what to add to the axis' label)."""
    longest = max(float(x[-1]) for each in curves.values() for x, _ in each)
    scale, name = (
        (3600.0, "hours")
        if longest >= 7200
        else (60.0, "minutes")
        if longest >= 180
        else (1.0, "seconds")
    )
    return scale, f" ({name})"


def percent(axes: Axes) -> None:
    """Shares on the y axis as 40 %."""
    axes.yaxis.set_major_formatter(lambda value, _: f"{100 * value:.4g} %")


def compact(axes: Axes, which: str = "x") -> None:
    """Ticks as 0, 20k, 1.5M."""
    from matplotlib.ticker import EngFormatter, MaxNLocator

    axis = axes.xaxis if which == "x" else axes.yaxis
    axis.set_major_locator(MaxNLocator(5 if which == "x" else 3))
    axis.set_major_formatter(EngFormatter(sep=""))
