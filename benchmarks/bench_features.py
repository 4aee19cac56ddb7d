"""What does a feature table cost? Prompts per second to build, bytes per prompt, memory,
milliseconds per gather.

    python benchmarks/bench_features.py [--prompts 100000]

Texts are synthetic, of the length of mathematical problems (about 200 characters), each with an
answer.
"""

from __future__ import annotations

import argparse
import random
import resource
import statistics
import time

import numpy as np

from depo_rl.features.table import FeatureTable
from depo_rl.types import Prompt


def synthetic_prompts(n: int) -> list[Prompt]:
    """n prompts, the same for the same n."""
    rng = random.Random(0)
    words = ["".join(rng.choices("abcdefghijklmnop", k=rng.randint(2, 8))) for _ in range(5000)]
    prompts = []
    for key in range(n):
        parts = [
            *rng.choices(words, k=rng.randint(8, 38)),
            *(f"$x^{rng.randint(1, 999)}$" for _ in range(6)),
        ]
        prompts.append(
            Prompt(str(key), " ".join(parts) + "?", fields={"answer": str(rng.randint(0, 9999))})
        )
    return prompts


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0] if __doc__ else None)
    parser.add_argument("--prompts", type=int, default=100_000)
    n = parser.parse_args().prompts
    prompts = synthetic_prompts(n)
    before = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 1024
    start = time.perf_counter()
    table = FeatureTable(prompts)
    seconds = time.perf_counter() - start
    peak = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 1024
    print(
        f"{sum(len(p.text) for p in prompts) / n:.0f} characters a prompt; {n / seconds:,.0f} prompts/s"
    )
    print(f"{table.nbytes / n:.0f} bytes a prompt, {table.nbytes / 2**20:,.0f} MiB")
    print(
        f"peak memory {peak:,.0f} MiB, of which {before:,.0f} MiB before the build (the prompts themselves)"
    )
    rng = np.random.default_rng(0)
    for size in (1024, 8192):
        times = []
        for _ in range(9):
            index_P = rng.integers(0, n, size)
            start = time.perf_counter()
            table.rows(index_P)
            times.append(1000 * (time.perf_counter() - start))
        print(f"{size} rows: {statistics.median(times):.1f} ms")


if __name__ == "__main__":
    main()
