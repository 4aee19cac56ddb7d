"""Hashed n-grams of many texts at once, in numpy alone: no Python loop over tokens, the same on
every machine.

Arrays: ``_C`` characters of a chunk, ``_T`` tokens of a chunk, ``_N`` non-zeros of the result.
"""

from __future__ import annotations

import unicodedata
from collections.abc import Sequence
from functools import lru_cache
from typing import Any, NamedTuple

import numpy as np
from numpy.typing import NDArray

U64 = NDArray[np.uint64]
MAX_CHARS = 4096  # of a text that are read; the tail of a longer one changes little and costs much
MAX_ANSWER_CHARS = 64
WORDS = 0
SHAPES = 1
ANSWER = 2
N_VIEWS = 3
# from _OTHER on, every character is a token of its own
_SPACE, _LETTER, _DIGIT, _OTHER, _CJK = range(5)
_CJK_RANGES = (
    (0x3040, 0x30FF),
    (0x3400, 0x4DBF),
    (0x4E00, 0x9FFF),
    (0xF900, 0xFAFF),
    (0x20000, 0x3FFFF),
)
_PRIME = 0x9E3779B97F4A7C15
_LENGTHS = 0x200000  # beyond every code point: where the lengths of digit runs are hashed


class HashedTexts(NamedTuple):
    """indptr: (P+1,) int64. buckets, counts, view: (N,); in a row ordered by view, then bucket,
    each pair once."""

    indptr: NDArray[np.int64]
    buckets: NDArray[np.uint16]
    counts: NDArray[np.uint16]
    view: NDArray[np.uint8]


class _Tokens(NamedTuple):
    hash_T: U64
    row_T: NDArray[np.int64]
    kind_T: NDArray[np.uint8]
    length_T: NDArray[np.int64]


def hash_texts(
    texts: Sequence[str],
    n_buckets: int,
    answers: Sequence[str | None] | None = None,
    chunk: int = 2048,
) -> HashedTexts:
    """Counts of the hashed tokens of each text (words 1-2, shapes 1-3) and, if given, of its
    answer.

    n_buckets: a power of two, at most 65536. chunk: texts at a time; never changes the result.
    Raises ValueError if n_buckets is not such a number or there is not one answer (or None) per
    text.
    """
    if not 1 < n_buckets <= 1 << 16 or n_buckets & (n_buckets - 1):
        raise ValueError(f"n_buckets must be a power of two in 2..65536, got {n_buckets}")
    if answers is not None and len(answers) != len(texts):
        raise ValueError(f"{len(texts)} texts need as many answers, got {len(answers)}")
    parts = [
        _hash_chunk(
            texts[a : a + chunk], None if answers is None else answers[a : a + chunk], n_buckets
        )
        for a in range(0, len(texts), chunk)
    ] or [_hash_chunk([], None, n_buckets)]
    lengths_P = np.concatenate([np.diff(part.indptr) for part in parts])
    indptr = np.concatenate([[0], np.cumsum(lengths_P)]).astype(np.int64)
    return HashedTexts(indptr, *(np.concatenate([part[i] for part in parts]) for i in (1, 2, 3)))


def _hash_chunk(
    texts: Sequence[str], answers: Sequence[str | None] | None, n_buckets: int
) -> HashedTexts:
    # lower() may lengthen a text, hence the second cut
    words = _tokenise([text[:MAX_CHARS].lower()[:MAX_CHARS] for text in texts])
    keys = [
        *_ngrams(words.hash_T, words.row_T, 2, WORDS, 0, n_buckets),
        *_ngrams(*_shapes(words), 3, SHAPES, 1, n_buckets),
    ]
    if answers is not None:
        cut = [(answer or "")[:MAX_ANSWER_CHARS] for answer in answers]
        code_C, row_C, inside_C = _characters(cut)
        characters = mix(code_C[inside_C].astype(np.uint64))
        keys += _ngrams(characters, row_C[inside_C], 3, ANSWER, 2, n_buckets)
        keys += _ngrams(*_shapes(_tokenise(cut)), 3, ANSWER, 3, n_buckets)
    key_N = np.sort(np.concatenate(keys))
    first_N = np.flatnonzero(np.diff(key_N, prepend=-1))
    counts = np.diff(first_N, append=len(key_N))
    key_N = key_N[first_N]
    indptr = np.searchsorted(key_N, np.arange(len(texts) + 1, dtype=np.int64) << 18).astype(
        np.int64
    )
    return HashedTexts(
        indptr,
        (key_N & 0xFFFF).astype(np.uint16),
        counts.astype(np.uint16),
        (key_N >> 16 & 3).astype(np.uint8),
    )


def _characters(
    texts: Sequence[str],
) -> tuple[NDArray[np.uint32], NDArray[np.int64], NDArray[np.bool_]]:
    """Code points of all texts with a newline after each, the text each belongs to, and False at
    those newlines."""
    lengths_P = np.fromiter(map(len, texts), np.int64, len(texts)) + 1
    joined = "\n".join([*texts, ""])
    code_C = np.frombuffer(joined.encode("utf-32-le", "surrogatepass"), np.uint32)
    inside_C = np.ones(len(code_C), bool)
    inside_C[np.cumsum(lengths_P) - 1] = False
    return code_C, np.repeat(np.arange(len(texts)), lengths_P), inside_C


def _tokenise(texts: Sequence[str]) -> _Tokens:
    """A token is a maximal run of letters or of digits, or one other character that is not a
    space."""
    code_C, row_C, _ = _characters(texts)
    kind_C = _kinds()[code_C]
    starts_C = kind_C != _SPACE
    starts_C[1:] &= (kind_C[1:] != kind_C[:-1]) | (kind_C[1:] >= _OTHER)
    start_T = np.flatnonzero(starts_C)
    if not len(start_T):
        return _Tokens(
            np.empty(0, np.uint64),
            np.empty(0, np.int64),
            np.empty(0, np.uint8),
            np.empty(0, np.int64),
        )
    filled_C = np.flatnonzero(kind_C != _SPACE)
    # positions among the characters that are not spaces
    first_T = np.searchsorted(filled_C, start_T)
    length_T = np.diff(first_T, append=len(filled_C))
    position_C = np.arange(len(filled_C)) - np.repeat(first_T, length_T)
    mixed_C = mix(code_C[filled_C].astype(np.uint64)) * _powers()[position_C]
    return _Tokens(
        mix(np.add.reduceat(mixed_C, first_T)), row_C[start_T], kind_C[start_T], length_T
    )


def _shapes(tokens: _Tokens) -> tuple[U64, NDArray[np.int64]]:
    """Hashes and rows of the tokens that are no letters, a run of digits replaced by its length."""
    keep_T = (tokens.kind_T == _DIGIT) | (tokens.kind_T == _OTHER)
    kind_T = tokens.kind_T[keep_T]
    length_T = tokens.length_T[keep_T]
    by_length_T = mix((length_T + _LENGTHS).astype(np.uint64))
    return np.where(kind_T == _DIGIT, by_length_T, tokens.hash_T[keep_T]), tokens.row_T[keep_T]


def _ngrams(
    hash_T: U64, row_T: NDArray[np.int64], longest: int, view: int, salt: int, n_buckets: int
) -> list[NDArray[np.int64]]:
    """Sortable keys row << 18 | view << 16 | bucket of the 1- to ``longest``-grams that stay within a row."""
    keys = []
    rolling = hash_T
    for n in range(1, longest + 1):
        if n > 1:
            rolling = rolling[:-1] * np.uint64(_PRIME) + hash_T[n - 1 :]
        row = row_T[: len(rolling)]
        same = row == row_T[n - 1 :]
        # the high bits are the well mixed ones; the salt keeps views and lengths apart
        mixed = mix(rolling[same] + np.uint64(8 * salt + n)) >> np.uint64(48)
        keys.append(
            row[same] << 18 | view << 16 | (mixed & np.uint64(n_buckets - 1)).astype(np.int64)
        )
        if len(rolling) < 2:
            break
    return keys


def mix(x: U64) -> U64:
    """A bijection of 64-bit words that spreads every bit (the finaliser of splitmix64, one round
    shorter)."""
    x = (x + np.uint64(_PRIME)) * np.uint64(0xBF58476D1CE4E5B9)
    x ^= x >> np.uint64(29)
    x *= np.uint64(0x94D049BB133111EB)
    x ^= x >> np.uint64(32)
    return x


@lru_cache(maxsize=1)
def _powers() -> U64:
    return np.cumprod(np.full(MAX_CHARS, 0xD6E8FEB86659FD93, np.uint64), dtype=np.uint64)


@lru_cache(maxsize=1)
def _kinds() -> NDArray[np.uint8]:
    """Class of every code point, (0x110000,). Beyond the basic plane: CJK or a single other
    character."""
    kinds = np.full(0x110000, _OTHER, np.uint8)
    kinds[:0x10000] = [_kind(chr(code)) for code in range(0x10000)]
    for low, high in _CJK_RANGES:
        kinds[low : high + 1] = _CJK
    return kinds


def _kind(character: str) -> int:
    if character.isspace():
        return _SPACE
    category = unicodedata.category(character)
    if category[0] in "LM":  # a combining mark is part of its word
        return _LETTER
    return _DIGIT if category == "Nd" else _OTHER


def answer_text(value: Any) -> str | None:
    """The answer as stripped text; None if there is none (None, NaN)."""
    if value is None or (isinstance(value, float) and value != value):
        return None
    return str(value).strip()
