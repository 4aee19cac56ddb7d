"""Outages: a source scored 0 for a while comes back; a source that cannot be scored at all teaches
nothing."""

from __future__ import annotations

import numpy as np
import pytest

from core_world import FakeEstimator, build, make_prompts, rate, roll_out
from depo_rl import GroupOutcome, Prompt, make_curriculum

BEFORE, OUTAGE = 15, 45  # steps
SMALL = {"n_buckets": 4096, "exclude": ["pass_rate"]}


def _sources() -> list[Prompt]:
    """Five sources of 300 prompts with words of their own; "a", of true pass rate 0.5, is the one
    that will fail."""
    rng = np.random.default_rng(0)
    return [
        Prompt(
            f"{s}-{i}",
            " ".join(f"{s}{rng.integers(50)}" for _ in range(6)) + f" {s} n{i}",
            s,
            {"pass_rate": p},
        )
        for s, p in (("a", 0.5), ("b", 0.5), ("c", 0.6), ("d", 0.02), ("e", 0.98))
        for i in range(300)
    ]


def _shares_of_a(band: str, n_after: int) -> np.ndarray:
    """Share of the batch that source "a" has in each step; during the outage its groups are all
    scored 0."""
    curriculum = make_curriculum(
        "depo", _sources(), {"band": band, "warmup_steps": 4, "estimator": SMALL}
    )
    rng, shares = np.random.default_rng(0), []
    for step in range(BEFORE + OUTAGE + n_after):
        prompts = curriculum.propose(32)
        outcomes = roll_out(prompts, rng)
        if BEFORE <= step < BEFORE + OUTAGE:
            outcomes = [GroupOutcome(o.key, 0, 8) if o.key.startswith("a") else o for o in outcomes]
        curriculum.settle(outcomes)
        shares.append(sum(p.source == "a" for p in prompts) / 32)
    return np.array(shares)


@pytest.mark.parametrize(("band", "recovered_after"), [("auto", 130), ("window", 50)])
def test_a_source_scored_zero_for_45_steps_comes_back(band, recovered_after):
    shares = _shares_of_a(band, recovered_after + 10)
    before = shares[8:BEFORE].mean()
    assert before > 0.2
    assert shares[BEFORE + OUTAGE + recovered_after :].mean() >= before / 2
    if band == "auto":
        # it did fall to about its floor
        assert shares[BEFORE + OUTAGE - 10 : BEFORE + OUTAGE].mean() < 0.1


@pytest.mark.parametrize("method", ["grpo", "dapo", "depo"])
def test_an_outage_that_returns_unscorable_teaches_nothing(method):
    """The same run with the failed groups given up instead of returned: same estimator, same
    predictions."""
    prompts = _sources()
    runs = []
    for give_up in (True, False):
        curriculum = build(method, prompts, shared={"warmup_steps": 2})
        rng = np.random.default_rng(0)
        for _ in range(6):
            batch = curriculum.propose(16)
            lost = [p for p in batch if p.source == "a"]
            if give_up:
                curriculum.release([p.key for p in lost])
            else:
                curriculum.settle(roll_out(lost, np.random.default_rng(0), kind="failed"))
            curriculum.settle(roll_out([p for p in batch if p.source != "a"], rng))
        runs.append((curriculum, curriculum.estimator.predict(prompts)))
    (left, left_belief), (right, right_belief) = runs
    assert np.array_equal(left_belief.mean_P, right_belief.mean_P)
    assert np.array_equal(left_belief.strength_P, right_belief.strength_P)
    same = ("failed", "admitted", "rejected", "chosen", "drawn")
    assert [left.metrics()[k] for k in same] == [right.metrics()[k] for k in same]


def test_an_estimator_that_rejects_all_of_a_source_does_not_lose_it():
    """Even where the estimator never learns, the source keeps being rolled out by its floor."""
    prompts = make_prompts([50, 50])
    curriculum = build(
        "depo",
        prompts,
        {"warmup_steps": 0},
        FakeEstimator(lambda p: 0.0 if p.source == "s0" else rate(p)),
    )
    visited = set()
    for _ in range(curriculum.max_unvisited_batches(20)):
        batch = curriculum.propose(20)
        visited |= {p.key for p in batch}
        curriculum.settle(roll_out(batch, np.random.default_rng(0)))
    assert visited == {p.key for p in prompts}
