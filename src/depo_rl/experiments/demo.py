"""``depo demo``: the whole story on a CPU. One tiny policy, one budget of generated tokens, several ways to choose.

Every method trains from the same warm-started weights, on the same pool, with the same TRL settings, until it has
generated the same number of completion tokens, discarded groups included; accuracy is measured on problems outside the
pool. What differs is only which prompts are rolled out.
"""

from __future__ import annotations

import gc
import logging
import tempfile
import warnings
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from ..errors import ConfigError
from ..methods import get_method
from ..report import RunResult, save_figures, summarise, write_page, write_results
from . import arithmetic

METHODS = ("grpo", "dapo", "depo")


@dataclass(frozen=True, slots=True)
class DemoPlan:
    """What the demo runs: methods x seeds, each for ``budget_tokens`` completion tokens; results go to ``out``."""

    out: Path
    methods: tuple[str, ...] = METHODS
    seeds: tuple[int, ...] = (0,)
    budget_tokens: int = arithmetic.SETTINGS.budget_tokens

    def __post_init__(self) -> None:
        for name in self.methods:
            get_method(name)
        if not self.methods or len(set(self.methods)) < len(self.methods):
            raise ConfigError(f"methods = {','.join(self.methods)!r}: name at least one, and each once")
        if self.budget_tokens < 1:
            raise ConfigError(f"budget_tokens = {self.budget_tokens}: must be at least 1")


def run_demo(plan: DemoPlan, show: Any = None) -> list[RunResult]:
    """Runs the plan and writes ``results.json``, figures and ``report.html`` to ``plan.out``.

    show: a ``DemoProgress``, told of each step. Results so far are written after every run, so that a run cut short
    keeps what it finished.
    """
    import torch

    results: list[RunResult] = []
    threads = torch.get_num_threads()
    torch.set_num_threads(1)  # a model this small only loses time to a second thread
    try:
        for seed in plan.seeds:
            for method in plan.methods:
                results.append(train_once(method, seed, plan.budget_tokens, show))
                write_results(results, plan.out / "results.json")
    finally:
        torch.set_num_threads(threads)
    save_figures(results, plan.out)
    write_page(results, plan.out / "report.html", "Choosing prompts before the rollout", _notes(plan), _configuration())
    return results


def train_once(method: str, seed: int, budget_tokens: int, show: Any = None) -> RunResult:
    """One method from the shipped weights with one seed."""
    from datasets import Dataset
    from transformers import PrinterCallback

    from ..engines.trl import DEPOTrainer, TokenBudget
    from .recorder import Recorder

    settings = arithmetic.SETTINGS
    model, tokenizer = arithmetic.load_policy(), arithmetic.tokenizer()
    held_out = arithmetic.make_eval(settings.eval_size, seed=settings.eval_seed)
    recorder = Recorder(
        lambda: arithmetic.evaluate(model, tokenizer, held_out),
        every=settings.eval_every,
        target=settings.target_accuracy,
        on_change=None if show is None else lambda r: show.update(method, seed, r, budget_tokens),
    )
    pool = Dataset.from_list(arithmetic.make_pool(settings.pool_size, seed=settings.pool_seed))
    with tempfile.TemporaryDirectory() as folder, quiet():
        trainer = DEPOTrainer(
            model=model,
            reward_funcs=arithmetic.correct_reward,
            args=_trl_config(method, seed, folder),
            train_dataset=pool,
            processing_class=tokenizer,
            callbacks=[recorder, TokenBudget(budget_tokens)],
        )
        trainer.remove_callback(PrinterCallback)  # a line per step
        recorder.trainer = trainer
        trainer.train()
        result = recorder.result()
    del trainer, model
    gc.collect()
    return result


def _trl_config(method: str, seed: int, folder: str) -> Any:
    from ..engines.trl import DEPOConfig

    return DEPOConfig(
        output_dir=folder,
        method=method,
        curriculum=dict(arithmetic.SETTINGS.curriculum.get(method, {})),
        seed=seed,
        outcome_log=False,
        logging_steps=1,
        save_strategy="no",
        report_to=[],
        disable_tqdm=True,
        use_cpu=True,
        bf16=False,
        max_steps=1_000_000,  # the token budget ends the run
        **arithmetic.SETTINGS.trl,
    )


class quiet:
    """Keeps third-party chatter (a line per step, notices about releases to come) off the demo's screen."""

    def __enter__(self) -> None:
        self._levels = {
            name: logging.getLogger(name).level for name in ("transformers", "trl", "accelerate", "datasets")
        }
        for name in self._levels:
            logging.getLogger(name).setLevel(logging.ERROR)
        self._warnings = warnings.catch_warnings()
        self._warnings.__enter__()
        warnings.simplefilter("ignore", FutureWarning)

    def __exit__(self, *error: Any) -> None:
        self._warnings.__exit__(*error)
        for name, level in self._levels.items():
            logging.getLogger(name).setLevel(level)


class DemoProgress:
    """A bar per run on a terminal: tokens of the budget, accuracy, share of mixed groups."""

    def __init__(self, console: Any) -> None:
        from rich.progress import BarColumn, Progress, TextColumn, TimeElapsedColumn

        columns = ("{task.description}", BarColumn(), "{task.percentage:>3.0f}%", "{task.fields[note]}")
        self.progress = Progress(
            *map(_column, columns, [TextColumn] * len(columns)), TimeElapsedColumn(), console=console
        )
        self._tasks: dict[tuple[str, int], Any] = {}

    def __enter__(self) -> DemoProgress:
        self.progress.start()
        return self

    def __exit__(self, *error: Any) -> None:
        self.progress.stop()

    def update(self, method: str, seed: int, recorder: Any, budget_tokens: int) -> None:
        """After a step of (method, seed)."""
        key = (method, seed)
        if key not in self._tasks:
            self._tasks[key] = self.progress.add_task(f"{method:<5} seed {seed}", total=budget_tokens, note="")
        row = recorder.history[-1] if recorder.history else {}
        accuracy = recorder.accuracy[-1].accuracy if recorder.accuracy else None
        mixed = row.get("mixed_share")
        note = f"accuracy {accuracy:.3f}" if accuracy is not None else ""
        note += f"  mixed groups {mixed:.0%}" if mixed is not None else ""
        self.progress.update(self._tasks[key], completed=min(row.get("tokens") or 0, budget_tokens), note=note)


def _column(what: Any, kind: Any) -> Any:
    return kind(what) if isinstance(what, str) else what


def _notes(plan: DemoPlan) -> str:
    settings = arithmetic.SETTINGS
    return (
        f"Task: {arithmetic.DESCRIPTION} Budget: {plan.budget_tokens:,} completion tokens per run, discarded groups "
        f"included. Target: accuracy {settings.target_accuracy:.0%} on {settings.eval_size:,} held-out problems, measured "
        f"every {settings.eval_every} steps. Seeds: {', '.join(map(str, plan.seeds))}."
    )


def _configuration() -> dict[str, Any]:
    """What a reader needs to judge the figures."""
    settings = arithmetic.SETTINGS
    trl, curriculum = dict(settings.trl), {name: dict(own) for name, own in settings.curriculum.items()}
    return {"pool": {"prompts": settings.pool_size}, "TRL settings": trl, "curriculum": curriculum}


def plan_budget() -> int:
    """The demo's own budget, in completion tokens per run."""
    return arithmetic.SETTINGS.budget_tokens


def show_demo(plan: DemoPlan, quiet: bool = False) -> dict[str, Any]:
    """Runs the plan with a progress bar on a terminal, prints the table over seeds unless ``quiet``; the summary."""
    from rich.console import Console

    console = Console(stderr=True)
    if console.is_terminal and not quiet:
        with DemoProgress(console) as progress:
            results = run_demo(plan, progress)
    else:
        results = run_demo(plan)
    summary = summarise(results)
    if not quiet:
        out = Console()
        out.print(summary.to_rich())
        out.print(f"{plan.out / 'report.html'} has the figures and explains them; results.json beside it has the numbers.")
    return summary.to_dict()
