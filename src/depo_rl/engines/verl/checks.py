"""What is known to go wrong inside verl, refused before the first rollout, each with its mend."""

from __future__ import annotations

import importlib.metadata
import inspect
import logging
import os
from collections.abc import Iterable, Mapping
from typing import Any

from ...config import CurriculumConfig, FusedSettings
from ...errors import ConfigError, EngineError
from ...features.experimental.policy import no_policy
from ...gates import DynamicSampling
from ...protocols import Gate
from ...validation import nearest
from .names import ADVANTAGES, DATASET, MODES, REPLAY, SUPPORTED, buffer_name
from .settings import VerlSettings, check_admission

_log = logging.getLogger(__name__)


def require_verl(hooks: Iterable[tuple[Any, str, list[str]]]) -> None:
    """Raises EngineError if verl is another release, a method that we extend differs, or trl is
    beside it.

    hooks: (class, method name, names of its parameters after self).
    """
    version = importlib.metadata.version("verl")
    if version != SUPPORTED:
        raise EngineError(
            f"verl {version} is not supported: install verl=={SUPPORTED} (pip install './depo-rl[verl]')"
        )
    for owner, name, expected in hooks:
        method = getattr(owner, name, None)
        found = list(inspect.signature(method).parameters)[1:] if method else None
        if found != expected:
            raise EngineError(
                f"this verl {version} is not the released one: {owner.__name__}.{name} takes {found}, expected "
                f"{expected}. Install verl=={SUPPORTED}"
            )
    try:
        trl = importlib.metadata.version("trl")
    except importlib.metadata.PackageNotFoundError:
        return
    if tuple(int(part) for part in trl.split(".")[:2] if part.isdigit()) >= (1, 13):
        raise EngineError(
            f"trl {trl} is installed beside verl {version}: verl's workers import a class that trl dropped in 1.13 and "
            "fail when they start. Use an environment of its own for verl: pip uninstall trl, or another venv"
        )


def uses_v1(root: Any) -> bool:
    """Whether the trainer is V1; else ``on_batch_end`` is the feedback (trainer.use_v1=False,
    one_step_off)."""
    # a section that V1 and v0 do not have; one_step_off does not ask use_v1
    one_step_off = "rollout" in root
    return bool(root.trainer.get("use_v1", True)) and not one_step_off


def check_run(root: Any, config: CurriculumConfig) -> None:
    """Raises ConfigError for what contradicts a curriculum. root: verl's whole configuration (an
    OmegaConf tree)."""
    _check_loop(root)
    _check_workers(root)
    _check_files(root)
    _check_feedback(root)
    _check_importance(root, config)
    if isinstance(config.estimator, FusedSettings) and config.estimator.policy_width:
        raise no_policy(config.estimator, "on verl the estimator's process")
    wants_logprobs = (
        config.estimator.type == "encoder" and getattr(config.estimator, "distill_weight", 0) > 0
    )
    if wants_logprobs and not root.actor_rollout_ref.rollout.get("calculate_log_probs", False):
        _log.warning(
            "the encoder learns from the policy's confidence, which verl does not compute: set "
            "actor_rollout_ref.rollout.calculate_log_probs=True, or +data.depo.curriculum.estimator.distill_weight=0"
        )


def _check_loop(root: Any) -> None:
    if "async_training" in root:
        raise ConfigError(
            "verl's fully_async trainer never tells a dataset what came of its rows, draws up to 128 of them before "
            "they are rolled out, and loses those with a checkpoint: a curriculum cannot learn or resume there. Use "
            "python -m verl.trainer.main_ppo with trainer.v1.trainer_mode=separate_async, which also separates "
            "rollout from training (all of it with actor_rollout_ref.hybrid_engine=False)"
        )
    if not uses_v1(root):
        return
    mode = root.trainer.v1.trainer_mode
    if mode not in MODES:
        raise ConfigError(
            f"trainer.v1.trainer_mode = {mode!r}: verl treats every name but 'sync' as asynchronous, also that of a "
            f"trainer of your own; a curriculum runs with {', '.join(MODES)}: set one of them"
        )
    hybrid = bool(root.actor_rollout_ref.get("hybrid_engine", True))
    verbose = logging.getLevelName(os.getenv("VERL_LOGGING_LEVEL", "INFO"))
    if (
        mode == "separate_async"
        and not hybrid
        and (not isinstance(verbose, int) or verbose <= logging.INFO)
    ):
        raise ConfigError(
            f"actor_rollout_ref.hybrid_engine=False with trainer_mode=separate_async: verl {SUPPORTED} fails in "
            "a log line of its own (an unknown argument, flush) unless the environment has VERL_LOGGING_LEVEL=WARN: "
            "set it"
        )


def _check_workers(root: Any) -> None:
    workers = root.data.get("dataloader_num_workers", 0)
    if workers:
        raise ConfigError(
            f"data.dataloader_num_workers = {workers}: must be 0. Worker processes hold copies of the curriculum that "
            "never see an outcome, read ahead, and are not saved (verl's default is 8): set "
            "data.dataloader_num_workers=0"
        )


def _check_files(root: Any) -> None:
    if files_of(root.data.train_files) == files_of(root.data.val_files):
        raise ConfigError(
            f"data.val_files is data.train_files ({', '.join(files_of(root.data.train_files))}): verl does not tell a "
            "dataset which of the two it is, so validation would be taken for training. Give validation a file of its "
            "own (a copy will do)"
        )


def _check_feedback(root: Any) -> None:
    reward_model = root.reward.reward_model
    if reward_model.enable and not reward_model.enable_resource_pool:
        raise ConfigError(
            "reward.reward_model.enable=True without a resource pool: verl then scores only after a batch was sampled, "
            "so a curriculum never sees what was correct. Set reward.reward_model.enable_resource_pool=True, or use a "
            "rule-based reward"
        )
    if not uses_v1(root):
        return
    mode = root.trainer.v1.trainer_mode
    sampler = root.trainer.v1.sampler.get("custom_sampler") or {}
    if not sampler.get("path"):
        raise ConfigError(
            "data.custom_cls is the curriculum's, but no replay buffer tells it what came of its choices: it would "
            f"never learn. Set trainer.v1.sampler.custom_sampler.path={REPLAY} and "
            f"trainer.v1.sampler.custom_sampler.name={buffer_name(mode)}"
        )


def _check_importance(root: Any, config: CurriculumConfig) -> None:
    estimator = root.algorithm.get("adv_estimator")
    if config.importance and not uses_v1(root):
        raise ConfigError(
            f"data.depo.curriculum.importance = {config.importance}: verl's older trainers (trainer.use_v1=False, "
            "one_step_off) compute advantages before a curriculum hears of the batch: set it to 0, or use V1"
        )
    if config.importance and estimator != ADVANTAGES:
        raise ConfigError(
            f"data.depo.curriculum.importance = {config.importance}: algorithm.adv_estimator = {str(estimator)!r} has "
            f"no weights: set algorithm.adv_estimator={ADVANTAGES}, which is GRPO with them"
        )


def checked_sampler_kwargs(given: Mapping[str, Any] | None, known: Iterable[str]) -> dict[str, Any]:
    """``trainer.v1.sampler.sampler_kwargs``; raises ConfigError for a name that verl's buffer does
    not take."""
    given = dict(given or {})
    for name in given:
        if name not in known:
            raise ConfigError(
                f"trainer.v1.sampler.sampler_kwargs: unknown setting {name!r}.{nearest(str(name), known)}"
            )
    return given


def check_buffer(root: Any, mode: str, asynchronous: bool) -> None:
    """Raises ConfigError if a replay buffer of ours is of the other kind, or has no dataset of ours
    to tell."""
    ours = buffer_name("any" if asynchronous else "sync")
    if asynchronous != (mode != "sync"):
        raise ConfigError(
            f"trainer.v1.sampler.custom_sampler.name = {ours} with trainer.v1.trainer_mode = {mode!r}: set "
            f"trainer.v1.sampler.custom_sampler.name={buffer_name(mode)}"
        )
    if "depo_rl" not in str((root.data.get("custom_cls") or {}).get("path")):
        raise ConfigError(
            f"trainer.v1.sampler.custom_sampler is the curriculum's, but data.custom_cls.path is "
            f"{(root.data.get('custom_cls') or {}).get('path')!r}: nothing would be chosen. Set "
            f"data.custom_cls.path={DATASET} and data.custom_cls.name=CurriculumDataset"
        )


def check_gate(root: Any, settings: VerlSettings, gate: Gate) -> None:
    """Raises ConfigError or EngineError if the gate drops or extends groups and verl, which has to,
    would not."""
    filters = root.algorithm.get("filter_groups") or {}
    enabled = bool(filters.get("enable", False))
    check_admission(settings.method, gate)
    drops = f"data.depo.method = {settings.method!r} with gate 'dynamic' drops groups that are all right or all wrong"
    if isinstance(gate, DynamicSampling) and not uses_v1(root):
        raise ConfigError(
            f"{drops}, which verl's older trainers cannot (trainer.use_v1=False, one_step_off): set "
            "data.depo.curriculum.gate=none, use depo, or the V1 trainer"
        )
    if isinstance(gate, DynamicSampling) and not enabled:
        raise ConfigError(
            f"{drops}, which verl does itself: set algorithm.filter_groups.enable=True and "
            f"algorithm.filter_groups.metric={settings.correct_key}"
        )
    if enabled and filters.get("metric") not in (settings.correct_key, None):
        _log.warning(
            "algorithm.filter_groups.metric = %s: groups are dropped by that and not by what is correct (%s); a shaped "
            "reward makes all-wrong groups look mixed",
            filters.get("metric"),
            settings.correct_key,
        )


def files_of(files: Any) -> list[str]:
    """verl takes one file or a list of them."""
    return [str(file) for file in ([files] if isinstance(files, str) else files)]
