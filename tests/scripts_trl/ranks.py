"""One rank of a run on two processes: ``accelerate launch --num_processes 2 --cpu ranks.py
FOLDER``.

Does every scenario in turn and writes what this rank saw to FOLDER/rank<r>.pt.
"""

import os
import sys
import warnings
from pathlib import Path

sys.path.insert(0, str(Path(__file__).resolve().parents[1]))

import torch
from trl import GRPOTrainer

import trl_toys as toys
from depo_rl.engines.trl import resume
from depo_rl.engines.trl.listening import ListeningTrainer
from depo_rl.errors import PoolExhausted
from trl_layouts import Resumed

FUSED = {"curriculum": {"warmup_steps": 1, "candidate_factor": 3}}
ENCODER = {
    "curriculum": {
        "warmup_steps": 1,
        "estimator": {"type": "encoder", "backbone": "tiny-random", "width": 16},
    }
}
PLUS = {"warmup_steps": 1, "candidate_factor": 3, "estimator": toys.FUSED | {"policy_features": 8}}
WEIGHTED = {
    "warmup_steps": 1,
    "candidate_factor": 3,
    "temperature": 1.0,
    "importance": 1.0,
    "estimator": toys.FUSED,
}
FILLED = WEIGHTED | {"gate": "dynamic", "max_rounds": 3}
SAVE = {"save_strategy": "steps", "save_steps": 1}
SMALL = {
    "per_device_train_batch_size": 6,
    "num_generations": 4,
    "max_steps": 4,
}  # a group straddles the two ranks
CYCLE = SMALL | {"steps_per_generation": 2}
OTHERS = {  # the same generation of 24 completions, cut otherwise
    "at once": {"per_device_train_batch_size": 12, "steps_per_generation": 1},
    "in quarters": {
        "per_device_train_batch_size": 3,
        "gradient_accumulation_steps": 2,
        "steps_per_generation": 4,
    },
}


class Watched(toys.DEPOTrainer):
    """Remembers the rows that were decided on, the samples of this rank, and who predicted."""

    def __init__(self, *args, **kwargs):
        self.decided, self.read, self.n_predicted = [], [], 0
        self.weights, self.stock, self.weighted = [], [], []
        super().__init__(*args, **kwargs)
        propose = self._driver.propose

        def decide(n):
            proposal = propose(n)
            self.decided.append(proposal.rows)
            return proposal

        self._driver.propose = decide
        if self.curriculum is not None:
            predict = self.curriculum.estimator.predict

            def count(prompts):
                self.n_predicted += 1
                return predict(prompts)

            self.curriculum.estimator.predict = count

    def weigh(self, output, weights, n_groups):
        self.weights.append(weights)
        self.stock.append(output["advantages"].clone())
        super().weigh(output, weights, n_groups)
        self.weighted.append(output["advantages"].clone())

    def local_rows(self, rows, n_local):
        mine = super().local_rows(rows, n_local)
        self.read.append([row["prompt"] for row in mine])
        return mine


class Deaf(Watched):
    """Its loss tells no log-probabilities, as a fused one: its generations wait for them."""

    def _compute_loss(self, model, inputs):
        return super(ListeningTrainer, self)._compute_loss(model, inputs)


def run(folder, resume=None, cls=Watched, **settings):
    made = toys.trainer(folder, cls=cls, **settings)
    made.train(resume_from_checkpoint=resume)
    seen = {"decided": made.decided, "read": made.read, "n_predicted": made.n_predicted}
    seen |= {"weights": made.weights, "stock": made.stock, "weighted": made.weighted}
    return toys.everything(made) | seen | {"rank": made.accelerator.process_index}


def exhausted(folder):
    """Only the main process notices; both must hear of it."""
    made = toys.trainer(folder, cls=Watched, **FUSED, **SMALL)
    if made.curriculum is not None:

        def propose(n):
            raise PoolExhausted("the pool is empty")

        made.curriculum.propose = propose
    try:
        made.train()
    except PoolExhausted as error:
        return str(error)
    return "no error"


def full_disk(folder, owner, name, **settings):
    """The first write of the main process fails: all ranks leave the checkpoint out and go on."""
    real = getattr(owner, name)
    left = [1]

    def save(*args, **kwargs):
        if left[0] and os.environ["RANK"] == "0":
            left[0] -= 1
            raise OSError(28, "No space left on device")
        return real(*args, **kwargs)

    setattr(owner, name, save)
    try:
        result = run(folder, **settings, **SAVE)
    finally:
        setattr(owner, name, real)
    return {
        "left": sorted(p.name for p in Path(folder).glob("checkpoint-*")),
        "weights": result["weights"],
    }


def load_to_a_numbered_cpu() -> None:
    """transformers 4 loads the optimizer to "cpu:1" where gloo joins the ranks, which torch does
    not know."""
    torch.serialization.register_package(
        99,
        lambda storage: None,
        lambda storage, place: storage if place.startswith("cpu:") else None,
    )


def in_other_layouts(root):
    """Four more steps of runs that two processes saved, and one ("alone"): what this rank saw."""
    seen = {}
    for origin, step in (("depo", 2), ("depo", 3), ("alone", 3)):
        for name, layout in OTHERS.items():
            made = toys.trainer(
                root / f"{origin} {step} {name}",
                cls=Resumed,
                **FUSED,
                **SMALL | layout | {"max_steps": step + 4},
            )
            made.train(resume_from_checkpoint=str(root / origin / f"checkpoint-{step}"))
            counts = made.curriculum.metrics() if made.curriculum is not None else {}
            seen[origin, step, name] = {"trained": made.trained, "counts": counts}
            seen[origin, step, name]["weights"] = toys.weights(made)
    return seen


def main(folder):
    warnings.simplefilter("ignore")
    load_to_a_numbered_cpu()
    root = Path(folder)
    seen = {
        "depo": run(root / "depo", **FUSED, **CYCLE, **SAVE),
        "dapo": run(
            root / "dapo", method="dapo", **SMALL | {"curriculum": {"max_rounds": 3}}, **SAVE
        ),
        "depo+": run(root / "depo+", method="depo+", curriculum=PLUS, **CYCLE, **SAVE),
        "encoder": run(root / "encoder", **ENCODER, **SMALL),
        "grpo": run(root / "grpo", method="grpo", **SMALL),
        "weighted": run(root / "weighted", method="depo+", curriculum=WEIGHTED, **CYCLE, **SAVE),
        "filled": run(root / "filled", method="depo+", curriculum=FILLED, **SMALL, **SAVE),
    }
    for name, settings in (
        ("depo", FUSED | CYCLE),
        ("depo+", CYCLE | {"method": "depo+", "curriculum": PLUS}),
        ("dapo", SMALL | {"method": "dapo", "curriculum": {"max_rounds": 3}}),
        ("weighted", CYCLE | {"method": "depo+", "curriculum": WEIGHTED}),
        ("filled", SMALL | {"method": "depo+", "curriculum": FILLED}),
    ):
        seen[f"{name} resumed"] = run(
            root / name, resume=str(root / name / "checkpoint-3"), **settings
        )
    seen["layouts"] = in_other_layouts(root)
    seen["exhausted"] = exhausted(root / "exhausted")
    seen["full disk"] = full_disk(root / "full", resume, "save_state", **FUSED, **SMALL)
    waiting = ENCODER | SMALL | {"cls": Deaf}
    seen["full disk, waiting"] = full_disk(root / "w", GRPOTrainer, "save_model", **waiting)
    torch.save(seen, root / f"rank{seen['depo']['rank']}.pt")


if __name__ == "__main__":
    main(sys.argv[1])
