"""A checkpoint with a byte changed, cut off, or of another version: refused in one line, with
nothing loaded."""

from __future__ import annotations

import random
from collections.abc import Callable, Iterator
from copy import deepcopy
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np

import trl_toys as toys
from core_world import METHODS, build, make_prompts, roll_out
from depo_rl import Curriculum
from depo_rl.checkpoint import load_state, save_state
from depo_rl.errors import DepoError

from .book import Case, Result

Damage = Callable[[random.Random, bytes], bytes]


def changed(rng: random.Random, data: bytes) -> bytes:
    at = rng.randrange(len(data))
    return data[:at] + bytes([data[at] ^ rng.randrange(1, 256)]) + data[at + 1 :]


def cut(rng: random.Random, data: bytes) -> bytes:
    return data[: rng.randrange(len(data))]


def other_versions(state: dict[str, Any]) -> Iterator[dict[str, Any]]:
    """Well-formed states that another release, or another run, could have written."""
    for change in (
        lambda other: other.update(version=other["version"] - 1),
        lambda other: other.update(version=other["version"] + 1),
        lambda other: other.update(version=None),
        lambda other: other.pop("version"),
        lambda other: other.update(method="another"),
        lambda other: other.update(added=1),
        lambda other: other.pop("ledger"),
        lambda other: other["ledger"].update(added=1),
        lambda other: other["pool"].pop("walk"),
        lambda other: other.update(rng={}),
    ):
        other = deepcopy(state)
        change(other)
        yield other


def refused(load: Callable[[], Any]) -> bool:
    """By an error of ours, of one line."""
    try:
        load()
    except DepoError as error:
        return "\n" not in str(error)
    return False


def grown(index: int) -> Curriculum:
    """A curriculum of one of the methods that has seen a few batches."""
    name, settings = METHODS[index % len(METHODS)]
    curriculum = build(name, make_prompts([40, 30]), settings)
    rng = np.random.default_rng(index)
    for _ in range(4):
        curriculum.settle(roll_out(curriculum.propose(8), rng))
    return curriculum


def state_file(damage: Damage, tries: int, folder: Path) -> Result:
    """``tries`` damages of a curriculum's file, all methods in turn."""
    rng = random.Random(0)
    held = 0
    for index in range(tries):
        path = folder / "state"
        curriculum = grown(index)
        save_state(path, curriculum.state_dict())
        path.write_bytes(damage(rng, path.read_bytes()))
        held += refused(lambda: curriculum.load_state_dict(load_state(path)))  # noqa: B023
    return Result(tries, held, f"of {min(tries, len(METHODS))} methods")


def state_of_another_version(tries: int, folder: Path) -> Result:
    """None of them may leave anything loaded."""
    held = 0
    for index in range(tries):
        curriculum = grown(index // 10)
        before = curriculum.state_dict()
        save_state(folder / "state", list(other_versions(before))[index % 10])
        said = refused(lambda: curriculum.load_state_dict(load_state(folder / "state")))  # noqa: B023
        held += said and toys.differences(before, curriculum.state_dict()) == []
    return Result(tries, held, "the curriculum untouched")


def trl_checkpoint(folder: Path) -> tuple[Any, Path]:
    """A trainer, and the checkpoint that one like it wrote in the middle of a generation."""
    settings = {
        "method": "depo+",
        "curriculum": {"estimator": toys.FUSED},
        "per_device_train_batch_size": 8,
        "steps_per_generation": 2,
    }
    toys.run(folder, max_steps=1, save_strategy="steps", save_steps=1, **settings)
    return toys.trainer(folder / "again", **settings), folder / "checkpoint-1"


def trl_folder(damage: Damage, tries: int, folder: Path) -> Result:
    """``tries`` damages, of each file of the checkpoint in turn."""
    trainer, checkpoint = trl_checkpoint(folder)
    files = sorted(path for path in checkpoint.rglob("*") if path.is_file())
    rng = random.Random(1)
    held = 0
    for index in range(tries):
        path = files[index % len(files)]
        data = path.read_bytes()
        path.write_bytes(damage(rng, data))
        held += refused(lambda: trainer.train(resume_from_checkpoint=str(checkpoint)))
        path.write_bytes(data)
    return Result(
        tries, held, f"of {len(files)} files, the policy's and the optimizer's among them"
    )


def trl_of_another_version(tries: int, folder: Path) -> Result:
    """Well-formed states beside files that are right."""
    trainer, checkpoint = trl_checkpoint(folder)
    path = checkpoint / "depo_state.safetensors"
    state = load_state(path)
    (checkpoint / "depo_sums.json").unlink()
    held = 0
    for index in range(tries):
        other = deepcopy(state)
        inner = other["own"]["driver"]
        inner["curriculum"] = list(other_versions(inner["curriculum"]))[index % 10]
        save_state(path, other)
        held += refused(lambda: trainer.train(resume_from_checkpoint=str(checkpoint)))
    return Result(tries, held, "also beside files that are right")


def cases(toy: bool) -> list[Case]:
    many, some, few = (4, 3, 2) if toy else (65, 25, 10)
    what = {
        "byte": "checkpoint, one byte changed: refused in one line",
        "cut": "checkpoint, cut off at any byte: refused in one line",
        "version": "checkpoint of another version, method or part: refused in one line",
    }
    return [
        Case(what["byte"], "state file", partial(state_file, changed, many)),
        Case(what["byte"], "TRL folder", partial(trl_folder, changed, many)),
        Case(what["cut"], "state file", partial(state_file, cut, some)),
        Case(what["cut"], "TRL folder", partial(trl_folder, cut, some)),
        Case(what["version"], "state file", partial(state_of_another_version, few)),
        Case(what["version"], "TRL folder", partial(trl_of_another_version, few)),
    ]
