"""The pool of prompts, and the two ways to walk it: candidates, and exploration.

Both walks are *shuffled passes*: every member comes once per pass, in an order that depends only on the seed and the
number of the pass, so that a walk's whole state is two integers.
"""

from __future__ import annotations

import hashlib
from collections.abc import Iterator, Sequence, Set

import numpy as np
from numpy.typing import NDArray

from .errors import DataError, StateMismatch
from .types import Prompt, State


class ShuffledPass:
    """Endless shuffled passes over ``members``; ``stream`` keeps walks with the same seed apart."""

    def __init__(self, members: NDArray[np.int64], seed: int, stream: int) -> None:
        self._members, self._seed, self._stream = members, seed, stream
        self._restart(0, 0)

    def _restart(self, epoch: int, cursor: int) -> None:
        self.epoch, self.cursor = epoch, cursor
        rng = np.random.default_rng([self._seed, self._stream, epoch])
        self._order = self._members[rng.permutation(len(self._members))]

    def draw(self, k: int, taken: Set[int]) -> list[int]:
        """Up to ``k`` distinct members outside ``taken``; fewer only if no more exist. Looks at most at two passes."""
        drawn: list[int] = []
        seen: set[int] = set()
        for _ in range(len(self._members) - self.cursor + len(self._members)):
            if len(drawn) >= k:
                break
            if self.cursor == len(self._order):
                self._restart(self.epoch + 1, 0)
            index = int(self._order[self.cursor])
            self.cursor += 1
            if index not in taken and index not in seen:
                drawn.append(index)
                seen.add(index)
        return drawn

    def state_dict(self) -> State:
        return {"epoch": self.epoch, "cursor": self.cursor}

    def load_state_dict(self, state: State) -> None:
        self._restart(int(state["epoch"]), int(state["cursor"]))


class PromptPool:
    """Prompts with random access by key and by index, and the walk that supplies candidates.

    Raises DataError if there is no prompt or two share a key.
    """

    def __init__(self, prompts: Sequence[Prompt], seed: int = 0) -> None:
        self.prompts = list(prompts)
        if not self.prompts:
            raise DataError("the pool has no prompts; a curriculum needs at least one")
        self._index = {prompt.key: i for i, prompt in enumerate(self.prompts)}
        if len(self._index) < len(self.prompts):
            raise DataError(_first_duplicate(self.prompts))
        self.seed = seed
        self.members_of: dict[str, NDArray[np.int64]] = _members_by_source(self.prompts)
        self._walk = ShuffledPass(np.arange(len(self.prompts)), seed, stream=0)

    def __len__(self) -> int:
        return len(self.prompts)

    def __iter__(self) -> Iterator[Prompt]:
        return iter(self.prompts)

    def __contains__(self, key: object) -> bool:
        return key in self._index

    def __getitem__(self, key: str) -> Prompt:
        return self.prompts[self._index[key]]

    def index_of(self, key: str) -> int:
        return self._index[key]

    @property
    def fingerprint(self) -> str:
        """Identifies the data set: number of prompts and a hash of their keys in order."""
        digest = hashlib.blake2b(digest_size=8)
        for prompt in self.prompts:
            digest.update(prompt.key.encode("utf-8", "surrogatepass") + b"\x00")
        return f"{len(self.prompts)} prompts, {digest.hexdigest()}"

    def draw(self, k: int, taken: Set[int]) -> list[int]:
        """Indices of the next ``k`` candidates outside ``taken``, distinct; fewer only if no more exist."""
        return self._walk.draw(k, taken)

    def state_dict(self) -> State:
        return {"fingerprint": self.fingerprint, "walk": self._walk.state_dict()}

    def load_state_dict(self, state: State) -> None:
        """Raises StateMismatch, naming both, if the state was saved with another data set."""
        if state["fingerprint"] != self.fingerprint:
            raise StateMismatch(
                f"the saved state belongs to another data set: saved with {state['fingerprint']}, this pool has "
                f"{self.fingerprint}; resume with the data set the run was started with"
            )
        self._walk.load_state_dict(state["walk"])


class Exploration:
    """Chooses prompts whatever the prediction: a share of all places, spread over sources by their size.

    Each source is walked in shuffled passes, so one mechanism gives four guarantees: the share itself; a floor of
    share x size for every source; a visit to every prompt in each 1/share epochs of rollouts (no gap longer than two
    such passes); and a known, equal probability of inclusion, which makes the explored groups an unbiased audit of
    what the selector skips.
    """

    def __init__(self, pool: PromptPool, share: float, seed: int) -> None:
        self.share = share
        self._weight = {s: len(m) / len(pool) for s, m in pool.members_of.items()}
        self._walks = {s: ShuffledPass(m, seed, stream=1 + i) for i, (s, m) in enumerate(pool.members_of.items())}
        self._owed_total, self._owed = 0.0, dict.fromkeys(self._walks, 0.0)

    def draw(self, n: int, taken: Set[int]) -> list[int]:
        """Indices to explore in a batch of ``n``: on average ``share * n``, exactly so in the long run."""
        self._owed_total += self.share * n
        for source, weight in self._weight.items():
            self._owed[source] += self.share * n * weight
        drawn: list[int] = []
        while self._owed_total >= 1.0 - 1e-9 and len(drawn) < n:
            self._owed_total -= 1.0
            source = max(self._owed, key=lambda s: self._owed[s])
            self._owed[source] -= 1.0
            drawn += self._walks[source].draw(1, taken | set(drawn))
        return drawn

    def state_dict(self) -> State:
        walks = {source: walk.state_dict() for source, walk in self._walks.items()}
        return {"owed_total": self._owed_total, "owed": dict(self._owed), "walks": walks}

    def load_state_dict(self, state: State) -> None:
        if set(state["walks"]) != set(self._walks):
            raise StateMismatch(
                f"the saved state has sources {sorted(state['walks'])}, this pool has {sorted(self._walks)}"
            )
        self._owed_total, self._owed = float(state["owed_total"]), {k: float(v) for k, v in state["owed"].items()}
        for source, walk in self._walks.items():
            walk.load_state_dict(state["walks"][source])


def _members_by_source(prompts: Sequence[Prompt]) -> dict[str, NDArray[np.int64]]:
    members: dict[str, list[int]] = {}
    for i, prompt in enumerate(prompts):
        members.setdefault(prompt.source, []).append(i)
    return {source: np.asarray(indices, dtype=np.int64) for source, indices in members.items()}


def _first_duplicate(prompts: Sequence[Prompt]) -> str:
    seen: dict[str, int] = {}
    for i, prompt in enumerate(prompts):
        if prompt.key in seen:
            return (
                f"prompts {seen[prompt.key]} and {i} have the same key {prompt.key!r} ({prompt.text[:60]!r}); keys must "
                "be unique: remove the duplicate, or give each its own key"
            )
        seen[prompt.key] = i
    raise AssertionError("no duplicate")
