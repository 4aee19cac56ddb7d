"""The vectors of a backbone that does not learn, each computed once."""

from __future__ import annotations

from collections.abc import Callable, Sequence

import torch
from torch import Tensor

from ...features.embedding_cache import digest

BYTES = 256 * 2**20  # of the vectors kept: 87,000 of 768 numbers


class FrozenVectors:
    """compute: token ids of P texts -> (P, D), float32; asked one text at a time.

    Among others a text is padded, and its vector differs in the last bits with the company it is
    in. Alone, it is a function of the text: what is kept equals what would be computed again, after
    a resume too. limit: bytes; the vectors that were computed first make room.
    """

    def __init__(
        self, compute: Callable[[Sequence[Sequence[int]]], Tensor], limit: int = BYTES
    ) -> None:
        self._compute = compute
        self._limit = limit
        self._known: dict[bytes, Tensor] = {}

    def __len__(self) -> int:
        return len(self._known)

    def __call__(self, ids: Sequence[Sequence[int]]) -> Tensor:
        """(P, D) of the texts with these token ids, at least one."""
        return torch.stack([self._one(row) for row in ids])

    def forget(self) -> None:
        """For when the backbone's weights were replaced."""
        self._known.clear()

    def _one(self, row: Sequence[int]) -> Tensor:
        key = digest(*(token.to_bytes(4, "little") for token in row))
        if (vector_D := self._known.get(key)) is None:
            vector_D = self._known[key] = self._compute([row])[0].detach().clone()
            if len(self._known) > max(
                self._limit // (vector_D.numel() * vector_D.element_size()), 1
            ):
                del self._known[next(iter(self._known))]
        return vector_D
