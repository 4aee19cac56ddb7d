"""How widely a curriculum chooses: visits of each prompt, sources in a batch, repeats.

A selector that is sure of a few prompts chooses them again and again, and what it leaves out is
forgotten. The share of mixed groups cannot show that; these figures can, and need no evaluation.
"""

from __future__ import annotations

from collections import deque
from collections.abc import Iterable, Mapping

import numpy as np
from numpy.typing import NDArray

from .errors import StateMismatch, expect_fields
from .types import State

NAN = float("nan")
RECENT_BATCHES = 20
BREADTH = (
    *("sources_in_batch", "sources_per_batch", "distinct_share"),
    *("unseen_share", "effective_prompts", "most_visits"),
)
"""Names of the figures, in the order of ``Breadth.metrics``."""

IntArray = NDArray[np.int64]


class Breadth:
    """Counts what was chosen, whether or not a group came back of it.

    index: key -> position in the pool, of all N prompts. source_of: shape (N,), the number of each
    prompt's source, from 0 on.
    """

    def __init__(self, index: Mapping[str, int], source_of: IntArray) -> None:
        self._index = index
        self._source_of = source_of
        self._load(np.zeros(len(source_of), dtype=np.int64), [], 0, False)

    def _load(self, visits: IntArray, recent: list[IntArray], sources: int, is_open: bool) -> None:
        self._visits = visits
        # position v: prompts that were visited v times
        self._prompts_by_visits = np.bincount(visits)
        self._recent = deque(recent, RECENT_BATCHES)
        self._sources_by_place = sources  # sum over batches of (sources in it x places of it)
        self._open = is_open  # the last batch was adopted and nothing has come back since

    @property
    def visits(self) -> IntArray:
        """How often each prompt of the pool was chosen, shape (N,), read-only; changes as it goes
        on."""
        view = self._visits.view()
        view.flags.writeable = False
        return view

    def add(self, keys: Iterable[str], joins: bool = False) -> None:
        """A batch of distinct prompts was chosen. One of none is no batch.

        joins: it may be the rest of the batch before, as an engine that fetches its own order row
        by row hands it over: the two count as one unless ``close`` came between. Raises KeyError if
        a key is not of the pool.
        """
        batch = np.array([self._index[key] for key in keys], dtype=np.int64)
        if not len(batch):
            return
        self._visit(batch)
        if joins and self._open:
            before = self._recent.pop()
            self._sources_by_place -= self._weighed(before)
            batch = np.concatenate([before, batch])
        self._recent.append(batch)
        self._sources_by_place += self._weighed(batch)
        self._open = joins

    def close(self) -> None:
        """A group came back: what is chosen from here on is another batch."""
        self._open = False

    def _visit(self, batch: IntArray) -> None:
        """Counts, in time that goes with the batch and not with the pool."""
        before = self._visits[batch]
        self._visits[batch] = before + 1
        size = max(len(self._prompts_by_visits), int(before.max()) + 2)
        moved = np.bincount(before + 1, minlength=size) - np.bincount(before, minlength=size)
        self._prompts_by_visits = (
            np.pad(self._prompts_by_visits, (0, size - len(self._prompts_by_visits))) + moved
        )

    def _weighed(self, batch: IntArray) -> int:
        return len(np.unique(self._source_of[batch])) * len(batch)

    def metrics(self) -> dict[str, float]:
        """Six figures of what was chosen so far; NaN while unknown.

        sources_in_batch: different sources in the last batch chosen, from 1 on. sources_per_batch:
        its mean since the start, over places, so that a small refill weighs little. distinct_share:
        different prompts among those chosen in the last 20 batches, as a share of their places, in
        (0, 1]. unseen_share: of the pool, never chosen, in [0, 1]. effective_prompts: exp of the
        entropy of the visits, in [1, N]: as many prompts visited equally often would be as varied.
        most_visits: of one prompt.
        """
        prompts_by_visits = self._prompts_by_visits
        n = len(self._visits)
        n_unseen = int(prompts_by_visits[0])
        figures = dict.fromkeys(BREADTH, NAN)
        figures |= {"unseen_share": n_unseen / n, "most_visits": float(len(prompts_by_visits) - 1)}
        if not self._recent:
            return figures
        last = np.concatenate(self._recent)
        v = np.arange(1, len(prompts_by_visits))
        places = int(v @ prompts_by_visits[1:])
        entropy = np.log(places) - float(prompts_by_visits[1:] @ (v * np.log(v))) / places
        return figures | {
            "sources_in_batch": float(len(np.unique(self._source_of[self._recent[-1]]))),
            "sources_per_batch": self._sources_by_place / places,
            "distinct_share": len(np.unique(last)) / len(last),
            "effective_prompts": float(np.exp(entropy)),
        }

    def state_dict(self) -> State:
        return {
            "visits": self._visits.copy(),
            "recent": [batch.tolist() for batch in self._recent],
            "sources_by_place": self._sources_by_place,
            "open": self._open,
        }

    def load_state_dict(self, state: State) -> None:
        """Strict: StateMismatch, with nothing changed, if ``state`` is of another pool or
        contradicts itself."""
        expect_fields("breadth", state, self.state_dict())
        visits = np.array(state["visits"], dtype=np.int64)
        recent = [np.array(batch, dtype=np.int64) for batch in state["recent"]]
        if not self._possible(visits, recent):
            raise StateMismatch(
                f"breadth state counts visits of {visits.size} prompts and keeps {len(recent)} batches; this pool has "
                f"{len(self._source_of)} prompts, at most {RECENT_BATCHES} batches are kept, and none of them can be "
                "chosen more often than was counted: resume from another checkpoint"
            )
        self._load(visits, recent, int(state["sources_by_place"]), bool(state["open"]))

    def _possible(self, visits: IntArray, recent: list[IntArray]) -> bool:
        n = len(self._source_of)
        if (
            visits.shape != (n,)
            or len(recent) > RECENT_BATCHES
            or not all(len(batch) for batch in recent)
        ):
            return False
        last = np.concatenate([*recent, np.empty(0, dtype=np.int64)])
        if not ((last >= 0) & (last < n)).all():
            return False
        return bool((visits >= np.bincount(last, minlength=n)).all())
