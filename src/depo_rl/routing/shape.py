"""A few dozen numbers on how a query is written, beside which words are in it: they carry much of
what tells a hard query from an easy one, and between them lie interactions that words lack."""

from __future__ import annotations

import math
import re
import zlib

_WORD = re.compile(r"[^\W\d_]+")
_SENTENCE_END = re.compile(r"[.!?]\s")
_MARKS = "()=+-*/^_{}:;,.\"'%<>|[]?$\\"
_NUMBER = re.compile(r"\d+")
_COMMAND = re.compile(r"\\[a-z]+")
_COUNTED = tuple(
    re.compile(pattern)
    for pattern in (
        r"\b(?:not|no|never|except|false)\b|n't\b",
        r"\b(?:what|which|who|when|where|why|how)\b",
        r"\bhow (?:many|much)\b",
        r"\b(?:each|every|per|all)\b",
        r"\b(?:half|twice|third|quarter|double|times|percent)\b",
        r"\b(?:more|less|fewer|than|greater|most|least)\b",
        r"\b(?:if|suppose|let|given|assume|then)\b",
        r"\b(?:prove|show|find|compute|determine|evaluate|calculate)\b",
        r"\b(?:he|she|his|her|they|their|i|my|you|your)\b",
        r"\b[a-z]\b",
        r"\d\.\d",
        r"\n\s*\(?[a-j][.):]",
    )
)


def query_shape(text: str) -> list[float]:
    """Always as many numbers, all finite, for any text, the empty one included."""
    lower = text.lower()
    return [*_lengths(text), *_numbers(text), *_style(text, lower), *_counts(text, lower)]


def _lengths(text: str) -> list[float]:
    lines = [len(line) for line in text.split("\n")]
    letters = [len(word) for word in _WORD.findall(text)] or [0]
    mean = sum(letters) / len(letters)
    sentences = len(_SENTENCE_END.split(text))
    return [
        math.log1p(len(text)), math.log1p(len(letters)), math.log1p(len(lines)),
        math.sqrt(max(lines)), math.log1p(min(lines)), math.log1p(lines[0]), math.log1p(lines[-1]),
        mean, math.sqrt(sum((n - mean) ** 2 for n in letters) / len(letters)),
        math.log1p(sentences), math.log1p(len(letters) / sentences),
    ]  # fmt: skip


def _numbers(text: str) -> list[float]:
    runs = _NUMBER.findall(text)
    longest = max(map(len, runs), default=0)
    largest = max((run for run in runs if len(run) == longest), default="0")
    size = math.log1p(int(largest)) if longest <= 15 else 2.3 * longest
    return [math.log1p(len(runs)), math.log1p(len(set(runs))), min(longest, 32), min(size, 30.0)]


def _style(text: str, lower: str) -> list[float]:
    n = max(len(text), 1)
    words = lower.split()
    packed = len(zlib.compress(text.encode("utf-8", "surrogatepass"), 1))
    capitals = sum(map(str.isupper, text))
    return [
        capitals / n,
        sum(map(str.isdigit, text)) / n,
        (len(text) - sum(map(len, words))) / n,
        len(set(words)) / max(len(words), 1),
        packed / n,
        math.sqrt(capitals),
        not text.isascii(),
        "[asy]" in text,
        math.sqrt(len(set(_COMMAND.findall(lower)))),
    ]


def _counts(text: str, lower: str) -> list[float]:
    return [
        *(math.log1p(text.count(mark)) for mark in _MARKS),
        *(math.sqrt(len(pattern.findall(lower))) for pattern in _COUNTED),
    ]
