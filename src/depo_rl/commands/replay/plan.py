"""What to replay, checked when it is made."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from ...config import CurriculumConfig, FusedSettings
from ...errors import ConfigError
from ...features.experimental.policy import no_policy
from ...methods import get_method, shares
from ...outcomes.tables import SourceOptions

Settings = dict[str, Any]
_WARMUP_SHARE = 10  # a warm-up that nobody set takes at most one step in so many


@dataclass(frozen=True, slots=True)
class ReplayPlan:
    """What to replay: ``methods`` x ``seeds``, each ``steps`` batches of ``prompts_per_step``
    groups.

    settings: of the curriculum of every method that reads them. method_settings: of one method's,
    over those. max_gap: steps between a history's visit and the simulated step beyond which there
    is no answer. outcomes: also write each run's outcome log. configs: by method, as its first seed
    has it, made of the settings. Raises ConfigError.
    """

    file: Path
    out: Path
    methods: tuple[str, ...] = ("grpo", "dapo", "depo")
    seeds: tuple[int, ...] = (0,)
    group_size: int = 8
    prompts_per_step: int = 128
    steps: int = 100
    settings: Settings = field(default_factory=dict)
    method_settings: Mapping[str, Settings] = field(default_factory=dict)
    options: SourceOptions = field(default_factory=SourceOptions)
    max_gap: int | None = None
    outcomes: bool = False
    configs: Mapping[str, CurriculumConfig] = field(init=False, repr=False)

    def __post_init__(self) -> None:
        for name in (*self.methods, *self.method_settings):
            get_method(name)
        if not self.methods or len(set(self.methods)) < len(self.methods):
            raise ConfigError(
                f"methods = {','.join(self.methods)!r}: name at least one, and each once"
            )
        if not self.seeds or len(set(self.seeds)) < len(self.seeds) or min(self.seeds) < 0:
            raise ConfigError(
                f"seeds = {self.seeds}: whole numbers, 0 or more, at least one and each once"
            )
        if min(self.prompts_per_step, self.steps) < 1:
            raise ConfigError(
                f"prompts_per_step = {self.prompts_per_step}, steps = {self.steps}: each at least 1"
            )
        object.__setattr__(self, "configs", {name: self._config(name) for name in self.methods})

    def config(self, method: str, seed: int) -> CurriculumConfig:
        """Settings of one run."""
        return self.configs[method].model_copy(update={"seed": seed})

    def _config(self, method: str) -> CurriculumConfig:
        """The method's own settings, those given, and a warm-up that leaves steps to filter in."""
        for name, option in (("group_size", "--group-size"), ("seed", "--seeds")):
            if name in self.settings or name in self.method_settings.get(method, {}):
                raise ConfigError(f"--set {name}: set it with {option}")
        given = shares(self.settings, self.methods, self.method_settings)[method]
        given |= {"group_size": self.group_size, "seed": self.seeds[0]}
        config = get_method(method).config(given)
        longest = max(self.steps // _WARMUP_SHARE, 1)
        if "warmup_steps" not in given and config.warmup_steps > longest:
            config = get_method(method).config(given | {"warmup_steps": longest})
        if isinstance(config.estimator, FusedSettings) and config.estimator.policy_width:
            raise no_policy(config.estimator, "a replay")
        return config
