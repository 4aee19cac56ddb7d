"""A method is a name for a choice of (estimator, selector, gate), and the defaults its paper gives.

To add one: write its parts, then a function that puts them together and an entry of the table here.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any, NamedTuple

from .config import (
    BOTSSettings,
    ConstantSettings,
    CurriculumConfig,
    DPSSettings,
    EncoderSettings,
    FusedSettings,
    HistorySettings,
    OracleSettings,
    parse_config,
)
from .curriculum import Curriculum
from .errors import ConfigError, DataError
from .estimators.bots import BOTSEstimator
from .estimators.dps import DPSEstimator
from .estimators.history import HistoryEstimator
from .estimators.simple import ConstantEstimator, OracleEstimator
from .gates import AdmitAll, DynamicSampling, HighVariance, Screening
from .pool import PromptPool
from .selectors import MostLikelyMixed, NearestRate, PassRateWindow, Uniform
from .selectors.adarft import TargetDifficulty
from .selectors.greso import GRESOSkip
from .selectors.pools import DifficultyPools
from .types import Drawing, Gate, Lesson, PassRateEstimator, Prompt, Selector, as_rate
from .validation import nearest


class Parts(NamedTuple):
    estimator: PassRateEstimator
    selector: Selector
    gate: Gate


@dataclass(frozen=True, slots=True)
class Method:
    """name, one line for tables, defaults over ``CurriculumConfig``, and the parts for a pool and a config."""

    name: str
    summary: str
    defaults: Mapping[str, Any]
    build: Callable[[PromptPool, CurriculumConfig], Parts]
    prepare: Callable[[Sequence[Prompt], CurriculumConfig], Sequence[Prompt]] = lambda prompts, config: prompts


METHODS: dict[str, Method] = {}

# Methods that do not choose by prediction roll every prompt out anyway: nothing to explore, no estimator to warm up.
_UNIFORM = {"estimator": {"type": "constant"}, "explore": 0.0, "warmup_steps": 0}

# The others' papers have neither a share of exploration nor a warm-up: what they explore is in their own rules.
_AS_PUBLISHED = {"explore": 0.0, "warmup_steps": 0}


def _build_uniform(pool: PromptPool, config: CurriculumConfig) -> Parts:
    return Parts(make_estimator(pool, config), Uniform(), make_gate(config))


def _build_depo(pool: PromptPool, config: CurriculumConfig) -> Parts:
    selector: Selector = PassRateWindow(*config.window)
    if config.band == "auto":
        selector = MostLikelyMixed(config.group_size, config.temperature)
    return Parts(make_estimator(pool, config), selector, make_gate(config))


def _build_most_mixed(pool: PromptPool, config: CurriculumConfig) -> Parts:
    selector = MostLikelyMixed(config.group_size, config.temperature)
    return Parts(make_estimator(pool, config), selector, make_gate(config))


def _build_thompson(pool: PromptPool, config: CurriculumConfig) -> Parts:
    selector = NearestRate(config.target, thompson=True)
    return Parts(make_estimator(pool, config), selector, make_gate(config))


def _build_pcl(pool: PromptPool, config: CurriculumConfig) -> Parts:
    selector = NearestRate(config.target, thompson=False)
    return Parts(make_estimator(pool, config), selector, make_gate(config))


def _build_greso(pool: PromptPool, config: CurriculumConfig) -> Parts:
    selector = GRESOSkip(config.greso, len(pool))
    return Parts(make_estimator(pool, config), selector, make_gate(config))


def _build_pools(pool: PromptPool, config: CurriculumConfig) -> Parts:
    return Parts(make_estimator(pool, config), DifficultyPools(config.pools), make_gate(config))


def _build_adarft(pool: PromptPool, config: CurriculumConfig) -> Parts:
    selector = TargetDifficulty(config.adarft)
    return Parts(make_estimator(pool, config), selector, make_gate(config))


def _build_speed(pool: PromptPool, config: CurriculumConfig) -> Parts:
    # A group no larger than the screening is screened whole: dynamic sampling.
    gate = Screening(min(config.speed.n_init, config.group_size), config.speed.batches, config.max_rounds)
    return Parts(make_estimator(pool, config), Uniform(), gate)


def _rates(method: str, setting: str, column: str, prompts: Sequence[Prompt]) -> list[float | None]:
    """Each prompt's label, None where it has none. Raises DataError if no prompt has one: a wrong column."""
    rates = [as_rate(p.fields.get(column)) for p in prompts]
    if prompts and all(rate is None for rate in rates):
        raise DataError(
            f"method {method!r} chooses by column {column!r}, which holds a pass rate in [0, 1] for none of the "
            f"{len(prompts)} prompts; columns there: {', '.join(sorted(prompts[0].fields)) or 'none'}: name the right "
            f"one with {setting}"
        )
    return rates


def _keep_the_middle(prompts: Sequence[Prompt], config: CurriculumConfig) -> Sequence[Prompt]:
    """Prompts whose offline pass rate lies in ``keep``; one without a label is kept: unknown is not hard."""
    low, high = config.keep
    rates = _rates("polaris", "pass_rate_field", config.pass_rate_field, prompts)
    kept = [p for p, rate in zip(prompts, rates, strict=True) if rate is None or low <= rate <= high]
    if not kept:
        raise DataError(f"method 'polaris': no prompt's {config.pass_rate_field} lies in keep = [{low}, {high}]")
    return kept


def _check_labels(method: str) -> Callable[[Sequence[Prompt], CurriculumConfig], Sequence[Prompt]]:
    """All prompts, once it is sure that the columns that the method's estimator reads hold something."""

    def check(prompts: Sequence[Prompt], config: CurriculumConfig) -> Sequence[Prompt]:
        settings = config.estimator
        if isinstance(settings, OracleSettings):
            _rates(method, "estimator.field", settings.field, prompts)
        if isinstance(settings, BOTSSettings) and settings.weak is not None and settings.strong is not None:
            _rates(method, "estimator.weak", settings.weak, prompts)
            _rates(method, "estimator.strong", settings.strong, prompts)
        return prompts

    return check


# Each of these by benchmarks/bench_learning.py, on the whole of what is trained for (docs/learning.md).
_FUSED = {
    "estimator": {"type": "fused", "drift": False},  # a common drift lifts the hopeless with the rest
    **{"band": "auto", "temperature": 1.0, "candidate_factor": "auto", "warmup_steps": 2, "guard": True},
}
_LABELS = {"estimator": {"type": "oracle"}}
_HISTORY = {"estimator": {"type": "history"}}
_DAPO = {**_UNIFORM, "gate": "dynamic"}
_VCRL = {**_UNIFORM, "gate": "high_variance"}
_GRESO = {**_HISTORY, "gate": "dynamic"}
_MOPPS = {"estimator": {"type": "history", "fade_by": "visits", "discount": 1.0}, "candidate_factor": 16}
_DPS = {"estimator": {"type": "dps"}, "candidate_factor": 32}
_BOTS = {"estimator": {"type": "bots"}, "candidate_factor": 16}
_ADARFT = {**_LABELS, "candidate_factor": 16}

for _method in (
    Method("grpo", "every prompt, in the order of the epoch", _UNIFORM, _build_uniform),
    Method("dapo", "roll out, drop all-right and all-wrong groups, sample more", _DAPO, _build_uniform),
    Method("polaris", "offline filter by a pass-rate column", _UNIFORM, _build_uniform, _keep_the_middle),
    Method("depo", "predict the pass rate before the rollout, roll out what can teach", {}, _build_depo),
    Method("depo+", "everything known of a prompt in one calibrated belief, largest P(mixed)", _FUSED, _build_depo),
    Method(
        "oracle",
        "upper bound: largest P(mixed) by a pass-rate column",
        _AS_PUBLISHED | _LABELS,
        _build_most_mixed,
        _check_labels("oracle"),
    ),
    Method("mopps", "Thompson sampling of a Beta per prompt, nearest to 0.5", _AS_PUBLISHED | _MOPPS, _build_thompson),
    Method("greso", "skip at random what has taught nothing, and as dapo", _AS_PUBLISHED | _GRESO, _build_greso),
    Method("dps", "three-state chain per prompt, largest P(mixed)", _AS_PUBLISHED | _DPS, _build_most_mixed),
    Method(
        "bots",
        "fading Beta per prompt and two reference models, nearest to 0.5",
        _AS_PUBLISHED | _BOTS,
        _build_thompson,
        _check_labels("bots"),
    ),
    Method(
        "pools", "prime-rl: weights by the pool that the last group fell into", _AS_PUBLISHED | _HISTORY, _build_pools
    ),
    Method("pcl", "predicted pass rate nearest to 0.5", _AS_PUBLISHED | {"candidate_factor": 4}, _build_pcl),
    Method(
        "adarft",
        "offline difficulty nearest to a target that follows the reward",
        _AS_PUBLISHED | _ADARFT,
        _build_adarft,
        _check_labels("adarft"),
    ),
    Method("vcrl", "roll out, keep groups of high variance, sample more", _VCRL, _build_uniform),
    Method("speed", "screen with a few completions, complete the mixed groups", _UNIFORM, _build_speed),
):
    METHODS[_method.name] = _method


def make_estimator(pool: PromptPool, config: CurriculumConfig) -> PassRateEstimator:
    """The estimator that ``config.estimator`` describes; torch is imported for ``encoder`` only."""
    settings = config.estimator
    if isinstance(settings, ConstantSettings):
        return ConstantEstimator(settings.mean, settings.strength)
    if isinstance(settings, OracleSettings):
        return OracleEstimator(settings.field, settings.strength)
    if isinstance(settings, HistorySettings):
        return HistoryEstimator(settings)
    if isinstance(settings, DPSSettings):
        return DPSEstimator(settings, config.group_size)
    if isinstance(settings, BOTSSettings):
        return BOTSEstimator(pool.prompts, settings, config.group_size)
    if isinstance(settings, FusedSettings):
        from .estimators.fused import FusedEstimator

        return FusedEstimator(pool.prompts, settings, config.group_size, config.seed, _lesson(settings))
    if isinstance(settings, EncoderSettings):
        from .estimators.encoder import EncoderEstimator

        return EncoderEstimator(pool.__getitem__, settings, config.seed, config.group_size)
    raise ConfigError(f"no estimator for settings of type {type(settings).__name__}")


def _lesson(settings: FusedSettings) -> Lesson | None:
    if settings.warm_start is None:
        return None
    from .outcomes.tables import read_lesson  # reads parquet, which is slow to import

    return read_lesson(settings.warm_start, "estimator.warm_start")


def make_gate(config: CurriculumConfig) -> Gate:
    """The gate that ``config.gate`` names."""
    if config.gate == "dynamic":
        return DynamicSampling(config.max_rounds)
    if config.gate == "high_variance":
        return HighVariance(config.min_variance, config.max_rounds)
    return AdmitAll()


def parts_of(method: Method, pool: PromptPool, config: CurriculumConfig) -> Parts:
    """The method's parts over a pool. Raises ConfigError for a setting that they would not heed."""
    parts = method.build(pool, config)
    if "gate" in config.model_fields_set and type(parts.gate) is not type(make_gate(config)):
        raise ConfigError(
            f"method {method.name!r}, gate = {config.gate!r}: the method has a gate of its own "
            f"({type(parts.gate).__name__}): leave gate out, or choose another method"
        )
    if config.importance and not (isinstance(parts.selector, Drawing) and config.temperature):
        raise ConfigError(
            f"method {method.name!r}, importance = {config.importance}: weights need prompts that are drawn, and with "
            f"temperature = {config.temperature} and band = {config.band!r} this method draws none: set temperature "
            "above 0 in depo+ (or depo with band 'auto', oracle, dps), or importance to 0"
        )
    return parts


def rule_of(name: str, config: CurriculumConfig) -> Parts:
    """As ``parts_of``, with neither a data set nor the method's estimator: to judge settings before either is there."""
    light = config.model_copy(update={"estimator": ConstantSettings.model_validate({})})
    return parts_of(get_method(name), PromptPool([Prompt("none", "none")]), light)


def get_method(name: str) -> Method:
    """Raises ConfigError with the nearest right name."""
    if name not in METHODS:
        raise ConfigError(f"unknown method {name!r}.{nearest(str(name), METHODS)}")
    return METHODS[name]


def make_curriculum(
    method: str, prompts: Sequence[Prompt], config: Mapping[str, Any] | CurriculumConfig | None = None
) -> Curriculum:
    """A curriculum over ``prompts``; ``config`` holds settings of ``CurriculumConfig`` over the method's defaults.

    Raises ConfigError for an unknown method or setting, DataError for an empty pool or duplicate keys.
    """
    chosen = get_method(method)
    settings = parse_config(chosen.defaults, config, where=f"method {method!r}")
    pool = PromptPool(chosen.prepare(prompts, settings), settings.seed)
    return Curriculum(method, pool, *parts_of(chosen, pool, settings), settings)
