"""``DEPOConfig``: every field of TRL's ``GRPOConfig``, and the few that a curriculum needs."""

from __future__ import annotations

import copy
import dataclasses
import json
from dataclasses import dataclass, field
from typing import Any, cast

from trl import GRPOConfig

from ...config import CurriculumConfig
from ...errors import ConfigError
from ...gates import AdmitAll
from ...methods import METHODS, get_method
from ..session import engine_config
from .compat import model_id


@dataclass
class DEPOSettings:
    """What ``DEPOConfig`` adds to a ``GRPOConfig``, to be mixed into TRL's or a descendant's."""

    method: str = field(
        default="depo",
        metadata={
            "help": f"How prompts are chosen: {', '.join(METHODS)}. Method grpo is TRL's own order, bit for bit."
        },
    )
    curriculum: dict[str, Any] | str | None = field(
        default=None,
        metadata={
            "help": 'Settings of the method, e.g. \'{"window": [0.2, 0.8], "warmup_steps": 50}\'; the names are '
            "those of depo_rl.CurriculumConfig."
        },
    )
    correct_reward: str | None = field(
        default=None,
        metadata={
            "help": "Name of the reward function that says what is correct; it feeds the estimator, whatever the "
            "shaped total that the policy trains on. Default: the first one, and where it gives None the next "
            "that gives a value and never gave one beside an earlier function."
        },
    )
    correct_threshold: float | None = field(
        default=None,
        metadata={
            "help": "A completion is correct if that reward, or what correct_fn returns, is at least this; default 0.5."
        },
    )
    source_column: str = field(
        default="source",
        metadata={"help": "Column that names a prompt's source; without it all are one source."},
    )
    outcome_log: bool = field(
        default=True,
        metadata={"help": "Write output_dir/outcomes.jsonl: one row per finished group."},
    )
    max_unscorable_generations: int = field(
        default=10,
        metadata={
            "help": "End the run with an error after this many generations in a row with no scorable reward."
        },
    )

    def __post_init__(self) -> None:
        if isinstance(self.curriculum, str):
            self.curriculum = _parse_json(self.curriculum)
        super().__post_init__()  # type: ignore[misc]
        self.curriculum_config()  # an error now, not after the model is loaded

    def curriculum_config(self) -> CurriculumConfig:
        """The curriculum's settings with group size and seed from this config. Raises
        ConfigError."""
        given = (
            dict(self.curriculum or {})
            if isinstance(self.curriculum, dict | None)
            else _parse_json(self.curriculum)
        )
        owned = {
            name: (theirs, getattr(self, theirs))
            for name, theirs in (("group_size", "num_generations"), ("seed", "seed"))
        }
        config = engine_config(self.method, given, owned, "curriculum")
        if self.own_order and not isinstance(get_method(self.method).gate(config), AdmitAll):
            raise ConfigError(
                f"curriculum.gate = {config.gate!r}: method {self.method!r} keeps TRL's own order, which has no prompt "
                "in the place of a rejected one: choose method 'dapo', which draws uniformly too and takes this gate"
            )
        return config

    @property
    def own_order(self) -> bool:
        """Whether prompts come in TRL's own order."""
        return get_method(self.method).own_order


@dataclass
class DEPOConfig(DEPOSettings, GRPOConfig):
    """Settings of ``DEPOTrainer``. All of ``GRPOConfig`` means what it means there.

    The group size is ``num_generations`` and the curriculum's seed is ``seed``.
    """

    _VALID_DICT_FIELDS = [*GRPOConfig._VALID_DICT_FIELDS, "curriculum"]  # noqa: RUF012 (as TRL declares it)


def as_depo_config(args: Any, model: Any) -> DEPOConfig:
    """A ``DEPOConfig`` with the values of ``args``, a ``GRPOConfig`` or None; itself if it has our
    settings."""
    if isinstance(args, DEPOSettings):
        return cast(DEPOConfig, args)
    if args is None:
        return DEPOConfig(f"{model_id(model).split('/')[-1]}-DEPO")
    # values are kept as they are: __post_init__ has run and would refuse to run twice
    promoted: Any = copy.copy(args)
    promoted.__class__ = DEPOConfig
    for each in dataclasses.fields(DEPOConfig):
        if not hasattr(args, each.name):
            setattr(promoted, each.name, each.default)
    assert isinstance(promoted, DEPOConfig)
    return promoted


def _parse_json(text: str) -> dict[str, Any]:
    try:
        value = json.loads(text)
    except json.JSONDecodeError as error:
        raise ConfigError(
            f"curriculum = {text!r}: not valid JSON ({error}); give a mapping of settings"
        ) from None
    if not isinstance(value, dict):
        raise ConfigError(
            f"curriculum = {text!r}: must be a JSON object of settings, got {type(value).__name__}"
        )
    return value
