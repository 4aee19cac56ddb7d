"""Every setting of a curriculum, torch-free, closed (unknown names are refused) and with vetted defaults.

``parse_config(method_defaults, given)`` turns a mapping or a ready config into a ``CurriculumConfig`` or raises a
one-line ``ConfigError`` that names the setting, the value, the rule and, for a misspelt name, the nearest right one.
"""

from __future__ import annotations

import difflib
from collections.abc import Iterable, Mapping
from typing import Annotated, Any, Literal, TypeVar

from pydantic import BaseModel, ConfigDict, Field, ValidationError, field_validator, model_validator

from .errors import ConfigError

Share = Annotated[float, Field(ge=0.0, le=1.0)]


class Settings(BaseModel):
    """Base of all settings: frozen, closed."""

    model_config = ConfigDict(extra="forbid", frozen=True, allow_inf_nan=False)


class ConstantSettings(Settings):
    """The same belief for every prompt; what ``grpo`` and ``dapo`` use (they do not choose by prediction)."""

    type: Literal["constant"] = "constant"
    mean: float = Field(0.5, gt=0.0, lt=1.0)
    strength: float = Field(2.0, gt=0.0, description="equivalent rollouts")


class OracleSettings(Settings):
    """Reads the pass rate from a column of the data set; an upper bound for comparisons, or published labels."""

    type: Literal["oracle"] = "oracle"
    field: str = Field("pass_rate", description="column that holds the pass rate, in [0, 1]")
    strength: float = Field(1e4, gt=0.0, description="equivalent rollouts")


class NgramSettings(Settings):
    """Hashed words, character n-grams and number shapes with two online linear heads: the embedded default."""

    type: Literal["ngrams"] = "ngrams"
    n_features: int = Field(2**15, ge=2**8, le=2**24, description="hash buckets")
    learning_rate: float = Field(0.03, gt=0.0, description="Adam step on the heads' weights")
    l2: float = Field(1e-4, ge=0.0, description="weight decay per update, relative to the learning rate")
    replay_groups: int = Field(2048, ge=1, description="finished groups kept to learn from")
    half_life_groups: float = Field(1024.0, gt=0.0, description="groups after which a replayed one weighs half")
    batch_groups: int = Field(256, ge=1, description="groups per update")
    updates_per_observe: int = Field(8, ge=0, description="updates after each finished batch")
    cache_prompts: int = Field(32_768, ge=0, description="feature rows kept in memory")


class EncoderSettings(Settings):
    """The paper's Difficulty Estimator (arXiv 2602.06375); values of the authors' released code."""

    type: Literal["encoder"] = "encoder"
    backbone: str = Field(
        "distilbert-base-uncased", min_length=1, description="hub name, local folder or 'tiny-random'"
    )
    max_length: int = Field(512, ge=8, description="tokens of a prompt that are read")
    learning_rate: float = Field(2e-4, gt=0.0)
    backbone_lr_scale: float = Field(0.2, ge=0.0)
    weight_decay: float = Field(0.01, ge=0.0)
    grad_clip: float = Field(1.0, gt=0.0, description="global gradient norm")
    updates_per_observe: int = Field(1, ge=0)
    micro_batch: int = Field(32, ge=1, description="texts per forward; never changes the result")
    distill_weight: float = Field(0.5, ge=0.0, description="w_d; 0 switches distillation off")
    ranking_weight: float = Field(3.0, ge=0.0, description="w_r; 0 switches the ranking loss off")
    ranking_delta: float = Field(0.05, ge=0.0, description="pairs closer in pass rate are not ranked")
    ranking_margin: float = Field(0.5, ge=0.0, description="in logits")
    dropout: float = Field(0.1, ge=0.0, lt=1.0)
    width: int = Field(1024, ge=2, description="of the trunk")
    device: str = "cpu"
    precision: Literal["float32", "bfloat16"] = "float32"
    prior_strength: float = Field(8.0, gt=0.0, description="equivalent rollouts reported with each prediction")


EstimatorSettings = Annotated[
    ConstantSettings | OracleSettings | NgramSettings | EncoderSettings, Field(discriminator="type")
]


class CurriculumConfig(Settings):
    """Settings of one curriculum. A method sets its own defaults for some of them (``methods.METHODS``)."""

    group_size: int = Field(8, ge=2, description="completions per prompt, G; with 1 no group can teach anything")
    seed: int = Field(0, ge=0)
    estimator: EstimatorSettings = Field(default_factory=lambda: NgramSettings.model_validate({}))
    band: Literal["window", "auto"] = Field(
        "window", description="choose by predicted pass rate in `window`, or by predicted P(mixed | G) ('auto')"
    )
    window: tuple[float, float] = Field((0.15, 0.85), description="pass rates let through, both ends included")
    warmup_steps: int = Field(100, ge=0, description="batches' worth of scored groups before anything is filtered")
    candidate_factor: int = Field(8, ge=1, description="at most this many candidates are looked at per place")
    explore: Share = Field(0.05, description="share of places filled whatever the prediction")
    max_rounds: int = Field(10, ge=1, description="dapo: generation rounds per batch, the first included")
    pass_rate_field: str = Field("pass_rate", description="polaris: column with the offline pass rate")
    keep: tuple[float, float] = Field((0.1, 0.9), description="polaris: offline pass rates kept, both ends included")

    @field_validator("estimator", mode="before")
    @classmethod
    def _estimator_by_name(cls, value: Any) -> Any:
        """``estimator: encoder`` is short for ``estimator: {type: encoder}``."""
        return {"type": value} if isinstance(value, str) else value

    @model_validator(mode="after")
    def _ordered(self) -> CurriculumConfig:
        for name in ("window", "keep"):
            low, high = getattr(self, name)
            if not 0.0 <= low < high <= 1.0:
                raise ValueError(f"{name} must be two rates with 0 <= low < high <= 1, got {(low, high)}")
        return self


def nearest(name: str, known: Iterable[str]) -> str:
    """' Did you mean ...?' for a misspelt name, or the list of known ones."""
    known = sorted(known)
    close = difflib.get_close_matches(name, known, n=1, cutoff=0.6)
    return f" Did you mean {close[0]!r}?" if close else f" Known: {', '.join(known)}."


SettingsT = TypeVar("SettingsT", bound=BaseModel)


def validated(model: type[SettingsT], given: Mapping[str, Any], where: str) -> SettingsT:
    """``model(**given)``, or a one-line ConfigError that starts with ``where`` and names the setting."""
    try:
        return model.model_validate(dict(given))
    except ValidationError as error:
        raise ConfigError(f"{where}: " + "; ".join(_explain(model, e) for e in error.errors())) from None


def _explain(model: type[BaseModel], error: Any) -> str:
    path = [str(part) for part in error["loc"]]
    kind = error["type"]
    if kind == "extra_forbidden":
        shown, owners, _ = _follow(model, path[:-1])
        known = {name for owner in owners for name in owner.model_fields}
        return f"unknown setting {'.'.join([*shown, path[-1]])!r}.{nearest(path[-1], known)}"
    shown, owners, description = _follow(model, path)
    name, tags = ".".join(shown), sorted(filter(None, map(_tag, owners)))
    if kind == "union_tag_invalid":
        return f"unknown {name} {error['ctx']['tag']!r}.{nearest(error['ctx']['tag'], tags)}"
    if kind == "union_tag_not_found":
        return f"{name} needs a type: one of {', '.join(tags)}; got {error['input']!r}"
    if not path:
        return str(error["msg"]).removeprefix("Value error, ")
    return f"{name} = {error['input']!r}: {error['msg']}{f' ({description})' if description else ''}"


def _follow(model: type[BaseModel], path: list[str]) -> tuple[list[str], list[type[BaseModel]], str | None]:
    """What a pydantic error's path leads to: the path as the user wrote it, the settings there, their description.

    pydantic adds the tag of a union's member to the path, which the user did not write.
    """
    shown: list[str] = []
    here, description = [model], None
    for part in path:
        fields = [owner.model_fields[part] for owner in here if part in owner.model_fields]
        if fields:
            description = fields[0].description
            here = [inner for field in fields for inner in _models_in(field.annotation)]
        elif tagged := [owner for owner in here if _tag(owner) == part]:
            here = tagged
            continue
        shown.append(part)
    return shown, here, description


def _tag(model: type[BaseModel]) -> str | None:
    field = model.model_fields.get("type")
    return field.default if field is not None and isinstance(field.default, str) else None


def _models_in(annotation: Any) -> list[type[BaseModel]]:
    if isinstance(annotation, type) and issubclass(annotation, BaseModel):
        return [annotation]
    return [m for part in getattr(annotation, "__args__", ()) for m in _models_in(part)]


def parse_config(
    defaults: Mapping[str, Any], given: Mapping[str, Any] | CurriculumConfig | None, where: str = "config"
) -> CurriculumConfig:
    """The given settings over a method's defaults; of a ready ``CurriculumConfig``, those that were given to it."""
    if isinstance(given, CurriculumConfig):
        given = {name: getattr(given, name) for name in given.model_fields_set}
    if given is not None and not isinstance(given, Mapping):
        raise ConfigError(f"{where}: settings must be a mapping of names to values, got {type(given).__name__}")
    return validated(CurriculumConfig, {**defaults, **(given or {})}, where)
