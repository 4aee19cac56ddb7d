"""The pool of prompts, and the two ways to walk it: candidates, and exploration.

Both walks are *shuffled passes*: every member comes once per pass, in an order that depends only on
the seed and the number of the pass, so that a walk's whole state is two integers.
"""

from __future__ import annotations

import hashlib
import math
from collections import Counter
from collections.abc import Iterator, Sequence, Set
from functools import cached_property

import numpy as np
from numpy.typing import NDArray

from .errors import DataError, StateMismatch, UnknownPrompt, expect_fields, expect_same
from .types import Prompt, State

_SOURCES_NAMED = 4  # in messages


class ShuffledPass:
    """Endless shuffled passes over ``range(size)``; ``stream`` keeps walks with the same seed
    apart.

    group_of: shape (size,), optional. Members of the same group are then spread evenly over each
    pass: counted from its start, each group is never more than two members away from its share.
    """

    def __init__(
        self, size: int, seed: int, stream: int, group_of: NDArray[np.int64] | None = None
    ) -> None:
        self._size = size
        self._seed = seed
        self._stream = stream
        self._group_of = group_of
        self._restart(0, 0)

    def _restart(self, epoch: int, cursor: int) -> None:
        self.epoch = epoch
        self.cursor = cursor
        rng = np.random.default_rng([self._seed, self._stream, epoch])
        order = rng.permutation(self._size)
        self._order = (
            order if self._group_of is None else _interleave(order, self._group_of[order], rng)
        )

    def draw(self, k: int, taken: Set[int]) -> list[int]:
        """Up to ``k`` distinct members outside ``taken``; fewer only if no more exist. ValueError
        if ``k`` < 0.

        Stops after every member was looked at once, so that it ends whatever is taken.
        """
        if k < 0:
            raise ValueError(f"cannot draw {k} prompts")
        drawn: list[int] = []
        seen: set[int] = set()
        while len(drawn) < k and len(seen) < self._size:
            if self.cursor == self._size:
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
        """Raises StateMismatch, with nothing changed, if ``state`` is no place in this walk."""
        expect_fields("walk", state, self.state_dict())
        epoch = state["epoch"]
        cursor = state["cursor"]
        if not (
            isinstance(epoch, int)
            and isinstance(cursor, int)
            and epoch >= 0
            and 0 <= cursor <= self._size
        ):
            raise StateMismatch(
                f"walk state has epoch {epoch!r}, cursor {cursor!r}; this pool has {self._size} prompts"
            )
        self._restart(epoch, cursor)


def _interleave(
    order: NDArray[np.int64], group: NDArray[np.int64], rng: np.random.Generator
) -> NDArray[np.int64]:
    """``order`` sorted so that the i-th of the m members of a group comes at about (i + u) / m, u
    random per group."""
    by_group = np.argsort(group, kind="stable")
    size = np.bincount(group)
    first = np.cumsum(size) - size
    rank = np.empty(len(order))
    rank[by_group] = np.arange(len(order)) - first[group[by_group]]
    place = (rank + rng.random(len(size))[group]) / size[group]
    return order[np.argsort(place, kind="stable")]


class PromptPool:
    """Prompts with random access by key and by index, and the walk that supplies candidates.

    Raises DataError if there is no prompt or two share a key.
    """

    def __init__(self, prompts: Sequence[Prompt], seed: int = 0) -> None:
        self.prompts = list(prompts)
        if not self.prompts:
            raise DataError("the pool has no prompts; a curriculum needs at least one")
        self.index = {prompt.key: i for i, prompt in enumerate(self.prompts)}  # key -> position
        if len(self.index) < len(self.prompts):
            raise DataError(_first_duplicate(self.prompts))
        self.seed = seed
        # source -> number of prompts
        self.sizes = dict(Counter(prompt.source for prompt in self.prompts))
        number = {source: i for i, source in enumerate(self.sizes)}
        self.source_of = np.array(
            [number[prompt.source] for prompt in self.prompts], dtype=np.int64
        )
        self._walk = ShuffledPass(len(self.prompts), seed, stream=0)

    def __len__(self) -> int:
        return len(self.prompts)

    def __iter__(self) -> Iterator[Prompt]:
        return iter(self.prompts)

    def __contains__(self, key: object) -> bool:
        return key in self.index

    def __getitem__(self, key: str) -> Prompt:
        """Raises UnknownPrompt, which is a KeyError too."""
        if key not in self.index:
            raise UnknownPrompt(
                f"no prompt of this pool has the key {key!r}: outcomes must carry the key of a prompt of it"
            )
        return self.prompts[self.index[key]]

    @cached_property
    def fingerprint(self) -> str:
        """Identifies the data set: number of prompts, sources, and a hash of keys, sources and
        texts in order."""
        digest = hashlib.blake2b(digest_size=8)
        for prompt in self.prompts:
            for part in (prompt.key, prompt.source, prompt.text):
                digest.update(part.encode("utf-8", "surrogatepass") + b"\x00")
        largest = sorted(self.sizes.items(), key=lambda item: (-item[1], item[0]))
        sources = ", ".join(f"{source}: {size}" for source, size in largest[:_SOURCES_NAMED])
        more = f", {len(largest) - _SOURCES_NAMED} more" if len(largest) > _SOURCES_NAMED else ""
        return f"{len(self.prompts)} prompts ({sources}{more}; {digest.hexdigest()})"

    def draw(self, k: int, taken: Set[str]) -> list[Prompt]:
        """The next ``k`` candidates whose keys are not ``taken``, distinct; fewer only if no more
        exist."""
        return self.walk(self._walk, k, taken)

    def walk(self, walk: ShuffledPass, k: int, taken: Set[str]) -> list[Prompt]:
        """The next ``k`` prompts of a walk over this pool."""
        return [self.prompts[i] for i in walk.draw(k, {self.index[key] for key in taken})]

    def state_dict(self) -> State:
        return {"fingerprint": self.fingerprint, "seed": self.seed, "walk": self._walk.state_dict()}

    def load_state_dict(self, state: State) -> None:
        """Raises StateMismatch, naming both and with nothing changed, if saved with another data
        set or seed."""
        expect_fields("pool", state, self.state_dict())
        if state["fingerprint"] != self.fingerprint:
            raise StateMismatch(
                f"the saved state belongs to another data set: saved with {state['fingerprint']}, this pool has "
                f"{self.fingerprint}; resume with the data set the run was started with"
            )
        # the order of the walks follows from it
        expect_same("pool", "seed", state["seed"], self.seed)
        self._walk.load_state_dict(state["walk"])


class Exploration:
    """Chooses prompts whatever the prediction: a share of all places, by shuffled passes that
    interleave the sources.

    One mechanism gives four guarantees: the share itself, exact to less than one place at any
    moment; a floor of share x its size for every source (to within two prompts of a pass); a visit
    to every prompt at least once in two passes, that is in 2 / share epochs of rollouts; and a
    known, equal probability of inclusion, which makes the explored groups an unbiased audit of what
    the selector skips.
    """

    def __init__(self, pool: PromptPool, share: float) -> None:
        self.share = share
        self._pool = pool
        self._walk = ShuffledPass(len(pool), pool.seed, stream=1, group_of=pool.source_of)
        self._owed = 0.0  # places due to exploration and not given yet, below 1 between batches

    def draw(self, n: int, taken: Set[str]) -> list[Prompt]:
        """Prompts to explore in a batch of ``n``, at most ``n``; ``taken`` must leave at least
        ``n`` free."""
        owed = self._owed + self.share * n
        due = min(n, int(owed + 1e-9))
        drawn = self._pool.walk(self._walk, due, taken)
        self._owed = owed - due
        return drawn

    def max_unvisited_batches(self, n: int, all_uniform: bool) -> int | None:
        """Batches of ``n`` that two shuffled passes over the pool take, by the places filled
        whatever the prediction.

        all_uniform: the other places are filled so too. None: no bound, because the share is 0.
        """
        share = max(self.share, 1 - self.share) if all_uniform else self.share
        return math.ceil(2 * len(self._pool) / (share * n)) + 1 if share else None

    def state_dict(self) -> State:
        return {"owed": self._owed, "walk": self._walk.state_dict()}

    def load_state_dict(self, state: State) -> None:
        """Raises StateMismatch, with nothing changed, if ``state`` is not an exploration's."""
        expect_fields("exploration", state, self.state_dict())
        owed = float(state["owed"])
        self._walk.load_state_dict(state["walk"])
        self._owed = owed


def _first_duplicate(prompts: Sequence[Prompt]) -> str:
    seen: dict[str, int] = {}
    for i, prompt in enumerate(prompts):
        if prompt.key in seen:
            return (
                f"prompts {seen[prompt.key]} and {i} have the same key {prompt.key!r} ({prompt.text[:60]!r}); keys "
                "must be unique: remove the duplicate, or give each its own key"
            )
        seen[prompt.key] = i
    raise AssertionError("no duplicate")
