"""``depo verl-config``: one YAML file becomes the complete verl command, so that nobody writes
overrides by hand.

    method: depo                  # and the other settings of ``data.depo`` (engines/verl/settings.py)
    curriculum: {band: auto}
    verl:                         # verl's own tree; a name that verl does not have yet starts with +
      data: {train_files: train.parquet}
      actor_rollout_ref: {rollout: {n: 8}}

What a curriculum needs of verl is added: dataset, replay buffer, no data workers, the filter of
groups for methods that drop them. What verl or the dataset would refuse on the cluster is refused
here. Needs neither verl nor ray.

Variables of the shell ($HOME, ${DATA}) and a leading ~ mean what they mean where the command runs;
everything else of a value, OmegaConf's ${trainer.project_name} among it, reaches verl as it stands.
"""

from __future__ import annotations

import os
import re
import shlex
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from pydantic import Field, field_validator

from ..config import CurriculumConfig
from ..engines.verl.checks import check_gate, check_run, files_of
from ..engines.verl.names import ADVANTAGES, DATASET, DATASET_CLASS, MODES, REPLAY, buffer_name
from ..engines.verl.settings import VerlSettings, check_admission
from ..errors import ConfigError, EngineError
from ..gates import AdmitAll
from ..methods import get_method
from ..protocols import Gate
from ..validation import validated
from .yaml_file import apply_override, find_config, read_yaml, ready_files

READY = Path(__file__).parent / "verl_configs"
OWNED = {
    "data.custom_cls": "the dataset that chooses",
    "data.depo": "the settings above section verl",
    "trainer.v1.sampler.custom_sampler": "the replay buffer that observes",
}
_NEEDED = (
    "data.train_files",
    "data.val_files",
    "data.train_batch_size",
    "actor_rollout_ref.model.path",
)
_PLAIN = re.compile(r"[A-Za-z0-9_./:@\-]+")
_NOT_TEXT = re.compile(
    r"[-+]?([0-9._]+([eE][-+]?[0-9]+)?|inf|nan)|true|false|null|none", re.IGNORECASE
)
_NO_BOOL = re.compile(r"yes|no|on|off", re.IGNORECASE)
_SHELL_VARIABLE = re.compile(
    r"\$(?:[A-Za-z_]\w*|\{[A-Z_][A-Z0-9_]*(?::?[-=?+][\w./:-]*)?\})", re.ASCII
)
_UNKNOWN_HERE = re.compile(r"\$|\?\?\?$")
_USUAL_GROUP = 8  # where the group size is known on the cluster only


class VerlRun(VerlSettings):
    """A file of ``depo verl-config``."""

    verl: dict[str, Any] = Field(description="verl's own configuration, as a tree")
    environment: dict[str, str] = Field(
        default_factory=dict, description="variables of the command"
    )

    @field_validator("environment", mode="before")
    @classmethod
    def _texts(cls, value: Any) -> Any:
        """Variables are texts, and 1 in YAML is a number."""
        if not isinstance(value, Mapping):
            return {} if value is None else value
        if bad := [
            name for name in value if not re.fullmatch(r"[A-Za-z_]\w*", str(name), re.ASCII)
        ]:
            raise ValueError(f"{bad[0]!r} is no name of a variable")
        return {
            name: str(v) if isinstance(v, (int, float)) and not isinstance(v, bool) else v
            for name, v in value.items()
        }


@dataclass(frozen=True)
class VerlCommand:
    """environment: variables to set. arguments: overrides of ``python -m verl.trainer.main_ppo``,
    in order.

    Both may hold variables of the shell, which ``script`` leaves to it.
    """

    environment: Mapping[str, str]
    arguments: Sequence[str]

    def script(self, made_from: str) -> str:
        """A shell script; more overrides may be given to it."""
        exports = [f"export {name}={shell_word(value)}" for name, value in self.environment.items()]
        lines = ["python -m verl.trainer.main_ppo", *map(shell_word, self.arguments), '"$@"']
        made_by = f"# Made by: depo verl-config {' '.join(made_from.split())}"
        head = ["#!/usr/bin/env bash", made_by, "set -euo pipefail", *exports]
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
    own = {name: _home(value) for name, value in _flat(run.verl) if not _empty(name, value)}
    given = {name.replace("+", ""): value for name, value in own.items()}
    _check(given)
    mode = given.get("trainer.v1.trainer_mode", "sync")
    config = run.curriculum_config(_group_size(given), _seed(given))
    gate = get_method(run.method).gate(config)
    added = _plumbing(mode) | _for_gate(run, gate, given) | _for_estimator(config, given)
    added |= _for_importance(config, given)
    root = _tree(given | added)
    check_run(root, config)
    check_gate(root, run, gate)
    settings = run.model_dump(exclude_unset=True, exclude={"verl", "environment"}) | {
        "method": run.method
    }
    depo = {f"+data.depo.{name}": _home(value) for name, value in _flat(settings)}
    left = {name: value for name, value in own.items() if not _owned(name.replace("+", ""))}
    arguments = [f"{name}={hydra_value(value)}" for name, value in (left | added | depo).items()]
    environment = {name: _home(value) for name, value in run.environment.items()}
    if mode == "separate_async" and given.get("actor_rollout_ref.hybrid_engine") is False:
        # verl 0.9.1 fails in a log line of its own below that
        environment.setdefault("VERL_LOGGING_LEVEL", "WARN")
    return VerlCommand(environment, arguments)


def _check(given: Mapping[str, Any]) -> None:
    for name, value in given.items():
        if (owned := _owned(name)) and value not in (None, {}):
            raise ConfigError(f"verl.{name}: is set by this command ({OWNED[owned]}); leave it out")
        if isinstance(value, str) and _NO_BOOL.fullmatch(value):
            raise ConfigError(f"verl.{name} = {value!r}: is read as a text; write true or false")
        if _is_section(name):
            raise ConfigError(f"verl.{name} = {value!r}: is a section; give its settings by name")
    for name in _NEEDED:
        if given.get(name) in (None, "", [], {}, "???"):
            raise ConfigError(f"verl.{name}: missing; it has no default that could be right")
    _whole(given, "data.train_batch_size", least=1, unknown=1)
    if given.get("data.dataloader_num_workers") not in (None, 0):
        raise ConfigError(
            f"verl.data.dataloader_num_workers = {given['data.dataloader_num_workers']}: must be 0, because worker "
            "processes never see an outcome; leave it out"
        )
    mode = given.get("trainer.v1.trainer_mode", "sync")
    if mode not in MODES:
        raise ConfigError(
            f"verl.trainer.v1.trainer_mode = {mode!r}: must be one of {', '.join(MODES)}"
        )
    if isinstance(given.get("trainer.use_v1"), str):
        raise ConfigError(
            f"verl.trainer.use_v1 = {given['trainer.use_v1']!r}: must be true or false"
        )
    if _files(given, "data.train_files") == _files(given, "data.val_files"):
        raise ConfigError(
            f"verl.data.val_files = {given['data.val_files']!r}: is data.train_files, and verl does not tell a dataset "
            "which of the two it is; give validation a file of its own (a copy will do)"
        )


def _is_section(name: str) -> bool:
    """One of verl's that holds a setting which this command reads or sets."""
    return any(known.startswith(f"{name}.") for known in (*_NEEDED, *OWNED, *_DEFAULTS))


def _empty(name: str, value: Any) -> bool:
    """A section whose every line is commented out reads as null."""
    return value in (None, {}) and _is_section(name.replace("+", ""))


def _owned(name: str) -> str | None:
    return next((owned for owned in OWNED if name == owned or name.startswith(f"{owned}.")), None)


def _files(given: Mapping[str, Any], name: str) -> set[str]:
    """The files of a setting, however their paths are written."""
    value = given[name]
    if value in ("${data.train_files}", "${.train_files}"):
        value = given["data.train_files"]
    names = value if isinstance(value, list) else [value]
    if not all(isinstance(file, str) and file for file in names):
        raise ConfigError(f"verl.{name} = {value!r}: must be a file or a list of files")
    return {os.path.normpath(file.replace("${HOME}", "$HOME")) for file in files_of(value)}


def _group_size(given: Mapping[str, Any]) -> int:
    """``rollout.n``, verl's default of which is 1."""
    return _whole(given, "actor_rollout_ref.rollout.n", least=2, unknown=_USUAL_GROUP)


def _seed(given: Mapping[str, Any]) -> int:
    """``data.seed``; null, verl's default, is 0 for the curriculum, as the dataset reads it."""
    return 0 if given.get("data.seed") is None else _whole(given, "data.seed", least=0, unknown=0)


def _whole(given: Mapping[str, Any], name: str, least: int, unknown: int) -> int:
    """A whole number, or ``unknown`` where it is an interpolation or a variable, which the cluster
    resolves."""
    value = given.get(name)
    if isinstance(value, str) and _UNKNOWN_HERE.match(value) and value != "???":
        return unknown
    if isinstance(value, bool) or not isinstance(value, int) or value < least:
        raise ConfigError(f"verl.{name} = {value!r}: must be a whole number of at least {least}")
    return value


class _Tree(dict[str, Any]):
    """A mapping with attributes, as verl's configuration is."""

    def __getattr__(self, name: str) -> Any:
        return self[name]


_DEFAULTS: dict[str, Any] = {
    "trainer.v1.trainer_mode": "sync", "trainer.v1.sampler.custom_sampler.path": None,
    "reward.reward_model.enable": False, "reward.reward_model.enable_resource_pool": False,
    "actor_rollout_ref.rollout.n": 1, "algorithm.adv_estimator": "gae",
}  # fmt: skip
"""verl's own, of what the checks read."""


def _tree(settings: Mapping[str, Any]) -> _Tree:
    """verl's configuration as far as the checks read it, with its hybrid engine: this command sets
    what the other one needs of the environment."""
    root = _Tree()
    for name, value in {**_DEFAULTS, **settings, "actor_rollout_ref.hybrid_engine": True}.items():
        *sections, last = name.split(".")
        here = root
        for section in sections:
            if not isinstance(here.get(section), _Tree):
                here[section] = _Tree()
            here = here[section]
        here[last] = value
    return root


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
    metric = given.get("algorithm.filter_groups.metric") or run.correct_key
    return {"algorithm.filter_groups.enable": True, "algorithm.filter_groups.metric": metric}


def _for_estimator(config: CurriculumConfig, given: Mapping[str, Any]) -> dict[str, Any]:
    """The encoder learns from the policy's confidence too, which verl computes on demand."""
    wants = (
        config.estimator.type == "encoder" and getattr(config.estimator, "distill_weight", 0) > 0
    )
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


def _home(value: Any) -> Any:
    """``$HOME`` for a leading ~: bash expands that at the start of a word only, and verl not
    everywhere."""
    if isinstance(value, str):
        return re.sub(r"\A~(?=/|\Z)", "$HOME", value)
    if isinstance(value, Mapping):
        return {name: _home(inner) for name, inner in value.items()}
    return [_home(inner) for inner in value] if isinstance(value, (list, tuple)) else value


def hydra_value(value: Any) -> str:
    """As Hydra's grammar of overrides reads it back."""
    if value is None:
        return "null"
    if isinstance(value, (bool, int, float)):
        return str(value)
    if isinstance(value, (list, tuple)):
        return "[" + ",".join(map(hydra_value, value)) + "]"
    if isinstance(value, Mapping):
        return (
            "{"
            + ",".join(f"{_hydra_key(name)}:{hydra_value(inner)}" for name, inner in value.items())
            + "}"
        )
    text = str(value)
    if _PLAIN.fullmatch(text) and not _NOT_TEXT.fullmatch(text):
        return text
    # for a reader too, whom single quotes tell: literal
    quote = '"' if _SHELL_VARIABLE.search(text) else "'"
    return (
        quote
        + re.sub(rf"(\\*)({quote}|$)", lambda m: m[1] * 2 + (f"\\{quote}" if m[2] else ""), text)
        + quote
    )


def _hydra_key(name: Any) -> str:
    """A key of a mapping, which Hydra takes without quotes only."""
    return re.sub(r"([\\()\[\]{}:=, \t])", r"\\\1", str(name))


def shell_word(text: str) -> str:
    """For bash, typed or in a script: variables are left to it, everything else is literal."""
    if not _SHELL_VARIABLE.search(text):
        return shlex.quote(text)
    parts = []
    end = 0
    for match in _SHELL_VARIABLE.finditer(text):
        parts += [_in_double_quotes(text[end : match.start()]), match[0]]
        end = match.end()
    return '"' + "".join(parts) + _in_double_quotes(text[end:]) + '"'


def _in_double_quotes(text: str) -> str:
    escaped = re.sub(r'([\\"$`])', r"\\\1", text)
    # at a prompt ! is a command of the history, in double quotes too
    return escaped.replace("!", "\"'!'\"")
