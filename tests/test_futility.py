"""Said once, and only where it is so: what the prediction chooses is mixed no more often than what
chance chooses."""

from __future__ import annotations

import logging
from collections.abc import Sequence

import numpy as np
import pytest

from core_world import ESTIMATORS, FakeEstimator, build, rate, roll_out
from depo_rl import Curriculum, Prompt
from depo_rl.checkpoint import load_state, save_state
from depo_rl.errors import StateMismatch
from depo_rl.futility import PATIENCE, Futility, is_futile

N = 128
BLIND = ESTIMATORS["constant"]  # 0.3 of every prompt: all of them within the window
STEPS = range(PATIENCE // N + 12)


def u_shaped(n: int = 3000) -> list[Prompt]:
    """Pass rates near 0 and 1, some in the middle: 45 % of groups of 8 are mixed."""
    rates = np.random.default_rng(0).beta(0.3, 0.3, size=n)
    return [
        Prompt(f"p{i}", f"question {i}", "u", {"pass_rate": float(p)}) for i, p in enumerate(rates)
    ]


def world(estimator: FakeEstimator | None, method: str = "depo", **given: object) -> Curriculum:
    config = {"warmup_steps": 4, **given} if method.startswith("depo") else given
    return build(method, u_shaped(), config, estimator)


def warnings_of(
    curriculum: Curriculum, steps: Sequence[int], caplog: pytest.LogCaptureFixture
) -> list[str]:
    caplog.clear()
    with caplog.at_level(logging.WARNING, "depo_rl.futility"):
        for number in steps:
            curriculum.settle(roll_out(curriculum.propose(N), np.random.default_rng([3, number])))
    return [record.getMessage() for record in caplog.records if record.name == "depo_rl.futility"]


def test_a_window_that_lets_everything_through_is_told_once_with_both_shares(caplog):
    (told,) = warnings_of(world(BLIND()), STEPS, caplog)
    assert "latest 1024 groups" in told and told.count(" %") >= 2
    assert "band: auto" in told and "depo+" in told and "\n" not in told


def test_it_is_told_neither_early_nor_again_after_a_resume(caplog, tmp_path):
    first, half = world(BLIND()), PATIENCE // N
    assert warnings_of(first, range(half), caplog) == []
    save_state(tmp_path / "early", first.state_dict())
    second = world(BLIND())
    second.load_state_dict(load_state(tmp_path / "early"))
    assert len(warnings_of(second, range(half, STEPS[-1]), caplog)) == 1
    save_state(tmp_path / "late", second.state_dict())
    third = world(BLIND())
    third.load_state_dict(load_state(tmp_path / "late"))
    assert warnings_of(third, STEPS, caplog) == []


@pytest.mark.parametrize("band", ["window", "auto"])
@pytest.mark.parametrize("seed", [0, 1, 2])
def test_it_is_silent_where_the_choice_works(band, seed, caplog):
    assert warnings_of(world(ESTIMATORS["oracle"](), band=band, seed=seed), STEPS, caplog) == []
    noise = np.random.default_rng(seed)
    vague = FakeEstimator(
        lambda p: float(np.clip(0.5 * rate(p) + 0.5 * noise.random(), 0.01, 0.99)), strength=1e4
    )
    narrower = {"window": (0.3, 0.7)} if band == "window" else {}
    curriculum = world(vague, band=band, seed=seed, **narrower)
    # a choice that is worth 0.1 is no futile one
    assert warnings_of(curriculum, STEPS, caplog) == []


@pytest.mark.parametrize("method", ["grpo", "dapo", "vcrl"])
def test_methods_that_do_not_choose_are_never_told(method, caplog):
    assert warnings_of(world(BLIND(), method), STEPS, caplog) == []


def test_without_fair_groups_nothing_is_known(caplog):
    assert warnings_of(world(BLIND(), explore=0.0, warmup_steps=0), STEPS, caplog) == []


def test_advice_is_for_the_method_at_hand(caplog):
    (auto,) = warnings_of(world(BLIND(), "depo+", guard=False, temperature=0.0), STEPS, caplog)
    assert "warm_start" in auto and "band: auto" not in auto
    (other,) = warnings_of(world(BLIND(), "pcl", explore=0.1), range(40), caplog)
    assert "method: depo+" in other


def test_a_draw_is_gentle_on_purpose_and_never_told(caplog):
    assert warnings_of(world(BLIND(), "depo+", guard=False, temperature=1.0), STEPS, caplog) == []


def test_the_rule():
    assert is_futile(0.45, 1024, 0.45, 512)  # d = 0, 2 e = 0.054
    # d + 2 e = 0.084: a gain worth having is not left out
    assert not is_futile(0.48, 1024, 0.45, 512)
    assert not is_futile(0.45, 1024, 0.45, 64)  # 2 e = 0.128: too little is known
    assert is_futile(0.30, 1024, 0.45, 512)  # worse than uniform
    assert not is_futile(0.53, 100_000, 0.50, 100_000)  # little, but more than noise


def test_a_refused_load_changes_nothing():
    futility = Futility("depo", world(None).config)
    before = repr(futility.state_dict())
    for change in ({"told": "no"}, {"bonus": 1}, {"fair": "x"}, {"n_selected": "many"}):
        with pytest.raises((StateMismatch, ValueError)):
            futility.load_state_dict({**futility.state_dict(), **change})
    assert repr(futility.state_dict()) == before
