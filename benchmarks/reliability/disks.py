"""A disk that is full, at any byte of any file, or slow: nothing half-written, nothing lost that
could be kept, and the run goes on or ends in a typed error.

The kernel does it: with a limit on the size of files, a write past it fails in Python, torch and
safetensors alike.
"""

from __future__ import annotations

import json
import os
import random
import resource
import time
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from functools import partial
from pathlib import Path
from typing import Any

import torch

import trl_toys as toys
from depo_rl.checkpoint import load_state, save_state
from depo_rl.engines.trl.checkpoints import expect_undamaged, is_complete
from depo_rl.errors import CheckpointError
from depo_rl.outcomes import OutcomeLogWriter
from limits import HANG_S
from test_outcomes_writer import row

from .book import Case, Result
from .processes import Ranks

STEPS = 6


@contextmanager
def full_from(size: int) -> Iterator[None]:
    """No file of this process can grow beyond ``size`` bytes; nothing may be printed to a file."""
    hard = resource.getrlimit(resource.RLIMIT_FSIZE)[1]
    resource.setrlimit(resource.RLIMIT_FSIZE, (size, hard))
    try:
        yield
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, (hard, hard))


def state_files(tries: int, folder: Path) -> Result:
    """``save_state`` over an older file; held: the older one is whole, and nothing else is there."""
    rng = random.Random(0)
    path = folder / "state"
    save_state(path, {"step": 0, "weights": list(range(500))})
    size = path.stat().st_size
    held = 0
    for step in range(1, tries + 1):
        with full_from(rng.randrange(size)), suppress(CheckpointError):
            save_state(path, {"step": step, "weights": list(range(500))})
        held += load_state(path)["step"] == 0 and list(folder.iterdir()) == [path]
    return Result(tries, held, "the older file whole, no litter")


class Filling(toys.DEPOTrainer):
    """Its disk is full from the save after step ``at`` on, for ``saves`` of them."""

    at = saves = size = 0

    def _save_checkpoint(self, model: Any, trial: Any) -> None:
        if self.at <= self.state.global_step < self.at + self.saves:
            with full_from(self.size):
                super()._save_checkpoint(model, trial)
        else:
            super()._save_checkpoint(model, trial)


def train(folder: Path, at: int, saves: int, size: int) -> None:
    os.dup2(
        os.open(os.devnull, os.O_WRONLY), 2
    )  # progress bars, which a file would have no room for
    made = toys.trainer(
        folder,
        cls=Filling,
        curriculum={"warmup_steps": 1, "candidate_factor": 3},
        per_device_train_batch_size=8,
        steps_per_generation=2,
        max_steps=STEPS,
        save_strategy="steps",
        save_steps=1,
    )
    made.at = at
    made.saves = saves
    made.size = size
    try:
        made.train()
    except CheckpointError as error:
        print("CheckpointError:", error, flush=True)
    torch.save(toys.everything(made), folder / "result.pt")


def trained(folder: Path, at: int = 0, saves: int = 0, size: int = 0) -> str:
    """What a child that trains so prints."""
    return Ranks(lambda: train(folder, at, saves, size)).wait()[0]


def whole(folder: Path) -> bool:
    """Every checkpoint that stayed is complete and undamaged, every logged row too."""
    for checkpoint in folder.glob("checkpoint-*"):
        if not is_complete(checkpoint):
            return False
        expect_undamaged(checkpoint)
    for line in (folder / "outcomes.jsonl").read_text().splitlines():
        json.loads(line)
    return not list(folder.rglob("*.tmp"))


def trl_runs(tries: int, folder: Path) -> Result:
    """A disk that is full for one to four saves of six. Held: as it would be if it had never been
    full but for the saves that failed, or, after the third in a row, ended in CheckpointError."""
    trained(folder / "whole")
    expected = torch.load(folder / "whole" / "result.pt", weights_only=False)
    largest = max(path.stat().st_size for path in (folder / "whole" / "checkpoint-1").iterdir())
    rng = random.Random(1)
    held = ended = 0
    for index in range(tries):
        run = folder / str(index)
        at = rng.randint(1, 3)
        saves = rng.randint(1, 4)
        text = trained(run, at, saves, rng.randrange(largest))
        kept = {path.name for path in run.glob("checkpoint-*")}
        if saves >= 3:
            ended += 1
            good = "3 failed in a row" in text and kept == {f"checkpoint-{n}" for n in range(1, at)}
        else:
            left = {*range(1, at), *range(at + saves, STEPS + 1)}
            result = torch.load(run / "result.pt", weights_only=False)
            good = toys.differences(expected, result) == [] and kept == {
                f"checkpoint-{n}" for n in left
            }
        held += good and whole(run)
    return Result(
        tries, held, f"{tries - ended} went on to equal weights, {ended} ended in CheckpointError"
    )


def logs(tries: int, folder: Path) -> Result:
    """Full while rows are written, and then not any more. Held: every row there, in order, once."""
    rng = random.Random(2)
    rows = [row(step) for step in range(60)]
    held = 0
    for index in range(tries):
        path = folder / f"{index}.jsonl"
        with OutcomeLogWriter(path) as log:
            log.write(rows[:20])
            log.flush()
            with full_from(path.stat().st_size + rng.randrange(4000)):
                log.write(rows[20:40])
                log.flush(timeout=0.3)
            log.write(rows[40:])
        steps = [json.loads(line)["step"] for line in path.read_text().splitlines()]
        held += steps == [one.step for one in rows]
    return Result(tries, held, "no row lost, none torn, none twice")


def slow_log(tries: int, folder: Path) -> Result:
    """Each write to the log takes a twentieth of a second. Held: writes that the training thread
    did not wait for."""
    real = os.write

    def slow(fd: int, data: bytes) -> int:
        time.sleep(0.05)
        return real(fd, data)

    waits = []
    os.write = slow
    try:
        with OutcomeLogWriter(folder / "slow.jsonl") as log:
            for step in range(tries):
                started = time.perf_counter()
                log.write([row(step)])
                waits.append(time.perf_counter() - started)
            log.flush(timeout=HANG_S)
    finally:
        os.write = real
    written = len((folder / "slow.jsonl").read_text().splitlines())
    held = sum(wait < 0.05 for wait in waits) if written == tries else 0
    return Result(
        tries, held, f"longest wait {1000 * max(waits):.1f} ms, {tries - written} rows lost"
    )


def cases(toy: bool) -> list[Case]:
    runs, some = (2, 3) if toy else (40, 100)
    return [
        Case(
            "disk full, at any byte, while a state is saved over an older one",
            "state",
            partial(state_files, some),
        ),
        Case(
            "disk full for 1 to 4 checkpoints of a TRL run, at any byte of any file",
            "TRL",
            partial(trl_runs, runs),
        ),
        Case(
            "disk full while the outcome log is written, and free again", "log", partial(logs, some)
        ),
        Case(
            "disk slow (50 ms a write): rows that training did not wait for",
            "slow log",
            partial(slow_log, some),
        ),
    ]
