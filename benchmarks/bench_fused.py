"""What does ``depo+`` cost? Against the paper's estimator, and on pools from 10,000 to a million
prompts.

    python benchmarks/bench_fused.py encoder [--candidates 32]
    python benchmarks/bench_fused.py pools [--sizes 10000,1000000] [--steps 12]

encoder: seconds to predict candidates and to learn from an eighth as many groups, the fused
estimator against the paper's with an encoder of DistilBERT's size (66 M parameters, random weights:
the time is the same; 64 tokens a prompt, as word pieces of these texts would be), on one thread
each. The encoder's time grows in proportion to the prompts; the ratio is told for 1,024 candidates
and 128 groups. pools: per step, 8,192 candidates scored, 1,024 chosen, 1,024 groups learnt from;
medians. Then a checkpoint is saved, loaded into a new curriculum, and the next choice compared.
"""

from __future__ import annotations

import argparse
import resource
import statistics
import tempfile
import time
from pathlib import Path
from typing import Any

import numpy as np
from bench_features import synthetic_prompts

from depo_rl import GroupOutcome, Prompt, make_curriculum
from depo_rl.checkpoint import load_state, save_state

CONFIG = {"group_size": 8, "candidate_factor": 8, "warmup_steps": 2}


def outcomes(prompts: list[Prompt], rng: np.random.Generator, step: int) -> list[GroupOutcome]:
    """Groups that have something to do with the text: the longer, the harder."""
    rate_P = 1 / (1 + np.exp(np.array([(len(p.text) - 230) / 40 for p in prompts])))
    correct_P = rng.binomial(8, rate_P).tolist()
    return [
        GroupOutcome(p.key, k, 8, policy_step=step) for p, k in zip(prompts, correct_P, strict=True)
    ]


def pool_row(size: int, steps: int) -> dict[str, float]:
    prompts = synthetic_prompts(size)
    started = time.perf_counter()
    curriculum = make_curriculum("depo+", prompts, CONFIG)
    built = time.perf_counter() - started
    rng, choose, learn = np.random.default_rng(0), [], []
    for step in range(steps):
        started = time.perf_counter()
        batch = curriculum.propose(1024)
        chosen = time.perf_counter()
        groups = outcomes(batch, rng, step)
        scored = time.perf_counter()
        curriculum.settle(groups)
        choose.append(chosen - started)
        learn.append(time.perf_counter() - scored)
    save, load, mib, same = checkpoint(curriculum, prompts)
    return {
        "prompts": size,
        "prompts_per_s": size / built,
        "choose_s": statistics.median(choose[3:]),
        "learn_s": statistics.median(learn[3:]),
        "save_s": save,
        "load_s": load,
        "checkpoint_mib": mib,
        "resume_equal": same,
        "peak_gib": resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 2**20,
    }


def checkpoint(curriculum: Any, prompts: list[Prompt]) -> tuple[float, float, float, bool]:
    with tempfile.TemporaryDirectory() as folder:
        path = Path(folder) / "state.safetensors"
        started = time.perf_counter()
        save_state(path, curriculum.state_dict())
        saved = time.perf_counter()
        other = make_curriculum("depo+", prompts, CONFIG)
        built = time.perf_counter()
        other.load_state_dict(load_state(path))
        loaded = time.perf_counter()
        mib = path.stat().st_size / 2**20
    same = [p.key for p in curriculum.propose(1024)] == [p.key for p in other.propose(1024)]
    return saved - started, loaded - built, mib, same


def distilbert(folder: Path) -> str:
    """A folder with an encoder of DistilBERT's size, random weights, and the byte tokenizer of the
    tiny one."""
    from transformers import DistilBertConfig, DistilBertModel

    from depo_rl.estimators.encoder.network import tiny_random

    tokenizer, _ = tiny_random()
    DistilBertModel(DistilBertConfig(vocab_size=30522)).save_pretrained(folder)
    tokenizer.save_pretrained(folder)
    return str(folder)


def encoder_row(candidates: int) -> dict[str, float]:
    import torch

    torch.set_num_threads(1)
    prompts, rng = synthetic_prompts(2048), np.random.default_rng(0)
    fused = make_curriculum("depo+", prompts, CONFIG).estimator
    own = statistics.median(_round(fused, prompts, 1024, 128, rng, step) for step in range(9))
    with tempfile.TemporaryDirectory() as folder:
        settings = {"type": "encoder", "backbone": distilbert(Path(folder)), "max_length": 64}
        paper = make_curriculum("depo", prompts, {"group_size": 8, "estimator": settings}).estimator
        theirs = statistics.median(
            _round(paper, prompts, candidates, candidates // 8, rng, s) for s in range(3)
        )
    scaled = theirs * 1024 / candidates
    return {
        "fused_s": own,
        "encoder_s": theirs,
        "encoder_s_for_1024": scaled,
        "ratio": scaled / own,
    }


def _round(
    estimator: Any, prompts: list[Prompt], n: int, groups: int, rng: np.random.Generator, step: int
) -> float:
    at = rng.choice(len(prompts), n, replace=False)
    batch = [prompts[i] for i in at]
    results = outcomes(batch[:groups], rng, step)
    started = time.perf_counter()
    estimator.predict(batch)
    estimator.observe(results)
    return time.perf_counter() - started


def main() -> None:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("what", choices=("encoder", "pools"))
    parser.add_argument("--candidates", type=int, default=32)
    parser.add_argument("--sizes", default="10000,1000000")
    parser.add_argument("--steps", type=int, default=12)
    args = parser.parse_args()
    rows = [encoder_row(args.candidates)] if args.what == "encoder" else []
    for size in map(int, args.sizes.split(",") if args.what == "pools" else ()):
        rows.append(pool_row(size, args.steps))
    for row in rows:
        print("  ".join(f"{name} {value:,.4g}" for name, value in row.items()), flush=True)


if __name__ == "__main__":
    main()
