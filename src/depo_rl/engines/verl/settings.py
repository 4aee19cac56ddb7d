"""The settings under ``data.depo`` of verl's configuration, free of verl, torch and ray.

    +data.depo.method=depo +data.depo.curriculum.band=auto +data.depo.correct_key=acc

Group size and seed are verl's own: ``actor_rollout_ref.rollout.n`` and ``data.seed``.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any, Literal

from pydantic import Field, field_validator

from ...config import CurriculumConfig
from ...errors import ConfigError
from ...gates import AdmitAll, DynamicSampling
from ...methods import get_method
from ...protocols import Gate
from ...validation import Settings, validated
from ..session import engine_config, refuse_screening

WHERE = "data.depo"


class HostSettings(Settings):
    """The Ray actor that holds the estimator."""

    use: Literal["auto", "always", "never"] = Field(
        "auto", description="auto: for encoder estimators only"
    )
    num_cpus: float = Field(1.0, ge=0.0, description="CPUs that Ray reserves for it")
    num_gpus: float = Field(
        0.0, ge=0.0, description="GPUs that Ray reserves for it, beside the trainer's"
    )
    resources: dict[str, float] = Field(
        default_factory=dict, description="Ray resources, to place it on a node"
    )
    start_timeout_s: float = Field(
        600.0, gt=0.0, description="seconds to wait for a node and the model at the start"
    )
    timeout_s: float = Field(
        120.0, gt=0.0, description="seconds to wait for predictions before the actor counts as lost"
    )
    snapshot_every: int = Field(
        20, ge=1, description="batches learnt between copies of its state for a restart"
    )


class VerlSettings(Settings):
    """``data.depo``."""

    method: str = Field(
        "depo", description="how prompts are chosen: a name of depo_rl.METHODS, such as depo+"
    )
    curriculum: dict[str, Any] = Field(
        default_factory=dict, description="settings of depo_rl.CurriculumConfig"
    )
    correct_key: str = Field(
        "acc", min_length=1, description="key of reward_extra_info that says what is correct"
    )
    correct_threshold: float = Field(
        0.5, description="a completion is correct from this value of it on"
    )
    source_column: str = Field(
        "data_source", min_length=1, description="column that names a prompt's source"
    )
    drop_duplicates: bool = Field(
        True, description="rows equal in all but their index are one prompt; false: many"
    )
    learn_in_background: bool = Field(True, description="learn while the actor updates")
    outcome_log: bool = Field(
        True, description="write outcomes.jsonl into trainer.default_local_dir"
    )
    max_unscorable_steps: int = Field(
        10, ge=1, description="end the run after so many steps without a scorable reward"
    )
    host: HostSettings = Field(
        default_factory=lambda: HostSettings.model_validate({}),
        description="the Ray actor that holds the estimator",
    )

    @field_validator("curriculum", "host", mode="before")
    @classmethod
    def _empty_section(cls, value: Any) -> Any:
        return {} if value is None else value

    def curriculum_config(self, group_size: int, seed: int) -> CurriculumConfig:
        """The method's defaults with the given settings over them. Raises ConfigError."""
        owned = {
            "group_size": ("actor_rollout_ref.rollout.n", group_size),
            "seed": ("data.seed", seed),
        }
        return engine_config(self.method, self.curriculum, owned, f"{WHERE}.curriculum")

    def hosted(self, config: CurriculumConfig) -> bool:
        """Whether the estimator lives in a Ray actor of its own."""
        return self.host.use == "always" or (
            self.host.use == "auto" and config.estimator.type == "encoder"
        )


def parse_settings(given: Any, where: str = WHERE) -> VerlSettings:
    """From the mapping under ``data.depo``; raises ConfigError, one line that names the setting."""
    if given is None:
        given = {}
    if not isinstance(given, Mapping):
        raise ConfigError(
            f"{where} = {given!r}: must be a mapping of settings, for example +{where}.method=depo"
        )
    settings = validated(VerlSettings, {str(name): value for name, value in given.items()}, where)
    get_method(settings.method)
    return settings


def check_admission(method: str, gate: Gate) -> None:
    """Raises EngineError if the gate extends groups, ConfigError if it admits them by a rule that
    verl lacks."""
    refuse_screening(method, gate, "verl", but=("vcrl",))
    if not isinstance(gate, (AdmitAll, DynamicSampling)):
        raise ConfigError(
            f"method {method!r} admits groups by a rule that verl does not have ({type(gate).__name__}); verl drops "
            "groups whose metric is all equal: set curriculum.gate to dynamic or none, or use dapo, greso or depo"
        )
