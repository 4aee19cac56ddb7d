"""A method is a name for a choice of (estimator, selector, gate), and the defaults its paper gives.

To add one: write its parts, then one ``@method`` function here.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any, NamedTuple

from .config import (
    ConstantSettings,
    CurriculumConfig,
    EncoderSettings,
    NgramSettings,
    OracleSettings,
    nearest,
    parse_config,
)
from .curriculum import Curriculum
from .errors import ConfigError, DataError
from .estimators.simple import ConstantEstimator, OracleEstimator, as_rate
from .gates import AdmitAll, DynamicSampling
from .pool import PromptPool
from .selectors import MostLikelyMixed, PassRateWindow, Uniform
from .types import Gate, PassRateEstimator, Prompt, Selector


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


def _register(method: Method) -> Method:
    METHODS[method.name] = method
    return method


def _build_uniform(pool: PromptPool, config: CurriculumConfig) -> Parts:
    return Parts(make_estimator(pool, config), Uniform(), AdmitAll())


def _build_dapo(pool: PromptPool, config: CurriculumConfig) -> Parts:
    return Parts(make_estimator(pool, config), Uniform(), DynamicSampling(config.max_rounds))


def _build_depo(pool: PromptPool, config: CurriculumConfig) -> Parts:
    selector: Selector = PassRateWindow(*config.window)
    if config.band == "auto":
        selector = MostLikelyMixed(config.group_size, config.candidate_factor)
    return Parts(make_estimator(pool, config), selector, AdmitAll())


def _keep_the_middle(prompts: Sequence[Prompt], config: CurriculumConfig) -> Sequence[Prompt]:
    """Prompts whose offline pass rate lies in ``keep``; one without a label is kept: unknown is not hard."""
    low, high = config.keep
    rates = [as_rate(p.fields.get(config.pass_rate_field)) for p in prompts]
    if prompts and all(rate is None for rate in rates):
        raise DataError(
            f"method 'polaris' filters by column {config.pass_rate_field!r}, which holds a pass rate in [0, 1] for "
            f"none of the {len(prompts)} prompts; columns there: {', '.join(sorted(prompts[0].fields)) or 'none'}: "
            "name the right one with pass_rate_field"
        )
    kept = [p for p, rate in zip(prompts, rates, strict=True) if rate is None or low <= rate <= high]
    if not kept:
        raise DataError(f"method 'polaris': no prompt's {config.pass_rate_field} lies in keep = [{low}, {high}]")
    return kept


_register(Method("grpo", "every prompt, in the order of the epoch", _UNIFORM, _build_uniform))
_register(Method("dapo", "roll out, drop all-right and all-wrong groups, sample more", _UNIFORM, _build_dapo))
_register(Method("polaris", "offline filter by a pass-rate column", _UNIFORM, _build_uniform, _keep_the_middle))
_register(Method("depo", "predict the pass rate before the rollout, roll out what can teach", {}, _build_depo))


def make_estimator(pool: PromptPool, config: CurriculumConfig) -> PassRateEstimator:
    """The estimator that ``config.estimator`` describes; torch is imported for ``encoder`` only."""
    settings = config.estimator
    if isinstance(settings, ConstantSettings):
        return ConstantEstimator(settings.mean, settings.strength)
    if isinstance(settings, OracleSettings):
        return OracleEstimator(settings.field, settings.strength)
    if isinstance(settings, NgramSettings):
        from .estimators.ngrams import NgramEstimator

        return NgramEstimator(pool.__getitem__, settings, config.seed)
    if isinstance(settings, EncoderSettings):
        from .estimators.encoder import EncoderEstimator

        return EncoderEstimator(pool.__getitem__, settings, config.seed)
    raise ConfigError(f"no estimator for settings of type {type(settings).__name__}")


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
    return Curriculum(method, pool, *chosen.build(pool, settings), settings)
