"""From settings to parts: the estimator and the gate that a configuration names."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

from .config import (
    ConstantSettings,
    CurriculumConfig,
    EncoderSettings,
    FusedSettings,
    HistorySettings,
    OracleSettings,
)
from .estimators.history import HistoryEstimator
from .estimators.simple import ConstantEstimator, OracleEstimator
from .gates import AdmitAll, DynamicSampling, HighVariance, Screening
from .pool import PromptPool
from .protocols import Gate, PassRateEstimator
from .rivals.bots import BOTSEstimator
from .rivals.dps import DPSEstimator
from .rivals_config import BOTSSettings, DPSSettings


def _fused(
    settings: FusedSettings, pool: PromptPool, config: CurriculumConfig
) -> PassRateEstimator:
    from .estimators.fused import FusedEstimator

    lesson = None
    if settings.warm_start is not None:
        from .outcomes.tables import read_lesson  # reads parquet, which is slow to import

        lesson = read_lesson(settings.warm_start, "estimator.warm_start")
    return FusedEstimator(pool.prompts, settings, config.group_size, config.seed, lesson)


def _encoder(
    settings: EncoderSettings, pool: PromptPool, config: CurriculumConfig
) -> PassRateEstimator:
    from .estimators.encoder import EncoderEstimator  # imports torch

    return EncoderEstimator(pool.__getitem__, settings, config.seed, config.group_size)


ESTIMATORS: dict[type[Any], Callable[[Any, PromptPool, CurriculumConfig], PassRateEstimator]] = {
    ConstantSettings: lambda own, pool, config: ConstantEstimator(own.mean, own.strength),
    OracleSettings: lambda own, pool, config: OracleEstimator(own.field, own.strength),
    HistorySettings: lambda own, pool, config: HistoryEstimator(own),
    DPSSettings: lambda own, pool, config: DPSEstimator(own, config.group_size),
    BOTSSettings: lambda own, pool, config: BOTSEstimator(pool.prompts, own, config.group_size),
    FusedSettings: _fused,
    EncoderSettings: _encoder,
}
"""Settings of an estimator -> what makes it, of those settings, the pool and the whole config."""


MakeEstimator = Callable[[PromptPool, CurriculumConfig], PassRateEstimator]


def make_estimator(pool: PromptPool, config: CurriculumConfig) -> PassRateEstimator:
    """The estimator that ``config.estimator`` describes; torch is imported for ``encoder`` only."""
    return ESTIMATORS[type(config.estimator)](config.estimator, pool, config)


def make_gate(config: CurriculumConfig) -> Gate:
    """The gate that ``config.gate`` names."""
    if config.gate == "dynamic":
        return DynamicSampling(config.max_rounds)
    if config.gate == "high_variance":
        return HighVariance(config.min_variance, config.max_rounds)
    return AdmitAll()


def make_screening(config: CurriculumConfig) -> Gate:
    # A group no larger than the screening is screened whole: dynamic sampling.
    return Screening(
        min(config.speed.n_init, config.group_size), config.speed.batches, config.max_rounds
    )
