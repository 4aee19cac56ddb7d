"""Numbers for people: 41.2 %, 12.8k, 3 min 20 s, > 20k, 0.55x, +1.3."""

from __future__ import annotations

from collections.abc import Mapping

from .spread import Bound, Ratio, SourceSummary, Spread

_SOURCES_NAMED = 4  # in a cell


def form(value: float | None, unit: str) -> str:
    """A value for people: 41.2 %, 12.8k, 3 min 20 s, 0.713; "-" if it was not measured."""
    if value is None:
        return "-"
    if unit == "share":
        return f"{100 * value:.1f} %"
    if unit == "mean":
        return f"{value:,.1f}"
    if unit == "seconds":
        return _form_seconds(value)
    return _form_count(value) if unit == "count" else f"{value:.3f}"


def _form_count(value: float) -> str:
    if abs(value) < 1e4:
        return f"{value:,.0f}"
    for scale, suffix in ((1e3, "k"), (1e6, "M"), (1e9, "G")):
        if abs(value) / scale < 999.5:
            return f"{value / scale:.3g}{suffix}"
    return f"{value / 1e9:,.0f}G"


def _form_seconds(value: float) -> str:
    if value < 60:
        return f"{value:.3g} s"
    whole = round(value)
    large, small = (
        (whole // 60, whole % 60) if whole < 3600 else (whole // 3600, whole % 3600 // 60)
    )
    names = ("min", "s") if whole < 3600 else ("h", "min")
    return f"{large} {names[0]}" + (f" {small} {names[1]}" if small else "")


def form_spread(spread: Spread, unit: str) -> str:
    """median [min-max]; the brackets are left out where there is no spread to show."""
    text = form_median(spread, unit)
    extent = form_range(spread, unit)
    return f"{text} [{extent}]" if extent else text


def form_median(spread: Spread, unit: str) -> str:
    """The median with its bound: 12.8k, > 20k."""
    return _bounded(spread.median, spread.bound, unit)


def form_range(spread: Spread, unit: str) -> str:
    """low-high, each with its bound; empty for one seed and where the seeds agree to the digits
    shown."""
    low = _bounded(spread.low, spread.low_bound, unit)
    high = _bounded(spread.high, spread.high_bound, unit)
    if spread.n < 2 or low == high:
        return ""
    if spread.low_bound != "=" or spread.high_bound != "=":
        return f"{low} - {high}"
    return f"{low.removesuffix(' %')}-{high}"


def _bounded(value: float | None, bound: Bound, unit: str) -> str:
    return form(value, unit) if bound == "=" else f"{bound} {form(value, unit)}"


def form_ratio(ratio: Ratio) -> str:
    """0.55x, < 0.55x, or "-"."""
    if ratio.value is None:
        return "-"
    return f"{'' if ratio.bound == '=' else ratio.bound + ' '}{ratio.value:.2f}x"


def form_points(value: float | None) -> str:
    """A difference of shares in percentage points: +1.3, -9.0, 0.0; "-" if it was not measured."""
    if value is None:
        return "-"
    points = round(100 * value, 1)
    return f"{points:+.1f}" if points else "0.0"


def form_changes(sources: Mapping[str, SourceSummary]) -> str:
    """add2 -9.0, add3 +13.3: the change of each source in points; of many, those that changed
    most."""
    known = {
        name: found.change.median
        for name, found in sources.items()
        if found.change.median is not None
    }
    most = sorted(known, key=lambda name: -abs(known[name]))[:_SOURCES_NAMED]
    texts = [f"{name} {form_points(change)}" for name, change in known.items() if name in most]
    more = [f"{len(known) - len(most)} more"] if len(known) > len(most) else []
    return ", ".join(texts + more) or "-"
