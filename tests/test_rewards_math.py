"""Answers in mathematics: extraction, comparison, and the SymPy expression that really hangs."""

import subprocess
import sys
import threading
import time
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from decimal import Decimal
from pathlib import Path

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from depo_rl.rewards import boxed_reward, gsm8k_reward, math_reward, math_verify_reward
from depo_rl.rewards.math import final_number, last_boxed
from depo_rl.rewards.reward import WorkerReward
from limits import AT_ONCE_S

# Comparing this with any number keeps SymPy busy practically for ever (checked: still running after
# two minutes).
HANGING = r"So the answer is \boxed{9^{9^{9^{9}}}}."
LIMIT_S = 1.0
SRC = str(Path(__file__).parents[1] / "src")

bounded = settings(max_examples=60, deadline=None, derandomize=True)


@pytest.fixture(scope="module")
def reward() -> Iterator[WorkerReward]:
    pytest.importorskip("math_verify")
    with math_reward("math_verify", timeout_s=LIMIT_S, n_workers=2) as shared:
        shared.pool.start(60.0)
        yield shared


def judge(reward: WorkerReward, completion: str, answer: str = "12") -> tuple[float | None, float]:
    """Reward of one completion, and the seconds it took."""
    start = time.monotonic()
    [result] = reward(["?"], [completion], answer=[answer])
    return result, time.monotonic() - start


def test_the_expression_really_hangs_without_the_pool():
    pytest.importorskip("math_verify")
    code = (
        f"import sys; sys.path.insert(0, {SRC!r})\n"
        "from depo_rl.rewards.math import load_math_verify, math_verify_reward\n"
        f"load_math_verify(); print('ready', flush=True); math_verify_reward({HANGING!r}, '12')"
    )
    process = subprocess.Popen([sys.executable, "-c", code], stdout=subprocess.PIPE, text=True)
    try:
        assert process.stdout is not None and process.stdout.readline() == "ready\n"
        with pytest.raises(subprocess.TimeoutExpired):
            process.wait(4 * LIMIT_S)
    finally:
        process.kill()
        process.communicate()


def test_hang_is_unscorable_within_the_limit_from_main_and_worker_threads_and_two_at_once(reward):
    before = reward.metrics()
    assert threading.current_thread() is threading.main_thread()
    result, seconds = judge(reward, HANGING)
    assert result is None and seconds < AT_ONCE_S

    with ThreadPoolExecutor(2) as threads:
        [(result, seconds)] = threads.map(lambda text: judge(reward, text), [HANGING])
        assert result is None and seconds < AT_ONCE_S
        both = list(threads.map(lambda text: judge(reward, text), [HANGING, HANGING]))
    assert [result for result, _ in both] == [None, None]
    assert max(seconds for _, seconds in both) < AT_ONCE_S

    reward.pool.start(60.0)
    assert len(reward.pool.worker_pids()) == 2
    assert all(judge(reward, r"\boxed{\frac{24}{2}}")[0] == 1.0 for _ in range(100))
    after = reward.metrics()
    moved = {kind: after[kind] - before[kind] for kind in after if after[kind] != before[kind]}
    assert moved == {"timed_out": 4, "workers_replaced": 4, "scored": 100}


@pytest.mark.parametrize(
    ("completion", "answer", "expected"),
    [
        (r"\boxed{\sqrt{8}}", r"2\sqrt{2}", 1.0),
        (r"first \boxed{3}, then \boxed{4}", "4", 1.0),
        (r"first \boxed{4}, then \boxed{3}", "4", 0.0),
        (r"\boxed{x=5}", "5", 1.0),
        (r"\boxed{0.5}", r"\frac12", 1.0),
        (r"\boxed{\{1,2\}}", r"$\{2,1\}$", 1.0),
        ("The answer is $42$.", r"so we get \boxed{42}", 1.0),
        ("the answer is 42", "6 times 7 #### 42", 1.0),
        (r"\boxed{\frac{1}{", "3", 0.0),  # unreadable completion: wrong
        ("", "3", 0.0),
        (r"\boxed{2}", r"\frac{1}{", None),  # unreadable gold answer: unscorable
        (r"\boxed{2}", "", None),
    ],
)
def test_math_verify_reward(reward, completion, answer, expected):
    assert judge(reward, completion, answer)[0] == expected


def test_math_verify_reward_is_the_same_function_in_and_out_of_the_pool(reward):
    cases = [(r"\boxed{2/4}", r"\frac{1}{2}"), (r"\boxed{7}", "8"), ("nothing", "8")]
    direct = [math_verify_reward(*case) for case in cases]
    assert direct == [judge(reward, *case)[0] for case in cases] == [1.0, 0.0, 0.0]


@pytest.mark.parametrize(
    ("completion", "answer", "expected"),
    [
        ("so 3 * 4 = 12\n#### 12", "#### 12", 1.0),
        ("#### 12", "12.00", 1.0),
        ("The total is $1,234.50.", "1234.5", 1.0),
        (r"The total is \$18", "$18", 1.0),
        ("between 10-12", "12", 1.0),
        ("it is -7 degrees", "\u22127", 1.0),
        (r"\boxed{1{,}000}", "1,000", 1.0),
        ("about 3e5.", "300000", 1.0),
        ("12 apples, wait, 13", "12", 0.0),
        ("it was 12 #### unknown", "12", 0.0),
        ("no idea", "12", 0.0),
        ("", "12", 0.0),
        ("12", "twelve", None),
        ("12", "", None),
        (
            "12345678901234567890123456789012345678901",
            "12345678901234567890123456789012345678900",
            0.0,
        ),
    ],
)
def test_gsm8k_reward(completion, answer, expected):
    assert gsm8k_reward(completion, answer) == expected


@bounded
@given(
    number=st.integers(-(10**15), 10**15),
    cents=st.sampled_from(["", ".", ".0", ".00"]),
    style=st.sampled_from(["{:d}", "{:,d}"]),
    frame=st.sampled_from(
        [
            "{}",
            "The answer is {}",
            "#### {}",
            "${}$",
            "1 and 2 make **{}**",
            "#### {} apples (not 9)",
        ]
    ),
)
def test_final_number_reads_every_format(number, cents, style, frame):
    assert final_number(frame.format(style.format(number) + cents)) == Decimal(number)


BALANCED = st.recursive(
    st.text(st.characters(codec="utf-8", exclude_characters="{}\\"), max_size=6)
    | st.sampled_from([r"\{", r"\}", r"\frac", r"\\", "$"]),
    lambda inner: st.lists(inner, max_size=4).map("".join) | inner.map("{{{}}}".format),
    max_leaves=12,
)


@bounded
@given(before=BALANCED, content=BALANCED, after=BALANCED, earlier=BALANCED)
def test_last_boxed_returns_balanced_content_whatever_is_nested(before, content, after, earlier):
    assert (
        last_boxed(f"{before} \\boxed{{{earlier}}} {before} \\boxed{{{content}}} {after}")
        == content
    )
    assert last_boxed(f"{before} {after}") is None


@bounded
@given(st.text("{}\\boxedf1", max_size=60))
def test_extraction_never_fails_on_rubbish(text):
    said = last_boxed(text)
    assert said is None or said in text
    assert boxed_reward(text, "77") == 0.0
    assert gsm8k_reward(text, "77") == 0.0


@pytest.mark.parametrize(
    ("text", "expected"),
    [
        (r"\boxed{1} then \boxed{2", "1"),  # cut off: the last one that closes
        (r"\boxed{\boxed{5}}", "5"),
        (r"\boxed {7}", "7"),
        (r"\fbox{8}", "8"),
        (r"{ \boxed{\left\{1\right\}} ", r"\left\{1\right\}"),
        (r"\boxed{}", ""),
        ("boxed{3}", None),
    ],
)
def test_last_boxed_edge_cases(text, expected):
    assert last_boxed(text) == expected


def test_extraction_is_linear_in_hostile_text():
    """Were it quadratic, the suite's limit would end it."""
    assert last_boxed(r"\boxed{" * 50_000) is None
    assert boxed_reward(r"\boxed{" + "{" * 200_000, "1") == 0.0
    assert gsm8k_reward("1,111" * 50_000, "7") == 0.0
    assert boxed_reward(r"\boxed{" + " " * 100_000 + "}", "1") == 0.0


@pytest.mark.parametrize(
    ("completion", "answer", "expected"),
    [
        (r"\boxed{\dfrac{1}{2}}", r"\frac12", 1.0),
        (r"\boxed{1{,}000.0}", "1000", 1.0),
        (r"\boxed{5\text{ cm}^2}", "5", 1.0),
        (r"\boxed{\text{east}}", "east", 1.0),
        (r"\boxed{\left( 1,\,2 \right)}", "(1,2)", 1.0),
        (r"\boxed{90^\circ}", "90", 1.0),
        (r"\boxed{\$5.00}", r"we pay \boxed{5}", 1.0),
        (r"\boxed{A}", "B", 0.0),
        ("5", "5", 0.0),
        (r"\boxed{5}", " ", None),
    ],
)
def test_boxed_reward(completion, answer, expected):
    assert boxed_reward(completion, answer) == expected
