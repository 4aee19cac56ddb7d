"""Reads the configuration of ``depo train``: one YAML file and ``key=value`` overrides.

    config = load_train_config("run.yaml", ["trl.max_steps=10", "method=grpo"])

The file is a mapping with the sections of ``TrainConfig``. Paths in a file are relative to the file, paths on the
command line to the current folder.
"""

from __future__ import annotations

import os
import re
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import yaml

from ...errors import ConfigError
from ...validation import nearest, validated
from .config import TrainConfig, check_sections, parse_rewards

READY = Path(__file__).parent / "configs"
_PATHS = (("model", "path"), ("data", "path"), ("data", "eval", "path"), ("output",), ("resume",))
_RESUME_WORDS = ("auto", "never")


def ready_configs() -> dict[str, Path]:
    """Name -> file of the configurations that come with the package."""
    return {path.stem: path for path in sorted(READY.glob("*.yaml"))}


def load_train_config(source: str | os.PathLike[str], overrides: Sequence[str] = ()) -> TrainConfig:
    """Reads a YAML file or a ready configuration by name, applies ``key=value`` overrides and checks everything.

    Raises ConfigError, one line that names the file, the setting, the value, the rule and the mend.
    """
    path, base = find_config(source, ready_configs())
    raw = _absolute(read_yaml(path), base)
    for override in overrides:
        apply_override(raw, override)
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
            raise ConfigError(f"{name}: missing; every configuration needs model, data, reward and output")


def find_config(source: str | os.PathLike[str], ready: Mapping[str, Path]) -> tuple[Path, Path]:
    """The file, or the ready one of that name, and the folder its paths are relative to.

    A ready one writes where the user is, not into the package. Raises ConfigError with the nearest right name.
    """
    path, name = Path(source), os.fspath(source)
    if path.is_file():
        return path, path.resolve().parent
    if name in ready:
        return ready[name], Path.cwd()
    if path.suffix in (".yaml", ".yml") or len(path.parts) > 1:
        raise ConfigError(f"{name}: no such file; give a YAML file or one of: {', '.join(ready)}")
    raise ConfigError(f"{name}: neither a file nor a ready configuration.{nearest(name, ready)}")


class _Loader(yaml.SafeLoader):
    """SafeLoader that refuses a name given twice and reads ``no`` as text, ``1e-6`` as a number (YAML 1.2)."""

    yaml_implicit_resolvers = {  # noqa: RUF012 (as the base class declares it)
        first: [(tag, pattern) for tag, pattern in resolvers if not tag.endswith((":bool", ":float"))]
        for first, resolvers in yaml.SafeLoader.yaml_implicit_resolvers.items()
    }

    def construct_mapping(self, node: yaml.MappingNode, deep: bool = False) -> dict[Any, Any]:
        seen: set[str] = set()
        for key, _ in node.value:
            if key.value in seen and isinstance(key, yaml.ScalarNode):
                raise yaml.constructor.ConstructorError(None, None, f"{key.value!r} is given twice", key.start_mark)
            if isinstance(key, yaml.ScalarNode):
                seen.add(key.value)
        return super().construct_mapping(node, deep)


_Loader.add_implicit_resolver(
    "tag:yaml.org,2002:bool", re.compile(r"^(?:true|True|TRUE|false|False|FALSE)$"), list("tTfF")
)
_Loader.add_implicit_resolver(
    "tag:yaml.org,2002:float",
    re.compile(
        r"^[-+]?(?:(?:\.[0-9]+|[0-9]+\.[0-9]*)(?:[eE][-+]?[0-9]+)?|[0-9]+[eE][-+]?[0-9]+|\.(?:inf|Inf|INF))$|^\.(?:nan|NaN|NAN)$"
    ),
    list("-+0123456789."),
)


def read_yaml(path: Path) -> dict[str, Any]:
    """A mapping of settings. Raises ConfigError that names file, line and problem."""
    try:
        loaded = yaml.load(path.read_text(encoding="utf-8"), Loader=_Loader)
    except (OSError, UnicodeDecodeError) as error:
        raise ConfigError(f"{path}: cannot be read as UTF-8 text: {error}") from None
    except yaml.YAMLError as error:
        mark = getattr(error, "problem_mark", None)
        line = f" line {mark.line + 1}" if mark else ""
        problem = getattr(error, "problem", None) or " ".join(str(error).split())
        raise ConfigError(f"{path}{line}: not valid YAML: {problem}; mend that line") from None
    if not isinstance(loaded, dict) or not all(isinstance(key, str) for key in loaded):
        raise ConfigError(f"{path}: must be a mapping of settings (model, data, ...), found {type(loaded).__name__}")
    return loaded


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
    if not isinstance(path, str):  # a list of them; what is no path is refused with the other settings
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


def apply_override(raw: dict[str, Any], override: str) -> None:
    """Sets one dotted ``key=value`` (the value is YAML) in ``raw``, in place; a number is a place in a list."""
    key, equals, text = override.partition("=")
    *sections, name = parts = key.strip().split(".")
    if not equals or not all(parts):
        raise ConfigError(f"{override!r}: an override must be key=value, for example trl.max_steps=10")
    try:
        value = yaml.load(text, Loader=_Loader)
    except yaml.YAMLError:
        raise ConfigError(f"{override!r}: the value is not valid YAML; put quotes around a text") from None
    if tuple(parts) in _PATHS:
        value = _at(Path.cwd(), value, words=_RESUME_WORDS if name == "resume" else ())
    if name == "function" and isinstance(value, str):
        value = _function_at(Path.cwd(), value)
    here: Any = raw
    for depth, section in enumerate(sections):
        here = _step(here, section, override, ".".join(parts[: depth + 1]), make=True)
    if isinstance(here, list):
        _step(here, name, override, key, make=False)
        here[int(name)] = value
    else:
        here[name] = value


def _step(here: Any, section: str, override: str, path: str, make: bool) -> Any:
    if isinstance(here, list):
        if not section.isdigit() or int(section) >= len(here):
            raise ConfigError(f"{override!r}: {path} must be a place in a list of {len(here)}, 0 the first")
        return here[int(section)]
    if here.get(section) is None and make:
        here[section] = {}
    if not isinstance(here[section], (dict, list)):
        raise ConfigError(f"{override!r}: {path} = {here[section]!r} is a value, not a section: nothing is below it")
    return here[section]
