"""``depo train``: check everything first, say what will happen, then train, save and sum up.

    run_train("run.yaml", ["trl.max_steps=10"], dry_run=True)     # -> the plan; writes nothing
    run_train("run.yaml")                                         # -> the summary; writes config.output

Every rank of a distributed run does the same; the main process alone writes and is handed the
curriculum.
"""

from __future__ import annotations

import os
import shutil
import sys
import warnings
from collections.abc import Iterator, Sequence
from contextlib import contextmanager, suppress
from pathlib import Path
from traceback import walk_tb
from typing import Any

from ...errors import CheckpointError, ConfigError, DepoError, EngineError
from ...report import write_results
from . import plan as train_plan
from .config import TrainConfig
from .data import load_eval_prompts, load_prompts, to_dataset
from .describe import describe
from .file import load_train_config
from .plan import Prepared
from .rewards import build_rewards, check_answers, close_rewards, reward_name
from .summary import describe_end, run_result
from .trl_args import batch_layout, build_args, check_pool, depo_kwargs, engine, peft_config

_LIBRARIES = {"depo_rl", "trl", "transformers", "accelerate", "torch", "peft", "datasets"}


def run_train(
    source: str | os.PathLike[str], overrides: Sequence[str] = (), *, dry_run: bool = False
) -> dict[str, Any]:
    """One training run, or with ``dry_run`` its plan. Returns what ``depo train --json`` prints.

    Raises ConfigError, DataError or StateMismatch for bad input, before the weights are loaded and
    before anything is written; other DepoErrors if the run itself fails.
    """
    config = load_train_config(source, overrides)
    with _without_chatter():
        with _naming(str(source)):
            prepared = prepare(config)
        try:
            return describe(prepared) if dry_run else _train(prepared)
        finally:
            close_rewards(prepared.rewards)


@contextmanager
def _without_chatter() -> Iterator[None]:
    """TRL itself uses names that transformers calls deprecated: no setting avoids it, and no user
    can mend it."""
    with warnings.catch_warnings():
        warnings.filterwarnings(
            "ignore", r"`\w*gradient_checkpointing\w*` is deprecated", FutureWarning
        )
        yield


@contextmanager
def _naming(source: str) -> Iterator[None]:
    """Puts the configuration's name before an error in one of its settings; data errors name their
    file already."""
    try:
        yield
    except ConfigError as error:
        raise ConfigError(f"{source}: {error}") from None


def prepare(config: TrainConfig) -> Prepared:
    """Loads the data, tokenizer and rewards and checks them against each other, the cheap things
    first."""
    train_plan.check_output(config)
    layout = batch_layout(config)
    table = load_prompts(config.data)
    held_out = load_eval_prompts(config.data)
    check_pool(len(table.rows), layout, table.where)
    train_plan.check_same_run(config, table)
    rewards = build_rewards(config)
    try:
        named = config.correct.reward or reward_name(rewards[0])
        args = build_args(
            depo_kwargs(config, layout, named) | ({"do_eval": True} if held_out else {})
        )
        peft = peft_config(config.peft)
        _be_quiet()
        model = train_plan.check_model(config)
        table, lengths = train_plan.check_lengths(config, table, model, args.max_completion_length)
        check_pool(len(table.rows), layout, table.where)
        gold = check_answers(config, rewards, table, held_out)
        datasets: list[Any] = [None if t is None else to_dataset(t) for t in (table, held_out)]
        train_plan.check_method(config, datasets[0], args.source_column)
    except BaseException:
        close_rewards(rewards)
        raise
    return Prepared(
        config, table, held_out, layout, model, lengths, rewards, named, args, peft, gold, *datasets
    )


def _be_quiet() -> None:
    """Progress bars belong on a terminal."""
    if sys.stderr.isatty():
        return
    import datasets
    import transformers

    datasets.disable_progress_bars()
    transformers.utils.logging.disable_progress_bar()


def _train(prepared: Prepared) -> dict[str, Any]:
    config = prepared.config
    trainer = _trainer(prepared)
    output = Path(config.output)
    is_main = bool(trainer.accelerator.is_main_process)
    if is_main:
        train_plan.write_record(config, prepared.table)
    resume: str | None = None if config.resume == "never" else config.resume
    with _disk_errors(output), _library_errors():
        trainer.train(resume_from_checkpoint=resume)
        if config.save_model:
            _save_model(trainer, output / "model")
    if not is_main:
        return {}
    result = run_result(trainer, prepared)
    write_results([result], output / "results.json")
    return describe_end(trainer, result, output)


def _trainer(prepared: Prepared) -> Any:
    from transformers import PrinterCallback

    with _library_errors():
        trainer = engine().DEPOTrainer(
            model=prepared.config.model.location,
            reward_funcs=prepared.rewards,
            args=prepared.args,
            train_dataset=prepared.dataset,
            eval_dataset=prepared.eval_dataset,
            processing_class=prepared.model.tokenizer,
            peft_config=prepared.peft,
        )
    trainer.remove_callback(PrinterCallback)  # it prints to stdout, which holds the result
    return trainer


@contextmanager
def _library_errors() -> Iterator[None]:
    """What TRL, transformers or torch refuse about the settings, some of it in the first step only,
    is one line; what a user's own code raises stays as it is, with its traceback."""
    try:
        yield
    except DepoError:
        raise
    except (ValueError, ImportError, RuntimeError) as error:
        if not _of_libraries(error):
            raise
        reason = " ".join(str(error).split())
        if isinstance(error, ImportError) or "to be installed" in reason:
            # vLLM, DeepSpeed, Liger, a reporter: asked for in the settings, imported by the trainer
            raise EngineError(f"a trl setting needs a module that is not here: {reason}") from error
        if isinstance(error, ValueError):
            raise ConfigError(f"trl: {reason}") from error
        raise


def _of_libraries(error: BaseException) -> bool:
    """No code of the user's was running."""
    frames = [frame.f_globals.get("__name__", "") for frame, _ in walk_tb(error.__traceback__)]
    known = _LIBRARIES | sys.stdlib_module_names
    return all(name.partition(".")[0] in known for name in frames)


@contextmanager
def _disk_errors(output: Path) -> Iterator[None]:
    """A full or failing disk is one line, however deep it was met."""
    try:
        yield
    except DepoError:
        raise
    except OSError as error:
        if error.errno is None:
            raise
        raise CheckpointError(
            f"{error.filename or output}: {error.strerror}; finished checkpoints in {output} are whole: "
            "mend the disk, then go on with resume=auto"
        ) from error


def _save_model(trainer: Any, folder: Path) -> None:
    """Writes the final model beside its place and moves it there, so that ``folder`` is never half
    a model."""
    new = folder.with_name(f".{folder.name}.new")
    old = folder.with_name(f".{folder.name}.old")
    is_main = bool(trainer.accelerator.is_main_process)
    if is_main:
        for leftover in (new, old):
            shutil.rmtree(leftover, ignore_errors=True)
    trainer.accelerator.wait_for_everyone()
    try:
        trainer.save_model(str(new))
    except Exception as error:  # safetensors and torch report a full disk as errors of their own
        shutil.rmtree(new, ignore_errors=True)
        raise CheckpointError(
            f"cannot save the model to {folder}: {error}; free disk space, then resume=auto"
        ) from error
    trainer.accelerator.wait_for_everyone()
    if is_main:
        with suppress(FileNotFoundError):
            folder.replace(old)
        new.replace(folder)
        shutil.rmtree(old, ignore_errors=True)
