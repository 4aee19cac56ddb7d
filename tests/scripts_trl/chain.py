"""One link of a chain of killed runs: trains with a checkpoint each step, resuming where the last one was killed.

    python chain.py FOLDER METHOD STEPS SLOW

SLOW: seconds that each part of a checkpoint takes, so that a kill finds it half written. Prints when it is inside a
save, and at the end writes FOLDER/result.pt: losses, weights, optimizer, curriculum.
"""

import sys
import time
import warnings
from pathlib import Path

sys.path.insert(0, str(Path(__file__).resolve().parents[1]))

import torch
import trl_toys as toys

from depo_rl.engines.trl import resume

METHODS = {
    "depo": {"curriculum": {"warmup_steps": 1, "candidate_factor": 3}},
    "dapo": {"method": "dapo", "curriculum": {"max_rounds": 3}},
    "encoder": {"curriculum": {"warmup_steps": 1, "estimator": {"type": "encoder", "backbone": "tiny-random", "width": 16}}},
}


class Slow(toys.DEPOTrainer):
    slow = 0.0

    def _wait(self):
        time.sleep(self.slow)

    def _save_checkpoint(self, model, trial):
        print(f"saving {self.state.global_step}", flush=True)
        super()._save_checkpoint(model, trial)
        print(f"saved {self.state.global_step}", flush=True)

    def save_model(self, *args, **kwargs):
        self._wait()
        super().save_model(*args, **kwargs)
        self._wait()

    def _save_rng_state(self, output_dir):
        self._wait()
        super()._save_rng_state(output_dir)
        (Path(output_dir) / "trainer_state.json").write_text('{"half": ')
        self._wait()


def main(folder, method, steps, slow):
    warnings.simplefilter("ignore")
    settings = METHODS[method] | {"per_device_train_batch_size": 8, "steps_per_generation": 2}
    settings |= {"max_steps": int(steps), "save_strategy": "steps", "save_steps": 1, "save_total_limit": 2}
    made = toys.trainer(folder, cls=Slow, **settings)
    made.slow = float(slow)
    print(f"starting; {resume.newest_complete(folder)[0]}", flush=True)
    made.train(resume_from_checkpoint="auto")
    result = toys.everything(made)
    torch.save(result, Path(folder) / "result.tmp")
    (Path(folder) / "result.tmp").replace(Path(folder) / "result.pt")


if __name__ == "__main__":
    main(*sys.argv[1:])
