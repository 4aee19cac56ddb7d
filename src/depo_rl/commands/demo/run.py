"""``depo demo``: the whole story on a CPU. One tiny policy, one budget of generated tokens, several
ways to choose.

Every method trains from the same warm-started weights, on the same pool, with the same TRL
settings, until it has generated the same number of completion tokens, discarded groups included;
accuracy is measured on problems outside the pool, of all its levels and weighted as they are in it,
so that what a method forgets counts as much as what it learns. What differs is only which prompts
are rolled out.
"""

from __future__ import annotations

import logging
import multiprocessing
import tempfile
import warnings
from collections.abc import Callable, Iterator
from concurrent.futures import FIRST_COMPLETED, ProcessPoolExecutor, wait
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from ...errors import ConfigError
from ...methods import get_method
from ...report import RunResult, save_figures, summarise, write_page, write_results
from ...report.measures import CHANGES
from ..runs import check_folder
from . import arithmetic

METHODS = ("grpo", "dapo", "depo", "depo+")
_NARROW = (
    "accuracy_whole",
    CHANGES,
    "rollouts_to_target",
    "mixed_share",
)  # what a terminal of 80 columns has room for
_WIDE = (
    *("accuracy_whole", CHANGES, "rollouts_to_target", "tokens_to_target"),
    *("unseen_share", "effective_prompts", "mixed_share"),
)


@dataclass(frozen=True, slots=True)
class DemoPlan:
    """What the demo runs: methods x seeds, each for ``budget_tokens`` completion tokens, ``jobs``
    at a time.

    Each run has one core. out: folder for the results. device: where the policy trains, "cpu" or
    "cuda". settings: of task and training, for a demo at another scale.
    """

    out: Path
    methods: tuple[str, ...] = METHODS
    seeds: tuple[int, ...] = (0,)
    budget_tokens: int = arithmetic.SETTINGS.budget_tokens
    jobs: int = 1
    device: str = "cpu"
    settings: arithmetic.DemoSettings = arithmetic.SETTINGS

    def __post_init__(self) -> None:
        for name in self.methods:
            get_method(name)
        if not self.methods or len(set(self.methods)) < len(self.methods):
            raise ConfigError(
                f"methods = {','.join(self.methods)!r}: name at least one, and each once"
            )
        if min(self.budget_tokens, self.jobs) < 1:
            raise ConfigError(
                f"budget_tokens = {self.budget_tokens}, jobs = {self.jobs}: each must be at least 1"
            )
        if self.device not in ("cpu", "cuda"):
            raise ConfigError(f"device = {self.device!r}: must be 'cpu' or 'cuda'")

    @property
    def runs(self) -> list[tuple[str, int]]:
        """(method, seed) of each run."""
        return [(method, seed) for seed in self.seeds for method in self.methods]


@dataclass(frozen=True, slots=True)
class Step:
    """News of a run under way. tokens: generated so far. accuracy (whole pool), mixed_share: the
    latest, in [0, 1]."""

    method: str
    seed: int
    tokens: float
    accuracy: float | None
    mixed_share: float | None


Tell = Callable[[Step], None]


def run_demo(plan: DemoPlan, tell: Tell | None = None) -> list[RunResult]:
    """Runs the plan and writes ``results.json``, figures and ``report.html`` to ``plan.out``.

    tell: told of each step. Results so far are written after every run, so that a demo cut short
    keeps what finished.
    """
    check_folder(plan.out, f"--out {plan.out}")  # now, not after minutes of training
    results: list[RunResult] = []
    order = plan.runs
    for result in _run_all(plan, tell or (lambda step: None)):
        results.append(result)
        results.sort(key=lambda r: order.index((r.method, r.seed)))
        write_results(results, plan.out / "results.json")
    save_figures(results, plan.out)
    write_page(
        results,
        plan.out / "report.html",
        "Choosing prompts before the rollout",
        _notes(plan),
        _configuration(plan.settings),
    )
    return results


def _run_all(plan: DemoPlan, tell: Tell) -> Iterator[RunResult]:
    """Each run's result as it finishes: here one after the other, or in ``jobs`` processes of one
    thread each."""
    if plan.jobs == 1:
        for method, seed in plan.runs:
            yield train_once(method, seed, plan, tell)
        return
    # a fork would copy threads of torch in the middle of their work
    context = multiprocessing.get_context("spawn")
    with context.Manager() as manager, ProcessPoolExecutor(plan.jobs, mp_context=context) as pool:
        news = manager.Queue()
        waiting = {
            pool.submit(train_once, method, seed, plan, news.put) for method, seed in plan.runs
        }
        while waiting:
            done, waiting = wait(waiting, timeout=0.2, return_when=FIRST_COMPLETED)
            while not news.empty():
                tell(news.get())
            for future in done:
                yield future.result()


def train_once(method: str, seed: int, plan: DemoPlan, tell: Tell) -> RunResult:
    """One method from the shipped weights with one seed, on one thread: a second one only costs a
    model this small."""
    import torch
    from datasets import Dataset
    from transformers import PrinterCallback

    from ...engines.trl import DEPOTrainer, TokenBudget
    from ..recorder import Recorder

    threads = torch.get_num_threads()
    torch.set_num_threads(1)
    settings = plan.settings
    with quiet():
        model = arithmetic.load_policy()
        tokenizer = arithmetic.tokenizer()
    held_out = arithmetic.make_levels(settings.eval_sizes, settings.eval_seed)
    recorder = Recorder(
        lambda: arithmetic.evaluate_pool(model, tokenizer, held_out),
        every=settings.eval_every,
        target=settings.target_accuracy,
        on_change=lambda r: tell(_step(method, seed, r)),
    )
    pool = Dataset.from_list(arithmetic.make_pool(settings.pool_size, seed=settings.pool_seed))
    with tempfile.TemporaryDirectory() as folder, quiet():
        trainer = DEPOTrainer(
            model=model,
            reward_funcs=arithmetic.correct_reward,
            args=_trl_config(method, seed, folder, plan),
            train_dataset=pool,
            processing_class=tokenizer,
            callbacks=[recorder, TokenBudget(plan.budget_tokens)],
        )
        trainer.remove_callback(PrinterCallback)  # a line per step
        recorder.trainer = trainer
        trainer.train()
        result = recorder.result()
    torch.set_num_threads(threads)
    return result


def _step(method: str, seed: int, recorder: Any) -> Step:
    row = recorder.history[-1] if recorder.history else {}
    accuracy = recorder.accuracy[-1].accuracy if recorder.accuracy else None
    return Step(method, seed, row.get("tokens") or 0.0, accuracy, row.get("mixed_share"))


def _trl_config(method: str, seed: int, folder: str, plan: DemoPlan) -> Any:
    from ...engines.trl import DEPOConfig

    return DEPOConfig(
        output_dir=folder,
        method=method,
        curriculum=dict(plan.settings.curriculum.get(method, {})),
        seed=seed,
        outcome_log=False,
        logging_steps=1,
        save_strategy="no",
        report_to=[],
        disable_tqdm=True,
        use_cpu=plan.device == "cpu",
        bf16=False,
        max_steps=1_000_000,  # the token budget ends the run
        **plan.settings.trl,
    )


class quiet:
    """Keeps third-party chatter (a line per step, notices about releases to come) off the demo's
    screen."""

    def __enter__(self) -> None:
        self._levels = {
            name: logging.getLogger(name).level
            for name in ("transformers", "trl", "accelerate", "datasets")
        }
        for name in self._levels:
            logging.getLogger(name).setLevel(logging.ERROR)
        from transformers.utils import logging as bars

        bars.disable_progress_bar()
        self._warnings = warnings.catch_warnings()
        self._warnings.__enter__()
        warnings.simplefilter("ignore", FutureWarning)

    def __exit__(self, *error: Any) -> None:
        self._warnings.__exit__(*error)
        for name, level in self._levels.items():
            logging.getLogger(name).setLevel(level)


class DemoProgress:
    """A bar per run on a terminal: tokens of the budget, accuracy, share of mixed groups."""

    def __init__(self, console: Any, budget_tokens: int) -> None:
        from rich.progress import BarColumn, Progress, TextColumn, TimeElapsedColumn

        columns = (
            "{task.description}",
            BarColumn(),
            "{task.percentage:>3.0f}%",
            "{task.fields[note]}",
        )
        self.progress = Progress(
            *map(_column, columns, [TextColumn] * len(columns)),
            TimeElapsedColumn(),
            console=console,
        )
        self._tasks: dict[tuple[str, int], Any] = {}
        self._budget_tokens = budget_tokens

    def __enter__(self) -> DemoProgress:
        self.progress.start()
        return self

    def __exit__(self, *error: Any) -> None:
        self.progress.stop()

    def __call__(self, step: Step) -> None:
        key = (step.method, step.seed)
        if key not in self._tasks:
            name = f"{step.method:<5} seed {step.seed}"
            self._tasks[key] = self.progress.add_task(name, total=self._budget_tokens, note="")
        note = f"accuracy {step.accuracy:.3f}" if step.accuracy is not None else ""
        note += f"  mixed groups {step.mixed_share:.0%}" if step.mixed_share is not None else ""
        self.progress.update(
            self._tasks[key], completed=min(step.tokens, self._budget_tokens), note=note
        )


def _column(what: Any, kind: Any) -> Any:
    return kind(what) if isinstance(what, str) else what


def _notes(plan: DemoPlan) -> list[str]:
    settings = plan.settings
    levels = ", ".join(f"add{digits} {share:.0%}" for digits, share in arithmetic.POOL_MIX.items())
    return [
        f"Task: {arithmetic.DESCRIPTION} Budget: {plan.budget_tokens:,} completion tokens per run, discarded groups "
        f"included. Target: accuracy {settings.target_accuracy:.1%} on the whole pool, measured every "
        f"{settings.eval_every} steps on {sum(settings.eval_sizes.values()):,} problems outside it. Seeds: "
        f"{', '.join(map(str, plan.seeds))}.",
        f"The whole pool is its levels as they are mixed in it ({levels}; add3: sums of three digits). Spending "
        "rollouts where there is something to learn leaves fewer on what was already easy, which can be forgotten: "
        "accuracy on the whole pool counts both, and beside it stands every level from start to end.",
    ]


def _configuration(settings: arithmetic.DemoSettings) -> dict[str, Any]:
    """What a reader needs to judge the figures."""
    trl = dict(settings.trl)
    curriculum = {name: dict(own) for name, own in settings.curriculum.items()}
    return {"pool": {"prompts": settings.pool_size}, "TRL settings": trl, "curriculum": curriculum}


def plan_budget() -> int:
    """The demo's own budget, in completion tokens per run."""
    return arithmetic.SETTINGS.budget_tokens


def show_demo(plan: DemoPlan, quiet: bool = False) -> dict[str, Any]:
    """Runs the plan with a progress bar on a terminal, prints the table over seeds unless
    ``quiet``; the summary."""
    from rich.console import Console

    console = Console(stderr=True)
    if console.is_terminal and not quiet:
        runs = f"{len(plan.runs)} runs of {plan.budget_tokens:,} completion tokens, {plan.jobs} at a time"
        console.print(f"{runs}. Loading torch and TRL takes a while.")
        with DemoProgress(console, plan.budget_tokens) as progress:
            results = run_demo(plan, progress)
    else:
        results = run_demo(plan)
    summary = summarise(results)
    if not quiet:
        out = Console()
        out = out if out.is_terminal else Console(width=120)  # a file has room for the whole table
        out.print(summary.to_rich(_WIDE if out.width >= 110 else _NARROW, out.width))
        out.print(
            f"Figures, explained: {plan.out / 'report.html'}. Numbers: {plan.out / 'results.json'}."
        )
    return summary.to_dict()
