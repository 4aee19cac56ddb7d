"""The ready configurations: each loads, builds the arguments of TRL, and has the values of
docs/paper_index.md."""

from __future__ import annotations

import os
from pathlib import Path
from typing import Any

import pytest

os.environ.setdefault("HF_HUB_OFFLINE", "1")

from depo_rl.commands.train.config import MathReward, SoftOverlongReward, TrainConfig
from depo_rl.commands.train.file import load_train_config, ready_configs
from depo_rl.commands.train.rewards import build_rewards, close_rewards, reward_name
from depo_rl.commands.train.trl_args import batch_layout, build_args, depo_kwargs
from depo_rl.errors import ConfigError

# torch, transformers and TRL warn about each other
pytestmark = pytest.mark.filterwarnings("ignore")

PREFIX = "qwen2.5-1.5b-dapo17k-"
METHODS = {
    "grpo": "grpo", "dapo": "dapo", "polaris": "polaris", "depo": "depo", "depo-no-ranking": "depo",
    "depo-no-ranking-no-distill": "depo", "depo-dapo": "depo", "depo-plus": "depo+",
}  # fmt: skip
ON_A_CPU = ["trl.bf16=false", "trl.use_cpu=true"]


def load(name: str, *overrides: str) -> TrainConfig:
    return load_train_config(PREFIX + name, overrides)


def test_all_are_listed() -> None:
    assert {name.removeprefix(PREFIX) for name in ready_configs()} == set(METHODS)


@pytest.mark.parametrize("name", METHODS)
def test_paper_settings(name: str) -> None:
    config = load(name)
    assert config.method == METHODS[name]
    assert config.model.name == "Qwen/Qwen2.5-1.5B-Instruct"
    assert (config.trl["max_steps"], config.trl["learning_rate"]) == (1000, 1e-6)
    # ours: smaller groups, as many completions
    prompts, group_size = (256, 4) if name == "depo-plus" else (128, 8)
    assert config.group_size == group_size
    assert batch_layout(config).prompts_per_step == prompts
    assert batch_layout(config).prompts_per_generation == prompts
    assert Path(config.output) == Path.cwd() / "runs" / (PREFIX + name)
    if name != "polaris":
        assert config.data.name == "BytedTsinghua-SIA/DAPO-Math-17k" and config.data.drop_duplicates
        assert config.data.columns.answer == "reward_model.ground_truth"


@pytest.mark.parametrize("world", [1, 2, 4, 8, 16])
def test_batch_is_the_same_on_any_number_of_gpus(
    world: int, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("WORLD_SIZE", str(world))
    layout = batch_layout(load("depo"))
    assert layout.prompts_per_step == layout.prompts_per_generation == 128
    assert layout.gradient_accumulation_steps == 128 // world


@pytest.mark.parametrize("world", [3, 7])
def test_a_number_of_gpus_that_does_not_divide_is_refused(
    world: int, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("WORLD_SIZE", str(world))
    with pytest.raises(
        ConfigError, match="prompts_per_step = 128: 1024 completions are not a multiple of"
    ):
        batch_layout(load("depo"))


def estimator(name: str) -> Any:
    return load(name).curriculum_config().estimator


def test_depo_has_the_released_values() -> None:
    config = load("depo").curriculum_config()
    assert (config.window, config.warmup_steps, config.band) == ((0.15, 0.85), 100, "window")
    own = config.estimator
    assert (
        own.type == "encoder"
        and own.backbone == "distilbert-base-uncased"
        and own.max_length == 512
        and own.pooling == "cls"
    )
    assert (own.learning_rate, own.backbone_lr_scale, own.grad_clip) == (2e-4, 0.2, 1.0)
    assert (own.distill_weight, own.ranking_weight, own.ranking_delta, own.ranking_margin) == (
        0.5,
        3.0,
        0.05,
        0.5,
    )
    assert (own.width, own.dropout, own.updates_per_observe) == (1024, 0.1, 1)


def test_ablations_differ_in_one_thing_each() -> None:
    full, no_ranking, neither = (
        estimator(f"depo{s}") for s in ("", "-no-ranking", "-no-ranking-no-distill")
    )
    assert no_ranking == full.model_copy(update={"ranking_weight": 0.0})
    assert neither == full.model_copy(update={"ranking_weight": 0.0, "distill_weight": 0.0})


def test_depo_with_dapo_keeps_all_of_dapo_but_dynamic_sampling() -> None:
    both, dapo, depo = load("depo-dapo"), load("dapo"), load("depo")
    assert both.trl == dapo.trl and both.reward == dapo.reward and both.data == dapo.data
    assert both.method == "depo" and both.curriculum == depo.curriculum
    assert (both.trl["loss_type"], both.trl["epsilon"], both.trl["epsilon_high"]) == (
        "dapo",
        0.2,
        0.28,
    )
    assert isinstance(both.reward[0], MathReward) and isinstance(both.reward[1], SoftOverlongReward)
    assert dapo.curriculum_config().max_rounds == 10


def test_methods_are_compared_on_the_same_terms() -> None:
    """GRPO and DEPO differ in how prompts are chosen and in nothing else."""
    grpo, depo = load("grpo"), load("depo")
    assert (grpo.trl, grpo.reward, grpo.data, grpo.model) == (
        depo.trl,
        depo.reward,
        depo.data,
        depo.model,
    )


@pytest.mark.parametrize("name", METHODS)
def test_arguments_of_trl_build(name: str, tmp_path: Path) -> None:
    pytest.importorskip("trl")
    config = load(name, *ON_A_CPU, f"output={tmp_path / 'run'}")
    rewards = build_rewards(config)
    try:
        args = build_args(depo_kwargs(config, batch_layout(config), reward_name(rewards[0])))
    finally:
        close_rewards(rewards)
    assert (args.generation_batch_size, args.num_generations) == (1024, config.group_size)
    assert args.max_steps == 1000
    assert args.method == METHODS[name] and args.correct_reward == "math_verify_reward"
    assert args.curriculum_config().model_dump() == config.curriculum_config().model_dump()
    assert args.reward_weights == [1.0] * len(rewards)
    assert not (tmp_path / "run").exists()
