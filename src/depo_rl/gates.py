"""Gates: which finished groups are trained on. They judge raw correctness, never the shaped
reward."""

from __future__ import annotations

from .types import GroupOutcome


class AdmitAll:
    """Every scored group is trained on, as in GRPO; one generation round per batch."""

    max_rounds = 1

    def admit(self, outcome: GroupOutcome) -> bool:
        return True


class DynamicSampling:
    """DAPO (arXiv 2503.14476, section 3.2): drop groups that are all right or all wrong and sample
    more.

    ``max_rounds`` bounds the generation rounds an engine may spend on one batch, the first
    included; when they are spent it trains on what there is, and says so.
    """

    def __init__(self, max_rounds: int) -> None:
        self.max_rounds = max_rounds

    def admit(self, outcome: GroupOutcome) -> bool:
        return outcome.mixed


class Screening(DynamicSampling):
    """SPEED (arXiv 2506.09016): of each prompt ``screen`` completions; the rest of the group if
    they are mixed.

    A group that passed is mixed and trained on whole, its first completions included; one that did
    not is left at ``screen`` completions. ``batches`` times a batch of prompts are screened per
    round.
    """

    def __init__(self, screen: int, batches: int, max_rounds: int) -> None:
        super().__init__(max_rounds)
        self.screen = screen
        self.batches = batches

    def passes(self, screened: GroupOutcome) -> bool:
        return screened.mixed


class HighVariance:
    """Groups whose reward variance is at least ``min_variance`` of the largest there is; the rest
    is sampled anew.

    With k of G right that share is k (G - k) / (floor(G / 2) ceil(G / 2)), 1 for half right and 0
    for all or none (VCRL, arXiv 2509.19803). For even G, 0.64 admits pass rates from 0.2 to 0.8,
    the filter of Bae et al. (arXiv 2504.03380).
    """

    def __init__(self, min_variance: float, max_rounds: int) -> None:
        self.min_variance = min_variance
        self.max_rounds = max_rounds

    def admit(self, outcome: GroupOutcome) -> bool:
        n = outcome.n_scored
        k = outcome.n_correct
        largest = (n // 2) * (n - n // 2)
        return outcome.mixed and k * (n - k) >= self.min_variance * largest - 1e-9
