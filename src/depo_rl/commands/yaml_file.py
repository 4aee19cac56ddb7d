"""YAML files of settings, for all commands: found by path or by name, read strictly, changed by
``key=value``."""

from __future__ import annotations

import os
import re
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any

import yaml

from ..errors import ConfigError
from ..validation import nearest

Keys = Sequence[str]
"""The parts of a dotted key."""


def ready_files(folder: Path) -> dict[str, Path]:
    """Name -> file of the configurations in ``folder``, which come with the package."""
    return {path.stem: path for path in sorted(folder.glob("*.yaml"))}


def find_config(source: str | os.PathLike[str], ready: Mapping[str, Path]) -> tuple[Path, Path]:
    """The file, or the ready one of that name, and the folder its paths are relative to.

    A ready one writes where the user is, not into the package. Raises ConfigError with the nearest
    right name.
    """
    path = Path(source)
    name = os.fspath(source)
    if path.is_file():
        return path, path.resolve().parent
    if name in ready:
        return ready[name], Path.cwd()
    if path.suffix in (".yaml", ".yml") or len(path.parts) > 1:
        raise ConfigError(f"{name}: no such file; give a YAML file or one of: {', '.join(ready)}")
    raise ConfigError(f"{name}: neither a file nor a ready configuration.{nearest(name, ready)}")


class _Loader(yaml.SafeLoader):
    """SafeLoader that refuses a name given twice and reads ``no`` as text, ``1e-6`` as a number
    (YAML 1.2)."""

    yaml_implicit_resolvers = {  # noqa: RUF012 (as the base class declares it)
        first: [
            (tag, pattern) for tag, pattern in resolvers if not tag.endswith((":bool", ":float"))
        ]
        for first, resolvers in yaml.SafeLoader.yaml_implicit_resolvers.items()
    }

    def construct_mapping(self, node: yaml.MappingNode, deep: bool = False) -> dict[Any, Any]:
        seen: set[str] = set()
        for key, _ in node.value:
            if key.value in seen and isinstance(key, yaml.ScalarNode):
                raise yaml.constructor.ConstructorError(
                    None, None, f"{key.value!r} is given twice", key.start_mark
                )
            if isinstance(key, yaml.ScalarNode):
                seen.add(key.value)
        return super().construct_mapping(node, deep)


_Loader.add_implicit_resolver(
    "tag:yaml.org,2002:bool", re.compile(r"^(?:true|True|TRUE|false|False|FALSE)$"), list("tTfF")
)
_Loader.add_implicit_resolver(
    "tag:yaml.org,2002:float",
    re.compile(
        r"^[-+]?(?:(?:\.[0-9]+|[0-9]+\.[0-9]*)(?:[eE][-+]?[0-9]+)?|[0-9]+[eE][-+]?[0-9]+|\.(?:inf|Inf|INF))$"
        r"|^\.(?:nan|NaN|NAN)$"
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
        raise ConfigError(f"{path}: must be a mapping of settings, found {type(loaded).__name__}")
    return loaded


def yaml_value(text: str) -> Any:
    """A value as it would be in a file. Raises yaml.YAMLError."""
    return yaml.load(text, Loader=_Loader)


def parse_override(override: str) -> tuple[list[str], Any]:
    """The parts of the key and the value, which is YAML, of a dotted ``key=value``. Raises
    ConfigError."""
    key, equals, text = override.partition("=")
    parts = key.strip().split(".")
    if not equals or not all(parts):
        raise ConfigError(
            f"{override!r}: an override must be key=value, for example trl.max_steps=10"
        )
    try:
        return parts, yaml_value(text)
    except yaml.YAMLError:
        raise ConfigError(
            f"{override!r}: the value is not valid YAML; put quotes around a text"
        ) from None


def apply_override(
    raw: dict[str, Any],
    override: str,
    resolve: Callable[[Keys, Any], Any] = lambda keys, value: value,
) -> None:
    """Sets one dotted ``key=value`` in ``raw``, in place; a number is a place in a list.

    resolve: makes the value to set of the one that was given. Raises ConfigError.
    """
    parts, value = parse_override(override)
    *sections, name = parts
    here: Any = raw
    for depth, section in enumerate(sections):
        here = _step(here, section, override, ".".join(parts[: depth + 1]))
    if isinstance(here, list):
        here[_place(here, name, override, ".".join(parts))] = resolve(parts, value)
    else:
        here[name] = resolve(parts, value)


def _step(here: Any, section: str, override: str, path: str) -> Any:
    """What is below ``section``; an empty section is made."""
    if isinstance(here, list):
        return here[_place(here, section, override, path)]
    if here.get(section) is None:
        here[section] = {}
    if not isinstance(here[section], (dict, list)):
        raise ConfigError(
            f"{override!r}: {path} = {here[section]!r} is a value, not a section: nothing is below it"
        )
    return here[section]


def _place(items: list[Any], name: str, override: str, path: str) -> int:
    if not name.isdigit() or int(name) >= len(items):
        raise ConfigError(
            f"{override!r}: {path} must be a place in a list of {len(items)}, 0 the first"
        )
    return int(name)
