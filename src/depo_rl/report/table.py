"""Results over seeds: median [min-max] per method, ratios to baselines, and honest treatment of unreached targets.

A run that stopped before it reached the target is *censored*: all that is known is that the target costs more than the
run spent. It counts as "> N", not as N and not as missing, and a median that rests on such a run is "> N" as well.
"""

from __future__ import annotations

import math
import re
from collections.abc import Iterable, Sequence
from dataclasses import dataclass, fields
from statistics import median
from typing import TYPE_CHECKING, Any, Literal

from .results import RunResult, check_distinct

if TYPE_CHECKING:
    from rich.table import Table

Bound = Literal["=", ">", ">=", "<", "<="]
BASELINES = ("grpo", "dapo")
KNOWN_ORDER = ("grpo", "dapo", "polaris", "greso", "mopps", "depo")


@dataclass(frozen=True, slots=True)
class Spread:
    """A measure over the seeds of one method.

    median, low, high: None if no seed has it. bound, low_bound, high_bound: how the true value relates to each of
    them; "=" unless runs were censored. n: seeds that have it; censored: those of them known as a lower bound only;
    missing: seeds without it.
    """

    median: float | None = None
    low: float | None = None
    high: float | None = None
    bound: Bound = "="
    low_bound: Bound = "="
    high_bound: Bound = "="
    n: int = 0
    censored: int = 0
    missing: int = 0


@dataclass(frozen=True, slots=True)
class Ratio:
    """A method's median over a baseline's; value: None if it cannot be said, as when both are censored."""

    value: float | None = None
    bound: Bound = "="


@dataclass(frozen=True, slots=True)
class Measure:
    """A column: its name in JSON, label, unit ("share", "count", "seconds" or "number") and meaning."""

    name: str
    label: str
    unit: str
    meaning: str
    ratio: bool = False


MEASURES = (
    Measure("mixed_share", "mixed groups", "share", "groups with right and wrong answers: the ones that teach", True),
    Measure("all_pass_share", "all right", "share", "groups whose answers were all right: paid for, teach nothing"),
    Measure("all_fail_share", "all wrong", "share", "groups whose answers were all wrong: paid for, teach nothing"),
    Measure("accuracy_at_budget", "accuracy at equal cost", "share", "held-out accuracy, all having spent alike", True),
    Measure("final_accuracy", "final accuracy", "share", "held-out accuracy at the last evaluation", True),
    Measure("rollouts_to_target", "rollouts to target", "count", "completions sampled until the target accuracy", True),
    Measure("tokens_to_target", "tokens to target", "count", "completion tokens until the target accuracy", True),
    Measure("seconds_to_target", "time to target", "seconds", "wall-clock time until the target accuracy", True),
    Measure("rollouts", "rollouts", "count", "completions sampled in the whole run", True),
    Measure("tokens", "tokens", "count", "completion tokens in the whole run", True),
    Measure("seconds_total", "total time", "seconds", "wall-clock time of the whole run", True),
    Measure("auc_mixed", "AUC", "number", "how well the prediction ranks mixed groups first (0.5: chance, 1: perfect)"),
    Measure("log_loss", "log-loss", "number", "of the predicted probability of a mixed group (lower is better)"),
    Measure("ece", "ECE", "number", "calibration error of that probability (0: what it says is what happens)"),
    Measure("ece_floor", "ECE floor", "number", "calibration error that chance alone makes with as many groups"),
    Measure("false_skip_rate", "false skips", "share", "mixed groups among those that would have been skipped"),
    Measure("steps", "steps", "count", "optimiser steps"),
    Measure("groups", "groups", "count", "groups rolled out"),
    Measure("distinct_prompts", "different prompts", "count", "that were rolled out; the rest are repeats"),
    Measure("candidates_scored", "candidates", "count", "prompts whose pass rate was predicted"),
    Measure("explored_share", "explored", "share", "groups chosen whatever the prediction"),
    Measure("fallback_share", "fallback", "share", "groups that filled a batch because too few qualified"),
    Measure("guarded_share", "guarded", "share", "groups chosen uniformly while predictions misled"),
    Measure("seconds_selecting", "selecting", "seconds", "time spent choosing prompts, whole run"),
    Measure("seconds_learning", "learning", "seconds", "time spent teaching the estimator, whole run"),
)  # fmt: skip
_SHORT = (
    "mixed_share", "accuracy_at_budget", "rollouts_to_target", "rollouts", "tokens", "auc_mixed", "false_skip_rate",
)  # fmt: skip
BY_NAME = {measure.name: measure for measure in MEASURES}


@dataclass(frozen=True, slots=True)
class MethodSummary:
    """One method over its seeds; spreads by measure name, ratios by baseline, then measure name."""

    method: str
    seeds: tuple[int, ...]
    spreads: dict[str, Spread]
    ratios: dict[str, dict[str, Ratio]]


@dataclass(frozen=True, slots=True)
class Summary:
    """All methods, baselines first.

    target: the accuracy that "to target" means, or None. budget: the cost at which accuracies are compared, the most
    that every run with a policy spent, in budget_unit (tokens, or rollouts if some run's tokens are unknown), or None.
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
        """What methods are compared by: rollouts to the target if one reached it, else the share of mixed groups."""
        for name in ("rollouts_to_target", "mixed_share", "accuracy_at_budget"):
            if any(row.spreads[name].median is not None and row.spreads[name].bound == "=" for row in self.rows):
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
                    "ratios": {base: {n: _as_dict(r) for n, r in each.items()} for base, each in row.ratios.items()},
                }
                for row in self.rows
            ],
        }

    def to_markdown(self) -> str:
        """The table of ``cells`` in GitHub's Markdown."""
        head, body = self.cells()
        lines = [head, ["---"] + ["---:"] * (len(head) - 1), *body]
        return "\n".join("| " + " | ".join(_escape(cell) for cell in line) + " |" for line in lines) + "\n"

    def to_rich(self, names: Iterable[str] | None = None) -> Table:
        """The table of ``cells`` for a terminal; the spread stands under its median."""
        from rich.box import SIMPLE_HEAD
        from rich.table import Table
        from rich.text import Text

        head, body = self.cells(names)
        table = Table(box=SIMPLE_HEAD, pad_edge=False, caption=Text(self.caption()), caption_justify="left")
        for i, name in enumerate(head):
            table.add_column(name, justify="right" if i else "left", overflow="fold")
        for line in body:
            narrow = [cell.replace(" [", "\n[", 1).replace(" %]", "]") for cell in line[1:]]
            table.add_row(Text(line[0]), *map(Text, narrow))
        return table

    def caption(self) -> str:
        """What the cells mean, in one line."""
        target = f" Target: {form(self.target, 'share')} accuracy." if self.target is not None else ""
        cost = f" Equal cost: {form(self.budget, 'count')} {self.budget_unit}." if self.budget is not None else ""
        return (
            "Median [min-max] over seeds, one number where they agree; > N: stopped at N without reaching the target"
            f"; -: not measured.{target}{cost}"
        )

    def cells(self, names: Iterable[str] | None = None) -> tuple[list[str], list[list[str]]]:
        """(head, body) as texts: method, seeds, the measured ones of ``names``, the headline against each baseline."""
        wanted = set(names or _SHORT)
        measures = [m for m in self.measured if m.name in wanted]
        versus = self.headline
        bases = self.baselines if versus else ()
        head = ["method", "seeds", *(m.label for m in measures), *(f"vs {base}" for base in bases)]
        body = []
        for row in self.rows:
            ratios = [form_ratio(row.ratios[base][versus.name]) for base in bases if versus]
            spreads = [form_spread(row.spreads[m.name], m.unit) for m in measures]
            body.append([row.method, str(len(row.seeds)), *spreads, *ratios])
        return head, body


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
        rows.append(MethodSummary(method, seeds, own, ratios))
    return Summary(tuple(rows), present, targets[0] if len(set(targets)) == 1 else None, budget, unit)


def method_order(methods: Iterable[str]) -> list[str]:
    """Distinct names: known ones in their usual order, each followed by its variants ("depo-x"), then the others."""
    rank = {name: i for i, name in enumerate(KNOWN_ORDER)}
    return sorted(set(methods), key=lambda name: (rank.get(re.split(r"\W|_", name)[0], len(rank)), name))


def _budget(results: Sequence[RunResult]) -> tuple[float | None, str]:
    """The largest cost that every run with evaluations has spent, in tokens if all know them, else in rollouts."""
    runs = [run for run in results if run.final_accuracy is not None]
    for unit in ("tokens", "rollouts"):
        spent = [run.curve(unit)[0] for run in runs]
        if runs and all(spent):
            return min(max(each) for each in spent), unit
    return None, "tokens"


Observation = tuple[float, bool] | None
"""(value, whether the run was censored there), or None if it was not measured."""


def _value(run: RunResult, name: str, has_target: bool) -> Observation:
    """One run's observation of a measure."""
    if name.endswith("_to_target"):
        return _to_target(run, name.removesuffix("_to_target"), has_target)
    value = getattr(run, name)
    return None if value is None else (float(value), False)


def _accuracy_at(run: RunResult, budget: float | None, unit: str) -> Observation:
    """Accuracy when the run had spent ``budget``, between two evaluations on the straight line through them."""
    if budget is None:
        return None
    return _between(list(zip(*run.curve(unit), strict=True)), budget)


def _to_target(run: RunResult, unit: str, has_target: bool) -> Observation:
    """What the target cost in ``unit`` (rollouts, tokens or seconds).

    Tokens, and seconds if the run does not say, are read off the evaluations at its ``rollouts_to_target``.
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
    (x0, y0), (x1, y1) = before[-1], after[0]
    return (y0 if x1 == x0 else y0 + (y1 - y0) * (x - x0) / (x1 - x0)), False


def spread_of(observations: Sequence[Observation]) -> Spread:
    """The spread of one method's observations.

    The true median lies between the median with every censored run just above where it stopped and the median with
    every censored run at infinity. Where the two agree it is exact; where a censored run is in the middle it is above.
    """
    known = sorted(o for o in observations if o is not None)
    if not known:
        return Spread(missing=len(observations))
    middle = known[(len(known) - 1) // 2 : len(known) // 2 + 1]
    lower = median(value for value, _ in known)
    upper = median(math.inf if censored else value for value, censored in known)
    (low, low_censored), (high, high_censored) = known[0], known[-1]
    n_censored = sum(censored for _, censored in known)
    return Spread(
        median=lower,
        low=low,
        high=high,
        bound="=" if lower == upper else ">" if any(censored for _, censored in middle) else ">=",
        low_bound=">" if low_censored else "=",
        high_bound=">" if high_censored else ">=" if n_censored else "=",
        n=len(known),
        censored=n_censored,
        missing=len(observations) - len(known),
    )


def ratio_of(own: Spread, base: Spread) -> Ratio:
    """``own`` over ``base``; a lower bound over a number is a lower bound, a number over one an upper bound."""
    if own.median is None or not base.median or (own.bound != "=" and base.bound != "="):
        return Ratio()  # a baseline of 0 has no ratio either
    flipped: dict[Bound, Bound] = {"=": "=", ">": "<", ">=": "<="}
    return Ratio(own.median / base.median, flipped[base.bound] if base.bound != "=" else own.bound)


def form(value: float | None, unit: str) -> str:
    """A value for people: 41.2 %, 12.8k, 3 min 20 s, 0.713; "-" if it was not measured."""
    if value is None:
        return "-"
    if unit == "share":
        return f"{100 * value:.1f} %"
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
    large, small = (whole // 60, whole % 60) if whole < 3600 else (whole // 3600, whole % 3600 // 60)
    names = ("min", "s") if whole < 3600 else ("h", "min")
    return f"{large} {names[0]}" + (f" {small} {names[1]}" if small else "")


def form_spread(spread: Spread, unit: str) -> str:
    """median [min-max]; the brackets are left out where there is no spread to show."""
    text, extent = form_median(spread, unit), form_range(spread, unit)
    return f"{text} [{extent}]" if extent else text


def form_median(spread: Spread, unit: str) -> str:
    """The median with its bound: 12.8k, > 20k."""
    return _bounded(spread.median, spread.bound, unit)


def form_range(spread: Spread, unit: str) -> str:
    """low-high, each with its bound; empty for one seed and where the seeds agree to the digits shown."""
    low, high = _bounded(spread.low, spread.low_bound, unit), _bounded(spread.high, spread.high_bound, unit)
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


def _as_dict(record: Spread | Ratio) -> dict[str, Any]:
    return {f.name: getattr(record, f.name) for f in fields(record)}


def _escape(cell: str) -> str:
    return cell.replace("\\", "\\\\").replace("|", "\\|").replace("\n", " ")
