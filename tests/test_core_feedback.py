"""The estimator is used, is told what the verifier said, and gets every prompt back: what code of
this kind got wrong.

The method's first public code (arXiv 2602.06375) fails each of these.
"""

from __future__ import annotations

import math

import numpy as np
import pytest

from core_world import (
    ESTIMATORS,
    METHOD_IDS,
    METHODS,
    FakeEstimator,
    build,
    make_prompts,
    rate,
    roll_out,
)
from depo_rl import GroupOutcome, Prompt, make_curriculum
from depo_rl.checkpoint import load_state, save_state


def _arithmetic() -> list[Prompt]:
    """Additions whose length decides the pass rate: only those of three digits teach anything."""
    rng = np.random.default_rng(0)
    prompts = {}
    for digits, p in enumerate([0.99, 0.97, 0.6, 0.004, 0.0], start=1):
        for _ in range(400):
            a, b = rng.integers(10 ** (digits - 1), 10**digits, size=2)
            prompts[f"{a}+{b}"] = Prompt(f"{a}+{b}", f"{a} + {b} =", "add", {"pass_rate": p})
    return list(prompts.values())


BLIND = {"exclude": ["pass_rate"]}  # the column that outcomes are drawn from


@pytest.mark.parametrize("band", ["window", "auto"])
def test_method_depo_really_uses_its_estimator(band):
    """Not plain GRPO under another name: the estimator is asked, told, and decides."""
    prompts, shares = _arithmetic(), {}
    for method, config in (
        ("grpo", {}),
        ("depo", {"band": band, "warmup_steps": 3, "estimator": BLIND}),
    ):
        curriculum, rng, mixed = (
            make_curriculum(method, prompts, config),
            np.random.default_rng(0),
            [],
        )
        for _ in range(18):
            settled = curriculum.settle(roll_out(curriculum.propose(32), rng))
            mixed.append(curriculum.metrics()["mixed_share"])
        shares[method] = np.mean(mixed[-5:])
        if method == "depo":
            assert curriculum.metrics()["estimator/prompts_seen"] > 0
            assert (
                {"selected", "explored"}
                <= {s.because for s in settled}
                <= {"selected", "explored", "fallback"}
            )
    assert shares["depo"] > 1.5 * shares["grpo"], shares

    told = FakeEstimator(rate)
    curriculum = build("depo", make_prompts([100]), {"warmup_steps": 0, "band": band}, told)
    outcomes = roll_out(curriculum.propose(8), np.random.default_rng(0))
    curriculum.settle(outcomes)
    assert told.seen == outcomes
    assert sum(told.calls) >= 8


@pytest.mark.parametrize(("method", "config"), METHODS, ids=METHOD_IDS)
def test_the_estimator_is_told_what_the_verifier_said(method, config):
    """Counts reach the estimator as they came: unscored as unscored, not as wrong; shaped rewards
    play no part."""
    told = FakeEstimator(rate)
    curriculum = build(method, make_prompts([100]), config, told, {"keep": (0.0, 1.0)})
    counts = [(3, 8, 0), (0, 0, 8), (2, 5, 3), (0, 8, 0)]
    outcomes = [
        GroupOutcome(p.key, *k, reward_mean=-5.0, reward_std=3.0)
        for p, k in zip(curriculum.propose(4), counts, strict=True)
    ]
    curriculum.settle(outcomes)
    assert [(o.n_correct, o.n_scored, o.n_failed) for o in told.seen] == counts
    assert curriculum.metrics()["observed_mean"] == pytest.approx((3 / 8 + 2 / 5 + 0) / 3)
    assert curriculum.metrics()["all_fail_share"] == pytest.approx(1 / 3)


def test_an_unknown_log_probability_stays_unknown():
    told = FakeEstimator(rate)
    curriculum = build("depo", make_prompts([100]), {}, told)
    first, second = curriculum.propose(2)
    curriculum.settle(
        [GroupOutcome(first.key, 1, 8), GroupOutcome(second.key, 1, 8, mean_logprob=-0.7)]
    )
    assert [o.mean_logprob for o in told.seen] == [None, -0.7]
    assert math.isnan(curriculum.metrics()["tokens_saved"])  # no token counts came: unknown, not 0


@pytest.mark.parametrize("band", ["window", "auto"])
def test_a_wrongly_rejected_prompt_is_visited_again(band):
    """Exploration: what the estimator rejects still yields labels, by a known bound, at the
    promised share."""
    prompts = make_prompts([80])
    config = {"warmup_steps": 0, "band": band, "explore": 0.1}
    curriculum = build("depo", prompts, config, ESTIMATORS["few alive"]())
    visited, steps = {}, curriculum.max_unvisited_batches(10)
    for _ in range(steps):
        settled = curriculum.settle(roll_out(curriculum.propose(10), np.random.default_rng(0)))
        for s in settled:
            visited.setdefault(s.outcome.key, []).append(s.because)
    assert visited.keys() == {p.key for p in prompts}
    assert all("explored" in reasons for reasons in visited.values())
    assert curriculum.metrics()["explored_share"] == pytest.approx(0.1)


@pytest.mark.parametrize("estimator", ["all dead", "nan", "few alive"])
@pytest.mark.parametrize("n", [1, 7, 10, 64])
def test_when_nothing_passes_the_batch_is_full_and_without_duplicates(n, estimator):
    """And whatever n is: no divisor, no padding, no skipped batch."""
    curriculum = build(
        "depo",
        make_prompts([67]),
        {"warmup_steps": 0, "candidate_factor": 2},
        ESTIMATORS[estimator](),
    )
    for _ in range(10):
        batch = curriculum.propose(n)
        assert len({p.key for p in batch}) == n
        curriculum.settle(roll_out(batch, np.random.default_rng(0)))
    metrics = curriculum.metrics()
    assert metrics["chosen"] == 10 * n
    if estimator == "all dead":
        assert metrics["fallback"] == metrics["chosen"] - metrics["explored"]


def test_all_state_is_in_the_checkpoint(tmp_path):
    """Warm-up, position in the data, what is in flight, exploration, estimator, counts: nothing
    starts again."""
    prompts = make_prompts([60, 20])
    config = {"warmup_steps": 3, "band": "auto", "explore": 0.15, "estimator": {"n_buckets": 512}}
    first = make_curriculum("depo", prompts, config)
    rng = np.random.default_rng(0)
    for _ in range(5):
        batch = first.propose(7)
        first.settle(roll_out(batch[:5], rng))
    save_state(tmp_path / "state", first.state_dict())

    second = make_curriculum("depo", prompts, config)
    second.load_state_dict(load_state(tmp_path / "state"))
    assert second.in_flight == first.in_flight != frozenset()
    seconds = ("seconds_selecting", "seconds_learning")
    before, after = first.metrics(), second.metrics()
    assert {k: v for k, v in before.items() if k not in seconds} == {
        k: v for k, v in after.items() if k not in seconds
    }
    left, right = first.estimator.predict(prompts), second.estimator.predict(prompts)
    assert np.array_equal(left.mean_P, right.mean_P)
    assert np.array_equal(left.strength_P, right.strength_P)
    reasons = []
    for curriculum in (first, second):  # warm-up is over in both: it does not start again
        batch = curriculum.propose(7)
        reasons.append(
            [
                (s.outcome.key, s.because)
                for s in curriculum.settle(roll_out(batch, np.random.default_rng(1)))
            ]
        )
    assert reasons[0] == reasons[1]
    assert "warmup" not in {because for _, because in reasons[0]}
