"""From a ``TrainConfig`` to the arguments of TRL: batch layout, types and names checked before
anything is built."""

from __future__ import annotations

import dataclasses
import math
import os
import sys
import typing
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import Any

from pydantic import ConfigDict, TypeAdapter, ValidationError

from ...errors import ConfigError, EngineError
from ...validation import nearest
from .config import OWNED, TrainConfig, whole_number

# What TRL takes, and then fails on in its first step, minutes after the dry run said that all is well.
_RULES: Mapping[str, tuple[str, Callable[[Any], bool]]] = {
    "learning_rate": ("a finite number of at least 0", lambda value: 0 <= value < math.inf),
    "temperature": ("a finite number above 0", lambda value: 0 < value < math.inf),
    "repetition_penalty": ("a finite number above 0", lambda value: 0 < value < math.inf),
    "max_completion_length": ("at least 1", lambda value: value >= 1),
    "top_k": ("at least 0", lambda value: value >= 0),
    "min_p": ("from 0 to 1", lambda value: 0 <= value <= 1),
    "beta": ("finite", math.isfinite),
    "adam_beta1": ("at least 0 and below 1", lambda value: 0 <= value < 1),
    "adam_beta2": ("at least 0 and below 1", lambda value: 0 <= value < 1),
    "dataloader_num_workers": ("at least 0", lambda value: value >= 0),
    "scale_rewards": (
        "group, batch, none, true or false",
        lambda value: value in ("group", "batch", "none", "true", "false", True, False),
    ),
    "importance_sampling_level": (
        "token or sequence",
        lambda value: value in ("token", "sequence"),
    ),
}


@dataclass(frozen=True, slots=True)
class BatchLayout:
    """How many completions are made and trained on, over all processes.

    generation_batch_size: completions generated at a time. num_iterations: optimiser passes over
    each of them.
    """

    group_size: int
    per_device_train_batch_size: int
    n_processes: int
    gradient_accumulation_steps: int
    generation_batch_size: int
    num_iterations: int

    @property
    def prompts_per_generation(self) -> int:
        return self.generation_batch_size // self.group_size

    @property
    def prompts_per_step(self) -> float:
        """Groups in one optimiser step."""
        return self._completions_per_step / self.group_size

    @property
    def steps_per_generation(self) -> float:
        """Optimiser steps that one generation lasts for."""
        return self.generation_batch_size * self.num_iterations / self._completions_per_step

    @property
    def _completions_per_step(self) -> int:
        return (
            self.per_device_train_batch_size * self.n_processes * self.gradient_accumulation_steps
        )


def n_processes() -> int:
    """Processes of this run, as torchrun and accelerate say it."""
    return int(os.environ.get("WORLD_SIZE", "1"))


def batch_layout(config: TrainConfig) -> BatchLayout:
    """The layout that ``trl`` and ``prompts_per_step`` give. Raises ConfigError if groups do not
    fit whole."""
    group_size = config.group_size
    world = n_processes()
    per_device = whole_number(config.trl, "per_device_train_batch_size", 8, least=1)
    accumulation = _accumulation(config, group_size, per_device * world)
    micro_batches = whole_number(config.trl, "steps_per_generation", accumulation, least=1)
    generation = whole_number(
        config.trl, "generation_batch_size", per_device * world * micro_batches, least=1
    )
    if generation % group_size or generation % (per_device * world):
        raise ConfigError(
            f"trl: {generation} completions a generation (per_device_train_batch_size {per_device} x {world} processes "
            f"x {micro_batches}) must be a multiple of num_generations = {group_size} and of {per_device * world}: "
            "change trl.gradient_accumulation_steps, or set prompts_per_step"
        )
    iterations = whole_number(config.trl, "num_iterations", 1, least=1)
    return BatchLayout(group_size, per_device, world, accumulation, generation, iterations)


def _accumulation(config: TrainConfig, group_size: int, completions_at_once: int) -> int:
    if config.prompts_per_step is None:
        return whole_number(config.trl, "gradient_accumulation_steps", 1, least=1)
    for name in ("gradient_accumulation_steps", "steps_per_generation", "generation_batch_size"):
        if config.trl.get(name) is not None:
            raise ConfigError(
                f"trl.{name} = {config.trl[name]!r}: follows from prompts_per_step; set one of the two"
            )
    completions = config.prompts_per_step * group_size
    if completions % completions_at_once:
        raise ConfigError(
            f"prompts_per_step = {config.prompts_per_step}: {completions} completions are not a multiple of the "
            f"{completions_at_once} that trl.per_device_train_batch_size x processes make at once: change one of them"
        )
    return completions // completions_at_once


def check_pool(n_prompts: int, layout: BatchLayout, where: str) -> None:
    """Raises ConfigError if one generation needs more distinct prompts than there are."""
    if n_prompts < layout.prompts_per_generation:
        raise ConfigError(
            f"{where}: {n_prompts} prompts, but one generation takes {layout.prompts_per_generation} distinct ones: "
            "give more data, or lower prompts_per_step or trl.per_device_train_batch_size x gradient_accumulation_steps"
        )


def engine() -> Any:
    """The module ``depo_rl.engines.trl``; EngineError with the mend if TRL is not installed."""
    try:
        from ...engines import trl
    except ModuleNotFoundError as error:
        if error.name and error.name.startswith("depo_rl"):
            raise
        raise EngineError(
            f"depo train needs the module {error.name!r}: pip install './depo-rl[trl]'"
        ) from None
    return trl


def depo_kwargs(
    config: TrainConfig, layout: BatchLayout, correct_reward: str | None
) -> dict[str, Any]:
    """Keyword arguments of ``DEPOConfig``, every ``trl`` setting checked by name and type."""
    given = typed_settings(engine().DEPOConfig, config.trl, "trl", not_these=OWNED)
    _check_values(given)
    given["gradient_accumulation_steps"] = layout.gradient_accumulation_steps
    given.setdefault("disable_tqdm", not sys.stderr.isatty())
    init = {"dtype": config.model.dtype, "revision": config.model.revision}
    init["attn_implementation"] = config.model.attn_implementation
    return given | {
        "output_dir": config.output,
        "method": config.method,
        "curriculum": dict(config.curriculum),
        "correct_reward": correct_reward,
        "correct_threshold": config.correct.threshold,
        "outcome_log": config.outcome_log,
        "reward_weights": [reward.weight for reward in config.reward],
        "model_init_kwargs": {name: value for name, value in init.items() if value is not None},
        "trust_remote_code": config.model.trust_remote_code,
    }


def _check_values(given: Mapping[str, Any]) -> None:
    """Raises ConfigError for a value of ``trl`` that no step could be done with."""
    for name, value in given.items():
        if isinstance(value, float) and math.isnan(value):
            raise ConfigError(f"trl.{name} = {value!r}: must be a number")
        says, holds = _RULES.get(name, ("", lambda value: True))
        if value is not None and not holds(value):
            raise ConfigError(f"trl.{name} = {value!r}: must be {says}")


def build_args(kwargs: Mapping[str, Any]) -> Any:
    """The ``DEPOConfig``; what it refuses, or a reporter that there is not, becomes a one-line
    ConfigError."""
    trl = engine()
    from transformers.integrations import get_reporting_integration_callbacks

    try:
        args = trl.DEPOConfig(**kwargs)
        get_reporting_integration_callbacks(args.report_to)
        return args
    except ConfigError:
        raise
    except (ValueError, TypeError, ImportError, OverflowError) as error:
        reason = " ".join(str(error).split())
        if "use_cpu" in reason:
            reason = "this machine has no GPU that can do bfloat16: on a CPU set trl.use_cpu=true and trl.bf16=false"
        raise ConfigError(f"trl: {reason}") from None


def typed_settings(
    cls: type, given: Mapping[str, Any], where: str, not_these: Mapping[str, str] | None = None
) -> dict[str, Any]:
    """``given`` with every name and type checked against the fields of the dataclass ``cls``."""
    hints = typing.get_type_hints(cls)
    known = {
        f.name for f in dataclasses.fields(cls) if f.init and not f.name.startswith("_")
    } - set(not_these or ())
    checked = {}
    for name, value in given.items():
        if name not in known:
            raise ConfigError(f"unknown setting '{where}.{name}'.{nearest(name, known)}")
        try:
            checked[name] = _adapter(hints[name]).validate_python(value)
        except ValidationError as error:
            raise ConfigError(f"{where}.{name} = {value!r}: {error.errors()[0]['msg']}") from None
    return checked


def _adapter(hint: Any) -> TypeAdapter[Any]:
    """A validator for any annotation; PEFT's hold plain classes, which pydantic takes only by
    instance."""
    try:
        return TypeAdapter(hint, config=ConfigDict(arbitrary_types_allowed=True))
    except (
        Exception
    ):  # the annotation is itself a model or dataclass: it carries its own configuration
        return TypeAdapter(hint)


def peft_config(settings: Mapping[str, Any] | None) -> Any:
    """A ``peft.LoraConfig``, or None. Raises ConfigError for wrong settings, EngineError without
    peft."""
    if settings is None:
        return None
    try:
        from peft import LoraConfig
    except ModuleNotFoundError:
        raise EngineError(
            "setting 'peft' needs the module 'peft': pip install './depo-rl[peft]', or set peft=null"
        ) from None
    return LoraConfig(**({"task_type": "CAUSAL_LM"} | typed_settings(LoraConfig, settings, "peft")))
