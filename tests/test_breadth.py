"""How widely was chosen: figures by hand, what counts as a batch, and the same after a resume."""

from __future__ import annotations

import math
from collections import Counter
from itertools import chain

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from core_world import build, make_prompts, methods, roll_out
from depo_rl import GroupOutcome
from depo_rl.breadth import BREADTH, RECENT_BATCHES, Breadth
from depo_rl.checkpoint import load_state, save_state

SOURCE_OF = np.array([0, 0, 1, 1, 2])
KEYS = "abcde"


def make() -> Breadth:
    return Breadth({key: i for i, key in enumerate(KEYS)}, SOURCE_OF)


def test_the_figures_by_hand():
    breadth = make()
    breadth.add("ac")
    breadth.add("ab")
    assert breadth.visits.tolist() == [2, 1, 1, 0, 0]
    figures = breadth.metrics()
    assert tuple(figures) == BREADTH
    assert figures["sources_in_batch"] == 1  # a and b are of one source
    assert figures["sources_per_batch"] == (2 * 2 + 1 * 2) / 4
    assert figures["distinct_share"] == 3 / 4
    assert figures["unseen_share"] == 2 / 5
    # Shares 1/2, 1/4, 1/4: an entropy of 1.5 bits, as of 2^1.5 equally frequent prompts.
    assert figures["effective_prompts"] == pytest.approx(2**1.5)
    assert figures["most_visits"] == 2


def test_before_the_first_choice_nothing_is_claimed():
    figures = make().metrics()
    assert (figures["unseen_share"], figures["most_visits"]) == (1.0, 0.0)
    others = set(BREADTH) - {"unseen_share", "most_visits"}
    assert all(math.isnan(figures[name]) for name in others)


def test_a_refill_weighs_by_its_places_and_an_empty_batch_not_at_all():
    breadth = make()
    breadth.add("abcde")  # three sources, five places
    breadth.add("")
    breadth.add("a")
    figures = breadth.metrics()
    assert figures["sources_in_batch"] == 1
    assert figures["sources_per_batch"] == (3 * 5 + 1 * 1) / 6


def test_repeats_are_counted_over_the_last_batches_only():
    breadth = make()
    for _ in range(7):
        breadth.add("a")
    for _ in range(RECENT_BATCHES):
        breadth.add("bc")
    figures = breadth.metrics()
    assert figures["distinct_share"] == 2 / (2 * RECENT_BATCHES)  # no a any more
    assert figures["most_visits"] == RECENT_BATCHES and figures["unseen_share"] == 2 / 5


def test_rows_handed_over_one_by_one_are_one_batch_until_a_group_comes_back():
    breadth = make()
    for key in "ace":
        breadth.add(key, joins=True)
    assert breadth.metrics()["sources_in_batch"] == breadth.metrics()["sources_per_batch"] == 3
    breadth.close()
    breadth.add("a", joins=True)
    assert breadth.metrics()["sources_in_batch"] == 1
    breadth.add("c")  # proposed, which never is the rest of something
    assert breadth.metrics()["sources_in_batch"] == 1
    breadth.add("e", joins=True)
    assert breadth.metrics()["sources_in_batch"] == 1
    assert breadth.metrics()["sources_per_batch"] == (3 * 3 + 1 + 1 + 1) / 6
    assert breadth.metrics()["distinct_share"] == 3 / 6


def test_visits_cannot_be_written_to():
    breadth = make()
    with pytest.raises(ValueError, match="read-only"):
        breadth.visits[0] = 1


def test_what_an_engine_chose_counts_as_what_was_proposed():
    curriculum = build("grpo", make_prompts([3, 3]))
    for key in ("s0-0", "s1-2"):
        curriculum.adopt([key])
    assert curriculum.breadth.visits.tolist() == [1, 0, 0, 0, 0, 1]
    assert curriculum.metrics()["sources_in_batch"] == 2
    curriculum.settle([GroupOutcome("s0-0", 1, 8)])
    curriculum.adopt(["s0-0"])
    assert curriculum.metrics()["sources_in_batch"] == 1
    curriculum.release()
    assert curriculum.breadth.visits.sum() == curriculum.metrics()["chosen"] == 3


def test_an_epoch_of_grpo_visits_each_prompt_once():
    curriculum = build("grpo", make_prompts([30, 10]))
    for _ in range(5):
        curriculum.settle(roll_out(curriculum.propose(8), np.random.default_rng(0)))
    figures = curriculum.metrics()
    assert (figures["unseen_share"], figures["most_visits"], figures["distinct_share"]) == (0, 1, 1)
    assert figures["effective_prompts"] == pytest.approx(40)


batches = st.lists(
    st.tuples(st.lists(st.sampled_from(KEYS), unique=True), st.booleans(), st.booleans()),
    max_size=60,
)


@given(batches, st.integers(0, 60))
def test_resumed_is_never_stopped_and_visits_are_what_was_chosen(script, cut):
    def go(breadth, part):
        figures = []
        for keys, joins, closes in part:
            breadth.add(keys, joins)
            if closes:
                breadth.close()
            figures.append(list(map(str, breadth.metrics().values())))  # nan is nan
        return figures

    whole, first, second = make(), make(), make()
    expected = go(whole, script)
    head = go(first, script[:cut])
    second.load_state_dict(first.state_dict())
    assert head + go(second, script[cut:]) == expected
    assert str(second.state_dict()) == str(whole.state_dict())
    chosen = Counter(chain.from_iterable(keys for keys, _, _ in script))
    assert whole.visits.tolist() == [chosen[key] for key in KEYS]


@given(methods, st.integers(1, 8), st.integers(0, 8))
def test_a_curriculum_counts_each_choice_once_and_across_a_resume(tmp_path_factory, method, n, cut):
    name, config = method
    shared = {"keep": (0.0, 1.0), "explore": 0.2}
    path = tmp_path_factory.getbasetemp() / "breadth.safetensors"
    curriculum, expected = build(name, make_prompts([9, 5]), config, shared=shared), Counter()
    for step in range(8):
        if step == cut:
            save_state(path, curriculum.state_dict())
            curriculum = build(name, make_prompts([9, 5]), config, shared=shared)
            curriculum.load_state_dict(load_state(path))
        batch = curriculum.propose(n)
        expected.update(prompt.key for prompt in batch)
        curriculum.settle(roll_out(batch, np.random.default_rng(step)))
        assert curriculum.metrics()["sources_in_batch"] == len({prompt.source for prompt in batch})
    assert curriculum.breadth.visits.tolist() == [
        expected[prompt.key] for prompt in curriculum.pool
    ]
