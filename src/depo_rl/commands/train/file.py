"""Reads the configuration of ``depo train``: one YAML file and ``key=value`` overrides.

    config = load_train_config("run.yaml", ["trl.max_steps=10", "method=grpo"])

The file is a mapping with the sections of ``TrainConfig``. Paths in a file are relative to the
file, paths on the command line to the current folder.
"""

from __future__ import annotations

import os
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from ...errors import ConfigError
from ...validation import validated
from ..yaml_file import apply_override, find_config, read_yaml, ready_files
from .config import TrainConfig, check_sections, parse_rewards

READY = Path(__file__).parent / "configs"
_PATHS = (("model", "path"), ("data", "path"), ("data", "eval", "path"), ("output",), ("resume",))
_RESUME_WORDS = ("auto", "never")


def ready_configs() -> dict[str, Path]:
    """Name -> file of the configurations that come with the package."""
    return ready_files(READY)


def load_train_config(source: str | os.PathLike[str], overrides: Sequence[str] = ()) -> TrainConfig:
    """Reads a YAML file or a ready configuration by name, applies ``key=value`` overrides and
    checks everything.

    Raises ConfigError, one line that names the file, the setting, the value, the rule and the mend.
    """
    path, base = find_config(source, ready_configs())
    raw = _absolute(read_yaml(path), base)
    for override in overrides:
        apply_override(raw, override, _resolved)
    try:
        raw["reward"] = parse_rewards(raw.get("reward"))
        _require(raw)
        config = validated(TrainConfig, raw, "setting")
        check_sections(config)
    except ConfigError as error:
        raise ConfigError(f"{source}: {str(error).removeprefix('setting: ')}") from None
    return config


def _require(raw: Mapping[str, Any]) -> None:
    for name, field in TrainConfig.model_fields.items():
        if field.is_required() and raw.get(name) is None:
            raise ConfigError(
                f"{name}: missing; every configuration needs model, data, reward and output"
            )


def _absolute(raw: dict[str, Any], base: Path) -> dict[str, Any]:
    """Makes the known paths of a file absolute, in place."""
    for *sections, name in _PATHS:
        here: Any = raw
        for section in sections:
            here = here.get(section) if isinstance(here, dict) else None
        if isinstance(here, dict) and isinstance(here.get(name), (str, list)):
            here[name] = _at(base, here[name], words=_RESUME_WORDS if name == "resume" else ())
    return raw | ({"reward": _reward_files(raw["reward"], base)} if raw.get("reward") else {})


def _at(base: Path, path: Any, words: Sequence[str] = ()) -> Any:
    if not isinstance(
        path, str
    ):  # a list of them; what is no path is refused with the other settings
        return [_at(base, one) for one in path] if isinstance(path, list) else path
    return path if path in words or not path else str(base / Path(path).expanduser())


def _reward_files(rewards: Any, base: Path) -> Any:
    """``file.py:function`` with the file made absolute; ``module:function`` as it is."""
    if isinstance(rewards, list):
        return [_reward_files(reward, base) for reward in rewards]
    if isinstance(rewards, dict) and isinstance(rewards.get("function"), str):
        return rewards | {"function": _function_at(base, rewards["function"])}
    return rewards


def _function_at(base: Path, function: str) -> str:
    file, colon, name = function.rpartition(":")
    return f"{_at(base, file)}{colon}{name}" if file.endswith(".py") else function


def _resolved(keys: Sequence[str], value: Any) -> Any:
    """An override's value with its paths made absolute, if it has any."""
    if keys[-1] == "function" and isinstance(value, str):
        return _function_at(Path.cwd(), value)
    is_path = tuple(keys) in _PATHS
    return (
        _at(Path.cwd(), value, words=_RESUME_WORDS if keys[-1] == "resume" else ())
        if is_path
        else value
    )
