"""How long does choosing take? Seconds per step of each method in the synthetic world, by size of
the pool.

    python benchmarks/bench_replay.py [--sizes 10000,1000000] [--methods grpo,dapo,depo]
                                      [--steps 30] [--json]

Every method gets a world of its own with the same seed. "other" is the world itself (drawing
groups, learning) and the counting. ``share`` is the share of mixed groups, ``accuracy`` the
learner's mean pass rate over the pool at the end.
"""

from __future__ import annotations

import argparse
import json
import resource
import time
from typing import Any

from depo_rl import make_curriculum
from depo_rl.commands.replay.simulate import simulate
from depo_rl.engines.synthetic import SyntheticEngine, SyntheticSettings


def measure(n_prompts: int, method: str, steps: int, prompts_per_step: int) -> dict[str, Any]:
    """One run of one method."""
    started = time.perf_counter()
    engine = SyntheticEngine(SyntheticSettings(n_prompts=n_prompts))
    settings: dict[str, Any] = {}
    if method == "depo":  # its estimator must not see the rates that outcomes are drawn from
        settings = {"band": "auto", "warmup_steps": 4, "estimator": {"exclude": ["pass_rate"]}}
    curriculum = make_curriculum(method, engine.prompts(), settings)
    built = time.perf_counter() - started
    result = simulate(curriculum, engine, prompts_per_step, steps)
    selecting, learning = result.seconds_selecting or 0.0, result.seconds_learning or 0.0
    return {
        "prompts": n_prompts,
        "method": method,
        "build_s": round(built, 2),
        "selecting_ms_per_step": round(1000 * selecting / steps, 2),
        "learning_ms_per_step": round(1000 * learning / steps, 2),
        "other_ms_per_step": round(
            1000 * ((result.seconds_total or 0.0) - selecting - learning) / steps, 2
        ),
        "share": round(result.mixed_share or 0.0, 3),
        "accuracy": round(engine.metrics()["accuracy"], 3),
        "rollouts": result.rollouts,
        "peak_mb": resource.getrusage(resource.RUSAGE_SELF).ru_maxrss // 1024,
    }


def main() -> None:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--sizes", default="10000,1000000")
    parser.add_argument("--methods", default="grpo,dapo,depo")
    parser.add_argument("--steps", type=int, default=30)
    parser.add_argument("--prompts-per-step", type=int, default=128)
    parser.add_argument("--json", action="store_true")
    args = parser.parse_args()
    rows = []
    for size in map(int, args.sizes.split(",")):
        for method in args.methods.split(","):
            rows.append(measure(size, method, args.steps, args.prompts_per_step))
            if not args.json:
                print("  ".join(f"{name} {value}" for name, value in rows[-1].items()), flush=True)
    if args.json:
        print(json.dumps(rows, indent=2))


if __name__ == "__main__":
    main()
