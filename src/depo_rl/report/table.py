"""Results over seeds: median [min-max] per method, ratios to baselines, and honest treatment of
unreached targets.

A run that stopped before it reached the target is *censored*: all that is known is that the target
costs more than the run spent. It counts as "> N", not as N and not as missing, and a median that
rests on such a run is "> N" as well.
"""

from __future__ import annotations

import re
from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass, fields
from typing import TYPE_CHECKING, Any, Literal

from .form import form, form_changes, form_points, form_ratio, form_spread
from .measures import BY_NAME, CHANGES, MEASURES, SHORT, Measure
from .results import RunResult, check_distinct
from .spread import (
    Observation,
    Ratio,
    SourceSummary,
    Spread,
    difference,
    ratio_of,
    sources_of,
    spread_of,
)

if TYPE_CHECKING:
    from rich.table import Table

BASELINES = ("grpo", "dapo")
_GAP = 2  # characters after each column of a terminal's table
_NARROWEST = 60  # characters, for the caption below it
KNOWN_ORDER = (
    *(
        "grpo",
        "dapo",
        "vcrl",
        "speed",
        "polaris",
        "adarft",
        "greso",
        "pools",
        "mopps",
        "bots",
        "dps",
        "pcl",
    ),
    *("oracle", "depo", "depo+"),
)


@dataclass(frozen=True, slots=True)
class MethodSummary:
    """One method over its seeds; spreads by measure name, ratios by baseline, then measure name,
    and by source."""

    method: str
    seeds: tuple[int, ...]
    spreads: dict[str, Spread]
    ratios: dict[str, dict[str, Ratio]]
    sources: dict[str, SourceSummary]


@dataclass(frozen=True, slots=True)
class Summary:
    """All methods, baselines first.

    target: the accuracy that "to target" means, or None. budget: the cost at which accuracies are
    compared, the most that every run with a policy spent, in budget_unit (tokens, or rollouts if
    some run's tokens are unknown), or None.
    """

    rows: tuple[MethodSummary, ...]
    baselines: tuple[str, ...]
    target: float | None
    budget: float | None
    budget_unit: str

    @property
    def measured(self) -> tuple[Measure, ...]:
        """The measures that at least one run has."""
        return tuple(m for m in MEASURES if any(row.spreads[m.name].n for row in self.rows))

    @property
    def headline(self) -> Measure | None:
        """What methods are compared by: accuracy on the whole pool; else the first of the rest that
        says something."""
        for name in ("accuracy_whole", "rollouts_to_target", "mixed_share", "accuracy_at_budget"):
            if any(
                row.spreads[name].median is not None and row.spreads[name].bound == "="
                for row in self.rows
            ):
                return BY_NAME[name]
        return None

    def to_dict(self) -> dict[str, Any]:
        """Plain values for JSON; everything that was not measured is null."""
        return {
            "target": self.target,
            "budget": self.budget,
            "budget_unit": self.budget_unit,
            "baselines": list(self.baselines),
            "methods": [
                {
                    "method": row.method,
                    "seeds": list(row.seeds),
                    "measures": {name: _as_dict(spread) for name, spread in row.spreads.items()},
                    "ratios": {
                        base: {n: _as_dict(r) for n, r in each.items()}
                        for base, each in row.ratios.items()
                    },
                    "sources": {
                        source: _source_dict(found) for source, found in row.sources.items()
                    },
                }
                for row in self.rows
            ],
        }

    def to_rich(
        self, names: Iterable[str] | None = None, width: int | None = None, caption: bool = True
    ) -> Table:
        """The table of ``cells`` for a terminal; a spread stands under its median, each source on a
        line.

        width: of the terminal in characters, to break no word where there is room for all of them.
        """
        from rich.box import SIMPLE_HEAD
        from rich.table import Table
        from rich.text import Text

        head, body = self.cells(names)
        table = Table(
            box=SIMPLE_HEAD,
            padding=(0, 1, 0, 0),
            pad_edge=False,
            show_edge=False,
            min_width=_NARROWEST,
        )
        table.caption = Text(f"\n{self.caption()}") if caption else None
        table.caption_justify = "left"
        stacked = [[method, *map(_stacked, cells)] for method, *cells in body]
        least = [_longest_word(column) for column in zip(head, *stacked, strict=True)]
        free = (width or 0) - sum(least) - _GAP * len(least) + 1
        for i, (name, own) in enumerate(zip(head, least, strict=True)):
            justify: Literal["left", "right"] = "right" if i else "left"
            fixed = max(own, min(own + free // len(head), len(name))) if free >= 0 else None
            table.add_column(name, justify=justify, overflow="fold", width=fixed)
        for line in stacked:
            table.add_row(*map(Text, line))
        return table

    def caption(self) -> str:
        """What the cells mean, in one line."""
        target = (
            f" Target: {form(self.target, 'share')} accuracy." if self.target is not None else ""
        )
        points = (
            " Changes and differences are in percentage points."
            if any(row.sources for row in self.rows)
            else ""
        )
        cost = (
            f" Equal cost: {form(self.budget, 'count')} {self.budget_unit}."
            if self.budget is not None
            else ""
        )
        return (
            "Median [min-max] over seeds, one number where they agree; > N: stopped at N without reaching the target"
            f"; -: not measured.{points}{target}{cost}"
        )

    def cells(self, names: Iterable[str] | None = None) -> tuple[list[str], list[list[str]]]:
        """(head, body) as texts: method, seeds, the measured ones of ``names`` (``SHORT``) in their
        order.

        Beside the headline, if it is among them, stands how it compares with each baseline.
        """
        versus = self.headline
        columns = _FIRST_COLUMNS
        measured = {measure.name for measure in self.measured}
        for name in names or SHORT:
            if name == CHANGES and any(row.sources for row in self.rows):
                columns = [*columns, ("change by source", lambda row: form_changes(row.sources))]
            elif name in measured:
                columns = [*columns, _column(BY_NAME[name])]
                if versus and name == versus.name:
                    columns = [
                        *columns,
                        *((f"vs {base}", self._versus(base, versus)) for base in self.baselines),
                    ]
        return [title for title, _ in columns], [
            [text(row) for _, text in columns] for row in self.rows
        ]

    def _versus(self, base: str, measure: Measure) -> Callable[[MethodSummary], str]:
        own = next(row for row in self.rows if row.method == base).spreads[measure.name].median
        if measure.ratio:
            return lambda row: form_ratio(row.ratios[base][measure.name])
        return lambda row: form_points(difference(row.spreads[measure.name].median, own))


_Column = tuple[str, Callable[[MethodSummary], str]]
_FIRST_COLUMNS: list[_Column] = [
    ("method", lambda row: row.method),
    ("seeds", lambda row: str(len(row.seeds))),
]


def _column(measure: Measure) -> _Column:
    return measure.label, lambda row: form_spread(row.spreads[measure.name], measure.unit)


def summarise(results: Sequence[RunResult], baselines: Sequence[str] = BASELINES) -> Summary:
    """Every method over its seeds. Raises DataError if a (method, seed) is there twice."""
    check_distinct(results)
    targets = [run.target for run in results if run.target is not None]
    has_target = bool(targets) or any(run.rollouts_to_target is not None for run in results)
    budget, unit = _budget(results)
    spreads: dict[str, dict[str, Spread]] = {}
    for method in method_order(run.method for run in results):
        runs = [run for run in results if run.method == method]
        spreads[method] = {
            m.name: spread_of([_accuracy_at(run, budget, unit) for run in runs])
            if m.name == "accuracy_at_budget"
            else spread_of([_value(run, m.name, has_target) for run in runs])
            for m in MEASURES
        }  # fmt: skip
    present = tuple(base for base in baselines if base in spreads)
    rows = []
    for method, own in spreads.items():
        ratios = {
            base: {m.name: ratio_of(own[m.name], spreads[base][m.name]) for m in MEASURES if m.ratio}
            for base in present
        }  # fmt: skip
        seeds = tuple(sorted(run.seed for run in results if run.method == method))
        by_source = [run.accuracy_by_source or {} for run in results if run.method == method]
        rows.append(MethodSummary(method, seeds, own, ratios, sources_of(by_source)))
    return Summary(
        tuple(rows), present, targets[0] if len(set(targets)) == 1 else None, budget, unit
    )


def method_order(methods: Iterable[str]) -> list[str]:
    """Distinct names: known ones in their usual order, each followed by its variants ("depo-x"),
    then the others."""
    rank = {name: i for i, name in enumerate(KNOWN_ORDER)}

    def place(name: str) -> int:
        return rank.get(name, rank.get(re.split(r"\W|_", name)[0], len(rank)))

    return sorted(set(methods), key=lambda name: (place(name), name))


def _budget(results: Sequence[RunResult]) -> tuple[float | None, str]:
    """The largest cost that every run with evaluations has spent, in tokens if all know them, else
    in rollouts."""
    runs = [run for run in results if run.final_accuracy is not None]
    for unit in ("tokens", "rollouts"):
        spent = [run.curve(unit)[0] for run in runs]
        if runs and all(spent):
            return min(max(each) for each in spent), unit
    return None, "tokens"


def _value(run: RunResult, name: str, has_target: bool) -> Observation:
    """One run's observation of a measure."""
    if name.endswith("_to_target"):
        return _to_target(run, name.removesuffix("_to_target"), has_target)
    value = getattr(run, name)
    return None if value is None else (float(value), False)


def _accuracy_at(run: RunResult, budget: float | None, unit: str) -> Observation:
    """Accuracy when the run had spent ``budget``, between two evaluations on the straight line
    through them."""
    if budget is None:
        return None
    return _between(list(zip(*run.curve(unit), strict=True)), budget)


def _to_target(run: RunResult, unit: str, has_target: bool) -> Observation:
    """What the target cost in ``unit`` (rollouts, tokens or seconds).

    Tokens, and seconds if the run does not say, are read off the evaluations at its
    ``rollouts_to_target``.
    """
    given = getattr(run, f"{unit}_to_target", None)
    if given is not None:
        return float(given), False
    spent, _ = run.curve(unit)
    if not has_target or not spent:
        return None
    if run.rollouts_to_target is None:
        return max(spent), True
    pairs = [(point.rollouts, getattr(point, unit)) for point in run.accuracy or ()]
    known = sorted((float(x), float(y)) for x, y in pairs if x is not None and y is not None)
    return _between(known, run.rollouts_to_target)


def _between(points: Sequence[tuple[float, float]], x: float) -> Observation:
    """y at ``x`` on the line through ``points``, sorted by x; None outside of them."""
    before = [point for point in points if point[0] <= x]
    after = [point for point in points if point[0] >= x]
    if not before or not after:
        return None
    (x0, y0) = before[-1]
    (x1, y1) = after[0]
    return (y0 if x1 == x0 else y0 + (y1 - y0) * (x - x0) / (x1 - x0)), False


def _source_dict(found: SourceSummary) -> dict[str, Any]:
    spreads = {name: _as_dict(getattr(found, name)) for name in ("start", "end", "change")}
    return {**spreads, "forgotten": found.forgotten}


def _as_dict(record: Spread | Ratio) -> dict[str, Any]:
    return {f.name: getattr(record, f.name) for f in fields(record)}


def _stacked(cell: str) -> str:
    """A cell's parts one under the other."""
    return cell.replace(" [", "\n[", 1).replace(" %]", "]").replace(", ", "\n")


def _longest_word(column: Iterable[str]) -> int:
    """Characters that a column needs to break no word of its heading and no line of its cells."""
    heading, *cells = column
    return max(map(len, [*heading.split(), *(line for cell in cells for line in cell.split("\n"))]))
