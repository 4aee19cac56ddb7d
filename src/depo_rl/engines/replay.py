"""Engines that answer from what real models did, with no model: a labelled pool, or a history of
groups.

Labelled pool: k of n correct is Binomial(n, pass rate); the policy stands still. History: the group
of the visit whose step is nearest the simulated step (of two equally near, the earlier), so that
the policy improves as that run's did, whatever is chosen here. A smaller group is drawn from a
recorded one without replacement. What cannot be answered comes back as a failed group and is
counted: no recorded group is large enough, or the nearest is further away than ``max_gap``.
"""

from __future__ import annotations

from bisect import bisect_left
from collections.abc import Mapping, Sequence
from dataclasses import replace

import numpy as np

from ..errors import ConfigError
from ..outcomes import LogRow
from ..outcomes.tables import GroupHistory, LabelledPool
from ..types import GroupOutcome, Prompt


class LabelledPoolEngine:
    """seed: of the outcomes; they come from a generator of their own."""

    def __init__(self, pool: LabelledPool, seed: int = 0) -> None:
        self._rate = dict(zip([p.key for p in pool.prompts], pool.rate_P.tolist(), strict=True))
        self._rng = np.random.default_rng([seed, 2])
        self.step = 1

    def rollout(self, prompts: Sequence[Prompt], group_size: int) -> list[GroupOutcome]:
        """A group for each prompt, in order. Raises KeyError for a prompt that is not in the
        pool."""
        rate_P = np.array([self._rate[p.key] for p in prompts])
        correct_P = self._rng.binomial(group_size, rate_P)
        return [
            GroupOutcome(p.key, int(k), group_size, policy_step=self.step)
            for p, k in zip(prompts, correct_P, strict=True)
        ]

    def extend(self, outcomes: Sequence[GroupOutcome], n: int) -> list[GroupOutcome]:
        """Each group with ``n`` further completions, in order."""
        rate_P = np.array([self._rate[o.key] for o in outcomes])
        correct_P = self._rng.binomial(n, rate_P).tolist()
        return [
            o.joined(GroupOutcome(o.key, k, n)) for o, k in zip(outcomes, correct_P, strict=True)
        ]

    def advance(self, trained: Sequence[GroupOutcome]) -> None:
        """The next step begins; the labels stay as they are."""
        self.step += 1

    def metrics(self) -> dict[str, float]:
        return {}


class HistoryEngine:
    """max_gap: steps that a visit may be away from the simulated step (None: any number).

    Raises ConfigError if no recorded group has ``group_size`` completions.
    """

    def __init__(
        self, history: GroupHistory, group_size: int, seed: int = 0, max_gap: int | None = None
    ) -> None:
        largest = max(row.group_size for rows in history.visits.values() for row in rows)
        if largest < group_size:
            raise ConfigError(
                f"group_size = {group_size}: the recorded groups have at most {largest} completions: ask for no more"
            )
        self._visits = _large_enough(history.visits, group_size)
        self._steps = {key: [row.step or 0 for row in rows] for key, rows in self._visits.items()}
        self._rng = np.random.default_rng([seed, 2])
        self._max_gap = max_gap
        self.step = 1
        self._n_asked = 0
        self._n_unanswered = 0
        self._gaps = 0
        self._largest_gap = 0

    def rollout(self, prompts: Sequence[Prompt], group_size: int) -> list[GroupOutcome]:
        """A group for each prompt, in order; one without a scored completion where there is no
        answer."""
        return [self._answer(prompt.key, group_size) for prompt in prompts]

    def _answer(self, key: str, group_size: int) -> GroupOutcome:
        self._n_asked += 1
        row = self._nearest(key)
        if row is None or row.group_size < group_size:
            self._n_unanswered += 1
            return GroupOutcome(key, 0, 0, n_failed=group_size, policy_step=self.step)
        gap = abs((row.step or 0) - self.step)
        self._gaps, self._largest_gap = self._gaps + gap, max(self._largest_gap, gap)
        n_missing = row.group_size - row.n_scored
        if row.group_size == group_size:
            return GroupOutcome(
                key,
                row.n_correct,
                row.n_scored,
                n_missing,
                n_tokens=row.tokens,
                policy_step=row.step,
            )
        kinds = (row.n_correct, row.n_scored - row.n_correct, n_missing)
        return self._draw(key, kinds, group_size, row.step)

    def _draw(
        self, key: str, kinds: tuple[int, int, int], n: int, step: int | None
    ) -> GroupOutcome:
        """``n`` of a recorded group's completions without replacement; kinds: how many are right,
        wrong, failed."""
        right, wrong, failed = self._rng.multivariate_hypergeometric(kinds, n).tolist()
        return GroupOutcome(key, right, right + wrong, failed, policy_step=step)

    def extend(self, outcomes: Sequence[GroupOutcome], n: int) -> list[GroupOutcome]:
        """Each group of this step with ``n`` further completions of the same recorded group, in
        order.

        Raises ValueError if one has none left: ask for no more than the ``group_size`` of the
        engine in all.
        """
        return [self._extend(outcome, n) for outcome in outcomes]

    def _extend(self, o: GroupOutcome, n: int) -> GroupOutcome:
        row = self._nearest(o.key)
        if row is None:
            raise ValueError(f"the group of {o.key!r} had no answer: there is nothing to extend")
        wrong = row.n_scored - row.n_correct - (o.n_scored - o.n_correct)
        missing = row.group_size - row.n_scored - o.n_failed
        whole = o.joined(
            self._draw(o.key, (row.n_correct - o.n_correct, wrong, missing), n, row.step)
        )
        return replace(whole, n_tokens=row.tokens) if whole.group_size == row.group_size else whole

    def _nearest(self, key: str) -> LogRow | None:
        steps = self._steps.get(key)
        if not steps:
            return None
        after = bisect_left(steps, self.step)
        near = [i for i in (after - 1, after) if 0 <= i < len(steps)]
        best = min(near, key=lambda i: abs(steps[i] - self.step))
        if self._max_gap is not None and abs(steps[best] - self.step) > self._max_gap:
            return None
        return self._visits[key][best]

    def advance(self, trained: Sequence[GroupOutcome]) -> None:
        """The next step begins; what was trained on does not change what was recorded."""
        self.step += 1

    def metrics(self) -> dict[str, float]:
        """unanswered: groups asked for in vain. mean_gap, largest_gap: steps between visits and
        simulated steps."""
        answered = self._n_asked - self._n_unanswered
        return {
            "unanswered": float(self._n_unanswered),
            "mean_gap": self._gaps / answered if answered else float("nan"),
            "largest_gap": float(self._largest_gap),
        }


def _large_enough(
    visits: Mapping[str, Sequence[LogRow]], group_size: int
) -> dict[str, list[LogRow]]:
    return {
        key: [row for row in rows if row.group_size >= group_size] for key, rows in visits.items()
    }


ReplayEngine = LabelledPoolEngine | HistoryEngine


def make_replay_engine(
    source: LabelledPool | GroupHistory, group_size: int, seed: int = 0, max_gap: int | None = None
) -> ReplayEngine:
    """The engine for what was read. Raises ConfigError if the history has no group that large."""
    if isinstance(source, LabelledPool):
        return LabelledPoolEngine(source, seed)
    return HistoryEngine(source, group_size, seed, max_gap)
