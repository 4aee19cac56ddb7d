"""Which dumps of other trainers can be read; a further one is a reader and a line here."""

from __future__ import annotations

from collections.abc import Callable, Iterable
from typing import NamedTuple

from .dumps import Found
from .open_instruct import is_open_instruct, read_open_instruct
from .prime_rl import is_prime_rl, read_prime_rl
from .table import Table
from .trl import is_trl, read_trl
from .verl import is_verl, read_verl


class Format(NamedTuple):
    """what: whose dump and its columns, for messages. fits: whether a table with these columns is
    one."""

    what: str
    fits: Callable[[Iterable[str]], bool]
    read: Callable[[Table], Found]


FORMATS = (
    Format("TRL's or ms-swift's completions (step, prompt, completion)", is_trl, read_trl),
    Format("verl's rollouts (input, output, score, step)", is_verl, read_verl),
    Format(
        "open-instruct's rollouts (step, prompt_idx, prompt_tokens, reward)",
        is_open_instruct,
        read_open_instruct,
    ),
    Format("prime-rl's rollouts (rollouts/step_N/.../traces.jsonl)", is_prime_rl, read_prime_rl),
)


def format_of(columns: Iterable[str]) -> Format | None:
    """The format of a table with these columns, if it is a dump."""
    names = tuple(columns)
    return next((form for form in FORMATS if form.fits(names)), None)
