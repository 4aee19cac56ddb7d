"""The unmodified ``python -m verl.trainer.main_ppo`` on this machine's CPU, with the shipped tiny
policy."""

from __future__ import annotations

import json
import os
import pickle
import shutil
import signal
import subprocess
import sys
import time
from collections import defaultdict
from contextlib import suppress
from importlib import resources
from pathlib import Path
from typing import Any

from limits import HANG_S

HERE = Path(__file__).parent
PYTHONPATH = os.pathsep.join(filter(None, [str(HERE), os.environ.get("PYTHONPATH")]))
N_ROWS, BATCH, GROUP = 400, 8, 8
MIX = {
    2: 0.40,
    3: 0.15,
    4: 0.10,
    5: 0.35,
}  # digits of the sums: three digits can teach, four a little


def compute_score(
    data_source: str, solution_str: str, ground_truth: str, extra_info: Any = None
) -> dict[str, Any]:
    """verl's reward function of the runs: shaped, so that no group's rewards are all equal, and
    ``acc`` beside it; it writes down what it said."""
    right = solution_str.strip() == ground_truth
    if "depo_row" in (extra_info or {}):  # not of validation
        with open(os.environ["REWARD_WITNESS"], "a") as file:
            file.write(json.dumps([extra_info["depo_row"], right]) + "\n")
    return {"score": float(right) - 0.01 * len(solution_str), "acc": right}


def write_world(folder: Path) -> None:
    import pyarrow as pa
    import pyarrow.parquet as pq

    from depo_rl.commands.demo.arithmetic import make_pool

    for split, n, seed in (("train", N_ROWS, 1), ("val", 8, 2)):
        rows = [
            {
                "data_source": row["source"],
                "prompt": [{"role": "user", "content": row["prompt"]}],
                "reward_model": {"style": "rule", "ground_truth": row["answer"]},
                "extra_info": {"split": split},
            }
            for row in make_pool(n, seed, MIX)
        ]
        pq.write_table(pa.Table.from_pylist(rows), folder / f"{split}.parquet")
    with resources.as_file(resources.files("depo_rl.commands.demo") / "assets") as assets:
        shutil.copytree(assets, folder / "model")
    config = json.loads((folder / "model" / "config.json").read_text())
    # verl asks for it, GPT-NeoX has no such word
    config["num_key_value_heads"] = config["num_attention_heads"]
    (folder / "model" / "config.json").write_text(json.dumps(config))


def overrides(folder: Path, output: Path, steps: int, save_freq: int) -> list[str]:
    return [
        f"data.train_files={folder}/train.parquet",
        f"data.val_files={folder}/val.parquet",
        f"data.train_batch_size={BATCH}",
        "data.max_prompt_length=16",
        "data.max_response_length=7",
        "data.seed=1",
        "algorithm.adv_estimator=grpo",
        f"actor_rollout_ref.model.path={folder}/model",
        "actor_rollout_ref.model.custom_chat_template='{% for m in messages %}{{ m.content }}{% endfor %}'",
        "actor_rollout_ref.model.use_remove_padding=False",
        "actor_rollout_ref.model.enable_gradient_checkpointing=False",
        "+actor_rollout_ref.model.override_config.attn_implementation=eager",
        "actor_rollout_ref.actor.strategy=fsdp2",
        f"actor_rollout_ref.actor.ppo_mini_batch_size={BATCH}",
        f"actor_rollout_ref.actor.ppo_micro_batch_size_per_gpu={BATCH * GROUP}",
        "actor_rollout_ref.actor.use_torch_compile=False",
        "actor_rollout_ref.actor.fsdp_config.use_torch_compile=False",
        "actor_rollout_ref.actor.use_kl_loss=False",
        "actor_rollout_ref.actor.optim.lr=1e-5",
        "actor_rollout_ref.rollout.name=cpu",
        "actor_rollout_ref.rollout.tensor_model_parallel_size=1",
        f"actor_rollout_ref.rollout.n={GROUP}",
        f"actor_rollout_ref.rollout.log_prob_micro_batch_size_per_gpu={BATCH * GROUP}",
        "actor_rollout_ref.rollout.agent.num_workers=1",
        f"actor_rollout_ref.rollout.agent.agent_loop_config_path={HERE}/cpu_verl/agent.yaml",
        "actor_rollout_ref.rollout.agent.default_agent_loop=numbered",
        "actor_rollout_ref.rollout.dtype=float32",
        "actor_rollout_ref.rollout.calculate_log_probs=True",
        "reward.num_workers=1",
        f"reward.custom_reward_function.path={HERE}/real_run.py",
        "reward.reward_model.rollout.name=cpu",
        "transfer_queue.backend.SimpleStorage.num_data_storage_units=1",
        "transfer_queue.backend.SimpleStorage.total_storage_size=2000",
        "trainer.device=cpu",
        "trainer.n_gpus_per_node=1",
        "trainer.nnodes=1",
        'trainer.logger=["console","file"]',
        "trainer.val_before_train=False",
        f"trainer.total_training_steps={steps}",
        f"trainer.save_freq={save_freq}",
        f"trainer.default_local_dir={output}",
        "trainer.resume_mode=auto",
    ]


OWN_RAY = [
    "+ray_kwargs.ray_init.address=local",
    "ray_kwargs.ray_init.num_cpus=16",
    "+ray_kwargs.ray_init.num_gpus=2",
    "+ray_kwargs.ray_init.include_dashboard=False",
    "+ray_kwargs.ray_init.object_store_memory=400000000",
]


def mode_overrides(mode: str, parameter_sync_step: int = 1) -> list[str]:
    """What a mode of V1 needs on a machine without GPUs; ``sync`` needs nothing."""
    overrides = [f"trainer.v1.trainer_mode={mode}"]
    if mode == "separate_async":
        size = BATCH // parameter_sync_step
        overrides += [
            f"trainer.v1.separate_async.parameter_sync_step={parameter_sync_step}",
            f"actor_rollout_ref.actor.ppo_mini_batch_size={size}",
            f"actor_rollout_ref.actor.ppo_micro_batch_size_per_gpu={size * GROUP}",
            f"actor_rollout_ref.rollout.log_prob_micro_batch_size_per_gpu={size * GROUP}",
            "actor_rollout_ref.rollout.nnodes=1",
            "actor_rollout_ref.rollout.n_gpus_per_node=1",
            "actor_rollout_ref.rollout.checkpoint_engine.backend=cpu",
            "actor_rollout_ref.rollout.checkpoint_engine.custom_backend_module=cpu_verl.weights",
        ]
    return overrides


def plumbing(method: str, *curriculum: str, mode: str = "sync") -> list[str]:
    """The overrides that a user adds, and nothing else."""
    buffer = "CurriculumReplayBuffer" if mode == "sync" else "CurriculumReplayBufferAsync"
    return [
        "data.dataloader_num_workers=0",
        "data.custom_cls.path=pkg://depo_rl.engines.verl.dataset",
        "data.custom_cls.name=CurriculumDataset",
        "trainer.v1.sampler.custom_sampler.path=pkg://depo_rl.engines.verl.replay",
        f"trainer.v1.sampler.custom_sampler.name={buffer}",
        "+trainer.v1.sampler.sampler_kwargs.poll_interval=0.1",
        f"+data.depo.method={method}",
        *(f"+data.depo.curriculum.{setting}" for setting in curriculum),
    ]


class Runs:
    """Runs by name, each in a folder of ``world``; several may be alive at a time.

    ray: overrides that say on which Ray; by default each run starts one of its own.
    """

    def __init__(self, world: Path, ray: list[str] = OWN_RAY) -> None:
        self.world = world
        self.ray = ray
        self.alive: dict[str, subprocess.Popen[bytes]] = {}

    def output(self, name: str) -> Path:
        return self.world / name

    def log(self, name: str) -> Path:
        return self.world / name / "log.txt"

    def begin(
        self, name: str, ours: list[str], steps: int, save_freq: int, **environment: str
    ) -> None:
        """Starts a run, or goes on with one from its last checkpoint."""
        self.output(name).mkdir(exist_ok=True)
        arguments = overrides(self.world, self.output(name), steps, save_freq)
        self.alive[name] = start([*arguments, *self.ray, *ours], self.log(name), **environment)

    def end(self, name: str) -> None:
        wait_for(self.alive[name], self.log(name))

    def kill_in_step(self, name: str, step: int, saved_at: int) -> None:
        """SIGKILL, the driver and all of its Ray, once the groups of ``step`` are in the log."""
        output = self.output(name)
        wait_until(lambda: len(outcomes(output)) >= step * BATCH, self.alive[name], self.log(name))
        stop(self.alive[name])
        assert (output / "latest_checkpointed_iteration.txt").read_text() == str(saved_at)

    def close(self) -> None:
        for run in self.alive.values():
            stop(run)


def environment(folder: Path, **more: str) -> dict[str, str]:
    """Of a run that writes verl's own log of figures, and what the reward function said, into
    ``folder``."""
    found = os.environ | {
        "PYTHONPATH": PYTHONPATH,
        "VERL_USE_EXTERNAL_MODULES": "cpu_verl",
        "VERL_PLATFORM": "cpu",
        "VERL_ENGINE_DEVICE": "cuda",  # the name of verl's FSDP engine; the device is the platform's
        "VERL_FILE_LOGGER_ROOT": str(folder),
        "REWARD_WITNESS": str(folder / "judged.jsonl"),
        "HYDRA_FULL_ERROR": "1",
        **more,
    }
    for name in ("RAY_ADDRESS", "CUDA_VISIBLE_DEVICES"):
        found.pop(name, None)
    return found


def start(arguments: list[str], log: Path, **more: str) -> subprocess.Popen[bytes]:
    """A run in a session of its own: its Ray dies with it (``stop``). more: of the environment."""
    command = [
        sys.executable,
        "-m",
        "verl.trainer.main_ppo",
        *arguments,
        f"hydra.run.dir={log.parent}/hydra",
    ]
    return subprocess.Popen(
        command,
        env=environment(log.parent, **more),
        stdout=log.open("ab"),
        stderr=subprocess.STDOUT,
        start_new_session=True,
    )


def stop(run: subprocess.Popen[bytes]) -> None:
    """Ends the run and everything that its Ray started."""
    import psutil

    try:
        family = [*psutil.Process(run.pid).children(recursive=True), psutil.Process(run.pid)]
    except psutil.NoSuchProcess:
        return
    for process in family:
        with suppress(psutil.NoSuchProcess):
            process.send_signal(signal.SIGKILL)
    run.wait(HANG_S)


def wait_for(run: subprocess.Popen[bytes], log: Path) -> None:
    """Waits for the end of a run; shows its log if it failed."""
    try:
        code = run.wait(HANG_S)
    finally:
        stop(run)
    assert code == 0, log.read_text(errors="replace")[-6000:]


def outcomes(output: Path) -> list[dict[str, Any]]:
    """Rows of the outcome log; a line that is being written is left out."""
    path = output / "outcomes.jsonl"
    lines = path.read_text().splitlines(keepends=True) if path.exists() else []
    return [json.loads(line) for line in lines if line.endswith("\n")]


def wait_until(condition: Any, run: subprocess.Popen[bytes], log: Path) -> None:
    deadline = time.monotonic() + HANG_S
    while not condition():
        assert run.poll() is None, log.read_text(errors="replace")[-6000:]
        assert time.monotonic() < deadline, (
            f"nothing within {HANG_S} s: " + log.read_text(errors="replace")[-3000:]
        )
        time.sleep(0.2)


def rows(output: Path, after: int = 0) -> list[tuple[Any, ...]]:
    """What a resumed run must repeat of the groups settled after step ``after``, sorted."""
    names = ("step", "key", "n_correct", "chosen_because")
    return sorted(tuple(r[n] for n in names) for r in outcomes(output) if r["step"] > after)


def n_told_right(output: Path) -> int:
    """Groups in the log whose verdicts are those that the reward function wrote down itself; of the
    others' prompts more is being rolled out."""
    import pyarrow.parquet as pq

    prompts = pq.read_table(output.parent / "train.parquet")["prompt"].to_pylist()
    said = defaultdict(list)
    for line in (output / "judged.jsonl").read_text().splitlines():
        row, right = json.loads(line)
        said[prompts[row][0]["content"]].append(right)
    told = defaultdict(list)
    for row in outcomes(output):
        told[row["prompt"]].append(row["n_correct"])
    whole = [prompt for prompt in told if len(said[prompt]) == GROUP * len(told[prompt])]
    for prompt in whole:
        assert sum(told[prompt]) == sum(said[prompt]), prompt
    return sum(len(told[prompt]) for prompt in whole)


def whole_steps(n: int) -> list[int]:
    """The step of each row of ``rows`` after ``n`` steps, none lost and none doubled."""
    return [step for step in range(1, n + 1) for _ in range(BATCH)]


def ledger(output: Path, step: int) -> tuple[dict[str, int], list[str]]:
    """The curriculum's counts in verl's checkpoint of ``step``, and the keys in flight."""
    import torch

    state = torch.load(output / f"global_step_{step}" / "data.pt", weights_only=False)
    kept = state["fetcher_state"] or state
    found = kept["dataset_state"]["curriculum"]["ledger"]
    return found["count"], list(found["in_flight"])


def queued(output: Path, step: int) -> list[str]:
    """Status of each prompt that verl's own checkpoint of the queue holds at ``step``."""
    file = output / f"global_step_{step}" / "transfer_queue" / "controller_state.pkl"
    partition = pickle.loads(file.read_bytes())["partitions"]["train"]
    tags = [partition.custom_meta.get(index, {}) for index in partition.keys_mapping.values()]
    return [tag["status"] for tag in tags if tag.get("is_prompt")]
