"""The plug-in, for the list ``plugins:`` of an axolotl configuration.

axolotl gives a plug-in's ``get_trainer_cls`` neither the model nor the reward functions when it
trains by reinforcement; its setting ``trainer_cls`` gets both, so the plug-in sets that.
"""

from __future__ import annotations

import dataclasses
from typing import Any

from axolotl.integrations.base import BasePlugin
from pydantic import BaseModel, Field

from ...errors import ConfigError
from ...validation import nearest
from ..trl.config import DEPOSettings

_TRAINER = "depo_rl.engines.axolotl.trainer.AxolotlDEPOTrainer"
_OTHER_TRAINERS = ("async_prefetch", "use_data_producer")  # each with a trainer class of its own


class DEPOArgs(BaseModel):
    """What the plug-in adds to axolotl's configuration."""

    depo: dict[str, Any] | None = Field(
        default=None, description="Settings of DEPOConfig: method, curriculum, correct_reward, ..."
    )


class DEPOPlugin(BasePlugin):
    """Chooses the prompts of ``rl: grpo`` and ``rl: gdpo``, by the settings in ``depo:``."""

    def register(self, cfg: Any) -> None:
        """Checks the unparsed configuration and names the trainer. Raises ConfigError."""
        if cfg.get("rl") not in ("grpo", "gdpo"):
            raise ConfigError(
                f"rl = {cfg.get('rl')!r}: the depo plug-in chooses prompts of rl: grpo"
            )
        if (cfg.get("context_parallel_size") or 1) > 1:
            raise ConfigError(
                "context_parallel_size > 1: axolotl generates there by a trainer of its own, which the depo plug-in "
                "does not wrap: set it to 1, or drop the plug-in"
            )
        for name in _OTHER_TRAINERS:
            if (cfg.get("trl") or {}).get(name):
                raise ConfigError(
                    f"trl.{name}: prompts are fetched before the last outcome is known, which the depo plug-in does "
                    "not support: set it to false, or drop the plug-in"
                )
        if cfg.get("trainer_cls") not in (None, _TRAINER):
            raise ConfigError(
                f"trainer_cls = {cfg['trainer_cls']!r}: the depo plug-in brings the trainer: drop one of the two"
            )
        self.get_training_args(cfg)
        cfg["trainer_cls"] = _TRAINER

    def get_input_args(self) -> str:
        return "depo_rl.axolotl.DEPOArgs"

    def get_training_args_mixin(self) -> str:
        return "depo_rl.axolotl.DEPOSettings"

    def get_training_args(self, cfg: Any) -> dict[str, Any]:
        """The settings in ``depo:``, by the names of ``DEPOConfig``. Raises ConfigError for one
        that it has not."""
        given = cfg.get("depo") or {}
        if not hasattr(given, "items"):
            raise ConfigError(
                f"depo = {given!r}: must be a mapping of settings, such as method: depo+"
            )
        known = {field.name for field in dataclasses.fields(DEPOSettings)}
        for name in given:
            if name not in known:
                raise ConfigError(f"depo.{name}: no such setting.{nearest(name, known)}")
        settings: dict[str, Any] = _plain(given)
        return settings


def _plain(value: Any) -> Any:
    """Without axolotl's dicts, in which every key is there."""
    return (
        {name: _plain(each) for name, each in value.items()} if hasattr(value, "items") else value
    )
