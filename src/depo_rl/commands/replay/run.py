"""``depo replay``: any method against what real models really did, with no model.

The file says what a group of completions came to; each method chooses the prompts and pays for what
it asks. See ``outcomes.tables`` for what can be read, ``engines.replay`` for how it is answered,
``audit`` for what the false-skip rate is.
"""

from __future__ import annotations

import importlib.util
from collections.abc import Callable, Sequence
from contextlib import ExitStack
from typing import Any

import yaml

from ...config import CurriculumConfig, FusedSettings
from ...engines.replay import make_replay_engine
from ...errors import ConfigError
from ...methods import METHODS, make_curriculum
from ...outcomes import OutcomeLogWriter
from ...outcomes.tables import (
    GroupHistory,
    Source,
    hidden_columns,
    read_source,
)
from ...report import RunResult, Summary, save_figures, summarise, write_page, write_results
from ...report.measures import BREADTH
from ..runs import check_folder
from ..yaml_file import yaml_value
from .notes import answers, first_notes, screened, unexplored
from .plan import ReplayPlan, Settings
from .simulate import check_size, simulate

_FOUND = ("mixed_share", "rollouts", "tokens")
_PREDICTED = ("auc_mixed", "false_skip_rate")
Tell = Callable[[str, int, int, float | None], None]
"""tell(method, seed, step, mixed_share): news of a run after each step."""


def run_replay(plan: ReplayPlan, tell: Tell | None = None) -> tuple[list[RunResult], list[str]]:
    """Runs the plan; the results, and notes on them. Raises DataError for the file, ConfigError for
    the plan.

    ``results.json`` is written after every run, so that a replay cut short keeps what finished.
    """
    source = read_source(plan.file, plan.options)
    _check(plan, source)
    results: list[RunResult] = []
    notes = first_notes(plan, source)
    for method in plan.methods:
        engines = []
        for seed in plan.seeds:
            result, engine = _run(plan, source, method, seed, tell)
            results.append(result)
            engines.append(engine)
            write_results(results, plan.out / "results.json")
        if isinstance(source, GroupHistory):
            notes.append(answers(method, results[-len(plan.seeds) :], engines))
    notes += unexplored(plan, results)
    return results, notes + screened(results, plan.group_size)


def write_report(plan: ReplayPlan, results: Sequence[RunResult], notes: Sequence[str]) -> str:
    """Writes figures and ``report.html``, and says where; or why not, without the extra
    ``depo-rl[report]``."""
    if missing := [
        name for name in ("matplotlib", "jinja2") if importlib.util.find_spec(name) is None
    ]:
        return f"No figures and no page: {', '.join(missing)} not installed (pip install './depo-rl[report]')."
    save_figures(results, plan.out)
    page = write_page(
        results,
        plan.out / "report.html",
        f"Replay of {plan.file.name}",
        notes,
        _configuration(plan),
    )
    return f"{page} has the figures and explains them; results.json beside it has the numbers."


def _check(plan: ReplayPlan, source: Source) -> None:
    """Raises what a run would raise at its start, of every method, before the first one writes
    anything."""
    for method in plan.methods:
        curriculum = make_curriculum(method, source.prompts, plan.configs[method])
        check_size(curriculum, plan.prompts_per_step)
    make_replay_engine(source, plan.group_size, plan.seeds[0], plan.max_gap)
    check_folder(plan.out, f"--out {plan.out}")


def _run(
    plan: ReplayPlan, source: Source, method: str, seed: int, tell: Tell | None
) -> tuple[RunResult, dict[str, float]]:
    """One method with one seed, and the engine's metrics."""
    engine = make_replay_engine(source, plan.group_size, seed, plan.max_gap)
    curriculum = make_curriculum(
        method, source.prompts, _blinded(plan.config(method, seed), source)
    )
    told = (lambda step, share: tell(method, seed, step, share)) if tell is not None else None
    with ExitStack() as stack:
        log = stack.enter_context(_log(plan, method, seed)) if plan.outcomes else None
        result = simulate(curriculum, engine, plan.prompts_per_step, plan.steps, told, log)
    return result, engine.metrics()


def _log(plan: ReplayPlan, method: str, seed: int) -> OutcomeLogWriter:
    """The run's outcome log, begun anew."""
    path = plan.out / f"outcomes-{method}-{seed}.jsonl"
    path.unlink(missing_ok=True)
    return OutcomeLogWriter(path)


def _blinded(config: CurriculumConfig, source: Source) -> CurriculumConfig:
    """An estimator that reads the data set's columns must not see the outcomes it is to predict."""
    if not isinstance(config.estimator, FusedSettings):
        return config
    exclude = tuple(dict.fromkeys((*config.estimator.exclude, *hidden_columns(source))))
    return config.model_copy(
        update={"estimator": config.estimator.model_copy(update={"exclude": exclude})}
    )


def _configuration(plan: ReplayPlan) -> dict[str, Any]:
    """What a reader needs to judge the figures: what was run, and where a method's settings are not
    the usual."""
    shared: dict[str, Any] = {
        "file": plan.file.name,
        "rows": dict(plan.options.where) or "all",
        "group size": plan.group_size,
        "prompts per step": plan.prompts_per_step,
        "steps": plan.steps,
        "seeds": ", ".join(map(str, plan.seeds)),
    }
    for method in plan.methods:
        config = plan.configs[method]
        named = (config.model_fields_set | {"warmup_steps", "explore"}) - {"seed", "group_size"}
        shared[method] = config.model_dump(include=named)
    return shared


def parse_settings(given: Sequence[str]) -> tuple[Settings, dict[str, Settings]]:
    """``key=value`` texts, values in YAML: (settings of all methods, settings by method for
    ``method.key=value``).

    Raises ConfigError for one that cannot be read.
    """
    common: Settings = {}
    by_method: dict[str, Settings] = {}
    for text in given:
        path, equals, value = text.partition("=")
        first, dot, rest = path.strip().partition(".")
        if not equals or not first:
            raise ConfigError(f"--set {text}: write it as key=value or method.key=value")
        target, name = (
            (by_method.setdefault(first, {}), rest)
            if dot and first in METHODS
            else (common, path.strip())
        )
        *sections, last = name.split(".")
        for section in sections:
            inner = target.get(section, {})
            # estimator=fused is short for that
            target[section] = {"type": inner} if isinstance(inner, str) else inner
            target = target[section]
            if not isinstance(target, dict):
                raise ConfigError(
                    f"--set {text}: {section} was set to {inner!r}, which has no settings of its own"
                )
        try:
            target[last] = yaml_value(value)
        except yaml.YAMLError:
            raise ConfigError(f"--set {text}: {value!r} is not a YAML value") from None
    return common, by_method


def parse_seeds(text: str) -> tuple[int, ...]:
    """``0,1,2`` as numbers. Raises ConfigError."""
    try:
        return tuple(int(part) for part in text.split(","))
    except ValueError:
        raise ConfigError(
            f"--seeds {text}: write whole numbers with commas between, such as 0,1,2"
        ) from None


def show_replay(plan: ReplayPlan, quiet: bool = False) -> dict[str, Any]:
    """Runs the plan with a progress bar on a terminal, prints the table over seeds unless
    ``quiet``; the summary."""
    from rich.console import Console

    console = Console(stderr=True)
    if console.is_terminal and not quiet:
        results, notes = _with_progress(plan, console)
    else:
        results, notes = run_replay(plan)
    summary = summarise(results)
    written = write_report(plan, results, notes)
    if not quiet:
        out = Console()
        out = out if out.is_terminal else Console(width=120)  # a file has room for the whole table
        for table in _tables(summary, out.width):
            out.print(table)
        for note in notes:
            out.print(note, markup=False, highlight=False)
        out.print(written, markup=False, highlight=False)
    return summary.to_dict() | {"notes": notes, "out": str(plan.out)}


def _tables(summary: Summary, width: int) -> list[Any]:
    """What was found, and under it how widely it was looked for; on a narrow terminal the
    predictions apart."""
    parts = [(*_FOUND, *_PREDICTED), BREADTH] if width >= 110 else [_FOUND, BREADTH, _PREDICTED]
    measured = {measure.name for measure in summary.measured}
    shown = [part for part in parts if measured & set(part)]
    tables = [summary.to_rich(part, width, caption=part is shown[-1]) for part in shown]
    return [line for table in tables for line in (table, "")]


def _with_progress(plan: ReplayPlan, console: Any) -> tuple[list[RunResult], list[str]]:
    from rich.progress import BarColumn, MofNCompleteColumn, Progress, TextColumn, TimeElapsedColumn

    columns = (
        TextColumn("{task.description}"),
        BarColumn(),
        MofNCompleteColumn(),
        TextColumn("{task.fields[note]}"),
    )
    with Progress(*columns, TimeElapsedColumn(), console=console) as progress:
        tasks: dict[tuple[str, int], Any] = {}

        def tell(method: str, seed: int, step: int, mixed_share: float | None) -> None:
            key = (method, seed)
            if key not in tasks:
                tasks[key] = progress.add_task(
                    f"{method:<8} seed {seed}", total=plan.steps, note=""
                )
            note = f"mixed groups {mixed_share:.0%}" if mixed_share is not None else ""
            progress.update(tasks[key], completed=step, note=note)

        return run_replay(plan, tell)
