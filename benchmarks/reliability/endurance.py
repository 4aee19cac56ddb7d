"""Ten thousand steps of the curriculum alone: memory, seconds a step, and the floors it promises."""

from __future__ import annotations

import gc
import os
import time
from functools import partial
from pathlib import Path
from statistics import median
from typing import Any

import numpy as np

from core_world import make_prompts, roll_out
from depo_rl import Curriculum, make_curriculum

from .book import Case, Result

SIZES = [400, 300, 200, 90, 10]  # prompts of each source
BATCH = 16  # prompts
SMALL = {"type": "fused", "n_buckets": 2**10, "n_random": 16}  # as all, with fewer features
METHODS: dict[str, tuple[str, dict[str, Any]]] = {
    "dapo": ("dapo", {}),
    "depo": ("depo", {"warmup_steps": 4, "estimator": SMALL}),
    "depo+": ("depo+", {"estimator": SMALL}),
    "greso": ("greso", {}),
}


class Floors:
    """What holds in every step: the exploration share, the bound on how long a prompt stays
    unvisited, the books."""

    def __init__(self, curriculum: Curriculum) -> None:
        self.curriculum = curriculum
        self.bound = curriculum.max_unvisited_batches(BATCH)
        self.last_seen = {prompt.key: 0 for prompt in curriculum.pool}
        self.longest = 0

    def hold(self, step: int, chosen: list[str]) -> bool:
        for key in chosen:
            self.longest = max(self.longest, step - self.last_seen[key])
            self.last_seen[key] = step
        figures = self.curriculum.metrics()
        explores = self.bound is None or self.longest <= self.bound
        back = figures["admitted"] + figures["rejected"] + figures["failed"]
        kept = (
            figures["chosen"] == back and figures["drawn"] == figures["chosen"] + figures["skipped"]
        )
        return explores and kept and len(set(chosen)) == BATCH


def resident_bytes() -> int:
    """Memory of this process, Linux only."""
    gc.collect()
    return int(Path("/proc/self/statm").read_text().split()[1]) * os.sysconf("SC_PAGE_SIZE")


def endure(method: str, steps: int, folder: Path) -> Result:
    """Held: steps in which all floors did."""
    name, settings = METHODS[method]
    curriculum = make_curriculum(name, make_prompts(SIZES), settings)
    floors = Floors(curriculum)
    rng = np.random.default_rng(0)
    tenth = steps // 10
    seconds: list[float] = []
    memory: list[int] = []
    held = 0
    for step in range(1, steps + 1):
        started = time.process_time()  # of this process: others may be busy
        prompts = curriculum.propose(BATCH)
        outcomes = roll_out(prompts, rng)
        curriculum.settle(outcomes)
        seconds.append(time.process_time() - started)
        held += floors.hold(step, [prompt.key for prompt in prompts])
        if step % tenth == 0:
            memory.append(resident_bytes())
    grown = (memory[-1] - memory[1]) / 2**20  # after two tenths everything has its size
    ratio = median(seconds[-tenth:]) / median(seconds[tenth : 2 * tenth])
    figure = (
        f"{method}: memory {grown:+.1f} MiB, CPU seconds a step x {ratio:.2f}, "
        f"a prompt unvisited for {floors.longest} steps at most (bound {floors.bound})"
    )
    return Result(steps, held, figure)


def cases(toy: bool) -> list[Case]:
    steps = 100 if toy else 10_000
    what = f"{steps:,} steps of the curriculum alone: all floors kept in a step"
    return [Case(what, method, partial(endure, method, steps)) for method in METHODS]
