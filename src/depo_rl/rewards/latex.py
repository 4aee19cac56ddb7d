"""Reading final answers in LaTeX: boxes, tidying, several answers in one text, numbers. Cheap to
import, no state."""

from __future__ import annotations

import re
from decimal import Decimal

# Thousands groups first; a minus only where it cannot be a hyphen or a subtraction ("10-12",
# "x-3").
NUMBER = re.compile(
    r"(?P<minus>(?<![\w.)\]}])[-\u2212])?[$\u20ac\u00a3]?"
    r"(?P<digits>[0-9]{1,3}(?:,[0-9]{3})+(?![0-9])(?:\.[0-9]+)?|[0-9]+(?:\.[0-9]+)?|(?<![0-9])\.[0-9]+)"
    r"(?P<exponent>[eE][+-]?[0-9]{1,3}(?!\w|\.[0-9]))?"
)
_TIMES_POWER = re.compile(
    r"(?P<sign>[-\u2212]?)(?:(?P<digits>[0-9]+(?:\.[0-9]+)?)(?:\\times|\\cdot|\u00d7|\*))?"
    r"10\^(?:\{(?P<braced>[-+]?[0-9]{1,3})\}|(?P<bare>[-+]?[0-9]))"
)
_UNIT_AT_END = re.compile(
    r"(?<=[0-9})])\s*\\(?:text|mbox|mathrm)\s*\{[^{}]*\}(?:\^\{?[0-9]\}?)?[\s.$]*\Z"
)
# "\\." also steps over the escaped \{ and \}
_BRACE = re.compile(r"\\(?:boxed|fbox)\s*\{|\\.|[{}]", re.DOTALL)
_OPENING = ("(", "[", "{", "\\{")
_CLOSING = (")", "]", "}", "\\}")
_BETWEEN = re.compile(
    r"(?P<word>\\(?:text|mbox|mathrm)\s*\{\s*(?:and|or)\s*\}|(?<![A-Za-z\\])(?:and|or)(?![A-Za-z]))"
    r"|\\.|[(\[{}\])]|(?P<mark>[,;\uff0c\uff1b\u3001])",
    re.DOTALL,
)
_GROUP_OF_THREE = re.compile(r"[0-9]{3}(?![0-9])")


def all_boxed(text: str) -> list[str]:
    r"""Contents of the ``\boxed{}`` (or ``\fbox{}``) whose braces close, in order; of two nested
    ones the inner.

    One pass, so linear in the text's length whatever a model writes. Escaped braces do not count.
    """
    opened: list[
        tuple[int, bool]
    ] = []  # (where the content starts, is it a box) of braces not closed yet
    found: list[tuple[int, int]] = []
    for match in _BRACE.finditer(text):
        token = match.group()
        if token.endswith("{") and token != "\\{":
            opened.append((match.end(), token != "{"))
        elif token == "}" and opened:
            start, is_box = opened.pop()
            if is_box and (not found or start > found[-1][0]):  # else it holds the one before
                found.append((start, match.start()))
    return [text[start:end] for start, end in found]


def last_boxed(text: str) -> str | None:
    r"""Content of the last ``\boxed{}``, see :func:`all_boxed`; None if there is none."""
    boxes = all_boxed(text)
    return boxes[-1] if boxes else None


def bare_latex(text: str) -> str:
    r"""Remove what does not change an answer, but no space: dollar and percent signs, degrees,
    sizes, a final unit."""
    text = _UNIT_AT_END.sub("", text.replace("{,}", ","))
    text = re.sub(r"\\(?:text|mbox|mathrm)\s*\{([^{}]*)\}", r"\1", text)
    text = re.sub(
        r"\\(?:left|right|displaystyle)(?![a-zA-Z])|\\[!,;: ]|\^\s*\{?\\circ\}?|\\?[%$]", "", text
    )
    text = re.sub(r"\\[dt]frac(?![a-zA-Z])", r"\\frac", text)
    return re.sub(r"\\frac\s*([0-9])\s*([0-9])", r"\\frac{\1}{\2}", text)


def tidy_latex(text: str) -> str:
    """As :func:`bare_latex`, without spaces, a final dot and quotes around the whole."""
    tidy = "".join(bare_latex(text).split()).rstrip(".")
    return tidy[1:-1] if len(tidy) > 2 and tidy[0] == tidy[-1] == '"' else tidy


def split_answers(text: str, grouped: bool = True) -> list[str]:
    r"""The answers in one text, at commas, semicolons, "and" and "or" outside of all brackets; of a
    set its members.

    grouped: a comma before three digits ("1,000") stands in a number and not between two.
    """
    text = re.sub(r"\\(?:left|right)(?![a-zA-Z])", "", text.replace("{,}", "").replace(",\\!", ""))
    parts = _split(text, grouped)
    if len(parts) == 1:
        for left, right in (("\\{", "\\}"), ("{", "}")):
            if parts[0].startswith(left) and parts[0].endswith(right):
                return _split(parts[0][len(left) : -len(right)], grouped)
    return parts


def _split(text: str, grouped: bool) -> list[str]:
    parts = []
    start = 0
    depth = 0
    for match in _BETWEEN.finditer(text):
        if match["mark"] or match["word"]:
            inside = grouped and match["mark"] == "," and _groups_digits(text, match.start())
            if depth == 0 and not inside:
                parts.append(text[start : match.start()])
                start = match.end()
        elif match.group() in _OPENING:
            depth += 1
        elif match.group() in _CLOSING:
            depth = max(0, depth - 1)
    parts.append(text[start:])
    return [part.strip(" \t\n$") for part in parts if part.strip(" \t\n$")]


def _groups_digits(text: str, comma: int) -> bool:
    return comma > 0 and text[comma - 1].isdigit() and bool(_GROUP_OF_THREE.match(text, comma + 1))


def canonical(text: str) -> Decimal | str:
    """What equal answers share: a number's value, else the tidied text; of true and false however
    they are written."""
    tidy = tidy_latex(text)
    number = as_number(tidy)
    if number is not None:
        return number
    return tidy.lower() if tidy.lower() in ("true", "false") else tidy


def as_number(text: str) -> Decimal | None:
    r"""The value of a text that is a decimal number and nothing else: 1,234.50, 1e-05,
    3\times10^{8}; else None."""
    if match := NUMBER.fullmatch(text):
        return decimal_of(match)
    if match := _TIMES_POWER.fullmatch(text):
        sign = "-" if match["sign"] else ""
        return Decimal(f"{sign}{match['digits'] or 1}E{match['braced'] or match['bare']}")
    return None


def decimal_of(match: re.Match[str]) -> Decimal:
    """The value of a match of ``NUMBER``."""
    # The sign belongs into the text: a unary minus would round to the context's 28 digits.
    return Decimal(
        f"{'-' if match['minus'] else ''}{match['digits'].replace(',', '')}{match['exponent'] or ''}"
    )
