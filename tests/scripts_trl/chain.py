"""A run that is killed by SIGKILL again and again, against one that is not.

    python chain.py FOLDER METHOD STEPS KILLS SLOW SEED

The libraries are imported once; each link of the chain is a forked child that trains with a
checkpoint each step and resumes where the last one was killed. SLOW: seconds of each of four pauses
inside a save, so that kills find it half written; at the last pause trainer_state.json itself is
torn. Prints one line of JSON: where the kills hit, and what differs in the end (losses, weights,
optimizer, curriculum, outcome log).
"""

import json
import os
import random
import select
import signal
import sys
import time
import traceback
import warnings
from pathlib import Path

sys.path.insert(0, str(Path(__file__).resolve().parents[1]))

import torch

import trl_toys as toys
from limits import HANG_S

CHOOSY = {"warmup_steps": 1, "candidate_factor": 3, "window": [0.25, 0.4]}
STATES = {
    "warmup_steps": 1,
    "candidate_factor": 3,
    "estimator": toys.FUSED | {"policy_features": 8},
}
METHODS = {
    "grpo": {"method": "grpo"},
    "depo": {"curriculum": CHOOSY},
    "depo+": {"method": "depo+", "curriculum": STATES},
    "dapo": {"method": "dapo", "curriculum": {"max_rounds": 3}},
    "encoder": {
        "curriculum": CHOOSY
        | {"estimator": {"type": "encoder", "backbone": "tiny-random", "width": 16}}
    },
}


class Slow(toys.DEPOTrainer):
    slow = 0.0

    def _save_checkpoint(self, model, trial):
        print(f"saving {self.state.global_step}", flush=True)
        super()._save_checkpoint(model, trial)
        print(f"saved {self.state.global_step}", flush=True)

    def save_model(self, *args, **kwargs):
        time.sleep(self.slow)
        super().save_model(*args, **kwargs)
        time.sleep(self.slow)

    def _save_rng_state(self, output_dir):
        time.sleep(self.slow)
        super()._save_rng_state(output_dir)
        (Path(output_dir) / "trainer_state.json").write_text('{"half": ')
        time.sleep(self.slow)

    def training_step(self, *args, **kwargs):
        time.sleep(self.slow / 2)
        return super().training_step(*args, **kwargs)


def train(folder: Path, method: str, steps: int, slow: float) -> None:
    """Two steps use each generation, six make an epoch."""
    settings = METHODS[method] | {
        "per_device_train_batch_size": 8,
        "steps_per_generation": 2,
        "max_steps": steps,
    }
    settings |= {"save_strategy": "steps", "save_steps": 1, "save_total_limit": 2}
    made = toys.trainer(folder, cls=Slow, data=toys.dataset(12), **settings)
    made.slow = slow
    made.train(resume_from_checkpoint="auto")
    torch.save(toys.everything(made), folder / "result.tmp")
    (folder / "result.tmp").replace(folder / "result.pt")


def fork(work) -> tuple[int, int]:
    """Process id of a child that does ``work()``, and where to read what it prints."""
    reading, writing = os.pipe()
    child = os.fork()
    if child:
        os.close(writing)
        return child, reading
    code = 1
    try:
        os.dup2(writing, 1)
        work()
        sys.stdout.flush()
        code = 0
    except BaseException:
        traceback.print_exc()
    finally:
        os._exit(code)


def follow(reading: int, until: float, word: str = "\0") -> str:
    """What the child prints until the time ``until``, or until it says ``word``, or ends."""
    text = ""
    while (left := until - time.monotonic()) > 0 and word not in text:
        if select.select([reading], [], [], left)[0]:
            new = os.read(reading, 65536).decode()
            if not new:
                break
            text += new
    return text


def link(work, rng: random.Random | None, slow: float) -> str | None:
    """One child, killed at a random moment if ``rng`` is given; where that hit, None if it got to
    its end."""
    child, reading = fork(work)
    ever = time.monotonic() + HANG_S
    text = ""
    if rng is not None:
        for _ in range(rng.randint(0, 2)):
            text += follow(reading, ever, "saved")
        inside = rng.random() < 0.6
        text += follow(reading, ever, "saving") if inside else ""
        text += follow(reading, time.monotonic() + rng.uniform(0, 4 * slow if inside else slow))
        os.kill(child, signal.SIGKILL)
    text += follow(reading, ever)
    os.close(reading)
    _, status = os.waitpid(child, 0)
    if os.WIFSIGNALED(status):
        last = [line for line in text.splitlines() if line.startswith(("saving", "saved"))][-1:]
        return (
            f"inside the save of step {last[0].split()[1]}"
            if last and "saving" in last[0]
            else "outside a save"
        )
    assert os.WEXITSTATUS(status) == 0, text[-2000:]
    return None


def main(folder: str, method: str, steps: str, kills: str, slow: str, seed: str) -> None:
    warnings.simplefilter("ignore")
    whole, killed = Path(folder) / "whole", Path(folder) / "killed"
    link(lambda: train(whole, method, int(steps), 0.0), None, 0.0)
    rng, hits = random.Random(int(seed)), []
    while not (killed / "result.pt").exists():
        more = len(hits) < int(kills)
        hit = link(
            lambda: train(killed, method, int(steps), float(slow)),
            rng if more else None,
            float(slow),
        )
        hits += [hit] if hit else []
    results = [torch.load(run / "result.pt", weights_only=False) for run in (whole, killed)]
    different = toys.differences(*results)
    different += [] if toys.outcome_log(whole) == toys.outcome_log(killed) else ["outcome log"]
    print(json.dumps({"hits": hits, "different": different, "losses": results[0]["losses"]}))


if __name__ == "__main__":
    main(*sys.argv[1:])
