"""A setting that the method does not read is refused in one line that names the methods which read
it."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest

from core_world import UNIFORM, make_prompts
from depo_rl import METHODS, CurriculumConfig, cli, make_curriculum
from depo_rl.cli import main
from depo_rl.commands.replay.plan import ReplayPlan
from depo_rl.commands.replay.run import parse_settings
from depo_rl.commands.train.file import ready_configs
from depo_rl.commands.verl_config import verl_command
from depo_rl.config import parse_config
from depo_rl.errors import ConfigError
from depo_rl.methods import Method, shares
from depo_rl.parts import make_gate
from depo_rl.report.style import _KNOWN
from depo_rl.report.table import KNOWN_ORDER

ALL = set(METHODS)
CHOOSING = ALL - UNIFORM
DRAWING = {"depo", "depo+", "oracle", "dps"}
READ_BY = {
    **dict.fromkeys(("group_size", "seed", "estimator", "reward_range", "max_rounds"), ALL),
    **dict.fromkeys(("explore", "warmup_steps", "candidate_factor", "guard"), CHOOSING),
    **dict.fromkeys(("temperature", "importance", "importance_cap"), DRAWING),
    **{name: {"depo", "depo+"} for name in ("band", "window")},
    **{name: {"polaris"} for name in ("pass_rate_field", "keep")},
    **dict.fromkeys(("gate", "min_variance"), ALL - {"speed"}),
    "target": {"mopps", "bots", "pcl"},
    **{name: {name} for name in ("greso", "pools", "adarft", "speed")},
}
VALUE: dict[str, Any] = {
    "group_size": 4, "seed": 3, "estimator": "constant", "reward_range": (0.0, 2.0), "max_rounds": 3,
    "explore": 0.2, "warmup_steps": 7, "candidate_factor": 3, "guard": True,
    "temperature": 0.5, "importance": 0.5, "importance_cap": 2.0,
    "band": "auto", "window": (0.2, 0.7), "pass_rate_field": "level", "keep": (0.2, 0.8), "target": 0.4,
    "gate": "dynamic", "min_variance": 0.5,
    "greso": {"floor": 0.2}, "pools": {"hard": 0.5}, "adarft": {"start": 40.0}, "speed": {"n_init": 3},
}  # fmt: skip
DRAWN = {"temperature": 0.5, "band": "auto"}
WITH = {
    "window": {"band": "window"},
    "temperature": {"band": "auto"},
    "importance": DRAWN,
    "min_variance": {"gate": "high_variance"},
}
"""What must be set for a setting to be read, where the method has a choice."""


def config_of(method: str, setting: str) -> CurriculumConfig:
    own = METHODS[method]
    along = {
        name: value for name, value in WITH.get(setting, {}).items() if method in READ_BY[name]
    }
    return own.config({**along, setting: VALUE[setting]})


def test_the_table_above_is_whole() -> None:
    assert READ_BY.keys() == VALUE.keys() == CurriculumConfig.model_fields.keys()


@pytest.mark.parametrize("setting", READ_BY)
@pytest.mark.parametrize("method", METHODS)
def test_a_setting_is_read_or_refused(method: str, setting: str) -> None:
    if method in READ_BY[setting]:
        given = parse_config({}, {setting: VALUE[setting]})
        assert getattr(config_of(method, setting), setting) == getattr(given, setting)
        return
    with pytest.raises(ConfigError) as error:
        config_of(method, setting)
    readers = ", ".join(name for name in METHODS if name in READ_BY[setting])
    if setting in ("gate", "importance"):  # which say more than that
        assert str(error.value).startswith(f"method '{method}', {setting} = ")
    else:
        assert (
            str(error.value)
            == f"method '{method}': setting '{setting}' is read by {readers} only: leave it out"
        )
    assert "\n" not in str(error.value)


@pytest.mark.parametrize(
    ("method", "given", "said"),
    [
        (
            "depo",
            {"band": "auto", "window": (0.2, 0.8)},
            "setting 'window' is read with band: window only",
        ),
        ("depo+", {"window": (0.2, 0.8)}, "setting 'window' is read with band: window only"),
        ("depo", {"temperature": 0.5}, "setting 'temperature' is read with band: auto only"),
        (
            "dapo",
            {"min_variance": 0.5},
            "setting 'min_variance' is read with gate: high_variance only",
        ),
        (
            "depo",
            {"min_variance": 0.5},
            "setting 'min_variance' is read with gate: high_variance only",
        ),
        (
            "grpo",
            {"keep": (0.1, 0.9), "guard": False},
            "setting 'guard' is read by depo, .*; setting 'keep' is read by",
        ),
    ],
)
def test_a_setting_that_another_one_switches_off_is_refused(
    method: str, given: dict[str, Any], said: str
) -> None:
    """Even one that says what is so anyway: who wrote it believes that it does something."""
    with pytest.raises(
        ConfigError, match=f"^method '{METHODS[method].name}': ".replace("+", r"\+") + said
    ):
        make_curriculum(method, make_prompts([40]), given)


class Noting:
    """A config that remembers what was asked of it."""

    def __init__(self, config: CurriculumConfig) -> None:
        self._config = config
        self.read: set[str] = set()

    def __getattr__(self, name: str) -> Any:
        if name in CurriculumConfig.model_fields:
            self.read.add(name)
        return getattr(self._config, name)


@pytest.mark.parametrize("name", METHODS)
def test_what_a_method_says_it_reads_is_what_its_functions_read(name: str) -> None:
    method, read = METHODS[name], set[str]()
    for band in ("window", "auto"):
        for gate in ("none", "dynamic", "high_variance"):
            noting = Noting(method.config().model_copy(update={"band": band, "gate": gate}))
            method.selector(noting, 40)
            method.gate(noting)
            method.prepare(make_prompts([40]), noting)
            read |= noting.read
    by_gates = {"gate", "max_rounds", "min_variance"} if method.gate is make_gate else set()
    by_the_curriculum = {"importance", "importance_cap"}
    assert read - {"group_size", "estimator"} - by_gates == set(method.reads) - by_the_curriculum
    assert read <= method.settings


def test_a_method_of_ones_own_reads_what_it_says(monkeypatch: pytest.MonkeyPatch) -> None:
    own = Method("mine", "mine", reads=("target",), selector=METHODS["pcl"].selector)
    monkeypatch.setitem(METHODS, "mine", own)
    assert own.config({"target": 0.3, "explore": 0.1, "gate": "dynamic"}).target == 0.3
    with pytest.raises(ConfigError, match=r"'mine': setting 'window' is read by depo, depo\+ only"):
        own.config({"window": (0.2, 0.8)})
    with pytest.raises(
        ConfigError, match="'grpo': setting 'target' is read by mopps, bots, pcl, mine only"
    ):
        METHODS["grpo"].config({"target": 0.3})


# -- settings given to several methods


def test_settings_of_several_methods_go_to_those_that_read_them() -> None:
    shared = {"explore": 0.2, "gate": "dynamic", "window": (0.2, 0.8), "importance": 0.5}
    own = {"depo+": {"gate": "none", "temperature": 1.0}}
    assert shares(shared, ["grpo", "depo", "depo+", "speed"], own) == {
        "grpo": {"gate": "dynamic"},
        "depo": {"explore": 0.2, "gate": "dynamic", "window": (0.2, 0.8)},
        "depo+": {"explore": 0.2, "gate": "none", "importance": 0.5, "temperature": 1.0},
        "speed": {},
    }


def test_a_setting_that_none_of_them_reads_is_refused() -> None:
    with pytest.raises(ConfigError, match="'grpo': setting 'keep' is read by polaris only"):
        shares({"explore": 0.2, "keep": (0.2, 0.8)}, ["grpo", "depo"], {})
    with pytest.raises(ConfigError, match="'speed', gate = 'dynamic'"):
        shares({"gate": "dynamic"}, ["speed"], {})


def test_replay_s_settings_go_to_the_methods_that_read_them(tmp_path: Path) -> None:
    common, own = parse_settings(["explore=0.2", "depo+.temperature=0.5"])
    plan = ReplayPlan(
        tmp_path / "x", tmp_path, ("grpo", "depo", "depo+"), settings=common, method_settings=own
    )
    assert [plan.config(name, 0).explore for name in plan.methods] == [0.0, 0.2, 0.2]
    assert plan.config("depo+", 0).temperature == 0.5


# -- wherever settings are given


def refused(arguments: list[str], capsys: pytest.CaptureFixture[str]) -> str:
    assert main(arguments) == 2
    error = capsys.readouterr().err
    assert error.startswith("depo: ") and error.count("\n") == 1, error
    return error


def test_replay_refuses_in_one_line(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    pool = tmp_path / "pool.jsonl"
    pool.write_text("".join(f'{{"prompt": "p{i}", "pass_rate": 0.5}}\n' for i in range(32)))
    shared = [
        "replay",
        str(pool),
        "--out",
        str(tmp_path / "out"),
        "--steps",
        "2",
        "--prompts-per-step",
        "4",
    ]
    error = refused([*shared, "--methods", "depo", "--set", "keep=[0.2,0.8]"], capsys)
    assert "method 'depo': setting 'keep' is read by polaris only" in error
    error = refused([*shared, "--methods", "grpo,depo", "--set", "grpo.explore=0.2"], capsys)
    assert "method 'grpo': setting 'explore' is read by depo, depo+, " in error
    assert not (tmp_path / "out").exists()


def test_a_training_file_is_refused_in_one_line(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    run = tmp_path / "run.yaml"
    run.write_text(ready_configs()["qwen2.5-1.5b-dapo17k-depo"].read_text())
    error = refused(["train", str(run), "curriculum.greso.floor=0.1", "--dry-run"], capsys)
    assert "method 'depo', curriculum: setting 'greso' is read by greso only: leave it out" in error


def test_a_verl_file_is_refused_in_one_line(tmp_path: Path) -> None:
    with pytest.raises(
        ConfigError, match=r"'dapo', data.depo.curriculum: setting 'guard' is read by depo, .* only"
    ):
        verl_command("qwen2.5-7b-dapo17k-dapo", ["curriculum.guard=true"])


def test_a_trl_config_is_refused_before_a_model_is_loaded(tmp_path: Path) -> None:
    trl = pytest.importorskip("depo_rl.trl", reason="needs trl")
    shared = {"report_to": "none", "use_cpu": True, "bf16": False}
    for curriculum in ({"keep": [0.2, 0.8]}, json.dumps({"keep": [0.2, 0.8]})):
        with pytest.raises(
            ConfigError, match="method 'depo', curriculum: setting 'keep' is read by polaris only"
        ):
            trl.DEPOConfig(str(tmp_path), method="depo", curriculum=curriculum, **shared)


# -- names of all methods elsewhere


def test_help_texts_tables_and_figures_know_every_method(
    capsys: pytest.CaptureFixture[str],
) -> None:
    assert cli._METHODS.split(", ") == list(METHODS)
    assert sorted(KNOWN_ORDER) == sorted(_KNOWN) == sorted(METHODS)
    assert len({color for pair in _KNOWN.values() for color in pair}) == 2 * len(METHODS)
    for command in (["train"], ["replay"]):
        assert main([*command, "--help"]) == 0
        shown = capsys.readouterr().out
        assert all(name in shown for name in METHODS)


def test_settings_of_an_estimator_are_shared_by_the_methods_whose_estimator_has_them():
    told = shares({"estimator": {"history": False}}, ["grpo", "depo", "depo+", "dps"], {})
    assert told == {
        "grpo": {},
        "depo": {"estimator": {"history": False}},
        "depo+": {"estimator": {"history": False}},
        "dps": {},
    }
    with pytest.raises(ConfigError, match=r"unknown setting 'estimator\.histroy'"):
        shares({"estimator": {"histroy": False}}, ["depo", "grpo"], {})
    typed = shares({"estimator": {"type": "history"}}, ["depo", "mopps"], {})
    assert typed["depo"] == typed["mopps"] == {"estimator": {"type": "history"}}
