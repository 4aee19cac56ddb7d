"""How figures look: two themes, one colour, dash and marker per method, and axes without clutter.

matplotlib is imported inside the functions: a report is an extra, and reading results must not need
it.
"""

from __future__ import annotations

import io
import warnings
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

from ..errors import ConfigError
from .table import KNOWN_ORDER, method_order

if TYPE_CHECKING:
    from matplotlib.axes import Axes
    from matplotlib.figure import Figure


@dataclass(frozen=True, slots=True)
class Theme:
    """Colours of one look; ``dark`` picks the lighter of each pair in the palette."""

    dark: bool
    paper: str
    ink: str
    faint: str
    grid: str


LIGHT = Theme(dark=False, paper="#ffffff", ink="#1c2430", faint="#5b6676", grid="#e3e7ec")
DARK = Theme(dark=True, paper="#171b22", ink="#e6e9ee", faint="#9aa4b2", grid="#2c333d")

# After Okabe and Ito: told apart by colour-blind readers. (on white, on dark), both at least 3:1
# against their paper.
_KNOWN = {
    "grpo": ("#6b7280", "#a3acb9"),
    "dapo": ("#d55e00", "#f28a4b"),
    "polaris": ("#a8478a", "#d58bb8"),
    "greso": ("#00875f", "#2fc49a"),
    "mopps": ("#9a7a00", "#e3c33c"),
    "depo": ("#0069a8", "#5ab6ee"),
    "depo+": ("#00355c", "#a5dcff"),
    "oracle": ("#374151", "#cbd5e1"),
    "vcrl": ("#b34700", "#f5a06b"),
    "speed": ("#c2286b", "#f27fb0"),
    "adarft": ("#8a5a2b", "#d3a573"),
    "pools": ("#5a7d00", "#b5d24a"),
    "bots": ("#b03a5b", "#ee92ab"),
    "dps": ("#7c5cbf", "#b9a3ea"),
    "pcl": ("#00798c", "#56c7d8"),
}
_OTHERS = (
    ("#7a2e2e", "#e58f8f"),
    ("#3f3fae", "#9c9cf2"),
    ("#3b7a1a", "#93cf6d"),
    ("#111827", "#f3f4f6"),
)
_DASHES: tuple[Any, ...] = (
    "-",
    (0, (5, 1.5)),
    (0, (1.5, 1.2)),
    (0, (6, 1.5, 1.5, 1.5)),
    (0, (8, 2, 2, 2, 2, 2)),
)
_MARKERS = "osD^vPX*<>"


@dataclass(frozen=True, slots=True)
class Stroke:
    """How a method is drawn in every figure of a report."""

    label: str
    color: str
    dash: Any
    marker: str


def strokes(methods: Iterable[str], theme: Theme) -> dict[str, Stroke]:
    """A stroke per method. Known names always look the same; others take what is free, then other
    dashes."""
    names = method_order(methods)
    free = list(_OTHERS) + [pair for name, pair in _KNOWN.items() if name not in names]
    result = {}
    others = 0
    for name in names:
        if name in _KNOWN:
            pair = _KNOWN[name]
            dash = 0
            marker = KNOWN_ORDER.index(name)
        else:
            pair = free[others % len(free)]
            dash = 1 + others // len(free)
            marker = len(_KNOWN) + others
            others += 1
        dashes = _DASHES[dash % len(_DASHES)]
        look = _MARKERS[marker % len(_MARKERS)]
        result[name] = Stroke(_label(name), pair[theme.dark], dashes, look)
    return result


def _label(method: str) -> str:
    """A legend's text: cut where it is too long; matplotlib hides labels that begin with an
    underscore."""
    text = method if len(method) <= 28 else f"{method[:27]}…"
    return f" {text}" if text.startswith("_") else text


def new_figure(theme: Theme, width: float = 7.2, height: float = 4.2) -> Figure:
    """An empty figure, width and height in inches. Raises ConfigError if matplotlib is not
    installed."""
    try:
        from matplotlib.figure import Figure
    except ImportError:
        raise ConfigError(
            "figures need matplotlib, which is not installed: pip install './depo-rl[report]'"
        ) from None
    return Figure(figsize=(width, height), facecolor=theme.paper, layout="constrained")


def style_axes(
    axes: Axes, theme: Theme, xlabel: str = "", ylabel: str = "", title: str = ""
) -> Axes:
    """Quiet axes: a horizontal grid, no box, labels in words."""
    axes.set_facecolor(theme.paper)
    axes.spines[["top", "right"]].set_visible(False)
    axes.spines[["left", "bottom"]].set_color(theme.grid)
    axes.tick_params(colors=theme.faint, labelsize=9, length=0)
    axes.grid(axis="y", color=theme.grid, linewidth=0.8)
    axes.set_axisbelow(True)
    axes.set_xlabel(xlabel, color=theme.faint, fontsize=9.5)
    axes.set_ylabel(ylabel, color=theme.faint, fontsize=9.5)
    if title:
        axes.set_title(title, color=theme.ink, fontsize=10, loc="left", parse_math=False)
    return axes


def add_legend(figure: Figure, handles: Sequence[Any], labels: Sequence[str], theme: Theme) -> None:
    """A legend outside of the axes, so that it never covers data: above for a few, on the right for
    many."""
    if not handles:
        return
    few = len(handles) <= 6
    legend = figure.legend(
        handles, labels, loc="outside upper left" if few else "outside right upper", ncols=len(handles) if few else 1,
        frameon=False, fontsize=9 if few else 8, handlelength=2.6, columnspacing=1.4, labelcolor=theme.ink,
    )  # fmt: skip
    for text in legend.get_texts():
        text.set_parse_math(False)  # a method may be called "a$b$"


def blank(theme: Theme, message: str) -> Figure:
    """A figure that says why it is empty."""
    figure = new_figure(theme, 7.2, 1.6)
    axes = figure.add_subplot()
    axes.axis("off")
    axes.text(
        0.5,
        0.5,
        message,
        ha="center",
        va="center",
        color=theme.faint,
        fontsize=11,
        parse_math=False,
    )
    return figure


def to_png(figure: Figure, dpi: int = 130) -> bytes:
    """The figure as a PNG: the same bytes for the same figure."""
    buffer = io.BytesIO()
    with warnings.catch_warnings():
        # a method named in a script without a font
        warnings.filterwarnings("ignore", message="Glyph .* missing from")
        figure.savefig(buffer, format="png", dpi=dpi, metadata={"Software": None})
    return buffer.getvalue()
