"""Beliefs about a pass rate as a normal distribution of its logit, by quadrature.

theta = logit(pass rate) ~ Normal(mean, variance). A wide one is U-shaped in the pass rate, as the
pass rates of real pools are; sums of independent changes stay normal, so that drift and forgetting
are additions. Integrals use the trapezoid rule on 41 points within 4.5 standard deviations, whose
error is far below what eight completions tell.
"""

from __future__ import annotations

from typing import Any, NamedTuple

import numpy as np

from ...types import FloatArray

_NODES = np.linspace(-4.5, 4.5, 41)
_LOG_WEIGHTS = -0.5 * _NODES**2 - np.log(np.exp(-0.5 * _NODES**2).sum())
_WEIGHTS = np.exp(_LOG_WEIGHTS)
LOGIT_LIMIT = 12.0  # rates within 6e-6 of 0 or 1 are not told apart


class Rates(NamedTuple):
    """Of each belief: the expected pass rate, and the probability that a group is all right, or all
    wrong."""

    mean: FloatArray
    all_pass: FloatArray
    all_fail: FloatArray


class Conditioned(NamedTuple):
    """Mean and variance of each belief after a group was seen, and the log-probability that it had
    of that group (nats, without the binomial coefficient)."""

    mean: FloatArray
    variance: FloatArray
    log_evidence: FloatArray


def rates(mean: FloatArray, variance: FloatArray, group_size: int) -> Rates:
    """What beliefs of any shape say of groups of ``group_size``; the same shape."""
    right = 1.0 / (1.0 + np.exp(-_logits(mean, variance)))
    return Rates(
        right @ _WEIGHTS,
        _power(right, group_size) @ _WEIGHTS,
        _power(1.0 - right, group_size) @ _WEIGHTS,
    )


def condition(mean: FloatArray, variance: FloatArray, correct: Any, scored: Any) -> Conditioned:
    """Beliefs after ``correct`` of ``scored`` completions were right (moments matched); counts
    broadcast to them.

    Two identities give every slope that learning needs: d log_evidence / d mean = (mean' - mean) /
    variance, and d log_evidence / d log standard deviation = (variance' + (mean' - mean)^2) /
    variance - 1.
    """
    logits = _logits(mean, variance)
    correct = np.asarray(correct, dtype=np.float64)[..., None]
    scored = np.asarray(scored, dtype=np.float64)[..., None]
    # k log p + (n - k) log(1 - p) = k theta - n log(1 + exp(theta))
    log_joint = correct * logits - scored * np.logaddexp(0.0, logits) + _LOG_WEIGHTS
    highest = log_joint.max(axis=-1, keepdims=True)
    weight = np.exp(log_joint - highest)
    total = weight.sum(axis=-1, keepdims=True)
    weight /= total
    new_mean = (weight * logits).sum(axis=-1)
    new_variance = (weight * (logits - new_mean[..., None]) ** 2).sum(axis=-1)
    return Conditioned(new_mean, new_variance, (np.log(total) + highest)[..., 0])


def _logits(mean: FloatArray, variance: FloatArray) -> FloatArray:
    spread = np.sqrt(variance)[..., None] * _NODES
    result: FloatArray = np.clip(mean[..., None] + spread, -3 * LOGIT_LIMIT, 3 * LOGIT_LIMIT)
    return result


def _power(base: FloatArray, exponent: int) -> FloatArray:
    """``base ** exponent`` by squaring; numpy's own power is several times slower."""
    result = np.ones_like(base)
    while exponent:
        if exponent & 1:
            result = result * base
        base = base * base
        exponent = exponent >> 1
    return result
