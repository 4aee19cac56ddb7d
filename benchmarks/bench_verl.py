"""Seconds that the curriculum adds to a verl step: real trainer, queue and replay buffer, without
model and updates.

In the environment of the verl engine:  .venv-verl/bin/python benchmarks/bench_verl.py --prompts 128 --pool 17000
Prints medians over the steps; "added" is selecting + waiting + reading, "learning" happens while the actor updates.
"""

from __future__ import annotations

import argparse
import json
import os
import sys
import tempfile
import time
from pathlib import Path

sys.path.insert(0, str(Path(__file__).parents[1] / "tests" / "verl"))
for name, value in {
    "OMP_NUM_THREADS": "1",
    "HF_HUB_OFFLINE": "1",
    "RAY_prestart_worker_first_driver": "0",
}.items():
    os.environ.setdefault(name, value)

PARTS = ("selecting", "waiting", "reading", "learning")


def main() -> None:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--prompts", type=int, default=128, help="of a training step")
    parser.add_argument("--pool", type=int, default=17_000)
    parser.add_argument("--steps", type=int, default=8)
    parser.add_argument("--method", default="depo")
    parser.add_argument(
        "overrides", nargs="*", help="of verl's command, such as +data.depo.curriculum.band=auto"
    )
    given = parser.parse_args()
    import world
    from depo_rl import METHODS

    world.BATCH, world.N_ROWS = given.prompts, given.pool
    import numpy as np
    import ray
    import transfer_queue

    ray.init(
        "local",
        num_cpus=8,
        include_dashboard=False,
        object_store_memory=1_000_000_000,
        log_to_driver=False,
    )
    try:
        transfer_queue.init()
        with tempfile.TemporaryDirectory() as folder:
            world.write_files(Path(folder))
            warm = "warmup_steps" in METHODS[given.method].settings
            extra = [*(["+data.depo.curriculum.warmup_steps=1"] if warm else []), *given.overrides]
            trainer = world.make_trainer(
                Path(folder), Path(folder), extra=extra, method=given.method
            )
            told = []
            for _ in range(given.steps):
                started = time.perf_counter()
                told.append(
                    world.step(trainer) | {"depo/seconds_whole": time.perf_counter() - started}
                )
                time.sleep(1.0)  # the actor's update, in which the estimator learns
            trainer.train_dataset.driver.close()
            medians = {
                p: float(np.median([t[f"depo/seconds_{p}"] for t in told[2:]]))
                for p in (*PARTS, "whole")
            }
            added = sum(medians[part] for part in PARTS[:3])
            print(
                json.dumps(
                    {name: round(value, 4) for name, value in {**medians, "added": added}.items()}
                )
            )
    finally:
        ray.shutdown()


if __name__ == "__main__":
    main()
