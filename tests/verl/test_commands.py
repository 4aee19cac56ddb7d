"""What ``depo verl-config`` prints is what verl reads: composed by its own Hydra, understood by our dataset."""

from __future__ import annotations

import pytest
from omegaconf import OmegaConf

from depo_rl.commands.verl_config import hydra_value, ready_verl_configs, verl_command
from depo_rl.engines.verl import checks
from depo_rl.engines.verl.settings import parse_settings
from world import BATCH, GROUP, make_trainer, step


def compose(arguments):
    from hydra import compose, initialize_config_module

    with initialize_config_module("verl.trainer.config", version_base=None):
        return compose("ppo_trainer", overrides=list(arguments))


@pytest.mark.parametrize("name", ready_verl_configs())
def test_ready_configurations_are_verl_s(name):
    config = compose(verl_command(name).arguments)
    settings = parse_settings(OmegaConf.to_container(config.data.depo, resolve=True))
    curriculum = settings.curriculum_config(config.actor_rollout_ref.rollout.n, config.data.seed)
    checks.check_run(config, curriculum)
    checks.check_buffer(config, "sync", asynchronous=False)
    assert config.algorithm.filter_groups.enable == (settings.method == "dapo")
    plus = name.endswith("depo-plus")  # ours, in groups of 4; the others are the paper's
    method = "depo+" if plus else name.split("-")[3]
    assert (settings.method, curriculum.group_size) == (method, 4 if plus else 8)


@pytest.mark.parametrize(
    "value",
    [
        "a b",
        "it's",
        "back\\slash",
        "ends\\",
        "quote\\'d",
        "1e-6",
        "null",
        "",
        "x,y",
        "[1]",
        True,
        None,
        3,
        0.5,
        [1, "b c"],
    ],
)
def test_values_come_back_as_they_were(value):
    from hydra.core.override_parser.overrides_parser import OverridesParser

    parsed = OverridesParser.create().parse_override(f"key={hydra_value(value)}").value()
    parsed = [getattr(item, "text", item) for item in parsed] if isinstance(parsed, list) else parsed
    assert getattr(parsed, "text", parsed) == value


@pytest.mark.parametrize("mode", ["sync", "separate_async"])
def test_a_file_of_the_user_s_runs(ray_session, folder, tmp_path, mode):
    path = tmp_path / "mine.yaml"
    path.write_text(
        f"""
method: greso
curriculum: {{max_rounds: 3}}
verl:
  data: {{train_files: {folder}/train.parquet, val_files: {folder}/val.parquet, train_batch_size: {BATCH}, seed: 1}}
  algorithm: {{adv_estimator: grpo}}
  actor_rollout_ref:
    model: {{path: {folder}/model}}
    actor: {{ppo_mini_batch_size: {BATCH // 2}}}
    rollout: {{name: hf, n: {GROUP}, nnodes: 1, n_gpus_per_node: 1, checkpoint_engine: {{backend: nccl}}}}
  reward: {{reward_model: {{rollout: {{name: hf}}}}}}
  trainer:
    default_local_dir: {tmp_path}
    v1:
      trainer_mode: {mode}
      separate_async: {{parameter_sync_step: 2}}
      sampler: {{sampler_kwargs: {{+poll_interval: 0.02}}}}
"""
    )
    from world import empty_queue

    empty_queue()
    trainer = make_trainer(folder, tmp_path, mode, config=compose(verl_command(path).arguments))
    step(trainer)
    assert trainer.train_dataset.driver.curriculum.metrics()["drawn"] >= BATCH
    assert trainer.replay_buffer.filter_groups_metric == "acc"
