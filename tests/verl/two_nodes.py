"""Run by test_two_nodes.py in a process of its own: the trainer on one Ray node, the estimator on
another.

usage: two_nodes.py ADDRESS FOLDER. Prints one JSON line for each phase, and waits for a line of
input between two.
"""

from __future__ import annotations

import json
import sys
import time
from pathlib import Path
from typing import Any

import ray
import transfer_queue
from omegaconf import OmegaConf

from limits import HANG_S
from world import CURRICULUM, can_teach, make_trainer, step, write_files

HOST = (
    "+data.depo.host.use=always",
    "+data.depo.host.resources.estimator=1",
    "+data.depo.host.timeout_s=15",
    "+data.depo.host.snapshot_every=3",
)

QUEUE = {
    "backend": {"SimpleStorage": {"required_node_resource": "trainer"}}
}  # it is not the queue that is to be lost


def steps(trainer: Any, n: int) -> dict[str, Any]:
    """Trains ``n`` steps; what was asked for and what verl's log would say at the end of them."""
    asked = trainer.agent_loop_manager.asked
    asked.clear()
    started = time.monotonic()
    for _ in range(n):
        metrics = step(trainer)
    rows = [row for batch in asked for row in batch]
    hosted, restarts = metrics["depo/estimator/hosted"], metrics["depo/estimator/restarts"]
    return {"can_teach": can_teach(rows), "hosted": hosted, "restarts": restarts} | {
        "updates": trainer.train_dataset.driver.curriculum.estimator.metrics().get("updates"),
        "rows": len(rows),
        "seconds": time.monotonic() - started,
    }


def tell(**what: Any) -> None:
    print("TOLD " + json.dumps(what), flush=True)
    sys.stdin.readline()


def main(address: str, folder: Path) -> None:
    ray.init(address=address, log_to_driver=False)
    try:
        transfer_queue.init(OmegaConf.create(QUEUE))
        write_files(folder)
        trainer = make_trainer(folder, folder, extra=[*CURRICULUM, *HOST])
        driver = trainer.train_dataset.driver
        told = steps(trainer, 14)
        tell(
            here=ray.get_runtime_context().get_node_id(),
            there=driver.curriculum.estimator.inner.node,
            **told,
        )
        tell(**steps(trainer, 12))  # the estimator's node has been killed
        deadline = time.monotonic() + HANG_S  # another node with its resource has joined
        prompts = driver.curriculum.pool.prompts
        driver.join()
        while not (driver.curriculum.estimator.predict(prompts).mean_P > 0).all():
            if time.monotonic() > deadline:
                break
            time.sleep(0.2)
        told = steps(trainer, 12)
        there = ray.get(driver.curriculum.estimator.inner._actor.node.remote())
        driver.close()
        tell(
            there=there,
            **told,
            counts={k: v for k, v in driver.curriculum.metrics().items() if v == v},
        )
    finally:
        ray.shutdown()


if __name__ == "__main__":
    main(sys.argv[1], Path(sys.argv[2]))
