"""``depo verl-config`` without verl: what it adds, and bad input in one line each."""

from __future__ import annotations

import pytest

from depo_rl.cli import main
from depo_rl.commands.verl_config import ready_verl_configs, verl_command
from depo_rl.errors import ConfigError

GOOD = """
method: depo
verl:
  data: {train_files: train.parquet, val_files: val.parquet, train_batch_size: 8}
  actor_rollout_ref: {model: {path: a/model}, rollout: {n: 4}}
"""


@pytest.fixture
def file(tmp_path):
    path = tmp_path / "mine.yaml"
    path.write_text(GOOD)
    return path


def test_what_a_curriculum_needs_is_added(file):
    arguments = verl_command(file, ["method=dapo", "verl.trainer.v1.trainer_mode=colocate_async"]).arguments
    assert "data.dataloader_num_workers=0" in arguments and "+data.depo.method=dapo" in arguments
    assert "trainer.v1.sampler.custom_sampler.name=CurriculumReplayBufferAsync" in arguments
    assert "algorithm.filter_groups.enable=True" in arguments and "algorithm.filter_groups.metric=acc" in arguments
    depo = verl_command(file).arguments
    assert not any(argument.startswith("algorithm.filter_groups") for argument in depo)


def test_the_filter_follows_the_gate_and_not_the_method(file):
    both = verl_command(file, ["method=depo+", "curriculum.gate=dynamic"]).arguments
    assert "algorithm.filter_groups.enable=True" in both and "+data.depo.curriculum.gate=dynamic" in both
    plain = verl_command(file, ["method=dapo", "curriculum.gate=none"]).arguments
    assert not any(argument.startswith("algorithm.filter_groups") for argument in plain)
    assert "+data.depo.curriculum.gate='none'" in plain  # quoted: a text, not nothing


DRAWN = ["method=depo+", "curriculum.temperature=0.5", "curriculum.importance=1"]


def test_importance_takes_the_place_of_grpo_s_advantages(file):
    arguments = verl_command(file, [*DRAWN, "verl.algorithm.adv_estimator=grpo"]).arguments
    assert "algorithm.adv_estimator=depo_grpo" in arguments and "algorithm.adv_estimator=grpo" not in arguments
    plain = verl_command(file, ["verl.algorithm.adv_estimator=grpo"]).arguments
    assert "algorithm.adv_estimator=grpo" in plain


@pytest.mark.parametrize(
    ("overrides", "message"),
    [
        ([*DRAWN, "verl.algorithm.adv_estimator=rloo"], "adv_estimator = 'rloo': set that to grpo"),
        (DRAWN, "adv_estimator = 'gae': set that to grpo"),  # verl's default
        (
            ["method=depo+", "curriculum.temperature=0", "curriculum.importance=1"],
            "importance = 1.0: .*set temperature above 0",
        ),
    ],
)
def test_importance_needs_grpo_and_a_draw(file, overrides, message):
    with pytest.raises(ConfigError, match=message) as error:
        verl_command(file, overrides)
    assert "\n" not in str(error.value)


@pytest.mark.parametrize("name", ready_verl_configs())
def test_ready_ones_print_a_script(name, capsys):
    assert main(["verl-config", name]) == 0
    script = capsys.readouterr().out
    assert script.startswith("#!/usr/bin/env bash\n") and "python -m verl.trainer.main_ppo" in script


@pytest.mark.parametrize(
    ("override", "words"),
    [
        ("method=speed", ["'speed' extends", "which verl cannot", "depo replay"]),
        ("method=vcrl", ["'vcrl'", "a rule that verl does not have"]),
        ("curriculum.gate=high_variance", ["'depo'", "a rule that verl does not have", "gate to dynamic or none"]),
        ("method=depp", ["unknown method 'depp'"]),
        ("curriculum.windw=[0.1,0.9]", ["windw", "window"]),
        ("verl.data.train_batch_size=", ["verl.data.train_batch_size: missing"]),
        ("verl.actor_rollout_ref.rollout.n=1", ["rollout.n = 1", "at least 2"]),
        ("verl.trainer.v1.trainer_mode=mine", ["'mine'", "sync, colocate_async, separate_async"]),
        ("verl.data.dataloader_num_workers=8", ["must be 0"]),
        ("verl.data.custom_cls.path=x", ["is set by this command"]),
    ],
)
def test_bad_input_is_one_line(file, capsys, override, words):
    assert main(["verl-config", str(file), override]) == 2
    error = capsys.readouterr().err.strip()
    assert "\n" not in error
    for word in words:
        assert word in error, error
