"""Rewards in TRL's call shape: columns, conversations, names, metrics."""

import inspect
import pickle
from collections.abc import Iterator
from typing import Any

import pytest

from depo_rl.errors import ConfigError, DataError
from depo_rl.rewards import WorkerReward, completion_text, in_workers, math_reward
from test_rewards_functions import behave


@pytest.fixture(scope="module")
def gsm8k() -> Iterator[WorkerReward]:
    with math_reward("gsm8k", n_workers=1) as reward:
        yield reward


def trl_extras(logged: dict[str, float]) -> dict[str, Any]:
    """What GRPOTrainer passes beside the data set's columns; none of it pickles in earnest."""
    return {
        "completion_ids": [[1, 2], [3], [4]],
        "trainer_state": object(),
        "log_extra": lambda column, values: None,
        "log_metric": logged.__setitem__,
    }


def test_call_as_trl_makes_it(gsm8k):
    logged: dict[str, float] = {}
    rewards = gsm8k(
        prompts=["q"] * 3,
        completions=["#### 4", "#### 5", "#### 4"],
        answer=["4", "4", "unknown"],
        **trl_extras(logged),
    )
    assert rewards == [1.0, 0.0, None]
    assert logged == {"gsm8k_reward/unscorable_share": pytest.approx(1 / 3)}


def test_conversational_and_plain_completions_score_the_same(gsm8k):
    conversation = [{"role": "assistant", "content": "#### 4"}]
    rewards = gsm8k(prompts=["q", "q"], completions=[conversation, "#### 4"], answer=["4", 4])
    assert rewards == [1.0, 1.0]


@pytest.mark.parametrize(
    ("completion", "text"),
    [
        ("plain", "plain"),
        ([{"role": "assistant", "content": "a"}, {"role": "tool", "content": "t"}], "a"),
        ([{"role": "assistant", "content": "a"}, {"role": "assistant", "content": "b"}], "b"),
        (
            [{"role": "assistant", "content": [{"type": "text", "text": "x"}, {"type": "image"}]}],
            "x",
        ),
        ([{"role": "assistant", "content": None, "tool_calls": []}], ""),
        ([{"content": "no role"}], "no role"),
        ([], ""),
    ],
)
def test_completion_text(completion, text):
    assert completion_text(completion) == text


def test_missing_answer_is_unscorable_and_never_zero(gsm8k):
    assert gsm8k(prompts=["q", "q"], completions=["1", "1"], answer=[None, "1"]) == [None, 1.0]


def test_missing_column_names_itself_and_those_that_are_there(gsm8k):
    with pytest.raises(
        ConfigError, match=r"no column 'answer' \(setting answer_column\); there are: .*solution"
    ):
        gsm8k(prompts=["q"], completions=["1"], solution=["1"], trainer_state=object())
    own = in_workers(behave, answer_column="solution", extra_columns=["level"])
    with pytest.raises(
        ConfigError, match=r"no column 'level'.*extra_columns.*there are: prompts, solution"
    ):
        own(prompts=["q"], completions=["1"], solution=["1"])
    with pytest.raises(DataError, match="1 completions, 2 values in 'answer'"):
        gsm8k(prompts=["q"], completions=["1"], answer=["1", "2"])


def test_own_function_with_other_columns():
    with in_workers(
        behave, answer_column="solution", extra_columns=("level",), n_workers=1
    ) as reward:
        rewards = reward(
            ["q"] * 3, ["extras", "b", "raise"], solution=["", "b", ""], level=[3, 4, 5]
        )
        assert rewards == [3.0, 1.0, None]
        assert {kind: n for kind, n in reward.metrics().items() if n} == {"scored": 2, "raised": 1}


def test_names_kinds_and_copies():
    assert math_reward("boxed").__name__ == "boxed_reward"
    assert math_reward().__name__ == "math_verify_reward"
    assert in_workers(behave, name="mine").__name__ == "mine"
    with pytest.raises(ConfigError, match="kind='latex': must be one of math_verify, boxed, gsm8k"):
        math_reward("latex")
    with pickle.loads(
        pickle.dumps(math_reward("boxed", n_workers=1, answer_column="gold"))
    ) as copy:
        assert copy(["q"], [r"\boxed{2}"], gold=["2"]) == [1.0]


def test_trl_takes_it_for_a_synchronous_function_of_that_name():
    # What trl.trainer.utils.get_callable_name and is_async_callable look at (TRL 1.16); importing
    # it takes 10 s.
    reward = math_reward("boxed")
    assert getattr(reward, "__name__", type(reward).__name__) == "boxed_reward"
    assert not inspect.iscoroutinefunction(reward) and not inspect.iscoroutinefunction(
        reward.__call__
    )
