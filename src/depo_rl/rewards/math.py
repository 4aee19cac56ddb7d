"""Reward functions for answers in mathematics: 1.0 right, 0.0 wrong, None when the gold answer itself is unusable.

Plain functions ``f(completion, answer)`` without state, cheap to import: a worker process imports only this. They have
no time-outs of their own; :class:`~depo_rl.rewards.pool.VerifierPool` enforces the limit from outside. A completion
without a readable answer is wrong (0.0); an unreadable gold answer says nothing about the completion (None).
"""

from __future__ import annotations

import logging
import re
from decimal import Decimal
from functools import lru_cache
from typing import Any

# Thousands groups first; a minus only where it cannot be a hyphen or a subtraction ("10-12", "x-3").
_NUMBER = re.compile(
    r"(?P<minus>(?<![\w.)\]}])[-\u2212])?[$\u20ac\u00a3]?"
    r"(?P<digits>[0-9]{1,3}(?:,[0-9]{3})+(?![0-9])(?:\.[0-9]+)?|[0-9]+(?:\.[0-9]+)?|(?<![0-9])\.[0-9]+)"
    r"(?P<exponent>[eE][+-]?[0-9]{1,3}(?!\w|\.[0-9]))?"
)
_UNIT_AT_END = re.compile(r"(?<=[0-9})])\s*\\(?:text|mbox|mathrm)\s*\{[^{}]*\}(?:\^\{?[0-9]\}?)?[\s.$]*\Z")
_BRACE = re.compile(r"\\(?:boxed|fbox)\s*\{|\\.|[{}]", re.DOTALL)  # "\\." also steps over the escaped \{ and \}


def gsm8k_reward(completion: str, answer: str) -> float | None:
    """Compare final numbers as GSM8K does: the first number after the last ``####``, else the last one in the text.

    Numbers are compared exactly as decimals; commas, currency signs, units and trailing zeros do not matter. A
    completion with ``####`` has named its answer: no number behind it is wrong, whatever came before.

    Args:
        completion: the model's text.
        answer: gold answer, bare ("1,234") or the data set's whole solution ("... #### 1234").

    Returns:
        1.0 or 0.0; None if ``answer`` holds no number.
    """
    gold = final_number(str(answer))
    if gold is None:
        return None
    return float(final_number(completion) == gold)


def final_number(text: str) -> Decimal | None:
    """The first number after the last ``####`` if there is one, else the last number of the text; None if none."""
    text = text.replace("{,}", ",").replace(",\\!", ",").replace("\\$", "$")
    _, marker, tail = text.rpartition("####")
    # Word by word from the end that matters: no number spans a space, and most of a long text is never searched.
    for word in tail.split() if marker else reversed(tail.split()):
        if numbers := list(_NUMBER.finditer(word)):
            return _decimal(numbers[0 if marker else -1])
    return None


def boxed_reward(completion: str, answer: str) -> float | None:
    r"""Compare the last ``\boxed{}`` with the gold answer, as numbers where both are, else as tidied LaTeX.

    Args:
        completion: the model's text; no closed ``\boxed{}`` is wrong.
        answer: gold answer, bare or a solution with ``\boxed{}``.

    Returns:
        1.0 or 0.0; None if ``answer`` is empty.
    """
    gold = tidy_latex(_gold_text(answer))
    if not gold:
        return None
    said = last_boxed(completion)
    return 0.0 if said is None else float(_same_text(tidy_latex(said), gold))


def last_boxed(text: str) -> str | None:
    r"""Content of the last ``\boxed{}`` (or ``\fbox{}``) whose braces close; the inner of two nested ones.

    One pass, so linear in the text's length whatever a model writes. Escaped braces do not count.
    """
    opened: list[tuple[int, bool]] = []  # (where the content starts, is it a box) of braces not closed yet
    best: tuple[int, int] | None = None
    for match in _BRACE.finditer(text):
        token = match.group()
        if token.endswith("{") and token != "\\{":
            opened.append((match.end(), token != "{"))
        elif token == "}" and opened:
            start, is_box = opened.pop()
            if is_box and (best is None or start > best[0]):
                best = (start, match.start())
    return text[best[0] : best[1]] if best else None


def tidy_latex(text: str) -> str:
    r"""Remove what does not change an answer: spaces, dollar and percent signs, degrees, sizes, a final unit or dot."""
    text = _UNIT_AT_END.sub("", text.replace("{,}", ","))
    text = re.sub(r"\\(?:text|mbox|mathrm)\s*\{([^{}]*)\}", r"\1", text)
    text = re.sub(r"\\(?:left|right|displaystyle)(?![a-zA-Z])|\\[!,;: ]|\^\s*\{?\\circ\}?|\\?[%$]", "", text)
    text = re.sub(r"\\[dt]frac(?![a-zA-Z])", r"\\frac", text)
    text = re.sub(r"\\frac\s*([0-9])\s*([0-9])", r"\\frac{\1}{\2}", text)
    return "".join(text.split()).rstrip(".")


def math_verify_reward(completion: str, answer: str) -> float | None:
    r"""Compare with math-verify: symbolic and numeric equality of LaTeX or plain expressions.

    The completion's last ``\boxed{}`` counts if there is one, else what math-verify finds last. Call it behind a
    ``VerifierPool``: SymPy can hang for ever, and math-verify's own time-outs, which turn a hang into "wrong" and
    work in the main thread only, are off.

    Args:
        completion: the model's text; nothing readable in it is wrong.
        answer: gold answer as LaTeX or plain text, with or without ``$`` or ``\boxed{}``.

    Returns:
        1.0 or 0.0; None if math-verify cannot read ``answer``.
    """
    gold_text = _gold_text(answer)
    gold = _parse_gold(gold_text)
    if all(isinstance(form, str) for form in gold):  # text alone is what parse returns for broken LaTeX
        return None
    said = last_boxed(completion)
    if said is not None and said.strip() == gold_text:
        return 1.0
    return float(_verify(gold, _parse(completion if said is None else f"\\boxed{{{said}}}")))


def load_math_verify() -> None:
    """Import math-verify and let it build its parser (1 to 2 s), once per worker before the first item."""
    for module in ("parser", "grader"):  # they warn that time-outs are off, which is what we want here
        logging.getLogger(f"math_verify.{module}").setLevel(logging.ERROR)
    math_verify_reward("\\boxed{\\frac{2}{4}}", "1/2")


@lru_cache(maxsize=256)  # the members of a group share their gold answer
def _parse_gold(text: str) -> tuple[Any, ...]:
    # Bare LaTeX ("\sqrt{2}") is only recognised inside an anchor; text with anchors of its own is left alone.
    return tuple(_parse(text if "$" in text or "\\[" in text or "\\(" in text else f"\\boxed{{{text}}}"))


def _parse(text: str) -> list[Any]:
    from math_verify import parse

    return list(parse(text, parsing_timeout=None))


def _verify(gold: tuple[Any, ...], said: list[Any]) -> bool:
    from math_verify import verify

    return bool(verify(list(gold), said, timeout_seconds=None))


def _gold_text(answer: Any) -> str:
    """The answer itself where the column holds a whole solution, of MATH (``\\boxed{}``) or of GSM8K (``####``)."""
    text = str(answer)
    boxed = last_boxed(text)
    return (text.rpartition("####")[2] if boxed is None else boxed).strip()


def _same_text(left: str, right: str) -> bool:
    if left == right:
        return True
    numbers = [_decimal(match) if match else None for match in (_NUMBER.fullmatch(left), _NUMBER.fullmatch(right))]
    return numbers[0] is not None and numbers[0] == numbers[1]


def _decimal(match: re.Match[str]) -> Decimal:
    # The sign belongs into the text: a unary minus would round to the context's 28 digits.
    return Decimal(f"{'-' if match['minus'] else ''}{match['digits'].replace(',', '')}{match['exponent'] or ''}")
