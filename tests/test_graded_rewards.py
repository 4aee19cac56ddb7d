"""Graded rewards: a group counts by the variance of its rewards, and prompts are chosen by the
variance predicted."""

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from depo_rl import GroupOutcome, Prompt, make_curriculum
from depo_rl.errors import ConfigError

G = 8


def group(rewards: list[float], key: str = "a", n_failed: int = 0) -> GroupOutcome:
    """As an engine reports it; correct from a reward of 0.5 on."""
    correct = sum(r >= 0.5 for r in rewards)
    mean, std = float(np.mean(rewards)), float(np.std(rewards))
    return GroupOutcome(key, correct, len(rewards), n_failed, reward_mean=mean, reward_std=std)


@given(st.integers(1, 16), st.data(), st.sampled_from([(0.0, 1.0), (-1.0, 1.0), (-3.0, 2.0)]))
def test_rewards_of_two_values_count_as_they_are(
    n: int, data: st.DataObject, limits: tuple[float, float]
) -> None:
    k, (low, high) = data.draw(st.integers(0, n)), limits
    graded = group([high] * k + [low] * (n - k)).graded(low, high)
    assert (graded.n_correct, graded.n_scored) == (k, n)


@given(st.lists(st.floats(-2, 3, allow_nan=False), min_size=1, max_size=16))
def test_equal_rewards_are_not_mixed_and_turning_rewards_round_turns_the_count(
    rewards: list[float],
) -> None:
    graded, turned = group(rewards).graded(0, 1), group([1 - r for r in rewards]).graded(0, 1)
    if max(rewards) == min(rewards):
        assert not graded.mixed
    if abs(float(np.mean(rewards)) - 0.5) > 1e-6:
        assert turned.n_correct == graded.n_scored - graded.n_correct


def test_the_count_has_the_variance_of_the_rewards() -> None:
    # variance 0.1875 of a range of 1: that of 2 right of 8, whose share is 1/4 * 3/4
    rewards = [0.25 + d for d in (-0.4330127,) * 4 + (0.4330127,) * 4]
    assert group(rewards).graded(0, 1).n_correct == 2
    assert group([1 - r for r in rewards]).graded(0, 1).n_correct == 6
    # 0.2^2 is the variance of a third of a dissent
    assert group([0.9, 0.5] * 4).graded(0, 1).n_correct == 7
    assert group([0.9] * 7 + [0.88]).graded(0, 1).all_pass  # hardly different


def test_a_group_without_rewards_is_a_failed_one() -> None:
    for std in (None, float("nan")):
        lost = GroupOutcome("a", 3, 6, 2, reward_mean=0.5, reward_std=std).graded(0, 1)
        assert (lost.n_correct, lost.n_scored, lost.n_failed) == (0, 0, 8)


def test_reward_range_out_of_order_is_refused_in_one_line() -> None:
    with pytest.raises(
        ConfigError,
        match=r"reward_range must be the lowest and the highest reward, got \(1.0, 0.0\)",
    ):
        make_curriculum("depo+", [Prompt("a", "x")], {"reward_range": [1, 0]})


def share_passed(kind: str, rng: np.random.Generator) -> list[float]:
    """Rewards of a group: the share of 10 tests that each of 8 programs passes. A few seem mixed
    that are not."""
    if (
        kind == "half"
    ):  # every program passes the same half: the mean looks undecided, but nothing can be learnt
        return [0.5] * G
    if kind == "near":  # as near to the threshold as can be: right or wrong by a hair
        return (rng.integers(49, 51, G) / 100).tolist()
    if kind == "weak":  # all wrong by the threshold, yet far from equal
        return (rng.integers(0, 5, G) / 10).tolist()
    return [1.0] * G


def mean_variance(method: str, config: dict[str, object]) -> float:
    """Of the rewards in a group, steps 15-24; 32 of 800 prompts a step. The kind of a prompt is in
    its text."""
    kinds = ("half", "near", "weak", "solved")
    prompts = [
        Prompt(f"{kind}{i}", f"Write a {kind} program, number {i}.")
        for i in range(200)
        for kind in kinds
    ]
    curriculum = make_curriculum(method, prompts, {"group_size": G, **config})
    rng, variances = np.random.default_rng(0), []
    for step in range(25):
        rewards = {p.key: share_passed(p.text.split()[2], rng) for p in curriculum.propose(32)}
        curriculum.settle([group(r, key) for key, r in rewards.items()])
        if step >= 15:
            variances += [float(np.var(r)) for r in rewards.values()]
    return float(np.mean(variances))


def test_prompts_are_chosen_by_the_variance_of_their_rewards() -> None:
    largest = {
        "temperature": 0.0,
        "candidate_factor": 8,
        "explore": 0.1,
    }  # a draw leaves the others their part
    by_correctness = mean_variance("depo+", largest)
    by_rewards = mean_variance("depo+", largest | {"reward_range": [0, 1]})
    assert by_rewards > 3 * mean_variance("grpo", {})
    # which runs after those that are right or wrong by a hair
    assert by_rewards > 5 * by_correctness
