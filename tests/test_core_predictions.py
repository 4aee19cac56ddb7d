"""P(mixed) against scipy and simulation, and the judgement of predictions against scikit-learn."""

from __future__ import annotations

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from scipy.stats import betabinom
from sklearn.calibration import calibration_curve
from sklearn.metrics import log_loss as sklearn_log_loss
from sklearn.metrics import roc_auc_score

from depo_rl import GroupOutcome, Prediction
from depo_rl.metrics import auc, batch_shares, ece, ece_floor, log_loss, reliability

rates = st.floats(0.001, 0.999)
strengths = st.floats(0.01, 1e4)


@given(st.lists(st.tuples(rates, strengths), min_size=1, max_size=5), st.integers(1, 32))
def test_p_mixed_is_the_beta_binomials(beliefs, group_size):
    mean_P, strength_P = np.array(beliefs).T
    prediction = Prediction(mean_P, strength_P)
    truth = betabinom(group_size, mean_P * strength_P, (1 - mean_P) * strength_P)
    assert prediction.p_all_pass(group_size) == pytest.approx(truth.pmf(group_size), abs=1e-9)
    assert prediction.p_all_fail(group_size) == pytest.approx(truth.pmf(0), abs=1e-9)
    expected = 1 - truth.pmf(0) - (truth.pmf(group_size) if group_size else 0)
    assert prediction.p_mixed(group_size) == pytest.approx(np.clip(expected, 0, 1), abs=1e-9)


@pytest.mark.parametrize(("mean", "strength"), [(0.5, 2.0), (0.15, 8.0), (0.9, 1.0), (0.02, 30.0)])
@pytest.mark.parametrize("group_size", [2, 8, 16])
def test_p_mixed_is_what_simulation_gives(mean, strength, group_size):
    rng = np.random.default_rng(0)
    p = rng.beta(mean * strength, (1 - mean) * strength, size=200_000)
    k = rng.binomial(group_size, p)
    simulated = np.mean((k > 0) & (k < group_size))
    predicted = Prediction(np.array([mean]), np.array([strength])).p_mixed(group_size)[0]
    assert predicted == pytest.approx(simulated, abs=0.005)


@pytest.mark.parametrize(
    ("p", "group_size", "dead"),
    [(0.15, 8, 0.27), (0.2, 8, 0.17), (0.3, 8, 0.06), (0.5, 8, 0.008), (0.15, 16, 0.074)],
)
def test_a_known_pass_rate_is_the_limit_of_great_strength(p, group_size, dead):
    p_mixed = Prediction(np.array([p]), np.array([1e9])).p_mixed(group_size)[0]
    assert 1 - p_mixed == pytest.approx(p**group_size + (1 - p) ** group_size, abs=1e-6)
    assert 1 - p_mixed == pytest.approx(dead, abs=0.006)


def test_extreme_beliefs_stay_probabilities():
    mean_P = np.array([1e-6, 1 - 1e-6, 0.5, 0.5, 1e-6])
    strength_P = np.array([1e12, 1e12, 1e-300, 1e300, 1e-300])
    for group_size in (1, 2, 64):
        p_mixed = Prediction(mean_P, strength_P).p_mixed(group_size)
        assert ((p_mixed >= 0) & (p_mixed <= 1)).all()
    assert Prediction(np.empty(0), np.empty(0)).p_mixed(8).shape == (0,)


scores = st.lists(
    st.tuples(st.integers(0, 20).map(lambda i: i / 20), st.booleans()), min_size=1, max_size=60
)


@given(scores)
def test_metrics_agree_with_scikit_learn(rows):
    p, truth = np.array([r[0] for r in rows]), np.array([r[1] for r in rows])
    clipped = np.clip(p, 1e-6, 1 - 1e-6)
    assert log_loss(p, truth) == pytest.approx(
        sklearn_log_loss(truth, clipped, labels=[False, True])
    )
    if truth.any() and not truth.all():
        assert auc(p, truth) == pytest.approx(roc_auc_score(truth, p))
    else:
        assert np.isnan(auc(p, truth))


def test_ece_and_reliability_agree_with_scikit_learns_curve():
    rng = np.random.default_rng(0)
    p = rng.random(5000)
    truth = rng.random(5000) < p**2
    observed, predicted = calibration_curve(truth, p, n_bins=15)
    rows = reliability(p, truth)
    assert [row["observed"] for row in rows] == pytest.approx(observed)
    assert [row["predicted"] for row in rows] == pytest.approx(predicted)
    weights = np.array([row["count"] for row in rows])
    assert ece(p, truth) == pytest.approx(np.average(np.abs(observed - predicted), weights=weights))
    assert ece(p, rng.random(5000) < p) < 0.03 < ece(p, truth)


def test_without_data_every_judgement_is_nan():
    assert all(np.isnan(judge([], [])) for judge in (auc, log_loss, ece))
    assert all(np.isnan(share) for share in batch_shares([GroupOutcome("a", 0, 0, 8)]).values())


def test_batch_shares_leave_out_what_could_not_be_scored():
    outcomes = [
        GroupOutcome("a", 8, 8),
        GroupOutcome("b", 0, 8),
        GroupOutcome("c", 1, 4, 4),
        GroupOutcome("d", 0, 0, 8),
    ]
    shares = batch_shares(outcomes)
    assert (
        shares["mixed_share"]
        == shares["all_pass_share"]
        == shares["all_fail_share"]
        == pytest.approx(1 / 3)
    )
    assert shares["observed_mean"] == pytest.approx((1 + 0 + 0.25) / 3)


@pytest.mark.parametrize(
    "counts", [(-1, 8, 0), (9, 8, 0), (0, 8, -1), (1, 0, 8), (float("nan"), 8, 0)]
)
def test_impossible_counts_are_refused(counts):
    with pytest.raises(ValueError, match="counts must satisfy"):
        GroupOutcome("a", *counts)


@pytest.mark.parametrize(
    ("counts", "kind"),
    [
        *[
            ((0, 0, 8), None),
            ((0, 8, 0), "all_fail"),
            ((8, 8, 0), "all_pass"),
            ((1, 8, 0), "mixed"),
            ((7, 8, 0), "mixed"),
        ],
        *[((1, 1, 7), "all_pass"), ((0, 1, 7), "all_fail"), ((1, 2, 6), "mixed")],
    ],
)
def test_a_group_is_of_one_kind_by_what_was_scored(counts, kind):
    outcome = GroupOutcome("a", *counts)
    assert [name for name in ("mixed", "all_pass", "all_fail") if getattr(outcome, name)] == (
        [kind] if kind else []
    )
    assert outcome.group_size == 8
    assert (outcome.pass_rate is None) == (kind is None)


@pytest.mark.parametrize("n", [1, 30, 400, 3000])
@pytest.mark.parametrize("spread", [(1.0, 1.0), (8.0, 8.0), (0.2, 0.4), (50.0, 0.5)])
def test_the_floor_of_the_calibration_error_is_what_simulation_gives(n, spread):
    rng = np.random.default_rng(n)
    p = rng.beta(*spread, size=n)
    simulated = np.mean([ece(p, rng.random(n) < p) for _ in range(2000)])
    assert ece_floor(p) == pytest.approx(simulated, rel=0.06, abs=1e-3)


def test_the_floor_of_one_group_of_certain_ones_and_of_none():
    assert ece_floor([0.5]) == pytest.approx(0.5)
    assert ece_floor([0.2]) == pytest.approx(2 * 0.2 * 0.8)
    assert ece_floor([0.0, 1.0, 1.0]) == pytest.approx(0.0, abs=1e-9)
    assert np.isnan(ece_floor([]))


@given(st.lists(st.floats(0, 1), min_size=1, max_size=60))
def test_the_floor_is_in_its_range(p):
    assert 0.0 <= ece_floor(p) <= 0.5 + 1e-9


def test_a_group_is_counted_from_what_each_completion_got():
    nan = float("nan")
    verdicts = [True, 1.0, False, 0.0, None, nan]
    rewards = [1.0, 2.0, None, nan, float("inf"), 3.0]
    logprobs = [(-6.0, 4), (-3.0, 2), (0.0, 0)]
    found = GroupOutcome.of(
        "a", verdicts, rewards, logprobs=logprobs, n_tokens=6, policy_step=3, group_size=8
    )
    assert (found.n_correct, found.n_scored, found.n_failed, found.group_size) == (2, 4, 4, 8)
    assert found.reward_mean == 2.0 and found.reward_std == pytest.approx((2 / 3) ** 0.5)
    assert (found.mean_logprob, found.n_tokens, found.policy_step) == (-1.5, 6, 3)


def test_what_is_unknown_of_a_group_is_none_and_never_zero():
    assert GroupOutcome.of("a", [], group_size=4) == GroupOutcome("a", 0, 0, 4)
    assert GroupOutcome.of(
        "a", [None, True], [None, None], logprobs=[(float("nan"), 3)]
    ) == GroupOutcome("a", 1, 1, 1)
