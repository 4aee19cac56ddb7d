"""Gold answers in every form that data sets hold: lists, texts of lists, numbers, arrays; several
answers and boxes."""

from __future__ import annotations

import json
from decimal import Decimal
from fractions import Fraction
from typing import Any

import numpy as np
import pyarrow as pa
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from depo_rl.rewards import boxed_reward, gsm8k_reward, math_verify_reward
from depo_rl.rewards.gold import read_gold
from depo_rl.rewards.latex import all_boxed, as_number, split_answers
from depo_rl.rewards.math import load_math_verify

bounded = settings(max_examples=60, deadline=None, derandomize=True)
SETS = (boxed_reward, math_verify_reward)
ALL = (*SETS, gsm8k_reward)


@pytest.fixture(scope="module", autouse=True)
def _quiet() -> None:
    pytest.importorskip("math_verify")
    load_math_verify()


def judged(answer: Any, said: str, rewards: Any = ALL) -> set[float | None]:
    """What the rewards say of ``said`` in the form that each asks for."""
    return {
        reward(f"#### {said}" if reward is gsm8k_reward else box(said), answer)
        for reward in rewards
    }


def box(said: object) -> str:
    return f"so it is \\boxed{{{said}}}."


ONE = [
    *(["3"], [3], [3.0], ("3",), {"3"}, [["3"]], [[3]], ["3", None], ["3", ""], [" 3 "]),
    *(
        '["3"]',
        "['3']",
        "[3]",
        "[[3]]",
        '[["3"]]',
        "('3',)",
        "{'3'}",
        '"3"',
        "'3'",
        "['3']\n",
        '["3", null]',
        "[3.0]",
    ),
    *(
        "array(['3'], dtype=object)",
        "np.array([3])",
        "tensor([3.])",
        "[np.float64(3.0)]",
        "[Decimal('3')]",
    ),
    *(
        3,
        3.0,
        Decimal("3"),
        Decimal("3.00"),
        Fraction(3),
        b"3",
        np.int64(3),
        np.float32(3),
        np.float64(3),
        np.str_("3"),
    ),
    *(np.array(3), np.array([3]), np.array(["3"]), np.array([[3.0]], dtype=np.float32)),
    *(pa.scalar(3), pa.scalar(3.0), pa.scalar("3"), pa.scalar(["3"]), pa.array(["3"])),
    *(["we get \\boxed{3}"], ["12 - 9 = 3 #### 3"], json.dumps(json.dumps(["3"]))),
]


@pytest.mark.parametrize("answer", ONE, ids=repr)
def test_a_list_of_one_is_its_element_whatever_wrote_it(answer: Any) -> None:
    assert judged(answer, "3") == {1.0}
    assert judged(answer, "4") == {0.0}


TWO = [
    *(
        ["1", "2"],
        [1, 2],
        [1.0, 2.0],
        ("1", "2"),
        {"1", "2"},
        [["1", "2"]],
        ["1,2"],
        ["$1$,$2$"],
        ["$1$", "$2$"],
    ),
    *('["1", "2"]', "['1', '2']", "{'1', '2'}", "[1, 2]", "['1' '2']", "[1 2]", '["1,2"]'),
    *(np.array([1, 2]), np.array(["1", "2"]), pa.scalar(["1", "2"])),
    *(
        "1, 2",
        "1 and 2",
        "1; 2",
        "$1,2$",
        r"\{1,2\}",
        r"\left\{1,2\right\}",
        r"1 \text{ or } 2",
        "{1, 2}",
    ),
]


@pytest.mark.parametrize("answer", TWO, ids=repr)
def test_several_answers_are_a_set(answer: Any) -> None:
    for said in ("1, 2", "2,1", r"\{2, 1\}", r"1 \text{ and } 2", "2 or 1"):
        assert judged(answer, said, SETS) == {1.0}, said
    for said in ("1", "2", "1, 2, 3", "1, 3", ""):
        assert judged(answer, said, SETS) == {0.0}, said


@pytest.mark.parametrize(
    "answer", [["1", "2"], [1, 2], '["1", "2"]', "[1, 2]", np.array([1, 2])], ids=repr
)
def test_one_number_cannot_be_compared_with_several(answer: Any) -> None:
    assert gsm8k_reward("#### 1", answer) is None and gsm8k_reward("1, 2", answer) is None


NOTHING = [
    *(
        None,
        [],
        [None],
        "",
        " ",
        [""],
        "[]",
        '[""]',
        "[null]",
        [[]],
        float("nan"),
        {},
        np.array([]),
    ),
    *(
        {"a": "3"},
        '{"a": "3"}',
        "{'a': 3}",
        [{"a": 3}],
        [["1", "2"], ["3"]],
        '[["1", "2"], ["3"]]',
        object(),
    ),
    *("['3', Foo(3)]", "[" * 5000 + "'3'" + "]" * 5000),
]


@pytest.mark.parametrize("answer", NOTHING, ids=lambda a: repr(a)[:40])
def test_what_no_completion_can_say_is_unscorable_and_never_wrong(answer: Any) -> None:
    assert read_gold(answer) is None
    assert judged(answer, "3") == {None}


NUMBERS = [
    *(
        (1e-5, "0.00001"),
        (1e-5, "1e-5"),
        (1e-5, "10^{-5}"),
        (1e-5, r"1 \times 10^{-5}"),
        ("1e-05", "0.00001"),
    ),
    *((1e20, "100000000000000000000"), (1e20, "10^{20}"), (6.022e23, r"6.022 \times 10^{23}")),
    *(
        (1.5e-7, r"1.5\cdot10^{-7}"),
        ("1E+3", "1000"),
        (Decimal("1E+3"), "1000"),
        (np.float64(2e-6), "0.000002"),
    ),
    *(
        ([1e-5], "0.00001"),
        ("[1e-05]", "0.00001"),
        ("[1e-05, 2.0]", "2, 0.00001"),
        (1234567.0, "1{,}234{,}567"),
    ),
    *((np.float32(0.3), "0.3"), (np.float16(0.5), "0.5"), (pa.scalar(0.3, pa.float32()), "0.3")),
    *(
        (float("inf"), r"\infty"),
        (Fraction(1, 2), "1/2"),
        (-0.5, "-0.5"),
        (True, "True"),
        (1e-300, "1e-300"),
    ),
]


@pytest.mark.parametrize("answer, said", NUMBERS)
def test_numbers_are_right_however_they_are_written(answer: Any, said: str) -> None:
    assert judged(answer, said, SETS) == {1.0}


@pytest.mark.parametrize(
    "answer, said",
    [
        *(
            (1e-7, "0.0000002"),
            (1e-7, "0"),
            (1e-20, r"2\times 10^{-20}"),
            (1e-5, "-5 + e"),
            ([1e-7, 3], "0.0000002, 3"),
        ),
        *((0.001, "0.0010004"), (True, "False"), (False, "True"), ("true", "1")),
    ],
)
def test_small_numbers_and_truth_values_are_told_apart(answer: Any, said: str) -> None:
    assert judged(answer, said, SETS) == {0.0}


@pytest.mark.parametrize(
    "answer",
    [True, "True", "true", [True], "[true]", "[True]", np.True_, pa.scalar(True)],
    ids=repr,
)
def test_true_is_true_in_any_spelling(answer: Any) -> None:
    for said in ("True", "true", r"\text{True}", "TRUE"):
        assert judged(answer, said, SETS) == {1.0}
    assert judged(answer, "True", [gsm8k_reward]) == {None}


@pytest.mark.parametrize(
    "answer, said",
    [
        *(
            ([r"\frac{1}{2}"], r"\frac12"),
            (r'["\\frac{1}{2}"]', r"\frac12"),
            (r'["\frac{1}{2}"]', r"\frac12"),
        ),
        *(
            (r"['\frac{1}{2}', '\neq']", r"\neq, \frac12"),
            (r"['\sqrt{2}', '\theta']", r"\theta, \sqrt{2}"),
        ),
        *(
            (["1,000", "2,000"], "1,000, 2,000"),
            ([1000, 2000], "2000, 1{,}000"),
            (["1", "200"], "1, 200"),
        ),
        *(
            (["(1,2)", "(3,4)"], "(3,4), (1,2)"),
            (["[1,2]", "[3,4]"], "[1,2], [3,4]"),
            (["east", "west"], "west, east"),
        ),
        *(
            ("[0, 1]", "[0,1]"),
            ("(1, 2)", "(1,2)"),
            ("[0, 1)", "[0,1)"),
            ("f'(x)", "f'(x)"),
            ("[x+1]", "[x+1]"),
        ),
        *(("[13]", "[13]"), ("[13]", "13"), (r"\$42409", "42409"), (r"\$42409", r"\$42,409")),
    ],
)
def test_latex_and_brackets_of_mathematics_survive(answer: Any, said: str) -> None:
    assert judged(answer, said, SETS) == {1.0}
    assert judged(answer, "7", SETS) == {0.0}


def test_a_pair_is_no_set() -> None:
    assert judged("(1, 2)", "(2, 1)", SETS) == {0.0}
    assert judged(["(1,2)"], "(2,1)", SETS) == {0.0}


@pytest.mark.parametrize(
    "answer, said, right",
    [
        (r"$1,2$", r"x = \boxed{1} and x = \boxed{2}", 1.0),
        (r"$\{1,2\}$", r"\boxed{1}, \boxed{2}", 1.0),
        (["1", "2"], r"\boxed{2} or \boxed{1}", 1.0),
        ("1,2", r"\boxed{1}, \boxed{2}, so \boxed{1,2}", 1.0),
        ("1,2", r"\boxed{1}, \boxed{2}, once more \boxed{1}", 1.0),
        ("2", r"not \boxed{1} but \boxed{2}", 1.0),  # the last corrects the one before
        ("1", r"not \boxed{1} but \boxed{2}", 0.0),
        ("1,2", r"\boxed{3}, no: \boxed{1}, \boxed{2}", 0.0),
        ("1,2,3", r"\boxed{1}, \boxed{2}", 0.0),
        (r"\{\}", r"\boxed{}", 0.0),
        ("5", r"\boxed{5}, indeed \boxed{5}", 1.0),
    ],
)
def test_the_last_box_or_all_boxes_together(answer: Any, said: str, right: float) -> None:
    assert {reward(said, answer) for reward in SETS} == {right}


@pytest.mark.parametrize(
    "answer, said, right",
    [
        (r"\frac{1}{2}", "the answer is 2", 0.0),
        ("71/6", "the answer is 6", 0.0),
        ("71/6", "#### 71/6", 1.0),
        ("71/6", "#### 71", 0.0),
        (r"\frac{1}{2}", "0.5", 1.0),
        (r"\dfrac12", r"so \frac{1}{2}", 1.0),
        (r"-\frac{1}{2}", "-0.5", 1.0),
        (r"1\frac{1}{2}", "3/2", 1.0),
        ("1 1/2", "#### 1.5", 1.0),
        ("1/2", "1 1/2", 0.0),
        ("2", "1/2", 0.0),  # what follows a slash is no number of its own
        ("1", "#### 1/2", 0.0),
        ("12", "60/5=12", 1.0),
        ("5", "$5/hour", 1.0),
        *(
            (r"\sqrt{2}", "2", None),
            (r"2\pi", "2", None),
            ("10^5", "5", None),
            ("3x", "3", None),
            ("3 x", "3", None),
        ),
        *(
            ("12 and 15", "15", None),
            ("12, 15", "15", None),
            ("3:30", "30", None),
            ("2 million", "2", None),
        ),
        *(
            ("5k", "5", None),
            ("x-5", "5", None),
            ("A1", "1", None),
            ("\u00bd", "2", None),
            ("1/0", "0", None),
        ),
        *(("2,5", "5", None), ("3 + 4", "4", None), ("five", "5", None), ("{1, 2}", "2", None)),
        *(
            ("x = 5", "5", 1.0),
            ("5 km/h", "5", 1.0),
            ("12 cm^2", "12", 1.0),
            (r"12\text{ cm}^2", "12", 1.0),
        ),
        *(
            ("12 cm\u00b2", "12", 1.0),
            ("12m", "12", 1.0),
            ("12 m", "12", 1.0),
            ("5th", "5", 1.0),
            ("50%", "50", 1.0),
        ),
        *(
            ("$1,234.50", "1234.5", 1.0),
            ("1{,}234", "1,234", 1.0),
            (r"1,\!234", "1234", 1.0),
            ("1.5e3", "1500", 1.0),
        ),
        *(
            ("18 apples", "18", 1.0),
            ("The answer is 42.", "42", 1.0),
            (r"\boxed{42}", "42", 1.0),
            ("$-5$", "-5", 1.0),
        ),
        *(
            (r"50\%", "50%", 1.0),
            ("k = \\frac{-33}{2}", "-16.5", 1.0),
            (r"\$42", "42", 1.0),
            ("[13]", "13", 1.0),
        ),
        *(
            ("0.56 = 56\\%", "56", None),
            ("AB=9, CD=4", "4", None),
            ("x^2 - 7 = 0", "0", None),
            ("f(1)=0", "0", None),
        ),
        *((r"30^\circ", "30", 1.0), ("5 a day", "5", 1.0), ("(B) 5", "5", 1.0)),
    ],
)
def test_gsm8k_reads_gold_as_gold_and_a_completion_as_a_completion(
    answer: str, said: str, right: float | None
) -> None:
    assert gsm8k_reward(said, answer) == right


def test_reading_is_linear_in_hostile_text() -> None:
    for text in (
        "[" * 100_000,
        "\\boxed{1}" * 20_000,
        "1," * 100_000,
        "1 1/" * 50_000,
        "\\frac" * 50_000,
        "{" * 100_000,
    ):
        assert boxed_reward(text, ["1", "2"]) == 0.0
        assert gsm8k_reward(text, "7") == 0.0
        read_gold(text)


NUMBER = st.integers(-(10**6), 10**6) | st.decimals(-1000, 1000, places=3).map(
    lambda d: d.normalize()
)


@bounded
@given(
    st.lists(
        NUMBER.map(lambda n: format(Decimal(n), "f")), min_size=1, max_size=4, unique_by=Decimal
    ),
    st.randoms(),
)
def test_any_list_of_numbers_is_matched_in_any_order_and_never_by_a_part(
    numbers: list[str], random: Any
) -> None:
    shuffled = list(numbers)
    random.shuffle(shuffled)
    for gold in (numbers, json.dumps(numbers), str(numbers), np.array(numbers)):
        assert boxed_reward(box(", ".join(shuffled)), gold) == 1.0
        assert boxed_reward(" ".join(box(n) for n in shuffled), gold) == 1.0
        assert boxed_reward(box(", ".join([*shuffled, "123.4567"])), gold) == 0.0
        assert boxed_reward(box(", ".join(shuffled[1:])), gold) == 0.0


@bounded
@given(st.floats(allow_nan=False, allow_infinity=False))
def test_every_float_matches_its_own_decimals(value: float) -> None:
    written = format(Decimal(repr(value)), "f")
    assert boxed_reward(box(written), value) == boxed_reward(box(written), repr(value)) == 1.0
    assert gsm8k_reward(f"#### {written}", value) == 1.0


@bounded
@given(
    st.text(max_size=40)
    | st.lists(st.text(max_size=5) | st.none() | st.floats() | st.booleans(), max_size=3)
)
def test_no_gold_answer_breaks_a_reward(answer: Any) -> None:
    assert {boxed_reward(box("7.25"), answer), gsm8k_reward("7.25", answer)} <= {None, 0.0, 1.0}


def test_boxes_answers_and_numbers_are_found() -> None:
    assert all_boxed(r"\boxed{1} \boxed{\boxed{2}} \boxed{3") == ["1", "2"]
    assert split_answers("1,000, (2,3); 4 and {5,6}") == ["1,000", "(2,3)", "4", "{5,6}"]
    assert split_answers("1,000", grouped=False) == ["1", "000"]
    assert (
        as_number(r"-3\times10^{8}") == Decimal("-3E8")
        and as_number("10^5") == 100000
        and as_number("2^5") is None
    )
