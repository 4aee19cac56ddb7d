"""A verifier that hangs, crashes, leaks memory, raises or has no answer: what it costs.

The real worker pool: two workers, one second for each completion, 300 MiB.
"""

from __future__ import annotations

import time
import zlib
from functools import partial
from pathlib import Path
from typing import Any

from depo_rl.rewards import VerifierPool, in_workers
from test_rewards_functions import behave

from .book import Case, Result

GOOD = 60  # completions of a batch that the verifier can judge
TIMEOUT_S = 1.0
LIMITS: dict[str, Any] = {"n_workers": 2, "timeout_s": TIMEOUT_S, "memory_limit_mb": 300}
KINDS = {  # how it misbehaves: the completions that make it do so
    "hangs in C code": ["hang"],
    "crashes": ["exit", "sigkill", "segfault"],
    "leaks 50 MB a completion": ["leak"],
    "raises": ["raise", "sys.exit", "memory error"],
    "answers None or NaN": ["none", "nan", "inf"],
}
_leaked: list[bytearray] = []


def judge(completion: str, answer: Any) -> Any:
    """Right if they are equal; else what the completion says, and one that leaks is right too."""
    if completion != "leak":
        return behave(completion, answer)
    _leaked.append(bytearray(b"x" * 50_000_000))
    time.sleep(0.15)  # longer than the pool takes to look at its workers' memory
    return 1.0


def cost(kind: str, n_bad: int, batches: int, folder: Path) -> Result:
    """Batches with bad completions among good ones, beside batches without. Held: good ones judged
    right, bad ones unscorable or, where the verifier got away with it, right."""
    bad = [KINDS[kind][index % len(KINDS[kind])] for index in range(n_bad)]
    good = ["x"] * GOOD
    tried = held = lost = 0
    with VerifierPool(judge, **LIMITS) as pool:
        pool.start()
        clean = seconds(pool, good)
        started = time.perf_counter()
        for _ in range(batches):
            texts = [*good[: GOOD // 2], *bad, *good[GOOD // 2 :]]
            rewards = pool.score(texts, ["x"] * len(texts))
            for text, reward in zip(texts, rewards, strict=True):
                held += (
                    reward == 1.0
                    if text == "x"
                    else reward is None or (text, reward) == ("leak", 1.0)
                )
                lost += reward is None
            tried += len(texts)
        spent = (time.perf_counter() - started) / batches - clean
        replaced = pool.metrics()["workers_replaced"] / batches
    figure = f"{kind}: {spent:+.1f} s a batch, {replaced:.1f} workers replaced, {lost} unscorable"
    return Result(tried, held, figure)


def seconds(pool: VerifierPool, texts: list[str]) -> float:
    started = time.perf_counter()
    pool.score(texts, ["x"] * len(texts))
    return time.perf_counter() - started


def unreliable(completion: str, answer: str) -> Any:
    """A third of all texts make it fail, each always in the same way."""
    kind = zlib.crc32(completion.encode()) % 12
    actions = {0: "hang", 1: "exit", 2: "raise", 3: "none"}
    return judge(actions[kind], answer) if kind in actions else float(answer[-1] in completion)


def trl_run(steps: int, folder: Path) -> Result:
    """Held: steps that were taken; every completion is counted as scored or as failed."""
    import trl_toys as toys

    reward = in_workers(unreliable, **LIMITS)
    try:
        made = toys.run(folder, rewards=reward, max_steps=steps, curriculum={"warmup_steps": 1})
    finally:
        reward.close()
    log = toys.outcome_log(folder)
    failed = sum(row["n_failed"] for row in log)
    total = failed + sum(row["n_scored"] for row in log)
    complete = total == 16 * steps and failed > 0
    figure = f"{failed} of {total} completions unscorable"
    return Result(steps, made.state.global_step if complete else 0, figure)


def cases(toy: bool) -> list[Case]:
    n_bad, batches, steps = (2, 1, 1) if toy else (6, 10, 20)
    what = f"verifier that fails on {n_bad} of {GOOD + n_bad} completions (limit {TIMEOUT_S:g} s, 2 workers)"
    return [
        *(Case(what, kind, partial(cost, kind, n_bad, batches)) for kind in KINDS),
        Case(
            "steps of a TRL run whose verifier fails on a third of all texts",
            "TRL",
            partial(trl_run, steps),
        ),
    ]
