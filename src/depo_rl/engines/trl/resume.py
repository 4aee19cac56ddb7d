"""``ResumableTrainer``: a ``GRPOTrainer`` whose checkpoints let a run go on exactly as if it had
never stopped.

TRL's own leave out where in a generation cycle the run is, and what was generated for it; its
sampler starts every resumed run with the order of epoch 0. A save that the disk fails must not end
a run, nor let one rank wait for another for ever, so the ranks agree on it.
"""

from __future__ import annotations

import os
import shutil
import warnings
from collections.abc import Callable
from pathlib import Path
from typing import Any

import torch
from accelerate.utils import gather_object
from transformers import TrainerState
from transformers.trainer_utils import PREFIX_CHECKPOINT_DIR

from ...checkpoint import load_state, save_state
from ...errors import CheckpointError, expect_fields
from .checkpoints import (
    STATE_FILE,
    expect_undamaged,
    is_complete,
    load_rank,
    newest_complete,
    save_rank,
    save_sums,
)
from .compat import StockTrainer
from .layout import changes, layout_of, layout_seen
from .ranks import on_main

_SAVE_FAILURES_IN_A_ROW = 3
_CYCLE = ("step", "world", "inside", "entropy_coef", "last_world_entropy")


class ResumableTrainer(StockTrainer):
    """Adds ``resume_from_checkpoint="auto"``. Subclasses add their own state with the methods
    below."""

    _save_failures = 0
    _disk_errors: list[Exception] | None = None  # while a checkpoint is being saved
    _own_sampler: Any = None

    def _starts_anew(self) -> None:
        """Called on all ranks, before a run that does not resume."""

    def _own_state(self) -> dict[str, Any]:
        """What else to save; called on the main process."""
        return {}

    def _load_own_state(self, state: dict[str, Any]) -> Any:
        """Called on the main process; what it returns is broadcast and given to ``_resumed``."""

    def _resumed(self, shared: Any, step: int) -> None:
        """Called on all ranks, at the end of a resume after ``step``; ``shared`` is None if the
        checkpoint held no state of ours."""

    # -- which checkpoint --------------------------------------------------------------------------

    def train(
        self, resume_from_checkpoint: str | bool | None = None, *args: Any, **kwargs: Any
    ) -> Any:
        """As ``Trainer.train``; True resumes from the newest *complete* checkpoint, "auto" also
        starts anew."""
        if resume_from_checkpoint is True or resume_from_checkpoint == "auto":
            required = resume_from_checkpoint is True
            resume_from_checkpoint = on_main(
                self.accelerator, lambda: self._newest_checkpoint(required)
            )
        if resume_from_checkpoint:
            folder = Path(str(resume_from_checkpoint))
            on_main(self.accelerator, lambda: expect_undamaged(folder))
        else:
            self._starts_anew()
        return super().train(resume_from_checkpoint, *args, **kwargs)

    def _newest_checkpoint(self, required: bool) -> str | None:
        found, torn = newest_complete(self.args.output_dir)
        if torn:
            warnings.warn(
                f"passing over {', '.join(p.name for p in torn)}: cut off while being written; resuming from "
                f"{found.name if found else 'the start'}",
                stacklevel=2,
            )
        if found is None and required:
            raise CheckpointError(
                f"no complete checkpoint in {self.args.output_dir}: train with resume_from_checkpoint='auto' to start "
                "anew where there is none"
            )
        return str(found) if found else None

    # -- save --------------------------------------------------------------------------------------

    def _save_checkpoint(self, model: Any, trial: Any) -> None:
        """A failing disk does not stop a run: the partial folder is removed, the failure shown, the
        next save tried."""
        folder = (
            Path(self._get_output_dir(trial=trial))
            / f"{PREFIX_CHECKPOINT_DIR}-{self.state.global_step}"
        )
        if (
            self.args.should_save
        ):  # files of an earlier attempt at this step must not pass for this one's
            shutil.rmtree(folder, ignore_errors=True)
        self.accelerator.wait_for_everyone()
        self._disk_errors = []
        try:
            super()._save_checkpoint(model, trial)
        except Exception as error:
            if not _is_disk_error(error) or (is_complete(folder) and not self._disk_errors):
                raise  # such as a failed push of a checkpoint that was saved
            self._disk_errors.append(error)
        if self.accelerator.is_main_process:
            self._attempt(save_sums, folder)
        errors = self._errors_of_all_ranks()
        self._disk_errors = None
        self._save_failures = self._save_failures + 1 if errors else 0
        if not errors:
            return
        if self.args.should_save:
            shutil.rmtree(folder, ignore_errors=True)
        text = f"cannot save {folder}: {errors[0]}; {self._save_failures} failed in a row. Free disk space"
        if self._save_failures >= _SAVE_FAILURES_IN_A_ROW:
            raise CheckpointError(f"{text}; resume from an earlier checkpoint")
        if self.accelerator.is_main_process:
            warnings.warn(
                f"{text}; training goes on and the next save is tried again", stacklevel=2
            )

    def _errors_of_all_ranks(self) -> list[str]:
        errors = [str(error) for error in self._disk_errors or []]
        return list(gather_object(errors)) if self.accelerator.num_processes > 1 else errors

    def _attempt(self, write: Callable[..., Any], *args: Any, **kwargs: Any) -> None:
        """``write(...)``; inside a save, a failing disk is noted until all ranks have met, and the
        rest is left out."""
        if self._disk_errors:
            return
        try:
            write(*args, **kwargs)
        except Exception as error:
            if self._disk_errors is None or not _is_disk_error(error):
                raise
            self._disk_errors.append(error)

    def create_model_card(self, *args: Any, **kwargs: Any) -> None:
        self._attempt(super().create_model_card, *args, **kwargs)

    def save_model(self, *args: Any, **kwargs: Any) -> None:
        self._attempt(super().save_model, *args, **kwargs)

    def _save_optimizer_and_scheduler(self, output_dir: str) -> None:
        self._attempt(super()._save_optimizer_and_scheduler, output_dir)
        self._attempt(self._save_cycle, output_dir)

    def _save_scaler(self, output_dir: str) -> None:
        self._attempt(super()._save_scaler, output_dir)

    def _save_rng_state(self, output_dir: str) -> None:
        self._attempt(super()._save_rng_state, output_dir)
        # trainer_state.json comes next and says that the folder is complete: hear of all ranks'
        # files first
        if errors := self._errors_of_all_ranks():
            raise OSError(errors[0])

    @property
    def _cycle_length(self) -> int:
        """Batches from one generation to the next."""
        return int(self.args.steps_per_generation * self.num_iterations)

    def _save_cycle(self, output_dir: str) -> None:
        """Where the generation cycle is; inside one, also this rank's generated batches."""
        os.makedirs(output_dir, exist_ok=True)
        inside = self._step % self._cycle_length != 0
        if inside:
            save_rank(
                output_dir, self.accelerator.process_index, {"buffered": self._buffered_inputs}
            )
        if self.accelerator.is_main_process:
            cycle: dict[str, Any] = {"step": self._step, "inside": inside}
            cycle |= {"world": self.accelerator.num_processes, "layout": layout_of(self)}
            # TRL writes these two after trainer_state.json, so that a kill can leave them out
            cycle |= {
                "entropy_coef": self.entropy_coef,
                "last_world_entropy": self._last_world_entropy,
            }
            save_state(
                os.path.join(output_dir, STATE_FILE), {"cycle": cycle, "own": self._own_state()}
            )

    # -- load --------------------------------------------------------------------------------------

    def _load_optimizer_and_scheduler(self, checkpoint: str | None) -> None:
        super()._load_optimizer_and_scheduler(checkpoint)
        if checkpoint is None:
            return
        # not self.state, which transformers 4 loads later
        reached = TrainerState.load_from_json(os.path.join(checkpoint, "trainer_state.json"))
        self._restart_epoch_order(reached.global_step)
        found = on_main(self.accelerator, lambda: self._load_state(checkpoint))
        self._buffered_inputs = None
        if found is None:
            self._step = 0
            self._resumed(None, reached.global_step)
            return
        cycle, shared = found
        self._step = cycle["step"]
        self.entropy_coef = cycle["entropy_coef"]
        self._last_world_entropy = cycle["last_world_entropy"]
        if cycle["inside"]:
            rank = load_rank(checkpoint, self.accelerator.process_index, self.accelerator.device)
            self._buffered_inputs = rank["buffered"]
        self._resumed(shared, reached.global_step)

    def _load_state(self, checkpoint: str) -> tuple[dict[str, Any], Any] | None:
        """Main process only."""
        path = os.path.join(checkpoint, STATE_FILE)
        if not os.path.exists(path):
            warnings.warn(
                f"{checkpoint} holds no curriculum state (saved by GRPOTrainer or with save_only_model): the policy "
                "resumes, the curriculum starts anew",
                stacklevel=2,
            )
            return None
        state = load_state(path)
        expect_fields("trainer", state, ("cycle", "own"))
        cycle = state["cycle"]
        told = isinstance(cycle, dict) and "layout" in cycle  # version 0.1 does not tell
        expect_fields("generation cycle", cycle, (*_CYCLE, "layout") if told else _CYCLE)
        shared = self._load_own_state(state["own"])
        return self._in_this_layout(cycle, checkpoint), shared

    def _in_this_layout(self, cycle: dict[str, Any], checkpoint: str) -> dict[str, Any]:
        """The cycle as it goes on: with a fresh generation, as the stock trainer makes on every
        resume, where another layout would cut the rest of the saved one into other batches."""
        saved = cycle.get("layout")
        if saved is None:
            buffered = load_rank(checkpoint, 0, "cpu")["buffered"] if cycle["inside"] else ()
            saved = layout_seen(cycle["world"], buffered)
        changed = changes(saved, layout_of(self))
        if not changed and (cycle["inside"] or cycle["step"] % self._cycle_length == 0):
            return cycle
        if cycle["inside"]:
            warnings.warn(
                f"{checkpoint} was saved inside a generation, with {changed}: what is left of that generation is not "
                "trained on, a fresh one begins",
                stacklevel=2,
            )
        return cycle | {"step": 0, "inside": False}

    def _run_epoch(self, *args: Any, **kwargs: Any) -> Any:
        """The Trainer asks only after a step whether a run is over: a finished one that resumes
        would take one more."""
        if self.is_over:
            self.control.should_training_stop = True
            return None
        return super()._run_epoch(*args, **kwargs)

    def _get_train_sampler(self, dataset: Any = None) -> Any:
        self._own_sampler = super()._get_train_sampler(dataset)
        return self._own_sampler

    def _restart_epoch_order(self, step: int) -> None:
        """TRL's sampler would replay epoch 0's order after a resume in a later epoch: advances its
        generator, by the epochs that the Trainer counts before ``step`` in this run's layout."""
        sampler = self._own_sampler
        generator = getattr(sampler, "generator", None)
        if generator is not None:
            batches = len(sampler) // self.args.generation_batch_size
            steps_per_epoch = max(-(-batches // self.args.gradient_accumulation_steps), 1)
            for _ in range(step // steps_per_epoch):
                torch.randperm(len(sampler.data_source), generator=generator)


def _is_disk_error(error: Exception) -> bool:
    """torch and safetensors report a full disk as errors of their own."""
    text = str(error)
    return isinstance(error, OSError) or any(
        s in text for s in ("PytorchStreamWriter", "No space left", "I/O error")
    )
