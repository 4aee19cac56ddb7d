"""Our estimator: a prior from features, each prompt's own groups, both in one calibrated belief."""

from .estimator import FusedEstimator as FusedEstimator

__all__ = ["FusedEstimator"]
