"""Values of the vocabulary: what is a number, what is a pass rate, what a conversation says."""

from __future__ import annotations

import math
from decimal import Decimal

import numpy as np
import pytest

from depo_rl.types import as_rate, chat_text, finite

NO_NUMBERS = [
    None,
    "0.5",
    "",
    math.nan,
    -math.inf,
    np.float32("nan"),
    10**400,
    [0.5],
    {},
    object(),
    np.ones(2),
]


@pytest.mark.parametrize("value", NO_NUMBERS)
def test_what_is_no_finite_number_is_none(value):
    assert finite(value) is None and as_rate(value) is None


@pytest.mark.parametrize("value", [0, 1, 0.25, np.float32(0.25), np.int64(1)], ids=repr)
def test_a_number_of_python_or_numpy_is_a_float(value):
    assert finite(value) == as_rate(value) == float(value)
    assert type(finite(value)) is type(as_rate(value)) is float


@pytest.mark.parametrize(
    "value", [True, np.bool_(False), -0.001, 1.001, 7, Decimal("0.25")], ids=repr
)
def test_a_verdict_a_decimal_or_what_lies_outside_is_no_pass_rate(value):
    assert as_rate(value) is None and finite(value) == float(value)


def test_a_conversation_is_what_is_said_in_it():
    assert (
        chat_text([{"role": "system", "content": "Be brief."}, {"role": "user", "content": "1+1"}])
        == "Be brief.\n1+1"
    )
    assert (
        chat_text([{"role": "user", "content": ["1 + 1", {"type": "image"}, "= ?"]}])
        == "1 + 1  = ?"
    )
    assert (
        chat_text([{"role": "tool", "content": None}, {"role": "user", "content": "now"}])
        == "\nnow"
    )
