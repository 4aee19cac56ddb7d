"""Reward functions for answers in mathematics: 1.0 right, 0.0 wrong, None when the gold answer
itself is unusable.

Plain functions ``f(completion, answer)`` without state, cheap to import: a worker process imports
only this. They have no time-outs of their own; :class:`~depo_rl.rewards.pool.VerifierPool` enforces
the limit from outside. A completion without a readable answer is wrong (0.0); an unreadable gold
answer says nothing about the completion (None).

A gold answer may be a text, a number or a list (``gold.py``). Several answers, of a list or in one
text, are a set: all of them and no other, in any order. They may share the last box or stand in a
box each.
"""

from __future__ import annotations

import logging
import re
from collections.abc import Iterator, Sequence
from decimal import Decimal
from fractions import Fraction
from functools import lru_cache
from typing import Any

from .gold import Gold, read_gold
from .latex import NUMBER, all_boxed, bare_latex, canonical, decimal_of, split_answers, tidy_latex
from .latex import last_boxed as last_boxed

_RATIO = re.compile(NUMBER.pattern + r"(?:/(?P<over>0*[1-9][0-9]*)(?![\w/]|\.[0-9]))?")
_FRACTION = re.compile(
    r"(?P<whole>(?<=[0-9]))?\\[dt]?frac(?:\s*\{(-?[0-9]+)\}\s*\{([0-9]+)\}|\s*([0-9])\s*([0-9]))"
)
_MIXED = re.compile(r"(?<![\w.,/])([0-9]{1,9})\s{1,3}([0-9]{1,9})/([0-9]{1,9})(?![\w/]|[.,][0-9])")
_POWER_OF_UNIT = re.compile(r"(?<=[A-Za-z])(?:\^?\{?[23]\}?|[\u00b2\u00b3])(?![\w.])")
# what makes the number after it part of another
_NOT_BEFORE = re.compile(r"[\\^_*+=<>|{}\[\]/]|\w\Z|[-\u2212]\s*\Z")
_UNIT = r"[kcmn]?m|[km]?g|m?[lL]|hr?s?|s|secs?|mins?|[apAP][mM]|[mk]ph|ft|in|yd|lbs?|oz|th|st|nd|rd|[CFKVWN]"
_NOT_AFTER = re.compile(
    r"[\\^_*+=<>|{}\[\]]|/(?![A-Za-z])|\b(?:hundred|thousand|[mbtr]+illion|dozen)s?\b"
    rf"|\A\s*(?!(?:{_UNIT})(?![A-Za-z]))(?:(?<!\s)[A-Za-z]|[B-Zb-z](?![A-Za-z]))"
)
_TRUTH = ("true", "false")
_MOST_BOXES = 50  # that are taken together


def gsm8k_reward(completion: str, answer: Any) -> float | None:
    """Compare final numbers as GSM8K does: the first number after the last ``####``, else the last
    one in the text.

    Numbers are compared exactly, fractions such as 1/2 too; commas, currency signs, units and
    trailing zeros do not matter. A completion with ``####`` has named its answer: no number behind
    it is wrong, whatever came before.

    completion: the model's text. answer: gold answer, bare ("1,234"), a list of one, or the data
    set's whole solution ("... #### 1234").

    Returns 1.0 or 0.0; None if ``answer`` is not one number, see :func:`gold_number`.
    """
    gold = gold_number(answer)
    if gold is None:
        return None
    said = final_number(completion)
    return float(said is not None and Fraction(said) == Fraction(gold))


def gold_number(answer: Any) -> Decimal | Fraction | None:
    r"""The number that a gold answer is, whatever words and unit are around it.

    None for several numbers, for an expression (2\pi, 10^5, 3x, 2 million) and for none: in a gold
    answer, unlike in a completion, nothing may be skipped.
    """
    gold = read_gold(answer)
    if gold is None or len(gold.parts) > 1:
        return None
    text = _POWER_OF_UNIT.sub("", bare_latex(_with_plain_numbers(*gold.parts or (gold.text,))))
    name, _, text = text.rpartition("=")
    if any(character.isnumeric() for character in name):
        return None
    numbers = list(_RATIO.finditer(text))
    if len(numbers) != 1:
        return None
    before = text[: numbers[0].start()]
    after = text[numbers[0].end() :]
    if (
        _NOT_BEFORE.search(before)
        or _NOT_AFTER.search(after)
        or any(c.isnumeric() for c in before + after)
    ):
        return None
    return _value(numbers[0])


def final_number(text: str) -> Decimal | Fraction | None:
    """The first number after the last ``####`` if there is one, else the last number of the text;
    None if none.

    A Fraction where it is written as one (1/2, 3 1/2, LaTeX's), else a Decimal.
    """
    _, marker, tail = _with_plain_numbers(text).rpartition("####")
    # Word by word from the end that matters: no number spans a space, and most of a long text is
    # never searched.
    for word in tail.split() if marker else reversed(tail.split()):
        if numbers := list(_RATIO.finditer(word)):
            return _value(numbers[0 if marker else -1])
    return None


def _with_plain_numbers(text: str) -> str:
    """The text with 1,000 for LaTeX's ways to write it, 1/2 for its fractions and 7/2 for 3 1/2."""
    text = text.replace("{,}", ",").replace(",\\!", ",").replace("\\$", "$")
    if "frac" in text:
        text = _FRACTION.sub(
            lambda m: f"{' ' if m['whole'] is not None else ''}{m[2] or m[4]}/{m[3] or m[5]}", text
        )
    if "/" in text:
        text = _MIXED.sub(lambda m: f"{int(m[1]) * int(m[3]) + int(m[2])}/{m[3]}", text)
    return text


def _value(match: re.Match[str]) -> Decimal | Fraction:
    return Fraction(decimal_of(match)) / int(match["over"]) if match["over"] else decimal_of(match)


def boxed_reward(completion: str, answer: Any) -> float | None:
    r"""Compare the last ``\boxed{}`` with the gold answer, as numbers where both are, else as
    tidied LaTeX.

    completion: the model's text; no closed ``\boxed{}`` is wrong. answer: gold answer, bare, a
    list, or a solution with ``\boxed{}``.

    Returns 1.0 or 0.0; None if ``answer`` is empty or a mapping.
    """
    gold = read_gold(answer)
    if gold is None or not tidy_latex(gold.text):
        return None
    boxes = all_boxed(completion)
    if not boxes:
        return 0.0
    if canonical(boxes[-1]) == canonical(gold.text):
        return 1.0
    wanted = list(_sets(gold.parts or (gold.text,)))
    return float(any(said in wanted for texts in (boxes[-1:], boxes) for said in _sets(texts)))


def _sets(texts: Sequence[str]) -> Iterator[frozenset[Decimal | str]]:
    """The answers in ``texts`` as a set that is not empty, for both readings of a comma before
    three digits."""
    for grouped in (True, False):
        if found := frozenset(
            canonical(part) for text in texts for part in split_answers(text, grouped)
        ):
            yield found


def math_verify_reward(completion: str, answer: Any) -> float | None:
    r"""Compare with math-verify: symbolic and numeric equality of LaTeX or plain expressions.

    The completion's last ``\boxed{}`` counts if there is one, or all of them as one set, else what
    math-verify finds last. Call it behind a ``VerifierPool``: SymPy can hang for ever, and
    math-verify's own time-outs, which turn a hang into "wrong" and work in the main thread only,
    are off.

    completion: the model's text; nothing readable in it is wrong. answer: gold answer as LaTeX or
    plain text, with or without ``$`` or ``\boxed{}``, or a list.

    Returns 1.0 or 0.0; None if math-verify cannot read ``answer``, or it is empty or a mapping.
    """
    gold = read_gold(answer)
    if gold is None:
        return None
    readings = _readings(gold)
    as_text = boxed_reward(completion, answer)
    if not readings or canonical(gold.text) in _TRUTH:  # to math-verify a product of letters
        return as_text if gold.parts or canonical(gold.text) in _TRUTH else None
    if as_text == 1.0:
        return 1.0
    boxes = list(dict.fromkeys(all_boxed(completion)))
    if not boxes:
        return float(_verify(gold, readings, completion))
    said = [
        last_boxed(completion) or "",
        *([", ".join(boxes)] if 1 < len(boxes) <= _MOST_BOXES else []),
    ]
    said = list(dict.fromkeys([*said, *map(_ungrouped, said)]))
    return float(any(_verify(gold, readings, f"\\boxed{{{text}}}") for text in said))


def load_math_verify() -> None:
    """Import math-verify and let it build its parser (1 to 2 s), once per worker before the first
    item."""
    for module in (
        "parser",
        "grader",
    ):  # they warn that time-outs are off, which is what we want here
        logging.getLogger(f"math_verify.{module}").setLevel(logging.ERROR)
    math_verify_reward("\\boxed{\\frac{2}{4}}", "1/2")


@lru_cache(maxsize=256)  # the members of a group share their gold answer
def _readings(gold: Gold) -> tuple[tuple[Any, ...], ...]:
    """What math-verify reads of the gold answer, of a list as a set. Text alone, as for broken
    LaTeX, is no reading."""
    texts = (
        [gold.text.replace("\\$", "")]
        if not gold.parts or gold.text != ", ".join(gold.parts)
        else []
    )
    texts += (
        [", ".join(_ungrouped(part.replace("$", "")) for part in gold.parts)] if gold.parts else []
    )
    # Bare LaTeX ("\sqrt{2}") is only recognised inside an anchor; text with anchors of its own is
    # left alone.
    anchored = [
        text if any(a in text for a in ("$", "\\[", "\\(")) else f"\\boxed{{{text}}}"
        for text in texts
    ]
    readings = [tuple(_parse(text)) for text in anchored]
    return tuple(
        reading for reading in readings if not all(isinstance(form, str) for form in reading)
    )


def _parse(text: str) -> list[Any]:
    from math_verify import parse

    return list(parse(text, parsing_timeout=None))


def _verify(gold: Gold, readings: Sequence[tuple[Any, ...]], text: str) -> bool:
    from math_verify import verify

    said = _parse(text)
    decimals = _decimals(gold.text)
    return any(
        verify(list(form), said, float_rounding=decimals, timeout_seconds=None) for form in readings
    )


def _decimals(text: str) -> int:
    """Decimals to compare: math-verify's 6, and 6 more than the zeros with which the smallest
    number begins."""
    numbers = [decimal_of(match) for match in NUMBER.finditer(text)]
    return 6 + max([0, *(-number.adjusted() for number in numbers if number)])


def _ungrouped(text: str) -> str:
    """1000, 2000 for 1,000, 2,000: among several numbers math-verify takes the commas of one for
    more of them."""
    text = text.replace("{,}", ",").replace(",\\!", ",")
    return re.sub(
        r"(?<![0-9.,])[0-9]{1,3}(?:,[0-9]{3})+(?!,?[0-9])", lambda m: m[0].replace(",", ""), text
    )
