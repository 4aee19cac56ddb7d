"""Which reward function judges a completion when several give values, or None."""

from __future__ import annotations

import math
import warnings

import pytest

torch = pytest.importorskip("torch")
pytest.importorskip("trl")

from datasets import Dataset  # noqa: E402

from depo_rl.engines.trl.correctness import Correctness  # noqa: E402
from depo_rl.engines.trl.prompts import prompts_of  # noqa: E402
from depo_rl.errors import DataError  # noqa: E402

NONE = math.nan


class Args:
    correct_reward = None
    correct_threshold = None


def judged(*rewards, names=("math", "code", "format"), correct_reward=None):
    args = Args()
    args.correct_reward = correct_reward
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        judge = Correctness(names[: len(rewards[0])], args, None)
        verdicts = judge.judge(torch.tensor(rewards), None).tolist()
    return [None if math.isnan(value) else value for value in verdicts]


def test_each_task_is_judged_by_its_own_function():
    assert judged((1.0, NONE), (0.0, NONE), (NONE, 1.0), (NONE, 0.2)) == [1.0, 0.0, 1.0, 0.0]


def test_where_every_function_gives_a_value_the_first_judges():
    assert judged((1.0, 0.0), (0.0, 1.0)) == [1.0, 0.0]


def test_a_reward_that_accompanies_the_others_never_judges_in_their_place():
    assert judged((1.0, NONE, 1.0), (NONE, 0.0, 1.0), (NONE, NONE, 1.0)) == [1.0, 0.0, None]


def test_no_value_at_all_and_an_infinite_one_are_unscorable():
    assert judged((NONE, NONE), (math.inf, NONE)) == [None, None]


def test_a_named_reward_judges_alone():
    assert judged((1.0, NONE), (NONE, 1.0), correct_reward="math") == [1.0, None]


@pytest.mark.filterwarnings("ignore:the rewards are shaped")
def test_which_rewards_accompany_others_is_remembered_by_name():
    """After a resume the first generation may hold no row that tells."""
    before, after = (Correctness(("math", "format"), Args(), None) for _ in range(2))
    before.judge(torch.tensor([[1.0, 1.0]]), None)
    assert before.accompanying == ["format"]
    after.accompanying = before.accompanying
    for judge in (before, after):
        assert math.isnan(judge.judge(torch.tensor([[NONE, 1.0]]), None).item())


@pytest.mark.parametrize("empty", ["", "  "])
def test_an_empty_prompt_is_refused_with_its_row(empty):
    rows = [{"prompt": empty if i == 3 else f"q{i}"} for i in range(5)]
    with pytest.raises(DataError, match="row 3 of train_dataset: prompt is empty"):
        prompts_of(Dataset.from_list(rows), "source")


@pytest.mark.parametrize("empty", [[], [{"role": "user", "content": ""}]])
def test_an_empty_conversation_is_refused_with_its_row(empty):
    rows = [{"prompt": [{"role": "user", "content": "q"}]}, {"prompt": empty}]
    with pytest.raises(DataError, match="row 1 of train_dataset: prompt is empty"):
        prompts_of(Dataset.from_list(rows), "source")
