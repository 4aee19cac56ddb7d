"""The figure of false skips: what the explored groups say about the prompts that a method leaves
out."""

from __future__ import annotations

from collections.abc import Sequence
from typing import TYPE_CHECKING

from .curves import wilson
from .results import RunResult, SkipAudit
from .style import LIGHT, Theme, blank, new_figure, strokes, style_axes
from .table import method_order

if TYPE_CHECKING:
    from matplotlib.axes import Axes
    from matplotlib.figure import Figure


def pooled_audit(runs: Sequence[RunResult]) -> SkipAudit | None:
    """The audits of several seeds as one; None if no run has one."""
    audits = [run.skip_audit for run in runs if run.skip_audit is not None]
    if not audits:
        return None
    names = ("explored", "explored_mixed", "skipped", "skipped_mixed")
    total = {name: sum(getattr(audit, name) for audit in audits) for name in names}
    low, high = wilson(total["skipped_mixed"], total["skipped"])
    return SkipAudit(**total, low=low, high=high)


def skipped_groups(results: Sequence[RunResult], theme: Theme = LIGHT) -> Figure:
    """Mixed share of the explored groups that a method would have skipped, and of those it would
    have rolled out."""
    methods = method_order(run.method for run in results)
    pooled = {m: pooled_audit([run for run in results if run.method == m]) for m in methods}
    audits = {method: audit for method, audit in pooled.items() if audit is not None}
    if not audits:
        return blank(theme, "No group was explored: what was skipped cannot be judged.")
    figure = new_figure(theme, 7.2, 1.3 + 0.7 * len(audits))
    axes = style_axes(figure.add_subplot(), theme, "share of mixed groups among explored prompts")
    axes.grid(axis="y", visible=False)
    axes.grid(axis="x", color=theme.grid, linewidth=0.8)
    for y, (method, audit) in enumerate(audits.items()):
        _draw_audit(axes, -y, audit, strokes(methods, theme)[method].color, theme)
    axes.set_yticks(
        [-y for y in range(len(audits))], [strokes(methods, theme)[m].label for m in audits]
    )
    for label in axes.get_yticklabels():
        label.set_parse_math(False)
        label.set_color(theme.ink)
    axes.set_xlim(0, 1)
    axes.set_ylim(-len(audits) + 0.6, 0.6)
    axes.xaxis.set_major_formatter(lambda value, _: f"{100 * value:.3g} %")
    return figure


def _draw_audit(axes: Axes, y: float, audit: SkipAudit, color: str, theme: Theme) -> None:
    all_share = audit.explored_mixed / audit.explored
    axes.plot([all_share] * 2, [y - 0.17, y + 0.17], color=theme.faint, linewidth=1.6, zorder=2)
    n_kept = audit.explored - audit.skipped
    if n_kept:
        kept = (audit.explored_mixed - audit.skipped_mixed) / n_kept
        axes.plot(
            [kept],
            [y],
            marker="o",
            markersize=7,
            markerfacecolor=theme.paper,
            color=color,
            zorder=3,
        )
    if audit.rate is not None and audit.low is not None and audit.high is not None:
        axes.plot([audit.low, audit.high], [y, y], color=color, linewidth=2, zorder=3)
        axes.plot([audit.rate], [y], marker="o", markersize=7, color=color, zorder=4)
        text = f"{audit.skipped_mixed:,} of {audit.skipped:,} would-be skips were mixed"
        axes.text(audit.rate, y + 0.2, text, ha="center", va="bottom", color=theme.ink, fontsize=8)
