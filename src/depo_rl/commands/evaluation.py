"""What a policy can do on the whole of a pool: accuracy by source, weighted as the sources are in
the pool.

One number over the sources that a method likes to train on would hide what it forgets of the
others.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass

import numpy as np

from ..types import FloatArray

_K = 8  # of pass@k: the usual group size


def dead_share(rate_P: FloatArray, group_size: int) -> float:
    """Expected share, in [0, 1], of groups that are all right or all wrong, for pass rates of shape
    (P,)."""
    return float((rate_P**group_size + (1 - rate_P) ** group_size).mean())


@dataclass(frozen=True, slots=True)
class Evaluation:
    """One evaluation on held-out problems.

    accuracy: source -> mean pass rate in [0, 1]. weight: source -> its share of the pool, of the
    same sources; any positive numbers, what counts is their proportion. pass_at_8: source -> mean
    of 1 - (1 - p)^8 over problems whose exact pass rates p are known, or None where they were
    sampled. Raises ValueError if the sources are not the same.
    """

    accuracy: Mapping[str, float]
    weight: Mapping[str, float]
    pass_at_8: Mapping[str, float] | None = None

    def __post_init__(self) -> None:
        if self.accuracy.keys() != self.weight.keys() or not self.accuracy:
            raise ValueError(
                f"evaluated on sources {sorted(self.accuracy)} with weights for {sorted(self.weight)}: each source "
                "needs a weight, and there must be one"
            )

    @classmethod
    def exact(
        cls, rate_P: FloatArray, source_P: Sequence[str], weight: Mapping[str, float]
    ) -> Evaluation:
        """From each problem's exact pass rate in [0, 1], shape (P,), and its source."""
        at = {source: np.array(source_P) == source for source in dict.fromkeys(source_P)}
        right_P = 1.0 - (1.0 - rate_P) ** _K
        return cls(
            {source: float(rate_P[mask].mean()) for source, mask in at.items()},
            weight,
            {source: float(right_P[mask].mean()) for source, mask in at.items()},
        )

    @property
    def whole(self) -> float:
        """Accuracy on the whole pool, in [0, 1]."""
        return self._weighted(self.accuracy)

    @property
    def pass_at_8_whole(self) -> float | None:
        """pass@8 on the whole pool, in [0, 1]; None without exact pass rates."""
        return None if self.pass_at_8 is None else self._weighted(self.pass_at_8)

    def _weighted(self, values: Mapping[str, float]) -> float:
        total = sum(self.weight.values())
        return sum(self.weight[source] * value for source, value in values.items()) / total
