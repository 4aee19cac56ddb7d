"""Problems of 21 levels in four families, answered digit by digit, the least significant first.

Sums, differences, products with one digit, and sorting: a *level* is a family and a length
("add4"). What is right is one string, so that a policy's pass rate on a problem is the probability
of that string: known exactly, unsampled.
"""

from __future__ import annotations

import random
import zlib
from collections.abc import Mapping, Sequence
from dataclasses import dataclass

import numpy as np
import torch

FAMILIES: Mapping[str, tuple[int, ...]] = {
    "add": (2, 3, 4, 5, 6),
    "sub": (2, 3, 4, 5, 6),
    "mul": (1, 2, 3, 4, 5),
    "sort": (3, 4, 6, 8, 10, 12),
}
LEVELS = tuple(f"{family}{size}" for family, sizes in FAMILIES.items() for size in sizes)
SIGNS = {"add": "+", "sub": "-", "mul": "*", "sort": "sort"}
LONGEST = 14  # tokens of an answer, its end included
END, NOTHING = (
    10,
    11,
)  # tokens beside the ten digits: the end of an answer, and what comes before its first
PLACES = LONGEST + 1


@dataclass(frozen=True, slots=True)
class Problem:
    """text: what an estimator reads. answer: digits, least significant first. upper, lower:
    operands, likewise."""

    text: str
    family: str
    size: int
    answer: tuple[int, ...]
    upper: tuple[int, ...] = ()
    lower: tuple[int, ...] = ()

    @property
    def level(self) -> str:
        return f"{self.family}{self.size}"


def make_problem(level: str, rng: random.Random) -> Problem:
    """A random problem of ``level``."""
    family = level.rstrip("0123456789")
    size = int(level[len(family) :])
    if family == "sort":
        digits = [rng.randrange(10) for _ in range(size)]
        text = "sort " + "".join(map(str, digits)) + " ="
        return Problem(text, family, size, tuple(sorted(digits)), tuple(digits))
    low, high = 10 ** (size - 1), 10**size
    a, b = rng.randrange(low, high), rng.randrange(low, high)
    if family == "mul":
        b = rng.randrange(2, 10)
    if family == "sub":
        a, b = max(a, b), min(a, b)
    value = {"add": a + b, "sub": a - b, "mul": a * b}[family]
    answer = _digits(value, size if family == "sub" else size + 1)
    lower = (b,) * (size + 1) if family == "mul" else _digits(b, size)
    return Problem(f"{a} {SIGNS[family]} {b} =", family, size, answer, _digits(a, size), lower)


def _digits(value: int, length: int) -> tuple[int, ...]:
    return tuple(int(digit) for digit in str(value).zfill(length)[::-1])


def is_held_out(problem: Problem) -> bool:
    """One problem in five, by its text alone: the same side whatever the seed."""
    return zlib.crc32(problem.text.encode()) % 5 == 0


def make_problems(n: int, seed: int, mix: Mapping[str, float], held_out: bool) -> list[Problem]:
    """``n`` distinct problems, fewer where a mix has no more; levels are drawn by ``mix``."""
    rng = random.Random(seed)
    found: dict[str, Problem] = {}
    for _ in range(50 * n + 2000):
        if len(found) == n:
            break
        problem = make_problem(rng.choices(list(mix), list(mix.values()))[0], rng)
        if is_held_out(problem) is held_out:
            found.setdefault(problem.text, problem)
    return list(found.values())


class Encoded:
    """Problems as tensors. place_PT7: feature numbers of each place of the answer, but for the
    token before it.

    count_PD: how often each digit is to be sorted. answer_PT: the right tokens, -1 after the end.
    """

    def __init__(self, problems: Sequence[Problem]) -> None:
        self.problems = list(problems)
        self.levels = np.array([problem.level for problem in problems])
        n = len(problems)
        upper, lower = np.full((n, PLACES + 1), 10), np.full((n, PLACES + 1), 10)
        answer, count = np.full((n, LONGEST), -1), np.zeros((n, 10), np.float32)
        for i, problem in enumerate(problems):
            if problem.family == "sort":
                np.add.at(count[i], list(problem.upper), 1.0)
            else:
                upper[i, 1 : 1 + len(problem.upper)] = problem.upper
                lower[i, 1 : 1 + len(problem.lower)] = problem.lower
            answer[i, : len(problem.answer)] = problem.answer
            answer[i, len(problem.answer)] = END
        self.answer_PT, self.count_PD = torch.tensor(answer), torch.tensor(count)
        self.length_P = (self.answer_PT >= 0).sum(1)
        self.place_PT7 = torch.tensor(self._places(upper, lower))

    def _places(self, upper: np.ndarray, lower: np.ndarray) -> np.ndarray:
        family = np.array([list(FAMILIES).index(problem.family) for problem in self.problems])
        size = np.array([problem.size for problem in self.problems])
        place = np.arange(LONGEST)
        here, before = slice(1, LONGEST + 1), slice(0, LONGEST)
        columns = [
            np.broadcast_to(family[:, None], (len(family), LONGEST)),
            np.broadcast_to(size[:, None], (len(size), LONGEST)),
            np.broadcast_to(place, (len(family), LONGEST)),
            *(operand[:, at] for at in (here, before) for operand in (upper, lower)),
        ]
        return np.stack(
            [column + start for column, start in zip(columns, OFFSETS, strict=False)], axis=-1
        )

    def __len__(self) -> int:
        return len(self.problems)


WIDTHS = (
    len(FAMILIES),
    13,
    LONGEST,
    11,
    11,
    11,
    11,
    12,
)  # values of each feature, the token before the last
OFFSETS = tuple(int(x) for x in np.concatenate([[0], np.cumsum(WIDTHS)[:-1]]))
N_FEATURES = sum(WIDTHS)
