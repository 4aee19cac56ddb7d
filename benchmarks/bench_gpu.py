"""What the curriculum costs and brings inside real TRL on one GPU.

    python benchmarks/bench_gpu.py [resume] [cost] [demo] [--device cuda] [--scale full]
                                   [--seconds 200] [--out DIR]

resume: a run that stopped and went on, against two that did not. demo: ``depo demo`` on a larger
pool with larger batches, all methods and seeds at once, so that its seconds are those of a shared
GPU. cost: ``bench_step.py``. Every result is printed, and added to DIR/results.jsonl, as soon as it
is there. ``--device cpu --scale small`` runs the same code on two idle cores in about a minute; its
numbers mean nothing.
"""

from __future__ import annotations

import argparse
import dataclasses
import json
import math
import os
import shutil
import sys
import tempfile
import time
import traceback
import zlib
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

import bench_step
import torch
from bench_step import make_trainer
from datasets import Dataset
from rich.console import Console

from depo_rl.commands.demo import arithmetic
from depo_rl.commands.demo.run import DemoPlan, Step, quiet, run_demo
from depo_rl.report import summarise

PARTS = ("resume", "cost", "demo")


@dataclasses.dataclass(frozen=True)
class Demo:
    """pool, prompts: problems in all and of a step. tokens: of a run. target: accuracy on the whole
    pool."""

    pool: int
    prompts: int
    tokens: int
    target: float
    methods: tuple[str, ...]
    seeds: tuple[int, ...]


# The tokens were fixed by runs with seed 0, so seed 0 is not measured. The target is one on the
# whole pool: a good method's share of the way from the start (.472) as in the demo, for seven times
# its tokens.
DEMOS = {
    "full": Demo(40_000, 128, 1_000_000, 0.49, ("grpo", "dapo", "depo", "depo+"), (10, 11, 12)),
    "small": Demo(4000, 16, 5_000, 0.473, ("grpo", "depo+"), (0,)),
}


class Results:
    """Prints each result and keeps it as a line of JSON, so that a run cut short keeps what was
    measured."""

    def __init__(self, out: Path) -> None:
        out.mkdir(parents=True, exist_ok=True)
        self._path, self._started = out / "results.jsonl", time.perf_counter()

    def add(self, part: str, **values: Any) -> None:
        row = {"part": part, "at": time.perf_counter() - self._started, **values}
        line = json.dumps(
            {name: round(v, 4) if isinstance(v, float) else v for name, v in row.items()}
        )
        with self._path.open("a") as file:
            file.write(line + "\n")
        print(line, flush=True)


def resume(device: str, add: Callable[..., None]) -> None:
    """Two runs from one start, to see what the device itself repeats, and one that resumes the
    first half-way."""
    # or CUDA's matrix products need not repeat
    os.environ.setdefault("CUBLAS_WORKSPACE_CONFIG", ":4096:8")
    torch.use_deterministic_algorithms(True, warn_only=True)
    encoder = {
        "estimator": {"type": "encoder", "backbone": "tiny-random", "width": 64, "device": device}
    }
    for method, settings in (("depo", encoder), ("depo+", {})):
        with tempfile.TemporaryDirectory() as name:
            folder = Path(name)
            whole = _short_run(folder / "whole", method, settings, device)
            shutil.copytree(folder / "whole" / "checkpoint-3", folder / "resumed" / "checkpoint-3")
            for run in ("again", "resumed"):
                found = _short_run(folder / run, method, settings, device)
                same = {part: whole[part][-len(found[part]) :] == found[part] for part in whole}
                add("resume", method=method, run=run, groups=len(found["prompts"]), same=same)
    torch.use_deterministic_algorithms(False)


def _short_run(
    folder: Path, method: str, settings: Mapping[str, Any], device: str
) -> dict[str, list[Any]]:
    """Six steps of the demo's policy with a checkpoint after the third, or from the one that lies
    in ``folder``."""
    rows = Dataset.from_list(arithmetic.make_pool(400, seed=1))
    saving = {"output_dir": str(folder), "save_strategy": "steps", "save_steps": 3, "max_steps": 6}
    sizes = {
        "per_device_train_batch_size": 64,
        "max_completion_length": 7,
        "learning_rate": 1e-4,
        "bf16": False,
    }
    chosen = {"method": method, "curriculum": {"warmup_steps": 1, **settings}}
    with quiet():
        start = (arithmetic.load_policy(), arithmetic.correct_reward, rows, arithmetic.tokenizer())
        trainer = make_trainer(*start, device, **saving, **sizes, **chosen)
        trainer.train(resume_from_checkpoint="auto")
    groups = [json.loads(line) for line in (folder / "outcomes.jsonl").read_text().splitlines()]
    return {
        "prompts": [group["key"] for group in groups],
        "counts": [group["n_correct"] for group in groups],
        "losses": [row["loss"] for row in trainer.state.log_history if "loss" in row],
        "weights": [
            zlib.crc32(p.detach().cpu().numpy().tobytes()) for p in trainer.model.parameters()
        ],
    }


def demo(scale: Demo, device: str, add: Callable[..., None], out: Path) -> None:
    """All methods and seeds at once, a process each; says when a run reaches the target, and at the
    end the table.

    All have the demo's settings and a learning rate that rises with the square root of the batch.
    """
    own = arithmetic.SETTINGS
    rate = own.trl["learning_rate"] * math.sqrt(
        8 * scale.prompts / own.trl["per_device_train_batch_size"]
    )
    trl = {**own.trl, "per_device_train_batch_size": 8 * scale.prompts, "learning_rate": rate}
    curriculum = {
        **own.curriculum,
        "depo+": {"candidate_factor": own.curriculum["depo"]["candidate_factor"]},
    }
    settings = dataclasses.replace(
        own, pool_size=scale.pool, target_accuracy=scale.target, trl=trl, curriculum=curriculum
    )
    jobs = len(scale.methods) * len(scale.seeds)
    plan = DemoPlan(out / "demo", scale.methods, scale.seeds, scale.tokens, jobs, device, settings)
    reached = set()

    def tell(step: Step) -> None:
        key = (step.method, step.seed)
        if key not in reached and (step.accuracy or 0.0) >= scale.target:
            reached.add(key)
            add("demo", method=step.method, seed=step.seed, reached_with_tokens=step.tokens)

    found = run_demo(plan, tell)
    names = (
        "steps",
        "rollouts",
        "mixed_share",
        "rollouts_to_target",
        "seconds_to_target",
        "seconds_total",
    )
    for run in found:
        row = {name: getattr(run, name) for name in names}
        add("demo", method=run.method, seed=run.seed, accuracy=run.final_accuracy, **row)
    Console(width=150).print(summarise(found).to_rich(width=150))


def main() -> None:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument(
        "parts", nargs="*", help="of resume, cost, demo; all if none is named", default=PARTS
    )
    parser.add_argument("--device", choices=("cpu", "cuda"), default="cuda")
    parser.add_argument("--scale", choices=tuple(DEMOS), default="full")
    parser.add_argument(
        "--seconds", type=float, default=200.0, help="after which the cost part begins no other run"
    )
    parser.add_argument("--out", type=Path, default=Path("runs/bench_gpu"))
    given = parser.parse_args()
    device, results = given.device, Results(given.out)
    name = torch.cuda.get_device_name() if device == "cuda" else "CPU"
    results.add("device", name=name, torch=torch.__version__, cores=os.cpu_count())
    parts = {
        "resume": lambda: resume(device, results.add),
        "demo": lambda: demo(DEMOS[given.scale], device, results.add, given.out),
        "cost": lambda: bench_step.cost(
            bench_step.SCALES[given.scale], device, results.add, given.seconds
        ),
    }
    failed = []
    for part in given.parts:
        try:
            parts[part]()
        except Exception:  # the time on the GPU is short: the other parts are worth having
            traceback.print_exc()
            failed.append(part)
    if failed:
        sys.exit(f"failed: {', '.join(failed)}")


if __name__ == "__main__":
    main()
