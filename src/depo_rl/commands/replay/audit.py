"""What the selector skips, audited through the explored groups: how often would a skipped prompt
have been mixed?

Definition. An explored group was rolled out whatever the prediction, so it is a fair sample of the
pool. It counts as *would be skipped* if the selector, shown this prompt and the prompts it chose
for the same batch, with the predictions made before the rollout, and asked for as many places as it
filled, leaves this prompt out for another reason than that too many are fit ("surplus"). For a
selector that ranks this means: ranked below every prompt chosen; for a window: predicted outside of
it. The *false-skip rate* is the share of the would-be skipped that turned out mixed. Batches of the
warm-up, and those chosen while guarded, in which nothing is skipped, do not count.
"""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np

from ...metrics import auc
from ...protocols import Selector
from ...report import SkipAudit
from ...report.curves import wilson
from ...types import Prediction, Prompt, Settlement


class SkipAuditor:
    """Adds up batches. seed: of the generator that a selector with chance in it draws from."""

    def __init__(self, group_size: int, seed: int) -> None:
        self._group_size = group_size
        self._rng = np.random.default_rng([seed, 4])
        self._n_explored = 0
        self._n_explored_mixed = 0
        self._n_skipped = 0
        self._n_false = 0
        self._judged: list[tuple[float, bool]] = []

    def add(
        self, selector: Selector, prompts: Sequence[Prompt], settled: Sequence[Settlement]
    ) -> None:
        """A batch: its prompts, their settlements in the same order, and a copy of the selector as
        it was then.

        A copy, because a selector that keeps state may change when it is asked.
        """
        pairs = list(zip(prompts, settled, strict=True))
        chosen = [pair for pair in pairs if pair[1].because == "selected"]
        if not chosen:
            return
        for prompt, explored in pairs:
            if explored.because != "explored" or not explored.outcome.n_scored:
                continue
            skipped = self._would_skip(selector, (prompt, explored), chosen)
            self._n_explored += 1
            self._n_explored_mixed += explored.outcome.mixed
            self._n_skipped += skipped
            self._n_false += skipped and explored.outcome.mixed
            p_mixed = _belief([explored]).p_mixed(self._group_size)[0]
            self._judged.append((float(p_mixed), explored.outcome.mixed))

    def _would_skip(
        self,
        selector: Selector,
        one: tuple[Prompt, Settlement],
        chosen: Sequence[tuple[Prompt, Settlement]],
    ) -> bool:
        prompts, settled = zip(one, *chosen, strict=True)
        decision = selector.select(prompts, _belief(settled), len(chosen), self._rng)
        return 0 not in decision.chosen and decision.skipped.get(0) != "surplus"

    def result(self) -> SkipAudit | None:
        """None if nothing could be audited."""
        if not self._n_explored:
            return None
        low, high = wilson(self._n_false, self._n_skipped)
        score = auc(*zip(*self._judged, strict=True))
        return SkipAudit(
            explored=self._n_explored,
            explored_mixed=self._n_explored_mixed,
            skipped=self._n_skipped,
            skipped_mixed=self._n_false,
            low=low,
            high=high,
            auc_mixed=score,
        )


def _belief(settled: Sequence[Settlement]) -> Prediction:
    mean_P = np.array([s.predicted_mean for s in settled])
    return Prediction(mean_P, np.array([s.predicted_strength for s in settled]))
