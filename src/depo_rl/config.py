"""Every setting of a curriculum, torch-free, closed (unknown names are refused) and with vetted
defaults.

``parse_config(method_defaults, given)`` turns a mapping into a ``CurriculumConfig`` or raises a
one-line ``ConfigError`` that names the setting, the value, the rule and, for a misspelt name, the
nearest right one.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Annotated, Any, Literal

from pydantic import Field, field_validator, model_validator

from .errors import ConfigError
from .rivals_config import (
    AdaRFTSettings,
    BOTSSettings,
    DPSSettings,
    GRESOSettings,
    PoolSettings,
    SPEEDSettings,
)
from .validation import Settings, Share, validated


class ConstantSettings(Settings):
    """The same belief for every prompt; what ``grpo`` and ``dapo`` use (they do not choose by
    prediction)."""

    type: Literal["constant"] = "constant"
    mean: float = Field(0.5, gt=0.0, lt=1.0, description="pass rate of every prompt")
    strength: float = Field(2.0, gt=0.0, description="equivalent rollouts")


class OracleSettings(Settings):
    """Reads the pass rate from a column of the data set; an upper bound for comparisons, or
    published labels."""

    type: Literal["oracle"] = "oracle"
    field: str = Field("pass_rate", description="column that holds the pass rate, in [0, 1]")
    strength: float = Field(1e4, gt=0.0, description="equivalent rollouts")


class EncoderSettings(Settings):
    """The paper's Difficulty Estimator (arXiv 2602.06375); values of the authors' released code."""

    type: Literal["encoder"] = "encoder"
    backbone: str = Field(
        "distilbert-base-uncased",
        min_length=1,
        description="hub name, local folder or 'tiny-random'",
    )
    max_length: int = Field(512, ge=8, description="tokens of a prompt that are read")
    pooling: Literal["auto", "cls", "mean"] = Field(
        "auto",
        description="which hidden state is read; auto: what the backbone's 1_Pooling/config.json says, else cls",
    )
    learning_rate: float = Field(2e-4, gt=0.0, description="of AdamW, for trunk and heads")
    backbone_lr_scale: float = Field(
        0.2,
        ge=0.0,
        description="of the learning rate; 0 freezes the backbone, whose vectors are then computed once",
    )
    weight_decay: float = Field(0.01, ge=0.0, description="of AdamW")
    grad_clip: float = Field(1.0, gt=0.0, description="global gradient norm")
    updates_per_observe: int = Field(
        1, ge=0, description="updates after each finished batch; 0 never learns"
    )
    micro_batch: int = Field(32, ge=1, description="texts per forward; never changes the result")
    distill_weight: float = Field(0.5, ge=0.0, description="w_d; 0 switches distillation off")
    ranking_weight: float = Field(3.0, ge=0.0, description="w_r; 0 switches the ranking loss off")
    ranking_delta: float = Field(
        0.05, ge=0.0, description="pairs closer in pass rate are not ranked"
    )
    ranking_margin: float = Field(0.5, ge=0.0, description="in logits")
    dropout: float = Field(0.1, ge=0.0, lt=1.0, description="of the trunk, while it learns")
    width: int = Field(1024, ge=2, description="of the trunk")
    device: str = Field("cpu", description="where it runs, as torch names it: cpu, cuda, cuda:1")
    precision: Literal["float32", "bfloat16"] = Field("float32", description="of the arithmetic")
    prior_strength: float = Field(
        1.0,
        gt=0.0,
        description="equivalent rollouts told with each prediction before any group has been judged",
    )
    recalibrate: bool = Field(True, description="mend P(mixed) by what became of the latest groups")


class HistorySettings(Settings):
    """A Beta per prompt from its own groups (``estimators.history``); unseen prompts have the
    prior."""

    type: Literal["history"] = "history"
    fade_by: Literal["steps", "visits"] = Field("steps", description="what the evidence fades with")
    discount: Share = Field(
        0.98, description="of earlier counts, per policy step or per visit; 1 never fades"
    )
    prior_mean: float = Field(0.5, gt=0.0, lt=1.0, description="pass rate of a prompt never seen")
    prior_strength: float = Field(2.0, gt=0.0, description="equivalent rollouts")


class EncoderFeatureSettings(Settings):
    """A frozen text encoder whose embeddings are features (``features.experimental.encoder``)."""

    backbone: str = Field(min_length=1, description="hub name, local folder or 'tiny-random'")
    max_length: int = Field(512, ge=8, description="tokens of a prompt that are read")
    dims: int = Field(128, ge=1, description="principal components of the embeddings that are kept")
    device: str = Field("cpu", description="where it runs, as torch names it: cpu, cuda, cuda:1")
    cache: str | None = Field(
        None, description="folder of the embeddings; null: in the user's cache folder"
    )


class FeatureSettings(Settings):
    """What of a prompt becomes a feature (``features.table``)."""

    n_buckets: int = Field(
        2**16, ge=2**4, le=2**16, description="hash buckets of the texts, a power of two"
    )
    answer_field: str = Field("answer", description="column with the reference answer")
    columns: Literal["auto"] | tuple[str, ...] = Field(
        "auto",
        description="columns that become features: those named, or all numbers and few-valued texts ('auto')",
    )
    exclude: tuple[str, ...] = Field((), description="columns that must not, such as labels")
    n_random: int = Field(256, ge=0, description="random Fourier features of the numeric ones")
    gamma: float = Field(0.15, gt=0.0, description="their kernel is exp(-gamma^2 |x - y|^2 / 2)")
    encoder: EncoderFeatureSettings | None = Field(
        None, description="frozen text encoder; null: none"
    )

    @field_validator("encoder", mode="before")
    @classmethod
    def _encoder_by_name(cls, value: Any) -> Any:
        """``encoder: NAME`` is short for ``encoder: {backbone: NAME}``."""
        return {"backbone": value} if isinstance(value, str) else value

    @field_validator("n_buckets")
    @classmethod
    def _power_of_two(cls, value: int) -> int:
        if value & (value - 1):
            raise ValueError("n_buckets must be a power of two")
        return value


class FusedSettings(FeatureSettings):
    """Features and each prompt's own groups in one calibrated belief (``estimators.fused``): the
    default."""

    type: Literal["fused"] = "fused"
    mean_precision: float = Field(
        1.0, gt=0.0, description="of the weights' prior, head of the mean"
    )
    spread_precision: float = Field(
        10.0, gt=0.0, description="of the weights' prior, head of the spread"
    )
    rate_slope: float = Field(
        0.7,
        ge=0.0,
        description="of the logit on the logits of columns of numbers in [0, 1], before anything is learnt",
    )
    warm_start: str | None = Field(
        None,
        description="file that depo replay reads, of other prompts or an earlier run: the heads begin with it",
    )
    learning_rate: float = Field(0.01, gt=0.0, description="Adam step on the heads' weights")
    replay_prompts: int = Field(
        32_768, ge=1, description="prompts whose latest group is kept to learn from"
    )
    half_life_steps: float = Field(
        50.0,
        gt=0.0,
        description="policy steps after which a group is half as likely to be learnt from",
    )
    batch_groups: int = Field(256, ge=1, description="groups per update of the heads")
    updates_per_observe: int = Field(
        8, ge=0, description="updates of the heads after each finished batch"
    )
    walks: tuple[Annotated[float, Field(ge=0.0)], ...] = Field(
        (0.01, 0.03, 0.06, 0.12, 0.3),
        min_length=1,
        description="how far a prompt moves by itself, in logits per square root of a policy step; weighed by evidence",
    )
    walk_half_life: float = Field(
        2000.0, gt=0.0, description="groups after which evidence for a walk counts half"
    )
    history: bool = Field(True, description="use each prompt's own groups")
    drift: bool = Field(True, description="follow the common drift of the policy")
    policy_features: int = Field(
        0,
        ge=0,
        le=1024,
        description="numbers that the policy's state at a prompt's end becomes; TRL only, 0: not used",
    )
    answer_logprob: bool = Field(
        False,
        description="the policy's own log-probability of the reference answer is a feature; TRL only",
    )
    recalibrate: bool = Field(True, description="mend P(mixed) by what became of the latest groups")

    @property
    def policy_width(self) -> int:
        """Features that only an engine which has the policy can give."""
        return self.policy_features + self.answer_logprob


EstimatorSettings = Annotated[
    ConstantSettings
    | OracleSettings
    | FusedSettings
    | EncoderSettings
    | HistorySettings
    | DPSSettings
    | BOTSSettings,
    Field(discriminator="type"),
]


DEFAULT_ESTIMATOR = "fused"
MOST_CANDIDATES = 4  # of candidate_factor "auto": the best of four leave room for what is easy, of twelve they do not


class CurriculumConfig(Settings):
    """Settings of one curriculum. A method sets its own defaults for some of them
    (``methods.METHODS``)."""

    group_size: int = Field(
        8, ge=2, description="completions per prompt, G; with 1 no group can teach anything"
    )
    seed: int = Field(
        0, ge=0, description="of everything that is drawn; never touches what the model samples"
    )
    estimator: EstimatorSettings = Field(
        default_factory=lambda: FusedSettings.model_validate({}),
        description="what predicts pass rates: a type, or a mapping with a type and its settings",
    )
    band: Literal["window", "auto"] = Field(
        "window",
        description="choose by predicted pass rate in `window`, or by predicted P(mixed | G) ('auto')",
    )
    reward_range: tuple[float, float] | None = Field(
        None,
        description="for graded rewards: their range; a group then counts by their variance, not by correctness",
    )
    window: tuple[float, float] = Field(
        (0.15, 0.85), description="pass rates let through, both ends included"
    )
    warmup_steps: int = Field(
        100, ge=0, description="batches' worth of scored groups before anything is filtered"
    )
    temperature: float = Field(
        0.0,
        ge=0.0,
        description="band auto: draw in proportion to P(mixed)^(1 / temperature); 0: take the largest",
    )
    candidate_factor: int | Literal["auto"] = Field(
        8,
        description="at most this many candidates are looked at per place; 'auto' follows the pool",
    )
    explore: Share = Field(0.05, description="share of places filled whatever the prediction")
    guard: bool = Field(
        False, description="choose uniformly while the predictions are worse than a constant"
    )
    gate: Literal["none", "dynamic", "high_variance"] = Field(
        "none",
        description="train on every scored group, on mixed ones, or from min_variance on; replace the others",
    )
    importance: Share = Field(
        0.0,
        description="beta: multiply a drawn group's advantages by (1 / inclusion)^beta; needs temperature above 0",
    )
    importance_cap: float | None = Field(
        5.0, ge=1.0, description="largest of these weights; null: none"
    )
    max_rounds: int = Field(
        10,
        ge=1,
        description="gates that replace groups: generation rounds per batch, the first included",
    )
    pass_rate_field: str = Field(
        "pass_rate", description="polaris: column with the offline pass rate"
    )
    keep: tuple[float, float] = Field(
        (0.1, 0.9), description="polaris: offline pass rates kept, both ends included"
    )
    target: Share = Field(0.5, description="mopps, bots, pcl: pass rate aimed at")
    min_variance: Share = Field(
        0.64, description="gate high_variance: least reward variance, of the largest there is"
    )
    greso: GRESOSettings = Field(
        default_factory=lambda: GRESOSettings.model_validate({}),
        description="settings of method greso",
    )
    pools: PoolSettings = Field(
        default_factory=lambda: PoolSettings.model_validate({}),
        description="settings of method pools",
    )
    adarft: AdaRFTSettings = Field(
        default_factory=lambda: AdaRFTSettings.model_validate({}),
        description="settings of method adarft",
    )
    speed: SPEEDSettings = Field(
        default_factory=lambda: SPEEDSettings.model_validate({}),
        description="settings of method speed",
    )

    @field_validator("candidate_factor", mode="plain")
    @classmethod
    def _count_or_auto(cls, value: Any) -> Any:
        """Plain, for a union's own message would be one for each of its members."""
        if value == "auto" or (
            isinstance(value, int) and not isinstance(value, bool) and value >= 1
        ):
            return value
        raise ValueError("Input should be a whole number greater than or equal to 1, or 'auto'")

    @field_validator("estimator", mode="before")
    @classmethod
    def _estimator_by_name(cls, value: Any) -> Any:
        return _by_type("estimator", value)

    @property
    def most_candidates(self) -> int:
        """Candidates looked at per place, at most, whatever the pool."""
        return MOST_CANDIDATES if self.candidate_factor == "auto" else self.candidate_factor

    @model_validator(mode="after")
    def _ordered(self) -> CurriculumConfig:
        for name in ("window", "keep"):
            low, high = getattr(self, name)
            if not 0.0 <= low < high <= 1.0:
                raise ValueError(
                    f"{name} must be two rates with 0 <= low < high <= 1, got {(low, high)}"
                )
        if self.reward_range is not None and self.reward_range[0] >= self.reward_range[1]:
            raise ValueError(
                f"reward_range must be the lowest and the highest reward, got {self.reward_range}"
            )
        return self


def merged(base: Mapping[str, Any], given: Mapping[str, Any]) -> dict[str, Any]:
    """``given`` over ``base``, mapping into mapping, so that what is not named stays; neither is
    changed.

    A mapping that names another ``type`` than the one it is laid over takes its place: its settings
    are others. So do ready settings and everything else that is no mapping. An estimator may be
    named by its type alone.
    """
    result = dict(base)
    for name, value in given.items():
        old = _by_type(name, result.get(name))
        new = _by_type(name, value)
        if isinstance(new, Mapping):
            kept = isinstance(old, Mapping) and new.get("type", old.get("type")) == old.get("type")
            new = merged(old if kept else {}, new)
        result[name] = new
    return result


def _by_type(name: str, value: Any) -> Any:
    """``estimator: encoder`` is short for ``estimator: {type: encoder}``."""
    return {"type": value} if name == "estimator" and isinstance(value, str) else value


def parse_config(
    defaults: Mapping[str, Any], given: Mapping[str, Any] | None, where: str = "config"
) -> CurriculumConfig:
    """The given settings merged into a method's defaults (``merged``).

    So ``{"estimator": {"n_random": 0}}`` is the method's estimator with that one change. Raises
    ConfigError.
    """
    if given is not None and not isinstance(given, Mapping):
        raise ConfigError(
            f"{where}: settings must be a mapping of names to values, got {type(given).__name__}"
        )
    given = given or {}
    if "estimator" in given:  # what a method that names none has
        defaults = {"estimator": {"type": DEFAULT_ESTIMATOR}, **defaults}
    return validated(CurriculumConfig, merged(defaults, given), where)
