"""A verifier that says 0 to everything of one source for 45 steps: how long until that source is
chosen, and believed in, as before?"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from functools import partial
from pathlib import Path
from statistics import median
from typing import Any

import numpy as np

from core_world import roll_out
from depo_rl import Curriculum, GroupOutcome, Prompt, make_curriculum
from test_core_recovery import SMALL, _sources

from .book import Case, Result

BEFORE = 30  # steps
WINDOW = 10  # steps that a share is a mean over
BATCH = 32  # prompts
TOLERANCE = 0.15  # that a pass rate may be off by and still be believed in
METHODS: dict[str, tuple[str, dict[str, Any]]] = {
    "depo, band window": ("depo", {"band": "window", "warmup_steps": 4, "estimator": SMALL}),
    "depo, band auto": ("depo", {"band": "auto", "warmup_steps": 4, "estimator": SMALL}),
    "depo+": ("depo+", {"estimator": SMALL}),
}


def steps_of(
    curriculum: Curriculum, seed: int, outage: int, after: int
) -> Iterator[tuple[float, float]]:
    """Each step's share of the source "a" in the batch, and its mean predicted pass rate."""
    rng = np.random.default_rng(seed)
    of_a = [prompt for prompt in curriculum.pool if prompt.source == "a"]
    for step in range(BEFORE + outage + after):
        prompts = curriculum.propose(BATCH)
        outcomes = roll_out(prompts, rng)
        if BEFORE <= step < BEFORE + outage:
            outcomes = [
                poisoned(prompt, outcome) for prompt, outcome in zip(prompts, outcomes, strict=True)
            ]
        curriculum.settle(outcomes)
        share = sum(prompt.source == "a" for prompt in prompts) / BATCH
        yield share, float(curriculum.estimator.predict(of_a).mean_P.mean())


def poisoned(prompt: Prompt, outcome: GroupOutcome) -> GroupOutcome:
    return GroupOutcome(outcome.key, 0, outcome.n_scored) if prompt.source == "a" else outcome


def first(holds: Sequence[bool]) -> int | None:
    return holds.index(True) if True in holds else None


def recovery(seed: int, method: str, outage: int, after: int) -> tuple[int | None, int | None]:
    """Steps after the outage until the source has half of its earlier share again, over ``WINDOW``
    steps, and until its pass rate, 0.5, is believed in again; None: not within ``after``."""
    name, settings = METHODS[method]
    curriculum = make_curriculum(name, _sources(), {**settings, "seed": seed})
    shares, beliefs = map(np.array, zip(*steps_of(curriculum, seed, outage, after), strict=True))
    before = shares[BEFORE - WINDOW : BEFORE].mean()
    end = BEFORE + outage
    windows = [
        shares[at : at + WINDOW].mean() >= before / 2 for at in range(end, len(shares) - WINDOW)
    ]
    believed = [abs(belief - 0.5) < TOLERANCE for belief in beliefs[end:]]
    return first(windows), first(believed)


def outages(method: str, seeds: int, outage: int, after: int, folder: Path) -> Result:
    found = [recovery(seed, method, outage, after) for seed in range(seeds)]
    held = [(chosen, believed) for chosen, believed in found if chosen is not None]
    if not held:
        return Result(seeds, 0, f"{method}: not chosen again within {after} steps")
    chosen = [steps for steps, _ in held]
    believed = [steps for _, steps in held if steps is not None]
    figure = f"{method}: half its share after {median(chosen):.0f} steps (at most {max(chosen)})"
    if believed:
        figure += (
            f", pass rate to {TOLERANCE} after {median(believed):.0f} ({len(believed)} of {seeds})"
        )
    return Result(seeds, len(held), figure)


def cases(toy: bool) -> list[Case]:
    outage, after, seeds = (5, 20, 1) if toy else (45, 150, 5)
    methods = list(METHODS)[: 1 if toy else None]
    what = f"{outage} steps of reward 0 for one source of five: chosen again within {after} steps"
    return [
        Case(what, method, partial(outages, method, seeds, outage, after)) for method in methods
    ]
