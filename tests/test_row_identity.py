"""Rows of a data set become prompts: what tells rows apart, their sources, and empty ones."""

from __future__ import annotations

import pytest

from depo_rl.engines.rows import keys_by_content, source_of
from depo_rl.engines.verl.driver import VerlDriver
from depo_rl.engines.verl.outcomes import Completion
from depo_rl.engines.verl.rows import prompt_table
from depo_rl.engines.verl.settings import parse_settings
from depo_rl.errors import RewardError
from depo_rl.types import prompt_key


def geometry(answers, **more):
    return [
        {
            "data_source": "geo",
            "prompt": [{"role": "user", "content": "Find x."}],
            "reward_model": {"ground_truth": answer},
            "extra_info": {"index": i},
            **more,
        }
        for i, answer in enumerate(answers)
    ]


def table_of(rows, media_of=None):
    return prompt_table(rows, "prompt", "data_source", True, media_of)


def test_rows_of_one_text_and_different_answers_are_prompts_of_their_own():
    assert len(table_of(geometry("abcd")).prompts) == 4


def test_rows_equal_in_all_but_their_index_are_one_prompt_with_the_key_of_its_text():
    table = table_of(geometry("aaaa"))
    assert [prompt.key for prompt in table.prompts] == [prompt_key("Find x.", "geo")]


def test_rows_that_differ_only_in_their_image_are_prompts_of_their_own():
    images = [b"one", b"two", b"one"]
    table = table_of(geometry("aaa"), lambda i: {"images": [{"bytes": images[i]}]})
    assert len(table.prompts) == 2
    assert table.key_of_row[0] == table.key_of_row[2]


def test_only_rows_that_share_a_key_are_asked_for_their_content():
    asked = []

    def content_of(i):
        asked.append(i)
        return str(i)

    assert keys_by_content(["a", "b", "a"], content_of) == ["a-0", "b", "a-2"]
    assert asked == [0, 2]


@pytest.mark.parametrize(
    ("given", "source"),
    [(0, "0"), (False, "False"), (0.0, "0.0"), (None, "default"), ("", "default"), ("x", "x")],
)
def test_a_source_keeps_its_value_as_text(given, source):
    assert source_of({"source": given}, "source") == source


def verl_driver(sources):
    rows = [
        {"data_source": source, "prompt": f"{source} {i}"} for source in sources for i in range(8)
    ]
    settings = parse_settings({"method": "dapo", "learn_in_background": False})
    config = settings.curriculum_config(2, 0)
    return VerlDriver(prompt_table(rows, "prompt", "data_source", True), settings, config, 2)


def rolled(info, reward=0.0):
    return [Completion(reward, info, 3, None, None) for _ in range(2)]


def scored(driver, groups):
    return [(outcome.n_correct, outcome.n_scored) for outcome in driver._outcomes(groups)]


def test_a_source_that_never_has_the_correct_key_is_judged_by_its_score_and_that_is_said_once(
    caplog,
):
    driver = verl_driver("ab")
    groups = {0: rolled({"acc": 1.0}), 8: rolled({"score": 1.0}), 9: rolled({}, reward=0.0)}
    assert scored(driver, groups) == [(2, 2), (2, 2), (0, 2)]
    scored(driver, groups)
    assert [record.getMessage().split(":")[0] for record in caplog.records] == ["source 'b'"]


def test_groups_judged_by_their_score_are_counted_by_step():
    driver = verl_driver("ab")
    driver.drop({8: rolled({"score": 1.0}), 0: rolled({"acc": 1.0})})
    steps = [{9: rolled({"score": 0.0})}, {1: rolled({"acc": 0.0})}]
    told = [driver.finish(groups, step) for step, groups in enumerate(steps, start=1)]
    assert [figures["depo/judged_by_score"] for figures in told] == [2.0, 0.0]


def test_a_source_that_had_the_correct_key_once_is_unscorable_without_it():
    driver = verl_driver("ab")
    scored(driver, {0: rolled({"acc": 1.0}), 8: rolled({"acc": None})})
    assert scored(driver, {1: rolled({}, reward=1.0)}) == [(0, 0)]


def test_a_key_that_no_source_has_is_an_error_that_names_the_keys_there():
    with pytest.raises(RewardError, match="keys there: score"):
        scored(verl_driver("a"), {0: rolled({"score": 1.0})})


def test_a_resumed_run_remembers_which_sources_had_the_correct_key():
    before, after = verl_driver("ab"), verl_driver("ab")
    scored(before, {0: rolled({"acc": 1.0}), 8: rolled({"acc": 1.0})})
    after.load_state_dict(before.state_dict())
    assert scored(after, {9: rolled({}, reward=1.0)}) == [(0, 0)]
    of_before = before.state_dict()
    del of_before["keyed"]  # as version 0.1 wrote it
    verl_driver("ab").load_state_dict(of_before)
