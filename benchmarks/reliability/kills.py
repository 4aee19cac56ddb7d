"""SIGKILL at a random instant of a TRL run: once resumed, it is the run that was never stopped, in
rows, rewards, losses, curriculum, weights and optimizer, bit for bit."""

from __future__ import annotations

import random
import shutil
import time
from functools import cache, partial
from itertools import product
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Any, NamedTuple

import torch

import trl_toys as toys
from depo_rl.engines.trl.checkpoints import SUMS_FILE
from limits import HANG_S

from .book import Case, Result
from .processes import Ranks

STEPS = 6
PAUSE_S = 0.02  # at four places of each save, so that about half of the kills find it half written
CHOOSY = {"warmup_steps": 1, "candidate_factor": 3}
METHODS: dict[str, dict[str, Any]] = {
    "depo": {"method": "depo", "curriculum": CHOOSY},
    "depo+": {"method": "depo+", "curriculum": CHOOSY | {"estimator": toys.FUSED}},
    "dapo": {"method": "dapo", "curriculum": {"max_rounds": 3}},
}
LAYOUTS: dict[str, dict[str, Any]] = {
    "plain": {},
    "steps_per_generation 2": {"steps_per_generation": 2},
    "PEFT": {},
}
WORLDS = {"one process": 1, "two processes": 2}


class Slow(toys.DEPOTrainer):
    """Saves slowly; just before it is complete, a checkpoint's last file is torn."""

    def save_model(self, *args: Any, **kwargs: Any) -> None:
        time.sleep(PAUSE_S)
        super().save_model(*args, **kwargs)
        time.sleep(PAUSE_S)

    def _save_rng_state(self, output_dir: str) -> None:
        time.sleep(PAUSE_S)
        super()._save_rng_state(output_dir)
        if self.args.should_save:
            (Path(output_dir) / "trainer_state.json").write_text('{"half": ')
            time.sleep(PAUSE_S)


def adapter() -> Any:
    from peft import LoraConfig

    return LoraConfig(r=2, target_modules=["q_proj"], task_type="CAUSAL_LM")


def train(folder: Path, method: str, layout: str) -> None:
    made = toys.trainer(
        folder,
        cls=Slow,
        data=toys.dataset(12),
        extra={"peft_config": adapter()} if layout == "PEFT" else {},
        per_device_train_batch_size=8,
        max_steps=STEPS,
        save_strategy="steps",
        save_steps=1,
        save_total_limit=2,
        **METHODS[method] | LAYOUTS[layout],
    )
    made.train(resume_from_checkpoint="auto")
    torch.save(toys.everything(made), folder / f"rank{made.accelerator.process_index}.pt")


def result(folder: Path, world: int) -> dict[str, Any]:
    """All that has to be equal."""
    ranks = [torch.load(folder / f"rank{rank}.pt", weights_only=False) for rank in range(world)]
    return {"ranks": ranks, "log": toys.outcome_log(folder)}


class Reference(NamedTuple):
    """A run that was never stopped: what it came to, seconds to its first save, and from there on."""

    result: dict[str, Any]
    to_save: float
    to_end: float


@cache
def never_stopped(method: str, world: int, layout: str) -> Reference:
    with TemporaryDirectory() as name:
        folder = Path(name)
        started = time.perf_counter()
        ranks = Ranks(lambda: train(folder, method, layout), world)
        await_save(folder)
        saving = time.perf_counter()
        ranks.wait()
        ended = time.perf_counter()
        return Reference(result(folder, world), saving - started, ended - saving)


def await_save(folder: Path) -> None:
    """Until the first save of a run in ``folder`` begins, if it ever does."""
    ever = time.monotonic() + HANG_S
    while not (folder / "checkpoint-1").exists() and time.monotonic() < ever:
        time.sleep(0.002)


def killed(method: str, world: int, layout: str, seed: int, folder: Path) -> Result:
    """One kill in six falls before the first save, where a run spends a good part of its time."""
    reference = never_stopped(method, world, layout)
    rng = random.Random(seed)

    def work() -> None:
        train(folder, method, layout)

    while True:  # until the kill comes before the run's own end
        ranks = Ranks(work, world)
        if seed % 6 == 0:
            time.sleep(rng.uniform(0, reference.to_save))
        else:
            await_save(folder)
            time.sleep(rng.uniform(0, reference.to_end))
        if ranks.kill(first=rng.randrange(world)):
            break
        shutil.rmtree(folder)
        folder.mkdir()
    where = hit(folder)
    Ranks(work, world).wait()
    different = toys.differences(reference.result, result(folder, world))
    if different:
        print("differs:", different[:5])
    return Result(1, int(not different), where)


def hit(folder: Path) -> str:
    checkpoints = list(folder.glob("checkpoint-*"))
    if any(not (checkpoint / SUMS_FILE).exists() for checkpoint in checkpoints):
        return "inside a save"
    return "between two saves" if checkpoints else "before the first save"


def cases(toy: bool) -> list[Case]:
    what = "SIGKILL at a random instant, resumed: equal to the run that was never stopped"
    combinations = list(product(METHODS, WORLDS, LAYOUTS))
    chosen = [combinations[0]] if toy else [combinations[i % len(combinations)] for i in range(50)]
    return [
        Case(
            what,
            f"{method}, {world}, {layout}, kill {index}",
            partial(killed, method, WORLDS[world], layout, index),
        )
        for index, (method, world, layout) in enumerate(chosen)
    ]
