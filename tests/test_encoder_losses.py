"""The Difficulty Estimator's three losses against hand-computed numbers and their properties."""

import math

import pytest
from hypothesis import given
from hypothesis import strategies as st

torch = pytest.importorskip("torch")
from depo_rl.estimators.encoder.losses import distill_loss, ranking_loss, score_loss  # noqa: E402

LOGITS = st.floats(-20, 20, allow_nan=False, width=32)
RATES = st.integers(0, 8).map(lambda n: n / 8)
PAIRS = st.lists(st.tuples(LOGITS, RATES), min_size=1, max_size=8)


def columns(pairs):
    return tuple(torch.tensor(column, dtype=torch.float64) for column in zip(*pairs, strict=True))


def test_score_loss_by_hand():
    # logit 0 costs log 2 whatever the target; logit log 3 is a prediction of 3/4
    loss = score_loss(torch.tensor([0.0, math.log(3.0)]), torch.tensor([0.25, 0.5]))
    second = -0.5 * math.log(0.75) - 0.5 * math.log(0.25)
    assert float(loss) == pytest.approx((math.log(2.0) + second) / 2)


@given(RATES)
def test_score_loss_is_smallest_at_the_pass_rate(rate):
    logit = math.log((rate + 1e-6) / (1 - rate + 1e-6))
    target = torch.tensor([rate])
    best = float(score_loss(torch.tensor([logit]), target))
    for other in (logit - 0.5, logit + 0.5):
        assert best <= float(score_loss(torch.tensor([other]), target)) + 1e-6


def test_distill_loss_by_hand_and_only_where_known():
    logit_P = torch.tensor([math.log(3.0), 5.0], requires_grad=True)
    loss = distill_loss(logit_P, torch.tensor([0.5, float("nan")]), torch.tensor([True, False]))
    assert float(loss.detach()) == pytest.approx(-0.5 * math.log(0.75) - 0.5 * math.log(0.25))
    loss.backward()
    # sigmoid - target, and nothing from the unknown
    assert logit_P.grad.tolist() == pytest.approx([0.25, 0.0])


def test_distill_loss_is_zero_with_zero_gradient_if_nothing_is_known():
    logit_P = torch.tensor([1.0, -2.0], requires_grad=True)
    loss = distill_loss(logit_P, torch.tensor([0.9, 0.1]), torch.tensor([False, False]))
    loss.backward()
    assert float(loss.detach()) == 0.0 and logit_P.grad.tolist() == [0.0, 0.0]


def test_ranking_loss_by_hand():
    # pairs (0,1): hinge 0.5-(0.2-0.0)=0.3; (0,2): 0.5-(0.2-1.0)=1.3; (1,2): 0.5-(0.0-1.0)=1.5;
    # averaged over three
    loss = ranking_loss(
        torch.tensor([0.2, 0.0, 1.0]), torch.tensor([1.0, 0.5, 0.0]), delta=0.05, margin=0.5
    )
    assert float(loss) == pytest.approx((0.3 + 1.3 + 1.5) / 3)


def test_ranking_loss_averages_over_satisfied_pairs_too():
    loss = ranking_loss(
        torch.tensor([3.0, 2.8, 0.0]), torch.tensor([1.0, 0.5, 0.0]), delta=0.05, margin=0.5
    )
    assert float(loss) == pytest.approx(0.3 / 3)


def test_ranking_loss_ignores_pairs_within_delta():
    logit_P = torch.tensor([-9.0, 9.0], requires_grad=True)
    loss = ranking_loss(logit_P, torch.tensor([0.54, 0.5]), delta=0.05, margin=0.5)
    loss.backward()
    assert float(loss.detach()) == 0.0 and logit_P.grad.tolist() == [0.0, 0.0]


@given(st.lists(RATES, min_size=1, max_size=8))
def test_ranking_loss_is_zero_when_ordered_beyond_the_margin(rates):
    rate_P = torch.tensor(rates, dtype=torch.float64)
    # different rates are at least 1/8 apart: logits then differ by 0.5 or more
    assert float(ranking_loss(4.0 * rate_P + 7.0, rate_P, delta=0.05, margin=0.5)) == 0.0


@given(PAIRS, st.randoms(use_true_random=False))
def test_ranking_loss_does_not_depend_on_the_order_of_prompts(pairs, random):
    shuffled = random.sample(pairs, len(pairs))
    one, other = (
        float(ranking_loss(*columns(p), delta=0.05, margin=0.5)) for p in (pairs, shuffled)
    )
    assert one == pytest.approx(other)


@given(PAIRS, st.floats(-5, 5))
def test_ranking_loss_sees_only_differences_of_logits(pairs, shift):
    logit_P, rate_P = columns(pairs)
    one, other = (
        float(ranking_loss(x, rate_P, delta=0.05, margin=0.5)) for x in (logit_P, logit_P + shift)
    )
    assert one >= 0.0 and one == pytest.approx(other, abs=1e-9)


@given(PAIRS)
def test_ranking_loss_is_the_double_loop_of_the_paper(pairs):
    hinges = [max(0.0, 0.5 - (li - lj)) for li, ti in pairs for lj, tj in pairs if ti > tj + 0.05]
    expected = sum(hinges) / len(hinges) if hinges else 0.0
    assert float(ranking_loss(*columns(pairs), delta=0.05, margin=0.5)) == pytest.approx(expected)


def test_a_nan_logit_is_not_hidden():
    logit_P, rate_P = torch.tensor([float("nan"), 0.0]), torch.tensor([1.0, 0.0])
    assert math.isnan(float(score_loss(logit_P, rate_P)))
    assert math.isnan(float(ranking_loss(logit_P, rate_P, delta=0.05, margin=0.5)))
