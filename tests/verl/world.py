"""A toy world for verl's real trainers: all is real but the agent loop, which knows the pass
rates."""

from __future__ import annotations

from collections import defaultdict
from pathlib import Path
from typing import Any

import numpy as np
import torch

N_ROWS, GROUP, BATCH = 64, 8, 4
RATES = (
    0.0,
    0.0,
    0.0,
    0.1,
    0.5,
    0.9,
    1.0,
    1.0,
)  # of rows 0, 1, ... in turn: three of eight can teach
CURRICULUM = ("+data.depo.curriculum.warmup_steps=2", "+data.depo.curriculum.estimator=history")


def rows(n: int, split: str) -> list[dict[str, Any]]:
    return [
        {
            "data_source": "toy" if i % 2 else "other",
            "prompt": [{"role": "user", "content": f"{split} question {i}"}],
            "ability": "toy",
            "reward_model": {"style": "rule", "ground_truth": str(i)},
            "extra_info": {"index": 0, "split": split, "pass_rate": RATES[i % len(RATES)]},
        }
        for i in range(n)
    ]


def write_files(folder: Path) -> None:
    import pyarrow as pa
    import pyarrow.parquet as pq

    from depo_rl.commands.demo.arithmetic import make_tokenizer

    for split, n in (("train", N_ROWS), ("val", 8)):
        pq.write_table(pa.Table.from_pylist(rows(n, split)), folder / f"{split}.parquet")
    model = folder / "model"
    make_tokenizer().save_pretrained(model)
    (model / "config.json").write_text(
        '{"model_type": "qwen2", "architectures": ["Qwen2ForCausalLM"]}'
    )


class AgentLoop:
    """Stands in for verl's AgentLoopManager, by its documented contract: finished groups go into
    TransferQueue.

    A completion is correct with the row's pass rate; its reward is shaped, so that an all-wrong
    group has a spread. hold: rows whose rollout does not end until ``finish_held``. die: rows whose
    every session fails.
    """

    def __init__(self, trainer: Any) -> None:
        self.trainer = trainer
        self.asked: list[list[int]] = []  # rows of each call
        self.sizes: list[int] = []
        self.rolled_out: dict[int, int] = defaultdict(int)
        self.flying: set[int] = set()
        self.hold: Any = lambda row: False
        self.die: Any = lambda row: False
        self.judge: Any = lambda row, right: {"acc": float(right), "score": float(right)}
        self._held: list[dict[str, Any]] = []

    def generate_sequences(self, batch: Any) -> None:
        import transfer_queue as tq
        from tensordict import NonTensorStack

        prompts: list[dict[str, Any]] = [{} for _ in range(len(batch))]
        for name, column in batch.items():  # as verl's own worker takes a batch apart
            for i, prompt in enumerate(prompts):
                if isinstance(column, torch.Tensor):
                    prompt[name] = column[i]
                else:
                    prompt[name] = (
                        column[i].data if isinstance(column, NonTensorStack) else column.data
                    )
        self.asked.append([int(prompt["depo_row"]) for prompt in prompts if "depo_row" in prompt])
        for prompt in prompts:
            validate = prompt.pop("validate", False)
            partition = "val" if validate else "train"
            tq.kv_put(key=prompt["uid"], partition_id=partition, tag={"status": "running"})
            if not validate:
                row = int(prompt["depo_row"])
                assert row not in self.flying, f"row {row} was chosen twice at a time"
                self.flying.add(row)
            self._held.append(prompt | {"partition": partition})
        self.finish_held(lambda prompt: not self.hold(int(prompt.get("depo_row", -1))))

    def finish_held(self, which: Any = lambda prompt: True) -> None:
        for prompt in [prompt for prompt in self._held if which(prompt)]:
            self._held.remove(prompt)
            self._finish(prompt)

    def _finish(self, prompt: dict[str, Any]) -> None:
        import transfer_queue as tq
        from verl.utils.tensordict_utils import list_of_dict_to_tensordict

        row, uid, partition = (
            int(prompt.get("depo_row", -1)),
            prompt["uid"],
            prompt.pop("partition"),
        )
        size = int(prompt.get("__rollout_n__", GROUP))
        self.flying.discard(row)
        if self.die(row):
            tq.kv_put(key=uid, partition_id=partition, tag={"status": "failure"})
            return
        rate = float(prompt["extra_info"]["pass_rate"])
        step = int(self.trainer.global_steps)
        # no state: a resumed run sees what an unbroken one does
        rng = np.random.default_rng([row + 1, step])
        keys, fields, tags = [], [], []
        for session in range(size):
            right = bool(rng.random() < rate)
            keys.append(f"{uid}_{session}_0")
            fields.append(prompt | self._completion(row, right, session))
            tags.append(
                {
                    "status": "success",
                    "prompt_len": 3,
                    "response_len": 2,
                    "seq_len": 5,
                    "global_steps": step,
                }
                | {"min_global_steps": step - 1, "max_global_steps": step - 1}
            )
        self.sizes.append(size)
        self.rolled_out[row] += 1
        tq.kv_batch_put(
            keys=keys, fields=list_of_dict_to_tensordict(fields), tags=tags, partition_id=partition
        )
        tq.kv_put(key=uid, partition_id=partition, tag={"status": "finished"})

    def _completion(self, row: int, right: bool, session: int) -> dict[str, Any]:
        length = 2 + session % 2
        reward = torch.zeros(length)
        reward[-1] = float(right) - 0.01 * session
        return {
            "responses": torch.arange(length),
            "response_mask": torch.ones(length, dtype=torch.int64),
            "rollout_log_probs": torch.full((length,), -0.5),
            "rm_scores": reward,
            "extra_fields": {"reward_extra_info": self.judge(row, right)},
        }


def overrides(folder: Path, mode: str, output: Path) -> list[str]:
    return [
        "algorithm.adv_estimator=grpo",
        f"data.train_files={folder}/train.parquet",
        f"data.val_files={folder}/val.parquet",
        f"data.train_batch_size={BATCH}",
        "data.dataloader_num_workers=0",
        "data.seed=1",
        f"actor_rollout_ref.model.path={folder}/model",
        "actor_rollout_ref.rollout.name=hf",
        f"actor_rollout_ref.rollout.n={GROUP}",
        "actor_rollout_ref.rollout.calculate_log_probs=True",
        "reward.reward_model.rollout.name=hf",
        f"trainer.v1.trainer_mode={mode}",
        "trainer.total_epochs=100",
        f"trainer.default_local_dir={output}",
        "data.custom_cls.path=pkg://depo_rl.engines.verl.dataset",
        "data.custom_cls.name=CurriculumDataset",
        "trainer.v1.sampler.custom_sampler.path=pkg://depo_rl.engines.verl.replay",
        "trainer.v1.sampler.custom_sampler.name=CurriculumReplayBuffer"
        + ("" if mode == "sync" else "Async"),
        "+trainer.v1.sampler.sampler_kwargs.poll_interval=0.02",
        *SEPARATE[mode == "separate_async"],
    ]


SEPARATE = {
    False: [],
    True: [
        f"actor_rollout_ref.actor.ppo_mini_batch_size={BATCH // 2}",
        "trainer.v1.separate_async.parameter_sync_step=2",
        "actor_rollout_ref.rollout.nnodes=1",
        "actor_rollout_ref.rollout.n_gpus_per_node=1",
        "actor_rollout_ref.rollout.checkpoint_engine.backend=nccl",
    ],
}


def make_config(
    folder: Path, output: Path, mode: str = "sync", extra: Any = (), method: str = "depo"
) -> Any:
    from hydra import compose, initialize_config_module

    with initialize_config_module("verl.trainer.config", version_base=None):
        given = [*overrides(folder, mode, output), f"+data.depo.method={method}", *extra]
        return compose("ppo_trainer", overrides=given)


def make_trainer(
    folder: Path,
    output: Path,
    mode: str = "sync",
    extra: Any = CURRICULUM,
    method: str = "depo",
    config: Any = None,
) -> Any:
    """verl's real trainer up to the data loader: real constructor, dataset, loader, replay buffer,
    TransferQueue."""
    from verl.trainer.ppo.v1 import get_trainer_cls

    trainer = get_trainer_cls(mode)(config or make_config(folder, output, mode, extra, method))
    trainer._init_tokenizer()
    trainer._init_dataloader()
    trainer.global_steps = 1
    trainer.agent_loop_manager = AgentLoop(trainer)
    return trainer


def warm_up(trainer: Any) -> None:
    """What the asynchronous modes do before the first step."""
    trainer._add_async_warmup_batches(1)


def step(trainer: Any) -> dict[str, Any]:
    """One training step without the training: choose, roll out, sample, forget."""
    import transfer_queue as tq

    trainer._add_batch_to_generate()
    metrics: dict[str, Any] = {}
    for _ in range(trainer.parameter_sync_step):
        batch, told = trainer.replay_buffer.sample(
            global_steps=trainer.global_steps,
            partition_id="train",
            batch_size=BATCH // trainer.parameter_sync_step,
        )
        metrics |= told
        tq.kv_clear(keys=batch.keys, partition_id="train")
    trainer.global_steps += 1
    return metrics


class _Workers:
    """The part of the worker group that saving and loading call; the weights are not of this
    world."""

    def save_checkpoint(self, *args: Any, **kwargs: Any) -> None: ...

    def load_checkpoint(self, *args: Any, **kwargs: Any) -> None: ...


def save(trainer: Any) -> None:
    """verl's own save, of the step that was just done."""
    trainer.actor_rollout_wg = _Workers()
    trainer.global_steps -= 1
    trainer._save_checkpoint()
    trainer.global_steps += 1


def resume(trainer: Any) -> None:
    """verl's own load and what ``fit`` does before its first step, in a process whose queue is
    empty."""
    empty_queue()
    trainer.actor_rollout_wg = _Workers()
    trainer._load_checkpoint()
    trainer.global_steps += 1
    trainer._reissue_inflight_prompts()
    if trainer.trainer_mode != "sync":
        warm_up(trainer)


def empty_queue() -> None:
    import transfer_queue as tq

    for partition, items in (tq.kv_list() or {}).items():
        if items:
            tq.kv_clear(keys=list(items), partition_id=partition)


def can_teach(asked: list[int]) -> float:
    """Share of the rows whose pass rate is neither 0 nor 1."""
    return float(np.mean([0 < RATES[row % len(RATES)] < 1 for row in asked]))
