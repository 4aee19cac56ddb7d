"""The guard: who is worse than a constant chooses nothing until it is better, and who is not is
left alone."""

from __future__ import annotations

import logging
import math
from collections.abc import Callable, Sequence

import numpy as np
import pytest

from core_world import ESTIMATORS, FakeEstimator, build, conserved, make_prompts, rate, roll_out
from depo_rl import Curriculum, GroupOutcome, Prompt
from depo_rl.checkpoint import load_state, save_state
from depo_rl.errors import ConfigError, StateMismatch
from depo_rl.guard import EXCESS, LEAST, RECORD, Guard
from depo_rl.types import Settlement

N = 128
SETTINGS = {"band": "auto", "warmup_steps": 2, "guard": True}


def misled(prompt: Prompt) -> float:
    """Half right where nothing is mixed, hopeless where much is: P(mixed) the wrong way round."""
    return 0.5 if rate(prompt) in (0.0, 1.0) else 0.002


MAKE: dict[str, Callable[[], FakeEstimator]] = {
    **{
        name: ESTIMATORS[name]
        for name in ("constant", "inverted", "nan", "infinite", "oracle", "all dead")
    },
    "misled": lambda: FakeEstimator(misled),
}


def world(
    estimator: FakeEstimator | None, method: str = "depo", seed: int = 0, **settings: object
) -> Curriculum:
    config = {**SETTINGS, "seed": seed, **settings} if method == "depo" else {"seed": seed}
    return build(method, make_prompts([2500, 500], seed=5), config, estimator)


def steps(curriculum: Curriculum, numbers: Sequence[int]) -> list[list[Settlement]]:
    """Batches of N groups; each step's outcomes come from a generator of its own."""
    settled = []
    for number in numbers:
        settled.append(
            curriculum.settle(roll_out(curriculum.propose(N), np.random.default_rng([7, number])))
        )
        assert conserved(curriculum)
    return settled


def mixed_share(batches: Sequence[Sequence[Settlement]]) -> float:
    return float(np.mean([s.outcome.mixed for batch in batches for s in batch]))


def guarded(batches: Sequence[Sequence[Settlement]]) -> list[bool]:
    return [any(s.because == "guarded" for s in batch) for batch in batches]


def group(because: str, mean: float, strength: float, k: int, n: int = 8) -> Settlement:
    return Settlement(GroupOutcome("a", k, n, 8 - n), because, mean, strength, 0.0, 1.0, True)


# -- the rule --------------------------------------------------------------------------------------


def fed(*rows: tuple[int, str, float, int], engaged: bool = False) -> Guard:
    """A guard that saw (number, because, P(mixed), 1 if mixed) groups of two; P(mixed) of two is 2
    p (1 - p)."""
    guard = Guard(True)
    guard.engaged = engaged
    for number, because, p_mixed, mixed in rows:
        mean = (1 - math.sqrt(1 - 2 * p_mixed)) / 2
        guard.observe([group(because, mean, 1e12, mixed, 2)] * number)
    return guard


def test_it_engages_on_two_standard_errors_and_on_what_chance_does_not_explain():
    """300 groups, half of them mixed: a constant's log-loss is ln 2. P(mixed) of two is at most one
    half."""
    for p_mixed, engages in ((0.5, False), (0.4, False), (0.33, True)):
        d = -(math.log(p_mixed) + math.log(1 - p_mixed)) / 2 - math.log(2)
        assert (300 * d > EXCESS) is engages  # 300 x 0 = 0, 300 x 0.0204 = 6.1, 300 x 0.0616 = 18.5
        assert fed((150, "selected", p_mixed, 1), (150, "selected", p_mixed, 0)).judge() is engages
    # Two surprises of 1e-5 cost 23 nats against a constant 2 / 300, but that is less than two
    # standard errors.
    assert fed((2, "selected", 1e-5, 1), (298, "selected", 1e-5, 0)).judge() is False


def test_it_waits_for_enough_groups_and_forgets_the_oldest():
    bad = (LEAST - 1, "selected", 0.01, 1)
    assert fed(bad).judge() is False
    assert fed(bad, (1, "selected", 0.01, 0)).judge() is True
    before = [(150, "uniform", 0.01, 1), (150, "uniform", 0.01, 0)]
    for n_good in (RECORD // 2, RECORD):
        good = [(n_good // 2, "selected", 0.5, mixed) for mixed in (0, 1)]
        assert fed(*before, *good).judge() is (n_good < RECORD)


def test_the_constant_is_what_uniform_choice_is_worth():
    """P(mixed) 0.5 said of groups that are all mixed: worse than the constant 1, better than the
    fair share of 1/4."""
    fair = [(24, "explored", 0.25, 0), (8, "warmup", 0.25, 1)]
    chosen = (300, "selected", 0.5, 1)
    assert fed(*fair, *fair, chosen).judge() is False
    # 32 fair groups are too few: the constant is of the record itself
    assert fed(*fair, chosen).judge() is True
    assert fed(*fair, *fair, (300, "selected", 0.5, 0)).judge() is True


def test_it_releases_on_fair_groups_alone():
    assert fed((128, "guarded", 0.4, 0), (128, "explored", 0.5, 1), engaged=True).judge() is False
    # too few
    assert fed((128, "guarded", 0.4, 0), (127, "explored", 0.5, 1), engaged=True).judge() is True
    # late ones
    assert fed((128, "guarded", 0.4, 0), (300, "selected", 0.5, 1), engaged=True).judge() is True
    # still worse
    assert fed((128, "guarded", 0.5, 0), (200, "guarded", 0.4, 1), engaged=True).judge() is True


def test_groups_that_cannot_be_mixed_are_no_evidence():
    guard = Guard(True)
    guard.observe([group("selected", 0.5, 2.0, 1, 1), group("selected", 0.5, 2.0, 0, 0)] * LEAST)
    assert len(guard.state_dict()["record"]["rows"]) == 0


def test_each_change_starts_a_new_record():
    guard = fed((LEAST, "selected", 0.01, 1), (1, "selected", 0.01, 0))
    assert guard.judge() and len(guard.state_dict()["record"]["rows"]) == 0
    assert guard.judge()  # nothing new, nothing changes


def test_switched_off_it_keeps_and_does_nothing():
    guard = Guard(False)
    guard.observe([group("selected", 0.5, 1e6, 0)] * 1000)
    assert not guard.judge() and len(guard.state_dict()["record"]["rows"]) == 0


# -- in a curriculum -------------------------------------------------------------------------------


def test_a_misled_estimator_costs_no_more_than_uniform_choice():
    """60 steps, a batch after the warm-up: within 5 % of grpo's mixed share, which it would fall
    far below.

    What was predicted before anything was learnt does not count.
    """
    uniform = mixed_share(steps(world(None, "grpo"), range(60)))
    with_guard = steps(world(MAKE["misled"]()), range(60))
    assert abs(mixed_share(with_guard) / uniform - 1) < 0.05
    assert mixed_share(steps(world(MAKE["misled"](), guard=False), range(60))) < 0.5 * uniform
    assert all(guarded(with_guard)[3:])


@pytest.mark.parametrize("name", ["constant", "nan", "infinite", "all dead", "inverted"])
def test_no_estimator_does_worse_than_uniform_choice_with_it(name):
    """p and 1 - p have the same P(mixed), so that "inverted" is as good as true here and must not
    be held back."""
    uniform = mixed_share(steps(world(None, "grpo"), range(60)))
    share = mixed_share(steps(world(MAKE[name]()), range(60)))
    assert share > (1.2 if name == "inverted" else 0.95) * uniform


def test_an_oracle_is_left_alone():
    on, off = (steps(world(MAKE["oracle"](), guard=guard), range(60)) for guard in (True, False))
    assert repr(on) == repr(off)  # NaN equals NaN in words only
    assert mixed_share(on) > 0.9


def test_one_that_breaks_is_caught_in_four_batches_and_let_back_when_it_recovers(caplog):
    estimator = MAKE["oracle"]()
    curriculum = world(estimator)
    with caplog.at_level(logging.WARNING, "depo_rl"):
        assert not any(guarded(steps(curriculum, range(20))))
        estimator._mean, estimator._strength = misled, 16.0
        broken = guarded(steps(curriculum, range(20, 40)))
        assert 0 < broken.index(True) <= 4 and all(broken[broken.index(True) :])
        estimator._mean, estimator._strength = rate, 1e4
        recovered = guarded(steps(curriculum, range(40, 80)))
        assert recovered.index(False) <= 6 and not any(recovered[recovered.index(False) :])
    assert [r.message.split(": ")[-1] for r in caplog.records] == [
        "choosing uniformly until it is better",
        "choosing by prediction again",
    ]
    metrics = curriculum.metrics()
    n_batches = sum(broken) + sum(recovered)
    assert metrics["guarded"] == pytest.approx(n_batches * N * 0.95, abs=n_batches)
    assert metrics["guarded_share"] == metrics["guarded"] / metrics["chosen"]


def test_one_that_breaks_in_the_warm_up_is_caught_when_it_ends():
    flags = guarded(steps(world(MAKE["misled"](), warmup_steps=5), range(8)))
    assert flags == [False] * 5 + [True] * 3


KINDS: dict[str, Callable[[np.random.Generator], np.ndarray]] = {
    "all near 0.9": lambda rng: rng.uniform(0.28, 0.5, N),
    "hardly apart": lambda rng: np.clip(rng.normal(0.3, 0.03, N), 0.02, 0.98),
    "wide apart": lambda rng: rng.beta(1.0, 1.0, N),
}


@pytest.mark.parametrize("kind", KINDS)
def test_a_calibrated_estimator_is_never_guarded_by_noise(kind):
    """30 x 100 steps. Two standard errors alone would engage in every sixth of the first two kinds'
    runs."""
    for seed in range(30):
        rng, guard = np.random.default_rng(seed), Guard(True)
        for _ in range(100):
            mean = KINDS[kind](rng)
            correct = rng.binomial(8, rng.beta(mean * 30, (1 - mean) * 30))
            guard.observe(
                [
                    group("selected", m, 30.0, k)
                    for m, k in zip(mean.tolist(), correct.tolist(), strict=True)
                ]
            )
            assert guard.judge() is False


@pytest.mark.parametrize("stop", [9, 11])  # engaged, and on the way back
def test_a_run_that_is_guarded_resumes_exactly(stop, tmp_path):
    def at(step: int, curriculum: Curriculum) -> list[Settlement]:
        curriculum.estimator._mean = misled if step < 8 else rate
        return steps(curriculum, [step])[0]

    whole, first, second = (world(MAKE["misled"](), seed=3) for _ in range(3))
    expected = [at(step, whole) for step in range(20)]
    assert guarded(expected)[stop] and not guarded(expected)[-1]
    for step in range(stop):
        at(step, first)
    save_state(tmp_path / "state", first.state_dict())
    second.load_state_dict(load_state(tmp_path / "state"))
    # NaN equals NaN in words only
    assert repr([at(step, second) for step in range(stop, 20)]) == repr(expected[stop:])
    assert repr(second.state_dict()["guard"]) == repr(whole.state_dict()["guard"])


def test_a_refused_load_changes_nothing():
    guard = fed((300, "selected", 0.1, 1))
    before = repr(guard.state_dict())
    for change in ({"engaged": "yes"}, {"record": {}}, {"record": {"rows": ["x"]}}, {"more": 1}):
        with pytest.raises((StateMismatch, ValueError)):
            guard.load_state_dict({**guard.state_dict(), **change})
    assert repr(guard.state_dict()) == before


@pytest.mark.parametrize("method", ["grpo", "dapo", "polaris", "vcrl"])
def test_methods_that_choose_uniformly_have_nothing_to_guard(method):
    with pytest.raises(
        ConfigError, match=f"method '{method}': setting 'guard' is read by depo, depo"
    ):
        build(method, make_prompts([600]), {"guard": True}, MAKE["misled"]())
