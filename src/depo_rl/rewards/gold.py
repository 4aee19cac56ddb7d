"""Gold answers, in whatever form a data set holds them: texts, numbers, lists, and texts of lists.

A gold answer is read as data and a completion as a completion: what a policy writes is never parsed
by this module.
"""

from __future__ import annotations

import ast
import datetime
import json
import math
import re
import warnings
from collections.abc import Iterator
from dataclasses import dataclass
from decimal import Decimal
from fractions import Fraction
from typing import Any

from .latex import last_boxed

_LONGEST_LITERAL = 100_000  # characters; beyond it a text is no list of answers
_SCIENTIFIC = re.compile(r"[-+]?(?:[0-9]+\.?[0-9]*|\.[0-9]+)[eE][-+]?[0-9]{1,3}")
_BARE_LIST = re.compile(r"\[[-+0-9.eE,\s]{1,1000}\]")
_ARRAY = re.compile(
    r"(?:(?:np|numpy)\.)?(?:array|tensor)\((?P<inner>\[.*\])(?:,\s*dtype=[^()]*)?\)", re.DOTALL
)
_SCALAR = re.compile(r"\b(?:(?:np|numpy)\.\w+|Decimal)\(([^()]*)\)")
_NEIGHBOURS = re.compile(r"""(?<=['"])\s+(?=['"])""")  # numpy writes no commas: ['3' '4'], [3 4]
_NEIGHBOUR_NUMBERS = re.compile(r"(?<=[0-9.])\s+(?=[-+0-9.])")
_PROGRAM = re.compile(r"[\[({]+\s*['\"]")
_QUOTES = ('"', "'")
_NO_LITERAL = object()


@dataclass(frozen=True, slots=True)
class Gold:
    """A gold answer that can be compared.

    text: the answer as a policy would write it, several joined by commas. parts: the answers of a
    list, else empty. A text such as [1, 2] or [3] may be mathematics or a list: it has parts, and
    the text itself is right as well.
    """

    text: str
    parts: tuple[str, ...] = ()


class _Unreadable(ValueError):
    pass


def read_gold(answer: Any) -> Gold | None:
    """A gold answer, or None if it is empty, or nothing that a completion could say: a mapping,
    lists in a list.

    A list of one is its element. The text of a list, as JSON or Python write it, is that list.
    Numbers are written out (1e-05 is 0.00001). Of a whole solution the answer counts: its last
    ``\\boxed{}``, else what follows ``####``.
    """
    try:
        parts = _answers(answer)
    except (_Unreadable, RecursionError):
        return None
    if not parts:
        return None
    if len(parts) > 1:
        return Gold(", ".join(parts), tuple(parts))
    return Gold(parts[0], tuple(map(number_text, _bare_numbers(parts[0]))))


def _answers(value: Any) -> list[str]:
    """The answers in ``value``, none of them empty. Raises _Unreadable."""
    value = plain(value)
    if value is None or value != value:  # NaN, NaT
        return []
    if isinstance(value, str):
        return _of_text(value.strip())
    if isinstance(value, bool):
        return [str(value)]
    if is_number(value):
        return [number_text(value)]
    if isinstance(value, (list, tuple, set, frozenset)):
        found = [answers for answers in map(_answers, _ordered(value)) if answers]
        if len(found) > 1 and any(len(answers) > 1 for answers in found):
            raise _Unreadable
        return [answer for answers in found for answer in answers]
    if isinstance(value, datetime.date):
        return [str(value)]
    raise _Unreadable


def plain(value: Any) -> Any:
    """A scalar or array of numpy, pyarrow, pandas or torch as Python's own; anything else as it
    is."""
    if isinstance(value, bytes):
        return value.decode("utf-8", "replace")
    if (
        isinstance(value, (str, int, float, list, tuple, dict))
        and type(value).__module__ == "builtins"
    ):
        return value
    if hasattr(value, "as_py"):
        # Through its text a float of 32 bits stays the number that was meant: 0.3, not
        # 0.30000001192092896.
        return (
            value.cast("string").as_py()
            if str(value.type) in ("float", "halffloat")
            else value.as_py()
        )
    if getattr(getattr(value, "dtype", None), "kind", "") == "f" and value.dtype.itemsize < 8:
        return value.astype(str).tolist()
    if hasattr(value, "tolist"):
        return value.tolist()
    return None if type(value).__name__ in ("NAType", "NaTType") else value


def _ordered(values: Any) -> Iterator[Any]:
    """The members, of a set always in one order: Python's changes with the process."""
    return iter(sorted(values, key=repr) if isinstance(values, (set, frozenset)) else values)


def is_number(value: Any) -> bool:
    """Whether a gold answer is a number; True and False are answers by name."""
    return isinstance(value, (int, float, Decimal, Fraction)) and not isinstance(value, bool)


def number_text(value: Any) -> str:
    """A number as a policy writes it: no exponent, no final .0, LaTeX's infinity."""
    if isinstance(value, (int, Fraction)):
        return str(value)
    if not math.isfinite(value):
        return "\\infty" if value > 0 else "-\\infty"
    return format(Decimal(repr(value)) if isinstance(value, float) else value, "f").removesuffix(
        ".0"
    )


def _of_text(text: str) -> list[str]:
    if not text:
        return []
    if not _bare_numbers(text):  # else mathematics, perhaps
        found = _literal(text) if _is_data(text) else _NO_LITERAL
        if found is not _NO_LITERAL:
            return _answers(found)
        if _PROGRAM.match(text):
            raise _Unreadable
    return [_final(text)]


def _bare_numbers(text: str) -> list[Any]:
    """The members of a text that is a list of numbers and nothing else, such as [1, 2]."""
    found = _literal(text) if _BARE_LIST.fullmatch(text) else None
    return found if isinstance(found, list) and all(map(is_number, found)) else []


def _is_data(text: str) -> bool:
    """Whether a program wrote the text. Brackets alone are mathematics, as in [0, 1], (1, 2) or
    {3}; [[3]] is not."""
    if len(text) > _LONGEST_LITERAL:
        return False
    if text[0] in _QUOTES:
        return len(text) > 1 and text[-1] == text[0]
    if text[0] in "[({" and any(quote in text for quote in _QUOTES):
        return True
    return bool(_ARRAY.fullmatch(text)) or (text[0] == "[" and not re.search(r"[,;\\]", text))


def _literal(text: str) -> Any:
    """What JSON or Python read the text as, or _NO_LITERAL. Backslashes that nobody escaped are
    LaTeX's."""
    if match := _ARRAY.fullmatch(text):
        text = match["inner"]
    text = _SCALAR.sub(r"\1", text)
    text = (_NEIGHBOURS if any(quote in text for quote in _QUOTES) else _NEIGHBOUR_NUMBERS).sub(
        ", ", text
    )
    for form in (text, text.replace("\\", "\\\\")):
        for read in (json.loads, _python):
            try:
                found = read(form)
            except (ValueError, SyntaxError, TypeError, RecursionError, MemoryError):
                continue
            if not _has_control_characters(found):
                return found
    return _NO_LITERAL


def _python(text: str) -> Any:
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # invalid escapes
        return ast.literal_eval(text)


def _has_control_characters(found: Any) -> bool:
    r"""Whether "\frac" or "\neq" was read as a form feed or a line break."""
    if isinstance(found, str):
        return any(character in found for character in "\a\b\f\n\v\t\r")
    return isinstance(found, (list, tuple, set)) and any(map(_has_control_characters, found))


def _final(text: str) -> str:
    r"""The answer itself where the column holds a whole solution, of MATH (``\boxed{}``) or of
    GSM8K (``####``)."""
    boxed = last_boxed(text)
    final = (text.rpartition("####")[2] if boxed is None else boxed).strip()
    return format(Decimal(final), "f").removesuffix(".0") if _SCIENTIFIC.fullmatch(final) else final
