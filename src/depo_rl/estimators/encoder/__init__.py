"""The paper's Difficulty Estimator: a text encoder with heads, fine-tuned while the policy trains.
Needs torch."""

from .estimator import EncoderEstimator as EncoderEstimator

__all__ = ["EncoderEstimator"]
