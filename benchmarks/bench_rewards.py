"""What does killing cost? Completions per second of math-verify called directly and through the
verifier pool.

    python benchmarks/bench_rewards.py [--items 600] [--runs 5] [--json]

Direct means one call after the other in this process without any protection. The set is mixed:
right, wrong and unreadable answers, boxed and not, short and long reasoning; no item hangs. Every
run uses other numbers, because math-verify caches. Runs of the variants take turns, so that a busy
machine slows all of them alike. The last pair does the same with the GSM8K reward, which takes
microseconds, and so shows the bare price of a trip to a worker.
"""

from __future__ import annotations

import argparse
import json
import os
import random
import statistics
import time
from collections.abc import Callable, Sequence
from contextlib import ExitStack
from typing import Any

from depo_rl.rewards import VerifierPool, gsm8k_reward, math_verify_reward
from depo_rl.rewards.math import load_math_verify

Score = Callable[[Sequence[str], Sequence[str]], list[float | None]]
SENTENCE = "We set $x_{0} = {1}$, so that the sum becomes $\\frac{{{0}}}{{{1}}} + {0}$ and the rest cancels. "


def mixed_set(n_items: int, seed: int) -> tuple[list[str], list[str]]:
    """n completions of 0.1 to 4 thousand characters, and their gold answers; the same for the same
    seed."""
    rng = random.Random(seed)
    completions, answers = [], []
    for index in range(n_items):
        a, b = rng.randint(2, 9999), rng.randint(2, 9999)
        answer, said = (
            (f"{a}", f"\\boxed{{{a}}}"),
            (f"\\frac{{{a}}}{{{b}}}", f"\\boxed{{\\frac{{{2 * a}}}{{{2 * b}}}}}"),
            (f"{a}\\sqrt{{{b}}}", f"\\boxed{{\\sqrt{{{a * a * b}}}}}"),
            (f"({a}, {b})", f"\\boxed{{({a}, {b})}}"),
            (f"x^2+{a}x+{b}", f"\\boxed{{{b}+{a}x+x^2}}"),
            (f"{a}", f"\\boxed{{{b}}}"),
            (f"\\frac{{{a}}}{{{b}}}", f"The answer is ${b}/{a}$."),
            (f"{a}", f"so it must be {a}."),
            (f"{a}", "I do not know."),
            (f"{a}", f"\\boxed{{\\frac{{{a}}}{{"),
        )[index % 10]
        reasoning = "".join(
            SENTENCE.format(rng.randint(1, 99), b) for _ in range(rng.randint(1, 40))
        )
        completions.append(reasoning + said)
        answers.append(answer)
    return completions, answers


def direct(function: Callable[[str, str], float | None]) -> Score:
    """The same call shape as a pool, in this process."""
    return lambda completions, answers: [
        function(*item) for item in zip(completions, answers, strict=True)
    ]


def measure(n_items: int, n_runs: int) -> dict[str, Any]:
    """Median completions per second of every variant, and its ratio to the direct call."""
    load_math_verify()
    with ExitStack() as stack:

        def pooled(
            function: Callable[[str, str], float | None], n_workers: int, **settings: Any
        ) -> Score:
            pool = stack.enter_context(VerifierPool(function, n_workers=n_workers, **settings))
            pool.start()
            return pool.score

        variants: dict[str, Score] = {
            "math_verify direct": direct(math_verify_reward),
            "math_verify pool, 1 worker": pooled(math_verify_reward, 1, setup=load_math_verify),
            "math_verify pool, 2 workers": pooled(math_verify_reward, 2, setup=load_math_verify),
            "gsm8k direct": direct(gsm8k_reward),
            "gsm8k pool, 2 workers": pooled(gsm8k_reward, 2),
        }
        rates: dict[str, list[float]] = {name: [] for name in variants}
        for seed in range(n_runs + 1):  # run 0 warms up and is not counted
            completions, answers = mixed_set(n_items, seed)
            rewards = {}
            for name, score in variants.items():
                start = time.perf_counter()
                rewards[name] = score(completions, answers)
                if seed:
                    rates[name].append(n_items / (time.perf_counter() - start))
            assert rewards["math_verify direct"] == rewards["math_verify pool, 2 workers"], (
                "the pool changed a reward"
            )
    return {"items": n_items, "runs": n_runs, "cpus": os.cpu_count(), "variants": summary(rates)}


def summary(rates: dict[str, list[float]]) -> dict[str, dict[str, float]]:
    """Median, least and greatest rate (completions/s) of each variant, and median over the direct
    variant's median."""
    result = {}
    for name, values in rates.items():
        base = statistics.median(rates[f"{name.split()[0]} direct"])
        median = statistics.median(values)
        result[name] = {
            "median": median,
            "min": min(values),
            "max": max(values),
            "ratio": median / base,
        }
    return result


def main() -> None:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--items", type=int, default=600, help="completions per run")
    parser.add_argument("--runs", type=int, default=5, help="runs to take the median of")
    parser.add_argument(
        "--json", action="store_true", help="print one JSON object instead of a table"
    )
    arguments = parser.parse_args()
    result = measure(arguments.items, arguments.runs)
    if arguments.json:
        print(json.dumps(result, indent=2))
        return
    print(f"{result['items']} completions, median of {result['runs']} runs, {result['cpus']} CPUs")
    print(f"{'':30}{'completions/s':>14}{'min':>10}{'max':>10}{'ratio':>8}")
    for name, row in result["variants"].items():
        print(
            f"{name:30}{row['median']:14.0f}{row['min']:10.0f}{row['max']:10.0f}{row['ratio']:8.2f}"
        )


if __name__ == "__main__":
    main()
