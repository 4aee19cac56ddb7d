"""``depo verl-config`` without verl: what it adds, and bad input in one line each."""

from __future__ import annotations

import os
import re
import subprocess
from pathlib import Path
from typing import Any

import pytest
import yaml
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from depo_rl.cli import main
from depo_rl.commands.verl_config import (
    VerlCommand,
    hydra_value,
    ready_verl_configs,
    shell_word,
    verl_command,
)
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
    arguments = verl_command(
        file, ["method=dapo", "verl.trainer.v1.trainer_mode=colocate_async"]
    ).arguments
    assert "data.dataloader_num_workers=0" in arguments and "+data.depo.method=dapo" in arguments
    assert "trainer.v1.sampler.custom_sampler.name=CurriculumReplayBufferAsync" in arguments
    assert (
        "algorithm.filter_groups.enable=True" in arguments
        and "algorithm.filter_groups.metric=acc" in arguments
    )
    depo = verl_command(file).arguments
    assert not any(argument.startswith("algorithm.filter_groups") for argument in depo)


def test_the_filter_follows_the_gate_and_not_the_method(file):
    both = verl_command(file, ["method=depo+", "curriculum.gate=dynamic"]).arguments
    assert (
        "algorithm.filter_groups.enable=True" in both
        and "+data.depo.curriculum.gate=dynamic" in both
    )
    plain = verl_command(file, ["method=dapo", "curriculum.gate=none"]).arguments
    assert not any(argument.startswith("algorithm.filter_groups") for argument in plain)
    assert "+data.depo.curriculum.gate='none'" in plain  # quoted: a text, not nothing


DRAWN = ["method=depo+", "curriculum.temperature=0.5", "curriculum.importance=1"]


def test_importance_takes_the_place_of_grpo_s_advantages(file):
    arguments = verl_command(file, [*DRAWN, "verl.algorithm.adv_estimator=grpo"]).arguments
    assert (
        "algorithm.adv_estimator=depo_grpo" in arguments
        and "algorithm.adv_estimator=grpo" not in arguments
    )
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
    assert (
        script.startswith("#!/usr/bin/env bash\n") and "python -m verl.trainer.main_ppo" in script
    )


@pytest.mark.parametrize(
    ("override", "words"),
    [
        ("method=speed", ["'speed' extends", "which verl cannot", "depo replay"]),
        ("method=vcrl", ["'vcrl'", "a rule that verl does not have"]),
        (
            "curriculum.gate=high_variance",
            ["'depo'", "a rule that verl does not have", "gate to dynamic or none"],
        ),
        ("method=depp", ["unknown method 'depp'"]),
        ("curriculum.windw=[0.1,0.9]", ["windw", "window"]),
        ("verl.data.train_batch_size=", ["verl.data.train_batch_size: missing"]),
        ("verl.actor_rollout_ref.rollout.n=1", ["rollout.n = 1", "at least 2"]),
        ("verl.trainer.v1.trainer_mode=mine", ["'mine'", "sync, colocate_async, separate_async"]),
        ("verl.data.dataloader_num_workers=8", ["must be 0"]),
        ("verl.data.custom_cls.path=x", ["is set by this command"]),
        ("verl.data.depo.method=dapo", ["is set by this command"]),
        ("verl.data.train_files=[]", ["train_files: missing"]),
        ("verl.data.val_files=???", ["val_files: missing"]),
        ("verl.data.seed=-1", ["seed = -1", "at least 0"]),
        ("verl.data.seed=one", ["seed = 'one'", "whole number"]),
        ("verl.trainer.use_v1='false'", ["use_v1 = 'false'", "true or false"]),
        (
            "verl.actor_rollout_ref.actor.use_kl_loss=no",
            ["use_kl_loss = 'no'", "write true or false"],
        ),
        ("verl.data.train_files=3", ["train_files = 3", "a file or a list of files"]),
        ("verl.data.val_files=[a.parquet, 1]", ["val_files = ['a.parquet', 1]"]),
        ("verl.data.train_batch_size=0", ["train_batch_size = 0", "at least 1"]),
        ("verl.data.train_batch_size=word", ["train_batch_size = 'word'", "whole number"]),
        ("verl.trainer=word", ["verl.trainer = 'word'", "is a section"]),
        ("verl.actor_rollout_ref=[1]", ["verl.actor_rollout_ref = [1]", "is a section"]),
        ("verl.async_training.x=1", ["fully_async", "separate_async"]),
        (
            "verl.reward.reward_model.enable=true",
            ["without a resource pool", "enable_resource_pool=True"],
        ),
        ("environment.a-b=1", ["'a-b' is no name of a variable"]),
        ("environment.A=[1]", ["environment.A"]),
    ],
)
def test_bad_input_is_one_line(file, capsys, override, words):
    assert main(["verl-config", str(file), override]) == 2
    error = capsys.readouterr().err.strip()
    assert "\n" not in error
    for word in words:
        assert word in error, error


@pytest.mark.parametrize("empty", ["null", "{}"])
def test_a_section_whose_lines_are_commented_out_is_not_there(file, empty):
    assert verl_command(file, [f"verl.trainer={empty}"]) == verl_command(file)


ON_V0 = ["verl.trainer.use_v1=false"]


@pytest.mark.parametrize(
    "overrides, words",
    [
        (["method=dapo", *ON_V0], ["'dapo' with gate 'dynamic'", "trainer.use_v1=False"]),
        (["method=greso", *ON_V0], ["'greso' with gate 'dynamic'"]),
        (["curriculum.gate=dynamic", *ON_V0], ["'depo' with gate 'dynamic'"]),
        (
            ["method=dapo", "verl.trainer.use_v1=null"],
            ["'dapo' with gate 'dynamic'"],
        ),  # as verl reads null
        (["method=dapo", "verl.trainer.use_v1=0"], ["'dapo' with gate 'dynamic'"]),
        (
            [*DRAWN, "verl.algorithm.adv_estimator=grpo", *ON_V0],
            ["importance = 1.0", "trainer.use_v1=False"],
        ),
    ],
)
def test_what_the_older_trainer_cannot_do_is_refused_here(file, overrides, words):
    with pytest.raises(ConfigError) as error:
        verl_command(file, overrides)
    assert "\n" not in str(error.value) and all(word in str(error.value) for word in words), (
        error.value
    )


@pytest.mark.parametrize(
    "overrides", [ON_V0, ["method=dapo", "curriculum.gate=none", *ON_V0], ["method=dapo"]]
)
def test_what_it_can_do_is_not(file, overrides):
    assert verl_command(file, overrides).arguments


@pytest.mark.parametrize(
    "train, val",
    [
        ("a.parquet", "a.parquet"),
        ("a.parquet", "./a.parquet"),
        ("a.parquet", "[a.parquet]"),
        ("[a.parquet, b.parquet]", "[b.parquet, a.parquet]"),
        ("data/../a.parquet", "a.parquet"),
        ("$HOME/a.parquet", "~/a.parquet"),
        ("$HOME/a.parquet", "${HOME}/a.parquet"),
        ("a.parquet", "${data.train_files}"),
    ],
)
def test_validation_on_the_training_file_is_refused_however_it_is_written(file, train, val):
    given = [f"verl.data.train_files={train}", f"verl.data.val_files={val}"]
    with pytest.raises(
        ConfigError, match=r"data.val_files = .*: is data.train_files, .*a file of its own"
    ):
        verl_command(file, given)
    assert verl_command(file, [given[0], "verl.data.val_files=c.parquet"]).arguments


DEFAULTS = """
data:
  seed: null
  shuffle: true
  custom_cls: {path: null, name: null}
  tool_config_path: ${oc.select:actor_rollout_ref.rollout.multi_turn.tool_config_path, null}
  apply_chat_template_kwargs: {}
  dataloader_num_workers: 0
  trust_remote_code: false
actor_rollout_ref:
  hybrid_engine: true
  actor: {optim: {_target_: verl.workers.config.FSDPOptimizerConfig, lr: 1.0e-06, betas: [0.9, 0.999]}, optimizer: null}
  rollout: {calculate_log_probs: false, ignore_eos: false, prompt_length: '${oc.select:data.max_prompt_length,512}'}
algorithm:
  adv_estimator: gae
  filter_groups: {_target_: verl.trainer.config.FilterGroupsConfig, metric: null, max_num_gen_batches: 0}
reward: {reward_model: {enable: false, enable_resource_pool: false}}
trainer:
  use_v1: true
  default_local_dir: checkpoints/${trainer.project_name}/${trainer.experiment_name}
  total_training_steps: null
  logger: [console, wandb]
  v1:
    trainer_mode: sync
    sync: {}
    sampler: {max_off_policy_strategy: drop, custom_sampler: {path: null, name: null}, sampler_kwargs: {}}
global_profiler: {nsys: {worker_nsight_options: {cuda-memory-usage: 'true', capture-range-end: null}}}
"""


def test_defaults_of_verl_s_own_tree_are_taken_as_verl_takes_them(file):
    """A sample of each kind of value; the whole tree: tests/verl/test_commands.py."""
    tree = yaml.safe_load(file.read_text())
    for section, values in yaml.safe_load(DEFAULTS).items():
        tree["verl"].setdefault(section, {})
        for name, value in values.items():
            here = tree["verl"][section]
            here[name] = (
                here[name] | value
                if isinstance(value, dict) and isinstance(here.get(name), dict)
                else value
            )
    file.write_text(yaml.safe_dump(tree))
    for method in ("depo", "dapo", "depo+", "grpo"):
        arguments = verl_command(file, [f"method={method}"]).arguments
        assert "data.seed=null" in arguments and "trainer.v1.sync={}" in arguments
        assert (
            "trainer.default_local_dir='checkpoints/${trainer.project_name}/${trainer.experiment_name}'"
            in arguments
        )
        assert "data.custom_cls.path=pkg://depo_rl.engines.verl.dataset" in arguments
        assert len({argument.partition("=")[0].lstrip("+") for argument in arguments}) == len(
            arguments
        )
    assert "algorithm.filter_groups.metric=acc" in verl_command(file, ["method=dapo"]).arguments


@pytest.mark.parametrize("value", ["${oc.env:N}", "$N", "${trainer.n}"])
def test_numbers_that_only_the_cluster_knows_are_left_to_it(file, value):
    arguments = verl_command(
        file, [f"verl.actor_rollout_ref.rollout.n={value}", f"verl.data.seed={value}"]
    ).arguments
    assert arguments.count(f"data.seed={hydra_value(value)}") == 1


# ---- the printed command, run by a shell


def ran(command: VerlCommand, folder: Path, **environment: str) -> list[str]:
    """What python gets of the script: its arguments, after -m verl.trainer.main_ppo."""
    (folder / "bin").mkdir(exist_ok=True)
    stub = folder / "bin" / "python"
    stub.write_text(
        '#!/usr/bin/env bash\nfor a in "$@" "env:${NCCL_DEBUG-}"; do printf \'%s\\0\' "$a"; done\n'
    )
    stub.chmod(0o755)
    (folder / "run.sh").write_text(command.script("mine.yaml a=\nrm -rf x"))
    shell = {"PATH": f"{folder / 'bin'}:{os.environ['PATH']}", **environment}
    done = subprocess.run(
        ["bash", folder / "run.sh", "more=1"], env=shell, capture_output=True, text=True, check=True
    )
    _, module, *arguments, debug = done.stdout.split("\0")[:-1]
    assert module == "verl.trainer.main_ppo" and arguments.pop() == "more=1"
    return [*arguments, debug]


PATHS = [
    ("$HOME/data/t.parquet", '"/h o/data/t.parquet"'),
    ("${HOME}/data/t.parquet", '"/h o/data/t.parquet"'),
    ("~/data/t.parquet", '"/h o/data/t.parquet"'),
    ("~", '"/h o"'),
    ("/a~/b~", "'/a~/b~'"),
    ("$HOME/my data/it's.parquet", '"/h o/my data/it\'s.parquet"'),
    ("${DATA:-/d}/$NAME.parquet", '"/d/n.parquet"'),
    ("[$HOME/a.parquet, ~/b.parquet, c.parquet]", '["/h o/a.parquet","/h o/b.parquet",c.parquet]'),
    ("/a b/c,d=e.parquet", "'/a b/c,d=e.parquet'"),
    ("/a/$(touch x)/`id`.parquet", "'/a/$(touch x)/`id`.parquet'"),
    ('$HOME/"q"!\\n/$(id)`id`$1$', '"/h o/\\"q\\"!\\n/$(id)`id`$1$"'),
    ("/it's!.parquet", "'/it\\'s!.parquet'"),
    (
        "hdfs://name/${trainer.project_name}/t.parquet",
        "'hdfs://name/${trainer.project_name}/t.parquet'",
    ),
    ("$HOME/${trainer.project_name}/t.parquet", '"/h o/${trainer.project_name}/t.parquet"'),
]


@pytest.mark.parametrize("path, reaches", PATHS)
def test_paths_reach_hydra_as_they_are_meant_on_the_cluster(file, tmp_path, path, reaches):
    tree = yaml.safe_load(file.read_text())
    tree["verl"]["data"]["train_files"] = yaml.safe_load(path) if path.startswith("[") else path
    file.write_text(
        yaml.safe_dump(tree | {"environment": {"NCCL_DEBUG": path if path[0] != "[" else 1}})
    )
    arguments = ran(verl_command(file), tmp_path, HOME="/h o", NAME="n")
    assert f"data.train_files={reaches}" in arguments
    assert not (tmp_path / "x").exists() and not Path("x").exists()
    plain = "1" if path[0] == "[" else re.sub(r"\\(['\"])", r"\1", reaches[1:-1])
    assert arguments[-1] == f"env:{plain}"


@settings(
    max_examples=40,
    deadline=None,
    derandomize=True,
    suppress_health_check=[HealthCheck.function_scoped_fixture],
)
@given(
    st.lists(
        st.text(st.sampled_from("ab $~!'\"\\`{}()[]&|;<>*?#\n\t:=,.@%+-_\u00e9"), max_size=12),
        max_size=8,
    )
)
def test_any_text_passes_the_shell_unchanged(tmp_path, texts):
    texts = [text for text in texts if "$a" not in text and "$b" not in text and "$_" not in text]
    command = VerlCommand({}, [f"key={text}" for text in texts])
    assert ran(command, tmp_path)[:-1] == [f"key={text}" for text in texts]


def test_a_line_break_in_what_it_was_made_from_stays_in_the_comment(file):
    lines = verl_command(file).script("a.yaml b='x\nrm -rf y'").splitlines()
    assert (
        lines[1] == "# Made by: depo verl-config a.yaml b='x rm -rf y'"
        and lines[2] == "set -euo pipefail"
    )


def test_values_are_quoted_for_hydra_only_where_they_must_be():
    values: list[Any] = [
        "a/b.c:d@e-f",
        "8",
        "1e-5",
        "None",
        "a\n",
        "",
        None,
        True,
        1e-6,
        [1, "x y"],
        {"a b": "c:d"},
    ]
    quoted = [
        "a/b.c:d@e-f",
        "'8'",
        "'1e-5'",
        "'None'",
        "'a\n'",
        "''",
        "null",
        "True",
        "1e-06",
        "[1,'x y']",
    ]
    assert [hydra_value(value) for value in values] == [*quoted, "{a\\ b:c:d}"]
    assert hydra_value("$HOME/x") == '"$HOME/x"' and hydra_value('${HOME}"') == '"${HOME}\\""'
    assert shell_word("a=$HOME/x") == '"a=$HOME/x"' and shell_word("a=b") == "a=b"
