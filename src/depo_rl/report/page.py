"""One self-contained HTML page: table, figures, explanations, configuration, and what was not
measured.

Nothing is loaded from elsewhere and nothing runs: images are inlined (one per theme), and the
page's own content security policy forbids everything else.
"""

from __future__ import annotations

import base64
import os
from collections.abc import Iterator, Mapping, Sequence
from importlib import resources
from pathlib import Path
from typing import Any

from ..errors import ConfigError, DataError
from ..files import write_atomically
from .figures import FIGURES, FigureSpec
from .form import form, form_median, form_points, form_range, form_ratio
from .measures import BY_NAME, MEASURES, Measure
from .results import RunResult
from .spread import Ratio, Spread, difference
from .style import DARK, LIGHT, to_png
from .table import KNOWN_ORDER, MethodSummary, Summary, summarise

_MAX_TAKEAWAYS = 8
_MAX_SOURCES = 12  # rows of the table


def write_page(
    results: Sequence[RunResult],
    path: str | os.PathLike[str],
    title: str = "Comparison of methods",
    notes: str | Sequence[str] = (),
    config: Mapping[str, Any] | None = None,
) -> Path:
    """Writes the page under ``path``, all at once, and returns it. Titles, notes and names are
    text, never markup.

    notes: paragraphs. config: the settings used, nested mappings allowed. Raises DataError if there
    are no runs, ConfigError if jinja2 or matplotlib is not installed, CheckpointError if the disk
    fails.
    """
    page = render_page(results, title, notes, config)
    write_atomically(path, page.encode("utf-8", "replace"))
    return Path(path)


def render_page(
    results: Sequence[RunResult],
    title: str = "Comparison of methods",
    notes: str | Sequence[str] = (),
    config: Mapping[str, Any] | None = None,
) -> str:
    """The page as HTML; see ``write_page``."""
    if not results:
        raise DataError("there are no runs to report on: give at least one result")
    summary = summarise(results)
    shown = [spec for spec in FIGURES if spec.has_data(results)]
    return str(
        _template().render(
            title=title,
            notes=[notes] if isinstance(notes, str) else list(notes),
            subtitle=_subtitle(results, summary),
            takeaways=takeaways(summary),
            forgetting=forgetting(summary),
            cautions=cautions(summary),
            caption=summary.caption(),
            methods=summary.rows,
            table=_table(summary),
            figures=[_figure(spec, results) for spec in shown],
            runs_head=[m.label for m in summary.measured],
            runs=[_run_row(run, summary) for run in results],
            config=list(_flatten(config or {})),
            unmeasured=unmeasured(summary)
            + [f"Figure “{s.title}”: no data." for s in FIGURES if s not in shown],
        )
    )


def _template() -> Any:
    try:
        from jinja2 import Environment, StrictUndefined
    except ImportError:
        raise ConfigError(
            "the page needs jinja2, which is not installed: pip install './depo-rl[report]'"
        ) from None
    source = resources.files(__package__).joinpath("page.html.j2").read_text("utf-8")
    environment = Environment(
        autoescape=True, undefined=StrictUndefined, trim_blocks=True, lstrip_blocks=True
    )
    return environment.from_string(source)


def _plural(n: int, word: str) -> str:
    return f"{n} {word}" if n == 1 else f"{n} {word}s"


def _subtitle(results: Sequence[RunResult], summary: Summary) -> str:
    seeds = {run.seed for run in results}
    parts = [
        _plural(len(summary.rows), "method"),
        _plural(len(seeds), "seed"),
        _plural(len(results), "run"),
    ]
    return ", ".join(parts)


def takeaways(summary: Summary) -> list[str]:
    """What the numbers say of each method against each baseline, in words; at most
    ``_MAX_TAKEAWAYS`` sentences."""
    rows = {row.method: row for row in summary.rows}
    known = [row for row in summary.rows if row.method in KNOWN_ORDER]
    others = [row for row in summary.rows if row.method not in KNOWN_ORDER]
    pairs = [
        (row, rows[base])
        for row in [
            *reversed(known),
            *others,
        ]  # depo, last of the known in the table, comes first here
        for base in summary.baselines
        if base != row.method
        and not (row.method in summary.baselines and base == summary.baselines[-1])
    ]
    said = [
        _sentence(row, base, measure, row.ratios[base.method].get(measure.name, Ratio()))
        for measure in _compared_by(summary)
        for row, base in pairs
    ]
    return [sentence for sentence in said if sentence][:_MAX_TAKEAWAYS]


def _compared_by(summary: Summary) -> list[Measure]:
    """The headline; under accuracy on the whole pool also what the target cost, if a method reached
    it."""
    headline = summary.headline
    cost = BY_NAME["rollouts_to_target"]
    if headline is None:
        return []
    to_target = [row.spreads[cost.name] for row in summary.rows]
    reached = any(spread.n and spread.bound == "=" for spread in to_target)
    return [headline, cost] if headline.name == "accuracy_whole" and reached else [headline]


def forgetting(summary: Summary) -> list[tuple[str, bool]]:
    """(what a method forgot, in words; whether it did) for each method that was evaluated by
    source."""
    said = []
    for row in summary.rows:
        lost = {name: found for name, found in row.sources.items() if found.forgotten}
        fell = [
            f"{name} ({form(found.start.median, 'share')} → {form(found.end.median, 'share')}, by more than a point in "
            f"{found.forgotten} of {_plural(found.change.n, 'run')})"
            for name, found in lost.items()
        ]
        if fell:
            said.append((f"{row.method} forgot {'; '.join(fell)}.", True))
        elif row.sources:
            said.append(
                (f"{row.method} forgot nothing: no source fell by more than a point.", False)
            )
    return said


def _sentence(row: MethodSummary, base: MethodSummary, measure: Measure, ratio: Ratio) -> str:
    own = row.spreads[measure.name]
    other = base.spreads[measure.name]
    if own.median is None or other.median is None:
        return ""
    numbers = f"{_in_words(own, measure)} against {_in_words(other, measure)}"
    if measure.name == "accuracy_whole":
        points = form_points(difference(own.median, other.median))
        accuracies = f"{form(own.median, 'share')} accuracy on the whole pool against {form(other.median, 'share')}"
        return f"{row.method}: {accuracies} for {base.method}, {points} points."
    if measure.name != "rollouts_to_target":
        return f"{row.method}: {measure.label} {numbers} for {base.method}."
    if ratio.value is None:
        return f"{row.method} and {base.method} cannot be compared: too few runs of either reached the target."
    words = {"=": "", "<": "less than ", "<=": "at most ", ">": "more than ", ">=": "at least "}
    times = f"{words[ratio.bound]}{ratio.value:.2f} times the rollouts of {base.method}"
    if own.bound == "=":
        return f"{row.method} reached the target with {times} ({numbers})."
    return f"{row.method} needs {times} for the target ({numbers}): {own.censored} of {own.n} runs did not reach it."


def _in_words(spread: Spread, measure: Measure) -> str:
    words = {"=": "", ">": "more than ", ">=": "at least "}
    return words.get(spread.bound, "") + form(spread.median, measure.unit)


def cautions(summary: Summary) -> list[str]:
    """Why a reader should not trust the table more than it deserves."""
    found = []
    if all(len(row.seeds) == 1 for row in summary.rows):
        found.append(
            "Each method ran once: nothing is known of the spread, so a small difference may be chance."
        )
    elif min(len(row.seeds) for row in summary.rows) < 3:
        found.append("Some methods have fewer than three seeds: their spread is hardly known.")
    if len({row.seeds for row in summary.rows}) > 1:
        found.append("The methods did not run with the same seeds.")
    to_target = [row.spreads["rollouts_to_target"] for row in summary.rows]
    if missed := sum(spread.censored for spread in to_target):
        n = sum(spread.n for spread in to_target)
        found.append(
            f"{missed} of {n} runs did not reach the target: they count as “more than” what they spent."
        )
    spent = [row.spreads["rollouts"].median for row in summary.rows]
    known = [value for value in spent if value is not None]
    if known and max(known) > 1.05 * min(known):
        found.append(
            "The methods did not sample equally many completions: compare at equal cost, not at the end."
        )
    return found


def unmeasured(summary: Summary) -> list[str]:
    """A line for every measure that some or all runs lack."""
    lines = []
    for measure in MEASURES:
        lacking = [row for row in summary.rows if row.spreads[measure.name].missing]
        if not lacking:
            continue
        if not any(row.spreads[measure.name].n for row in summary.rows):
            lines.append(f"{measure.label} ({measure.meaning}): in no run.")
            continue
        names = [
            row.method if not row.spreads[measure.name].n
            else f"{row.method} ({row.spreads[measure.name].missing} of {len(row.seeds)} seeds)"
            for row in lacking
        ]  # fmt: skip
        lines.append(f"{measure.label}: not for {', '.join(names)}.")
    return lines


def _table(summary: Summary) -> list[dict[str, Any]]:
    """The measures, and under accuracy on the whole pool each source."""
    rows = []
    for measure in summary.measured:
        rows.append(_table_row(summary, measure))
        if measure.name == "accuracy_whole":
            rows += _source_rows(summary)
    return rows


def _source_rows(summary: Summary) -> list[dict[str, Any]]:
    """A row per source, of many those that changed most: start and end of each method, and what was
    forgotten."""
    moved: dict[str, float] = {}
    for row in summary.rows:
        for source, found in row.sources.items():
            moved[source] = max(moved.get(source, 0.0), abs(found.change.median or 0.0))
    most = sorted(moved, key=lambda source: -moved[source])[:_MAX_SOURCES]
    return [
        {
            "label": f"accuracy on {source}",
            "meaning": "held-out, start → end",
            "cells": [_source_cell(row, source) for row in summary.rows],
        }
        for source in moved
        if source in most
    ]


def _source_cell(row: MethodSummary, source: str) -> dict[str, Any]:
    found = row.sources.get(source)
    if found is None:
        return {"main": "-", "small": [], "ratios": []}
    small = [text] if (text := form_range(found.end, "share")) else []
    if found.forgotten:
        small.append(f"forgotten in {found.forgotten} of {found.change.n}")
    main = f"{form_median(found.start, 'share')} → {form_median(found.end, 'share')}"
    return {"main": main, "small": small, "ratios": []}


def _table_row(summary: Summary, measure: Measure) -> dict[str, Any]:
    """A measure with a cell per method: the median, and under it the spread, seeds counted and
    ratios."""
    cells = []
    for row in summary.rows:
        spread = row.spreads[measure.name]
        small = [text] if (text := form_range(spread, measure.unit)) else []
        if spread.censored:
            small.append(f"reached by {spread.n - spread.censored} of {spread.n}")
        if spread.n and spread.missing:
            small.append(f"{spread.n} of {len(row.seeds)} seeds")
        ratios = [
            f"{form_ratio(row.ratios[base][measure.name])} {base}"
            for base in summary.baselines
            if measure.ratio
            and base != row.method
            and row.ratios[base][measure.name].value is not None
        ]
        if measure.name == "accuracy_whole":
            bases = [
                other
                for other in summary.rows
                if other.method in summary.baselines and other is not row
            ]
            apart = {
                other.method: difference(spread.median, other.spreads[measure.name].median)
                for other in bases
            }
            ratios = [
                f"{form_points(value)} {base}" for base, value in apart.items() if value is not None
            ]
        cells.append({"main": form_median(spread, measure.unit), "small": small, "ratios": ratios})
    return {"label": measure.label, "meaning": measure.meaning, "cells": cells}


def _run_row(run: RunResult, summary: Summary) -> list[str]:
    own = next(row for row in summarise([run]).rows)
    if summary.target is not None and run.target is None:
        own = next(
            row for row in summarise([run.model_copy(update={"target": summary.target})]).rows
        )
    return [
        run.method,
        str(run.seed),
        *(form_median(own.spreads[m.name], m.unit) for m in summary.measured),
    ]


def _figure(spec: FigureSpec, results: Sequence[RunResult]) -> dict[str, Any]:
    light, dark = (to_png(spec.draw(results, theme)) for theme in (LIGHT, DARK))
    # a PNG says its size in its header
    width, height = (int.from_bytes(light[i : i + 4], "big") for i in (16, 20))
    return {
        "name": spec.name, "title": spec.title, "explanation": spec.explanation, "light": _data_uri(light),
        "dark": _data_uri(dark), "width": width, "height": height,
    }  # fmt: skip


def _data_uri(png: bytes) -> str:
    return f"data:image/png;base64,{base64.b64encode(png).decode()}"


def _flatten(config: Mapping[str, Any], prefix: str = "") -> Iterator[tuple[str, str]]:
    """(dotted name, value) of every setting."""
    for name, value in config.items():
        if isinstance(value, Mapping) and value:
            yield from _flatten(value, f"{prefix}{name}.")
        else:
            yield f"{prefix}{name}", "not set" if value is None else str(value)
