"""What ``depo verl-config`` prints is what verl reads: composed by its own Hydra, understood by our
dataset."""

from __future__ import annotations

import pytest
import yaml
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
        "a\nb",
        "$HOME/x",
        "~/x",
        "!`$(x)`",
    ],
)
def test_values_come_back_as_they_were(value):
    from hydra.core.override_parser.overrides_parser import OverridesParser

    parsed = OverridesParser.create().parse_override(f"key={hydra_value(value)}").value()
    parsed = (
        [getattr(item, "text", item) for item in parsed] if isinstance(parsed, list) else parsed
    )
    assert getattr(parsed, "text", parsed) == value


def flat(tree, path=""):
    for name, value in tree.items():
        here = f"{path}.{name}" if path else name
        if isinstance(value, dict) and value:
            yield from flat(value, here)
        else:
            yield here, value


def test_the_whole_of_verl_s_own_tree_comes_back_as_it_was(tmp_path):
    own = OmegaConf.to_container(compose([]))
    tree = OmegaConf.to_container(
        compose(["data.dataloader_num_workers=0", "actor_rollout_ref.rollout.n=8"])
    )
    path = tmp_path / "mine.yaml"
    path.write_text(yaml.safe_dump({"method": "depo", "verl": tree}))
    found = dict(flat(OmegaConf.to_container(compose(verl_command(path).arguments))))
    added = {"data.dataloader_num_workers", "data.depo.method", "actor_rollout_ref.rollout.n"}
    added |= {f"data.custom_cls.{name}" for name in ("path", "name")}
    added |= {f"trainer.v1.sampler.custom_sampler.{name}" for name in ("path", "name")}
    changed = {
        name: value for name, value in found.items() if dict(flat(own)).get(name, ...) != value
    }
    assert {name for name, value in changed.items() if not str(value).startswith("$HOME/")} == added


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
