"""A few dozen numbers that describe a text and its answer: lengths, digits, notation. They carry
much of the signal."""

from __future__ import annotations

import math
import re
from collections.abc import Sequence

import numpy as np
from numpy.typing import NDArray

from ..types import Prompt
from .blocks import StoredBlock, in_chunks
from .text import MAX_CHARS, answer_text

SCALE = 0.1
_CLIP = 3.0

_DIGITS = re.compile(r"\d+")
_INTEGER = re.compile(r"[+-]?\d+\Z")
_COMMAND = re.compile(r"\\[a-zA-Z]+")
_LOG10 = math.log(10.0)
_MAX_LOG = 30.0

TEXT_NAMES = (
    "log_length", "log_words", "log_digit_runs", "log_dollars", "log_backslashes", "question_marks",
    "longest_digit_run", "asy", "non_ascii", "log_newlines", "log_largest_integer", "log_distinct_integers",
)  # fmt: skip
ANSWER_NAMES = (
    "missing", "integer", "length", "log_length", "frac", "sqrt", "pi", "power", "comma", "parenthesis", "letters",
    "minus", "log_integer", "single_digit", "is_0", "is_1", "is_2", "decimal_point",
)  # fmt: skip
NAMES = (*TEXT_NAMES, *(f"answer_{name}" for name in ANSWER_NAMES))


def shape_block(prompts: Sequence[Prompt], answer_field: str) -> StoredBlock:
    """Columns of mean 0 and deviation 1 over the pool, clipped; a constant one is 0."""

    def raw(part: Sequence[Prompt]) -> NDArray[np.float32]:
        answers = [answer_text(prompt.fields.get(answer_field)) for prompt in part]
        return shape_features([prompt.text for prompt in part], answers)

    values = in_chunks(prompts, raw)
    for column in range(len(NAMES) if len(values) else 0):  # in place: the block is large
        value = values[:, column].astype(np.float64)
        std = float(value.std())
        centred = value - value.mean()
        values[:, column] = np.clip(centred / std, -_CLIP, _CLIP) if std > 1e-6 else 0.0
    return StoredBlock(values, SCALE)


def shape_features(texts: Sequence[str], answers: Sequence[str | None]) -> NDArray[np.float32]:
    """Shape (P, len(NAMES)), finite, each within [0, 64]. Texts are read to ``MAX_CHARS``; answers
    may be None."""
    raw_PD = np.array(
        [
            _text(text[:MAX_CHARS]) + _answer(answer)
            for text, answer in zip(texts, answers, strict=True)
        ],
        np.float32,
    ).reshape(len(texts), len(NAMES))
    for name in (n for n in TEXT_NAMES if n.startswith("log_") and n != "log_largest_integer"):
        column_P = raw_PD[:, NAMES.index(name)]
        np.log1p(column_P, out=column_P)
    return raw_PD


def _text(text: str) -> tuple[float, ...]:
    """Counts; those named log_... are logged for all prompts at once."""
    runs = _DIGITS.findall(text)
    longest = len(max(runs, key=len)) if runs else 0
    # of equal length: as text
    largest = max((run for run in runs if len(run) == longest), default="0")
    return (
        len(text), len(text.split()), len(runs), text.count("$"), text.count("\\"), min(text.count("?"), 8),
        min(longest, 32), "[asy]" in text, not text.isascii(), text.count("\n"), _log_integer(largest), len(set(runs)),
    )  # fmt: skip


def _answer(answer: str | None) -> tuple[float, ...]:
    if answer is None:
        return (1.0,) + (0.0,) * (len(ANSWER_NAMES) - 1)
    answer = answer[:MAX_CHARS]
    integer = _INTEGER.match(answer) is not None
    return (
        0.0, integer, min(len(answer), 64), math.log1p(len(answer)), "\\frac" in answer, "\\sqrt" in answer,
        "\\pi" in answer or "π" in answer, "^" in answer, "," in answer, "(" in answer,
        any(c.isalpha() for c in _COMMAND.sub("", answer)), answer.startswith("-"),
        _log_integer(answer.lstrip("+-")) if integer else 0.0, len(answer) == 1 and answer.isdecimal(),
        answer == "0", answer == "1", answer == "2", "." in answer,
    )  # fmt: skip


def _log_integer(digits: str) -> float:
    """log(1 + integer), at most 30; of a long run from its first digits, for int() is quadratic in
    them."""
    rest = max(len(digits) - 15, 0)
    return min(math.log1p(int(digits[:15])) + rest * _LOG10, _MAX_LOG)
