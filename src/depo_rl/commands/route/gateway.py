"""``depo route litellm``: the complete configuration of an unmodified LiteLLM proxy."""

from __future__ import annotations

import copy
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import yaml

from ...errors import ConfigError
from ...routing import Router
from ...validation import nearest

CALLBACK = "depo_rl.routing.gateway.callback"
_KEY = "os.environ/LITELLM_MASTER_KEY"


def litellm_config(
    folder: Path, config: Path, *, auto: str, observe: bool, limit_ms: float, default: str | None
) -> str:
    """CONFIG with a model ``auto`` that our callback decides for, in YAML.

    Raises ConfigError if CONFIG lacks a model of the router, or already has one called ``auto``.
    """
    router = Router(folder)
    given = _read(config)
    default = default or router.default
    if default not in router.models:
        raise ConfigError(f"--default {default}: one of {', '.join(router.models)}")
    known = _models(given, config)
    for name in router.models:
        if name not in known:
            raise ConfigError(
                f"{config}: model_list has no model_name {name!r}: the router needs it.{nearest(name, known)}"
            )
    if auto in known:
        raise ConfigError(f"{config}: model_list has a {auto!r} already: --auto names another")
    made = copy.deepcopy(given)
    # Where our callback cannot decide, LiteLLM itself answers with the default model.
    made["model_list"] += [
        {**copy.deepcopy(each), "model_name": auto}
        for each in given["model_list"]
        if each["model_name"] == default
    ]
    settings = _section(made, "litellm_settings", config)
    settings["callbacks"] = list(
        dict.fromkeys([*_listed(settings.get("callbacks")), "prometheus", CALLBACK])
    )
    general = _section(made, "general_settings", config)
    keyed = general.setdefault("master_key", _KEY) != _KEY
    variables = _section(made, "environment_variables", config)
    variables |= {
        "DEPO_ROUTER_DIR": str(folder.resolve()),
        "DEPO_ROUTER_DEFAULT": default,
        "DEPO_ROUTER_AUTO": auto,
        "DEPO_ROUTER_MODE": "observe" if observe else "route",
        "DEPO_ROUTER_LIMIT_MS": f"{limit_ms:g}",
        "DEPO_ROUTER_KEYED": str(int(keyed)),
    }
    return yaml.safe_dump(made, sort_keys=False, allow_unicode=True)


def _read(path: Path) -> dict[str, Any]:
    try:
        value = yaml.safe_load(path.read_bytes())
    except OSError as error:
        raise ConfigError(f"{path}: cannot be read: {error.strerror or error}") from None
    except yaml.YAMLError as error:
        raise ConfigError(f"{path}: not YAML: {error}") from None
    if not isinstance(value, dict):
        raise ConfigError(f"{path}: a LiteLLM configuration is a mapping with a model_list")
    return value


def _models(given: Mapping[str, Any], path: Path) -> set[str]:
    listed = given.get("model_list")
    if not isinstance(listed, list) or not all(
        isinstance(each, dict) and isinstance(each.get("model_name"), str) for each in listed
    ):
        raise ConfigError(f"{path}: model_list must be a list of models, each with a model_name")
    return {each["model_name"] for each in listed}


def _section(made: dict[str, Any], name: str, path: Path) -> dict[str, Any]:
    section = made.setdefault(name, {})
    if section is None:
        section = made[name] = {}
    if not isinstance(section, dict):
        raise ConfigError(f"{path}: {name} must be a mapping")
    return section


def _listed(value: Any) -> list[Any]:
    return value if isinstance(value, list) else [] if value is None else [value]
