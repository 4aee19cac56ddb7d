"""Gates: which finished groups are trained on. They judge raw correctness, never the shaped reward."""

from __future__ import annotations

from .types import GroupOutcome


class AdmitAll:
    """Every scored group is trained on, as in GRPO; one generation round per batch."""

    max_rounds = 1

    def admit(self, outcome: GroupOutcome) -> bool:
        return True


class DynamicSampling:
    """DAPO (arXiv 2503.14476, section 3.2): drop groups that are all right or all wrong and sample more.

    ``max_rounds`` bounds the generation rounds an engine may spend on one batch, the first included; when they are
    spent it trains on what there is, and says so.
    """

    def __init__(self, max_rounds: int) -> None:
        self.max_rounds = max_rounds

    def admit(self, outcome: GroupOutcome) -> bool:
        return outcome.mixed
