"""Difficulty pools of prime-rl: the last group puts a prompt into a pool, and each pool has a
sampling weight."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np

from ..errors import expect_fields
from ..rivals_config import PoolSettings
from ..selectors import keep_at_random
from ..types import Decision, GroupOutcome, Prediction, Prompt, State


class DifficultyPools:
    """Keeps a prompt with a probability in proportion to its pool's weight.

    Last group's pass rate <= ``hard_below``: hard; > ``easy_above``: easy; else normal; no group
    yet: unseen. prime-rl draws with replacement; here the candidates come in shuffled passes and
    each is kept with probability weight / largest weight, which has the same shares and no
    duplicates.
    """

    def __init__(self, settings: PoolSettings) -> None:
        self.settings = settings
        self._last: dict[str, float] = {}  # key -> pass rate of its last group
        names = ("hard", "normal", "easy", "unseen")
        self._weight = {name: float(getattr(settings, name)) for name in names}

    def appetite(self, n: int) -> int:
        return n

    def pool_of(self, key: str) -> str:
        """ "hard", "normal", "easy" or "unseen"."""
        if key not in self._last:
            return "unseen"
        rate = self._last[key]
        if rate <= self.settings.hard_below:
            return "hard"
        return "easy" if rate > self.settings.easy_above else "normal"

    def select(
        self, candidates: Sequence[Prompt], prediction: Prediction, n: int, rng: np.random.Generator
    ) -> Decision:
        pools = [self.pool_of(p.key) for p in candidates]
        largest = max(self._weight.values())
        keep_P = np.array([self._weight[pool] / largest for pool in pools])
        reasons = {"hard": "too_hard", "easy": "too_easy"}
        return keep_at_random(keep_P, [reasons.get(pool, "outranked") for pool in pools], n, rng)

    def observe(self, outcomes: Sequence[GroupOutcome]) -> None:
        self._last |= {o.key: o.n_correct / o.n_scored for o in outcomes if o.n_scored > 0}

    def state_dict(self) -> State:
        last = np.array(list(self._last.values()), dtype=np.float64)
        return {"type": type(self).__name__, "keys": list(self._last), "last": last}

    def load_state_dict(self, state: State) -> None:
        """Raises StateMismatch or ValueError, with nothing changed, if ``state`` is not of this
        selector."""
        expect_fields("selector", state, self.state_dict())
        rates = np.asarray(state["last"], dtype=np.float64).tolist()
        self._last = {str(key): rate for key, rate in zip(state["keys"], rates, strict=True)}

    def metrics(self) -> dict[str, float]:
        """hard, normal, easy: prompts in each pool."""
        pools = [self.pool_of(key) for key in self._last]
        return {name: float(pools.count(name)) for name in ("hard", "normal", "easy")}
