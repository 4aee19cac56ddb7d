"""What importance weights do to the gradient: its mean and its variance, relative to uniform
choice.

512 prompts of which 35 % are hopeless and 25 % are always right, 32 groups of 8 a batch, beliefs
that are right to 0.15 in pass rate, GRPO's advantages on Bernoulli completions. The figure is the
gradient of one parameter that all prompts share, over many batches: the same policy throughout, so
that only the choice and the weights are between the rows.

    python benchmarks/bench_importance.py [--batches 3000]
"""

from __future__ import annotations

import argparse
from typing import Any

import numpy as np

from depo_rl import Curriculum, GroupOutcome, PromptPool
from depo_rl.config import parse_config
from depo_rl.estimators.simple import OracleEstimator
from depo_rl.gates import AdmitAll
from depo_rl.selectors import MostLikelyMixed, Uniform
from depo_rl.types import Prompt

N, BATCH, GROUP, NOISE, STRENGTH = 512, 32, 8, 0.15, 8.0


def curriculum(prompts: list[Prompt], settings: dict[str, Any] | None) -> Curriculum:
    """Beliefs from a column of the prompts; ``settings`` of a draw, None for uniform choice."""
    fixed = {"group_size": GROUP, "warmup_steps": 0, "explore": 0.05}
    config = parse_config({}, fixed | (settings or {}))
    selector = MostLikelyMixed(GROUP, config.temperature) if settings else Uniform()
    beliefs = OracleEstimator("belief", STRENGTH)
    return Curriculum("bench", PromptPool(prompts), beliefs, selector, AdmitAll(), config)


def gradients(
    made: Curriculum, rate_P: np.ndarray, batches: int, rng: np.random.Generator
) -> np.ndarray:
    """Of each batch, shape (batches,)."""
    found = []
    for _ in range(batches):
        keys = [prompt.key for prompt in made.propose(BATCH)]
        weight_B = np.array(made.importance(keys))
        rate_B = rate_P[[int(key) for key in keys]]
        right_BG = (rng.random((BATCH, GROUP)) < rate_B[:, None]).astype(float)
        spread_B = right_BG.std(1, ddof=1, keepdims=True) + 1e-4
        advantage_BG = weight_B[:, None] * (right_BG - right_BG.mean(1, keepdims=True)) / spread_B
        found.append(float((advantage_BG * (right_BG - rate_B[:, None])).mean()))
        counts = right_BG.sum(1).astype(int).tolist()
        made.settle([GroupOutcome(key, k, GROUP) for key, k in zip(keys, counts, strict=True)])
    return np.array(found)


def main() -> None:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--batches", type=int, default=3000)
    batches = parser.parse_args().batches
    rng = np.random.default_rng(0)
    kind_P = rng.choice(3, size=N, p=[0.35, 0.4, 0.25])
    rate_P = np.choose(kind_P, [0.0, rng.uniform(0.05, 0.95, N), 1.0])
    belief_P = np.clip(rate_P + rng.normal(0.0, NOISE, N), 0.02, 0.98).tolist()
    prompts = [
        Prompt(str(i), f"question {i}", fields={"belief": belief})
        for i, belief in enumerate(belief_P)
    ]
    base = gradients(curriculum(prompts, None), rate_P, batches, rng)
    print("temperature  beta  cap   mean  variance (uniform choice: 1, 1)")
    for temperature in (1.0, 0.5, 0.25):
        for beta, cap in ((0.0, 5.0), (1.0, None), (1.0, 5.0), (0.5, 5.0)):
            drawn = {"temperature": temperature, "importance": beta, "importance_cap": cap}
            found = gradients(curriculum(prompts, drawn), rate_P, batches, rng)
            mean, variance = found.mean() / base.mean(), found.var() / base.var()
            print(
                f"{temperature:11.2f}  {beta:4.1f}  {cap!s:4}  {mean:4.2f}  {variance:8.2f}",
                flush=True,
            )


if __name__ == "__main__":
    main()
