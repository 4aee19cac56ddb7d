"""``depo verl-config``: one YAML file becomes the complete verl command, so that nobody writes overrides by hand.

    method: depo                  # and the other settings of ``data.depo`` (engines/verl/settings.py)
    curriculum: {band: auto}
    verl:                         # verl's own tree; a name that verl does not have yet starts with +
      data: {train_files: train.parquet}
      actor_rollout_ref: {rollout: {n: 8}}

What a curriculum needs of verl is added: dataset, replay buffer, no data workers, the filter of groups for methods that
drop them. Needs neither verl nor ray.
"""

from __future__ import annotations

import os
import re
import shlex
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from pydantic import Field

from ..config import CurriculumConfig
from ..engines.verl.names import ADVANTAGES, DATASET, DATASET_CLASS, MODES, REPLAY, buffer_name
from ..engines.verl.settings import VerlSettings, check_admission
from ..errors import ConfigError, EngineError
from ..gates import AdmitAll
from ..methods import rule_of
from ..types import Gate
from ..validation import validated
from .yaml_file import apply_override, find_config, read_yaml, ready_files

READY = Path(__file__).parent / "verl_configs"
OWNED = {
    "data.custom_cls": "the dataset that chooses",
    "data.depo": "the settings above section verl",
    "trainer.v1.sampler.custom_sampler": "the replay buffer that observes",
}
_NEEDED = ("data.train_files", "data.val_files", "data.train_batch_size", "actor_rollout_ref.model.path")
_PLAIN = re.compile(r"^[A-Za-z0-9_./:@\-]+$")
_NOT_TEXT = re.compile(r"^([-+]?[0-9._]+([eE][-+]?[0-9]+)?|true|false|null|inf|nan|none)$", re.IGNORECASE)


class VerlRun(VerlSettings):
    """A file of ``depo verl-config``."""

    verl: dict[str, Any] = Field(description="verl's own configuration, as a tree")
    environment: dict[str, str] = Field(default_factory=dict, description="variables of the command")


@dataclass(frozen=True)
class VerlCommand:
    """environment: variables to set. arguments: overrides of ``python -m verl.trainer.main_ppo``, in order."""

    environment: Mapping[str, str]
    arguments: Sequence[str]

    def script(self, made_from: str) -> str:
        """A shell script; more overrides may be given to it."""
        exports = [f"export {name}={shlex.quote(value)}" for name, value in self.environment.items()]
        lines = ["python -m verl.trainer.main_ppo", *map(shlex.quote, self.arguments), '"$@"']
        head = ["#!/usr/bin/env bash", f"# Made by: depo verl-config {made_from}", "set -euo pipefail", *exports]
        return "\n".join([*head, " \\\n    ".join(lines)]) + "\n"


def ready_verl_configs() -> dict[str, Path]:
    """Name -> file of the configurations that come with the package."""
    return ready_files(READY)


def verl_command(source: str | os.PathLike[str], overrides: Sequence[str] = ()) -> VerlCommand:
    """The command for a YAML file or a ready configuration, with ``key=value`` settings over it.

    Raises ConfigError, one line that names the file, the setting, the value, the rule and the mend.
    """
    path, _ = find_config(source, ready_verl_configs())
    raw = read_yaml(path)
    for override in overrides:
        apply_override(raw, override)
    try:
        run = validated(VerlRun, raw, "setting")
        return _command(run)
    except (ConfigError, EngineError) as error:
        raise ConfigError(f"{source}: {str(error).removeprefix('setting: ')}") from None


def _command(run: VerlRun) -> VerlCommand:
    own = dict(_flat(run.verl))
    given = {name.replace("+", ""): value for name, value in own.items()}
    _check(given)
    mode = given.get("trainer.v1.trainer_mode", "sync")
    config = run.curriculum_config(_whole(given, "actor_rollout_ref.rollout.n", 2), _whole(given, "data.seed", 0, 0))
    added = _plumbing(mode) | _for_gate(run, rule_of(run.method, config).gate, given) | _for_estimator(config, given)
    added |= _for_importance(config, given)
    settings = run.model_dump(exclude_unset=True, exclude={"verl", "environment"}) | {"method": run.method}
    depo = {f"+data.depo.{name}": value for name, value in _flat(settings)}
    arguments = [f"{name}={hydra_value(value)}" for name, value in (own | added | depo).items()]
    environment = dict(run.environment)
    if mode == "separate_async" and given.get("actor_rollout_ref.hybrid_engine") is False:
        environment.setdefault("VERL_LOGGING_LEVEL", "WARN")  # verl 0.9.1 fails in a log line of its own below that
    return VerlCommand(environment, arguments)


def _check(given: Mapping[str, Any]) -> None:
    for name in given:
        for owned, what in OWNED.items():
            if name == owned or name.startswith(f"{owned}."):
                raise ConfigError(f"verl.{name}: is set by this command ({what}); leave it out")
    for name in _NEEDED:
        if given.get(name) in (None, ""):
            raise ConfigError(f"verl.{name}: missing; it has no default that could be right")
    if given.get("data.dataloader_num_workers", 0) != 0:
        raise ConfigError(
            f"verl.data.dataloader_num_workers = {given['data.dataloader_num_workers']}: must be 0, because worker "
            "processes never see an outcome; leave it out"
        )
    mode = given.get("trainer.v1.trainer_mode", "sync")
    if mode not in MODES:
        raise ConfigError(f"verl.trainer.v1.trainer_mode = {mode!r}: must be one of {', '.join(MODES)}")


def _whole(given: Mapping[str, Any], name: str, least: int, default: int | None = None) -> int:
    value = given.get(name, default)
    if isinstance(value, bool) or not isinstance(value, int) or value < least:
        raise ConfigError(f"verl.{name} = {value!r}: must be a whole number of at least {least}")
    return value


def _plumbing(mode: str) -> dict[str, Any]:
    return {
        "data.dataloader_num_workers": 0,
        "data.custom_cls.path": DATASET,
        "data.custom_cls.name": DATASET_CLASS,
        "trainer.v1.sampler.custom_sampler.path": REPLAY,
        "trainer.v1.sampler.custom_sampler.name": buffer_name(mode),
    }


def _for_gate(run: VerlRun, gate: Gate, given: Mapping[str, Any]) -> dict[str, Any]:
    check_admission(run.method, gate)
    if isinstance(gate, AdmitAll):
        return {}
    if given.get("algorithm.filter_groups.enable", True) is not True:
        raise ConfigError(
            f"verl.algorithm.filter_groups.enable = {given['algorithm.filter_groups.enable']!r}: method {run.method!r} "
            "drops groups that are all right or all wrong, which verl does for it; leave it out, or set gate to none"
        )
    metric = given.get("algorithm.filter_groups.metric", run.correct_key)
    return {"algorithm.filter_groups.enable": True, "algorithm.filter_groups.metric": metric}


def _for_estimator(config: CurriculumConfig, given: Mapping[str, Any]) -> dict[str, Any]:
    """The encoder learns from the policy's confidence too, which verl computes on demand."""
    wants = config.estimator.type == "encoder" and getattr(config.estimator, "distill_weight", 0) > 0
    name = "actor_rollout_ref.rollout.calculate_log_probs"
    return {name: True} if wants and name not in given else {}


def _for_importance(config: CurriculumConfig, given: Mapping[str, Any]) -> dict[str, Any]:
    """GRPO's advantages with weights, by a name of our own, in the place of verl's."""
    if not config.importance:
        return {}
    estimator = given.get("algorithm.adv_estimator", "gae")
    if estimator not in ("grpo", ADVANTAGES):
        raise ConfigError(
            f"curriculum.importance = {config.importance}: weighs GRPO's advantages, and "
            f"verl.algorithm.adv_estimator = {estimator!r}: set that to grpo, or importance to 0"
        )
    return {"algorithm.adv_estimator": ADVANTAGES}


def _flat(tree: Mapping[str, Any], path: str = "") -> Iterator[tuple[str, Any]]:
    """(dotted name, value); a + at any place moves to the front, where Hydra wants it."""
    for name, value in tree.items():
        here = f"{path}.{name}" if path else str(name)
        if isinstance(value, Mapping) and value:
            yield from _flat(value, here)
        else:
            yield ("+" if "+" in here else "") + here.replace("+", ""), value


def hydra_value(value: Any) -> str:
    """As Hydra's grammar of overrides reads it back."""
    if value is None:
        return "null"
    if isinstance(value, (bool, int, float)):
        return str(value)
    if isinstance(value, (list, tuple)):
        return "[" + ",".join(map(hydra_value, value)) + "]"
    if isinstance(value, Mapping):
        return "{" + ",".join(f"{name}:{hydra_value(inner)}" for name, inner in value.items()) + "}"
    text = str(value)
    if _PLAIN.match(text) and not _NOT_TEXT.match(text):
        return text
    return "'" + re.sub(r"(\\*)('|$)", lambda m: m[1] * 2 + ("\\'" if m[2] else ""), text) + "'"
