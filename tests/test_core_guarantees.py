"""What every curriculum guarantees, for every method, whatever the estimator says and whatever
comes back."""

from __future__ import annotations

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from core_world import (
    ESTIMATORS,
    METHOD_IDS,
    METHODS,
    FakeEstimator,
    build,
    conserved,
    estimators,
    make_prompts,
    methods,
    rate,
    roll_out,
    shares,
    source_sizes,
)
from depo_rl import METHODS as REGISTERED
from depo_rl import GroupOutcome, PromptPool
from depo_rl.breadth import BREADTH
from depo_rl.errors import PoolExhausted, UnknownPrompt
from depo_rl.ledger import REASONS
from depo_rl.pool import Exploration, ShuffledPass

KINDS = ["scored", "partial", "failed"]
ACTIONS = ["propose", "settle", "settle", "settle backwards", "settle twice", "release"]


def test_the_methods_of_these_tests_are_all_there_are():
    assert {name for name, _ in METHODS} == set(REGISTERED)


@settings(max_examples=150)
@given(
    methods,
    estimators,
    source_sizes,
    shares,
    st.integers(1, 5),
    st.lists(
        st.tuples(st.sampled_from(ACTIONS), st.integers(0, 12), st.sampled_from(KINDS)),
        min_size=4,
        max_size=20,
    ),
)
def test_guarantees_hold_after_every_action(method, estimator, sizes, explore, factor, script):
    name, config = method
    prompts = make_prompts(sizes)
    shared = {"explore": explore, "candidate_factor": factor, "keep": (0.0, 1.0)}
    own = ESTIMATORS[estimator]() if estimator else None
    curriculum = build(name, prompts, config, own, shared)
    explore = curriculum.config.explore
    rng, places, explored_before = np.random.default_rng(0), 0, 0.0
    proposed = []
    for action, n, kind in script:
        before = curriculum.metrics()
        flying = curriculum.in_flight
        if action == "propose":
            if n > len(curriculum.pool) - len(flying):
                with pytest.raises(PoolExhausted, match=f"{n} prompts asked for"):
                    curriculum.propose(n)
                assert curriculum.in_flight == flying
                continue
            batch = curriculum.propose(n)
            keys = [p.key for p in batch]
            after = curriculum.metrics()
            places += n
            explored = after["explored"] - before["explored"]
            assert len(set(keys)) == len(keys) == n
            assert not set(keys) & flying
            assert curriculum.in_flight == flying | set(keys)
            assert after["drawn"] - before["drawn"] <= factor * n + explored
            assert abs(after["explored"] - explore * places) < 1
            proposed += batch
            explored_before = after["explored"]
        elif action == "release":
            some = proposed[:n]
            curriculum.release([p.key for p in some])
            proposed = proposed[n:]
        else:
            back, proposed = proposed[:n], proposed[n:]
            outcomes = roll_out(back, rng, kind=kind)
            outcomes = outcomes[::-1] if action == "settle backwards" else outcomes
            outcomes = outcomes * 2 if action == "settle twice" else outcomes
            settled = curriculum.settle(outcomes)
            assert [s.outcome for s in settled] == outcomes
            assert curriculum.in_flight == flying - {p.key for p in back}
            assert all(
                s.admitted is False
                for s in settled
                if s.outcome.n_scored == 0 or s.because == "duplicate"
            )
        assert conserved(curriculum)
        assert curriculum.breadth.visits.sum() == curriculum.metrics()["chosen"]
    assert curriculum.metrics()["explored"] == explored_before


@pytest.mark.parametrize("estimator", sorted(ESTIMATORS))
@pytest.mark.parametrize(("method", "config"), METHODS, ids=METHOD_IDS)
def test_a_whole_pool_can_be_proposed_at_once(method, config, estimator):
    curriculum = build(
        method, make_prompts([20, 11]), config, ESTIMATORS[estimator](), {"keep": (0.0, 1.0)}
    )
    for _ in range(4):
        batch = curriculum.propose(31)
        assert len({p.key for p in batch}) == 31
        with pytest.raises(PoolExhausted, match="31 are in flight"):
            curriculum.propose(1)
        assert curriculum.propose(0) == []
        curriculum.settle(roll_out(batch, np.random.default_rng(0)))


@given(shares, st.lists(st.integers(0, 40), min_size=1, max_size=40))
def test_the_exploration_share_is_exact_to_one_place_at_every_moment(share, batches):
    pool = PromptPool(make_prompts([50, 3]))
    exploration, drawn, places = Exploration(pool, share), 0, 0
    for n in batches:
        drawn += len(exploration.draw(n, frozenset()))
        places += n
        assert abs(drawn - share * places) < 1


def test_explored_prompts_are_unbiased_whatever_the_prediction():
    """The explored groups of an estimator that lets only three prompts through show the pool, not
    the three."""
    prompts = make_prompts([120], seed=3)
    curriculum = build(
        "depo", prompts, {"warmup_steps": 0, "explore": 0.25}, ESTIMATORS["few alive"]()
    )
    seen: list[str] = []
    for _ in range(120):  # 16 places of 8 make 2 explored a batch: two whole passes
        settled = curriculum.settle(roll_out(curriculum.propose(8), np.random.default_rng(0)))
        seen += [s.outcome.key for s in settled if s.because == "explored"]
    assert len(seen) == 240
    assert sorted(seen[:120]) == sorted(p.key for p in prompts)
    assert sorted(seen[120:]) == sorted(p.key for p in prompts)


@pytest.mark.parametrize("estimator", ["few alive", "all dead", "inverted", "nan", "oracle"])
@pytest.mark.parametrize(("method", "config"), METHODS, ids=METHOD_IDS)
def test_no_prompt_goes_unvisited_for_longer_than_promised(method, config, estimator):
    prompts = make_prompts([30, 9, 1], seed=1)
    curriculum = build(
        method, prompts, config, ESTIMATORS[estimator](), {"keep": (0.0, 1.0), "explore": 0.2}
    )
    n, rng, late = 6, np.random.default_rng(0), []
    bound = curriculum.max_unvisited_batches(n)
    assert bound is not None
    waiting = dict.fromkeys((p.key for p in curriculum.pool), 0)
    worst = 0
    for step in range(3 * bound):
        late.append(curriculum.propose(n))
        waiting = {key: 0 if key in curriculum.in_flight else w + 1 for key, w in waiting.items()}
        worst = max(worst, *waiting.values())
        while len(late) > step % 4:  # up to three proposals in flight
            curriculum.settle(roll_out(late.pop(0), rng))
    assert worst <= bound


def test_the_visit_bound_is_two_exploration_passes():
    prompts = make_prompts([1000])
    assert build("grpo", prompts).max_unvisited_batches(100) == 2 * 10 + 1
    assert build("depo", prompts).max_unvisited_batches(100) == 2 * 10 / 0.05 + 1
    assert build("depo", prompts, {"explore": 0.0}).max_unvisited_batches(100) is None


@pytest.mark.parametrize("estimator", ["few alive", "all dead", "inverted"])
def test_every_source_keeps_its_floor(estimator):
    """A source never falls below explore x size: within two prompts of it, counted from the start
    of a pass."""
    prompts = make_prompts([200, 50, 10, 2])
    curriculum = build(
        "depo", prompts, {"warmup_steps": 0, "explore": 0.25}, ESTIMATORS[estimator]()
    )
    share_of = {"s0": 200 / 262, "s1": 50 / 262, "s2": 10 / 262, "s3": 2 / 262}
    explored = dict.fromkeys(share_of, 0)
    for step in range(1, 132):
        settled = curriculum.settle(roll_out(curriculum.propose(8), np.random.default_rng(0)))
        for s in settled:
            if s.because == "explored":
                explored[curriculum.pool[s.outcome.key].source] += 1
        if step * 2 <= 262:
            assert all(abs(explored[s] - share_of[s] * step * 2) <= 2 for s in share_of), (
                step,
                explored,
            )
    assert explored == {"s0": 200, "s1": 50, "s2": 10, "s3": 2}


@given(source_sizes, st.integers(0, 3))
def test_a_pass_holds_each_member_once_and_every_group_by_its_share(sizes, seed):
    group_of = np.repeat(np.arange(len(sizes)), sizes)
    walk = ShuffledPass(len(group_of), seed, stream=1, group_of=group_of)
    for _ in range(2):
        members = [walk.draw(1, frozenset())[0] for _ in range(len(group_of))]
        assert sorted(members) == list(range(len(group_of)))
        for group, size in enumerate(sizes):
            so_far = np.cumsum(group_of[members] == group)
            share = size / len(group_of) * np.arange(1, len(members) + 1)
            assert np.abs(so_far - share).max() <= 2


@given(st.integers(1, 20), st.sets(st.integers(0, 19)), st.integers(0, 30), st.integers(0, 25))
def test_a_draw_gives_all_that_is_free_and_no_more(size, taken, k, advance):
    walk = ShuffledPass(size, seed=0, stream=0)
    walk.draw(min(advance, size), frozenset())
    drawn = walk.draw(k, taken)
    free = set(range(size)) - taken
    assert len(drawn) == len(set(drawn)) == min(k, len(free))
    assert set(drawn) <= free


@pytest.mark.parametrize("band", ["window", "auto"])
def test_the_best_ranked_rest_fills_a_short_batch_and_is_counted(band):
    prompts = make_prompts([60])
    nearness = FakeEstimator(lambda p: 0.001 * (1 + int(p.key.split("-")[1])) / 60, strength=1e6)
    config = {"warmup_steps": 0, "explore": 0.0, "band": band, "candidate_factor": 60}
    curriculum = build("depo", prompts, config, nearness)
    settled = curriculum.settle(roll_out(curriculum.propose(5), np.random.default_rng(0)))
    # All are far too hard: the least hard five of all sixty must be taken.
    assert sorted(s.outcome.key for s in settled) == [f"s0-{i}" for i in range(55, 60)]
    metrics = curriculum.metrics()
    assert metrics["fallback"] == (5 if band == "window" else 0)
    assert {s.because for s in settled} == ({"fallback"} if band == "window" else {"selected"})
    assert metrics["drawn"] == 60


def test_a_window_that_lets_little_through_asks_the_estimator_seldom():
    """Few large calls, not one prompt at a time: an encoder's cost is per call."""
    prompts = make_prompts([4000])
    one_in_six = FakeEstimator(lambda p: 0.5 if int(p.key.split("-")[1]) % 6 == 0 else 0.0)
    curriculum = build("depo", prompts, {"warmup_steps": 0}, one_in_six)
    for _ in range(10):
        one_in_six.calls.clear()
        curriculum.settle(roll_out(curriculum.propose(64), np.random.default_rng(0)))
        assert len(one_in_six.calls) <= 6, one_in_six.calls


def test_warm_up_filters_nothing_until_enough_groups_were_scored():
    curriculum = build(
        "depo", make_prompts([200]), {"warmup_steps": 3, "explore": 0.0}, ESTIMATORS["oracle"]()
    )
    rng, reasons = np.random.default_rng(0), []
    for kind in ["failed", "scored", "scored", "scored", "scored"]:
        batch = curriculum.propose(10)
        # one by one
        settled = [s for p in batch for s in curriculum.settle(roll_out([p], rng, kind=kind))]
        reasons.append({s.because for s in settled})
    # the failed batch taught nothing and does not count
    assert reasons == [{"warmup"}] * 4 + [{"selected"}]


def test_partial_groups_are_judged_by_what_was_scored():
    curriculum = build("grpo", make_prompts([40]), {}, FakeEstimator(lambda p: 0.5, strength=1e9))
    curriculum.settle([GroupOutcome(p.key, 1, 2, n_failed=6) for p in curriculum.propose(5)])
    _, p_mixed, observed, mixed = curriculum.track.columns()
    assert p_mixed == pytest.approx(0.5)  # of two samples, not of eight
    assert observed.tolist() == [0.5] * 5
    assert mixed.tolist() == [1.0] * 5


def test_an_unknown_key_changes_nothing():
    curriculum = build("depo", make_prompts([40]), {"warmup_steps": 0})
    batch = curriculum.propose(4)
    good = roll_out(batch, np.random.default_rng(0))
    before = curriculum.state_dict()["ledger"]["count"]
    with pytest.raises(UnknownPrompt, match="no prompt of this pool has the key 'nobody'") as error:
        curriculum.settle([*good, GroupOutcome("nobody", 1, 2)])
    assert isinstance(error.value, KeyError)
    assert "\\" not in str(error.value)
    assert curriculum.in_flight == {p.key for p in batch}
    assert curriculum.state_dict()["ledger"]["count"] == before


def test_an_estimator_that_raises_leaves_nothing_in_flight():
    def broken(prompt):
        raise ZeroDivisionError

    curriculum = build("depo", make_prompts([40]), {"explore": 0.5}, FakeEstimator(broken))
    with pytest.raises(ZeroDivisionError):
        curriculum.propose(4)
    assert curriculum.in_flight == frozenset()
    assert conserved(curriculum)


def test_a_prediction_of_the_wrong_shape_is_a_bug_and_says_so():
    class Short(FakeEstimator):
        def predict(self, prompts):
            return super().predict(prompts[:-1])

    curriculum = build("depo", make_prompts([40]), {"explore": 0.0}, Short(rate))
    with pytest.raises(ValueError, match="prediction of 4 prompts has shapes"):
        curriculum.propose(4)


def test_broken_predictions_are_counted_and_harmless():
    curriculum = build(
        "depo", make_prompts([400]), {"warmup_steps": 0, "explore": 0.0}, ESTIMATORS["nan"]()
    )
    settled = curriculum.settle(roll_out(curriculum.propose(10), np.random.default_rng(0)))
    assert curriculum.metrics()["invalid_predictions"] == 10
    assert {(s.predicted_mean, s.predicted_strength) for s in settled} == {(0.5, 2.0)}


@pytest.mark.parametrize("n", [-1, -8])
def test_a_negative_number_is_refused(n):
    curriculum = build("depo", make_prompts([40]))
    with pytest.raises(ValueError, match=f"cannot draw {n}"):
        curriculum.propose(n)
    assert conserved(curriculum)


def test_adopted_prompts_are_in_flight_and_settle_like_the_others():
    curriculum = build("grpo", make_prompts([40]))
    keys = ["s0-3", "s0-4", "s0-3"]
    curriculum.adopt(keys)
    curriculum.adopt(["s0-4"])
    assert curriculum.in_flight == {"s0-3", "s0-4"}
    assert conserved(curriculum)
    assert not {"s0-3", "s0-4"} & {p.key for p in curriculum.propose(38)}
    assert [s.because for s in curriculum.settle([GroupOutcome("s0-3", 1, 8)])] == ["uniform"]
    with pytest.raises(UnknownPrompt):
        curriculum.adopt(["nobody"])


def test_global_random_generators_are_untouched():
    import random

    curriculum = build("depo", make_prompts([60]), {"warmup_steps": 0, "band": "auto"})
    before = random.getstate(), np.random.get_state()[1].copy(), np.random.get_state()[2]
    for _ in range(3):
        curriculum.settle(roll_out(curriculum.propose(8), np.random.default_rng(0)))
    assert random.getstate() == before[0]
    assert (np.random.get_state()[1] == before[1]).all()
    assert np.random.get_state()[2] == before[2]


def test_metrics_keep_their_names():
    curriculum = build("depo", make_prompts([3000]), {"warmup_steps": 0}, ESTIMATORS["oracle"]())
    names = set(curriculum.metrics())
    rng = np.random.default_rng(0)
    for _ in range(9):
        curriculum.settle(roll_out(curriculum.propose(128), rng))
    assert set(curriculum.metrics()) == names
    assert {
        *("drawn", "chosen", "skipped", *REASONS, "admitted", "rejected", "failed", "duplicates"),
        *(
            "invalid_predictions",
            "in_flight",
            "mixed_share",
            "all_pass_share",
            "all_fail_share",
            "observed_mean",
        ),
        *(
            "predicted_mean",
            "seconds_selecting",
            "seconds_learning",
            "log_loss",
            "auc_mixed",
            "ece",
            "ece_floor",
        ),
        *(
            *(f"{name}_share" for name in REASONS),
            "rollouts_saved",
            "tokens_saved",
            "estimator/n_seen",
        ),
        *BREADTH,
    } == names


def test_what_was_not_measured_is_nan_and_never_zero():
    metrics = build("depo", make_prompts([40])).metrics()
    for name in (
        "mixed_share",
        "observed_mean",
        "predicted_mean",
        "log_loss",
        "auc_mixed",
        "ece",
        "tokens_saved",
    ):
        assert np.isnan(metrics[name]), name


def test_savings_are_the_waste_avoided_and_nothing_else():
    """An oracle that skips only dead prompts saves G rollouts for each, at their mean length."""
    half_dead = FakeEstimator(lambda p: 0.5 if int(p.key.split("-")[1]) % 2 else 0.0, strength=1e9)
    curriculum = build("depo", make_prompts([400]), {"warmup_steps": 0, "explore": 0.0}, half_dead)
    curriculum.settle(roll_out(curriculum.propose(20), np.random.default_rng(0)))
    metrics = curriculum.metrics()
    dead = metrics["skipped"]  # too hard, or, at most a few, surplus
    assert 0 < metrics["rollouts_saved"] <= 8 * dead
    assert metrics["rollouts_saved"] == pytest.approx(
        8 * round(metrics["rollouts_saved"] / 8), rel=1e-3
    )
    assert metrics["tokens_saved"] == pytest.approx(metrics["rollouts_saved"] * 100)
    uniform = build("grpo", make_prompts([400]))
    uniform.settle(roll_out(uniform.propose(20), np.random.default_rng(0)))
    assert uniform.metrics()["rollouts_saved"] == 0.0
