"""The other methods, each against an example computed by hand from its published rule."""

from __future__ import annotations

import math

import numpy as np
import pytest

from core_world import build, make_prompts, roll_out
from depo_rl import GroupOutcome, Prediction, Prompt, make_curriculum
from depo_rl.commands.replay.simulate import simulate
from depo_rl.config import HistorySettings
from depo_rl.errors import ConfigError, DataError
from depo_rl.estimators.beliefs import beta_with_p_mixed
from depo_rl.estimators.history import HistoryEstimator
from depo_rl.gates import HighVariance
from depo_rl.rivals.bots import BOTSEstimator
from depo_rl.rivals.dps import DPSEstimator
from depo_rl.rivals.greso import GRESOSkip
from depo_rl.rivals.pools import DifficultyPools
from depo_rl.rivals_config import BOTSSettings, DPSSettings, GRESOSettings, PoolSettings
from depo_rl.selectors import NearestRate, keep_at_random

A, B, C = (Prompt(key, f"text {key}") for key in "abc")
NO_BELIEF = Prediction(np.full(3, 0.5), np.full(3, 2.0))


def _group(
    prompt: Prompt, n_correct: int, n_scored: int = 8, step: int | None = None
) -> GroupOutcome:
    return GroupOutcome(prompt.key, n_correct, n_scored, n_failed=8 - n_scored, policy_step=step)


def _beta(estimator, prompt: Prompt) -> tuple[float, float]:
    belief = estimator.predict([prompt])
    mean, strength = float(belief.mean_P[0]), float(belief.strength_P[0])
    return pytest.approx(mean * strength), pytest.approx((1 - mean) * strength)


# -- MoPPS, and history in general -----------------------------------------------------------------


@pytest.mark.parametrize(("discount", "expected"), [(0.5, (6, 8)), (1.0, (9, 9))])
def test_mopps_posterior(discount, expected):
    history = HistoryEstimator(HistorySettings(fade_by="visits", discount=discount))
    assert _beta(history, A) == (1, 1)
    history.observe([_group(A, 6)])
    assert _beta(history, A) == (7, 3)  # nothing to fade but the prior, which stays
    for _ in range(5):
        history.observe([_group(B, 1)])
    assert _beta(history, A) == (7, 3)  # other prompts' visits are not its own
    history.observe([_group(A, 2)])
    # at 0.5: a = 0.5 * 7 + 0.5 * 1 + 2, b = 0.5 * 3 + 0.5 * 1 + 6
    assert _beta(history, A) == expected


@pytest.mark.parametrize(
    ("n_correct", "n_scored", "expected"), [(1, 1, (2, 1)), (0, 1, (1, 2)), (0, 0, (1, 1))]
)
def test_the_smallest_groups_count_as_what_they_are(n_correct, n_scored, expected):
    """The released code sets the posterior to 8 for groups of one."""
    history = HistoryEstimator(HistorySettings(fade_by="visits", discount=1.0))
    history.observe([_group(A, n_correct, n_scored)])
    assert _beta(history, A) == expected


def test_history_fades_by_policy_steps():
    history = HistoryEstimator(HistorySettings(discount=0.5))
    history.observe([_group(A, 4, step=3)])
    assert _beta(history, A) == (5, 5)
    history.observe([_group(B, 8, step=3)])  # the same step in two batches is one step
    assert _beta(history, A) == (5, 5)
    history.observe([_group(B, 8, step=5)])
    assert _beta(history, A) == (2, 2)  # 4 * 0.5 ** 2
    history.observe([_group(A, 8, step=4)])  # a late one, a step old
    assert _beta(history, A) == (1 + 1 + 4, 1 + 1)
    assert _beta(history, C) == (1, 1)


def test_without_policy_steps_each_batch_is_a_step():
    history = HistoryEstimator(HistorySettings(discount=0.5, prior_mean=0.25, prior_strength=4.0))
    history.observe([_group(A, 4)])
    history.observe([_group(B, 8), _group(C, 8)])
    assert _beta(history, A) == (1 + 2, 3 + 2)


def test_thompson_sampling_goes_by_the_given_generator():
    belief = Prediction(np.array([0.5, 0.5, 0.9]), np.array([2.0, 1e6, 1e6]))
    sample = np.random.default_rng(4).beta(
        belief.mean_P * belief.strength_P, (1 - belief.mean_P) * belief.strength_P
    )
    decision = NearestRate(0.5, thompson=True).select(
        [A, B, C], belief, 1, np.random.default_rng(4)
    )
    assert decision.score_P == pytest.approx(-abs(sample - 0.5))
    assert decision.chosen == (1,)  # the sure one; an unsure one of the same mean is seldom as near
    assert decision.skipped == {0: "outranked", 2: "outranked"}
    unseen = [
        NearestRate(0.5, True).select(
            [A, C], Prediction(belief.mean_P[[0, 2]], np.array([2.0, 1e6])), 1, rng
        )
        for rng in map(np.random.default_rng, range(200))
    ]
    # uniform within 0.4 of 0.5
    assert np.mean([d.chosen == (0,) for d in unseen]) == pytest.approx(0.8, abs=0.08)


def test_pcl_takes_the_nearest_mean():
    belief = Prediction(np.array([0.1, 0.55, 0.3]), np.array([1.0, 9.0, 1.0]))
    decision = NearestRate(0.5, thompson=False).select(
        [A, B, C], belief, 2, np.random.default_rng(0)
    )
    assert decision.chosen == (1, 2)
    assert NearestRate(0.5, thompson=False).appetite(10) >= 40


# -- DPS -------------------------------------------------------------------------------------------


def test_dps_chain():
    chain = DPSEstimator(DPSSettings(), group_size=8)
    assert chain.states([A])[0] == pytest.approx([1 / 3, 1 / 3, 1 / 3])
    chain.observe([_group(A, 3, step=0)])
    # Row "to mixed" of the counts: 1 + 1/3 each. M[mixed, mixed] = (4/3) / (10/3) = 0.4.
    assert chain.states([A])[0] == pytest.approx([0.3, 0.4, 0.3])
    chain.observe([_group(B, 8, step=1)])
    # A had no group: its belief moves on to q = (.3, .4, .3), and that row fades to .7 * 4/3 + .3 =
    # 1.2333.
    assert chain.states([A])[0] == pytest.approx(
        [1 / 3.23333, 1.23333 / 3.23333, 1 / 3.23333], abs=1e-5
    )
    chain.observe([_group(A, 8, step=2)])
    # "To mixed" fades to .7 * 1.2333 + .3 = 1.1633; "to all right", equal from everywhere, gains q
    # itself: 1 + .3.
    assert chain.states([A])[0] == pytest.approx(
        [1 / 3.46333, 1.16333 / 3.46333, 1.3 / 3.46333], abs=1e-5
    )


def test_dps_predicts_the_chains_p_mixed():
    chain, rng = DPSEstimator(DPSSettings(decay=1.0), group_size=8), np.random.default_rng(0)
    prompts = make_prompts([30])
    for step in range(12):
        chain.observe([o for o in roll_out(prompts, rng) if rng.random() < 0.7])
        states = chain.states(prompts)
        belief = chain.predict(prompts)
        assert states.sum(axis=1) == pytest.approx(1)
        assert belief.p_mixed(8) == pytest.approx(states[:, 1], abs=1e-6), step
        assert belief.mean_P == pytest.approx(states[:, 2] + states[:, 1] / 2)


def test_a_beta_for_any_p_mixed_keeps_the_order():
    wanted = np.array([1e-4, 0.1, 0.9, 0.99, 0.999, 0.9999])
    reached = beta_with_p_mixed(np.full(6, 0.5), wanted, 8).p_mixed(8)
    assert reached[:4] == pytest.approx(wanted[:4], abs=1e-4)
    assert reached[4:] == pytest.approx(1 - 2**-7, abs=1e-4)  # the most that groups of eight can be
    assert (np.diff(reached) >= 0).all()


def test_dps_forgets_long_absences_in_bounded_time():
    for decay in (0.0, 0.7, 0.99, 1.0):
        chain = DPSEstimator(DPSSettings(decay=decay), group_size=8)
        chain.observe([_group(A, 3, step=0)])
        chain.observe([_group(B, 3, step=100_000)])
        expected = [1 / 3, 1 / 3, 1 / 3] if decay < 1 else [3 / 9.4, 3.4 / 9.4, 3 / 9.4]
        assert chain.states([A])[0] == pytest.approx(expected, abs=0.05 if decay == 1 else 1e-2)


def test_one_scored_completion_is_no_state():
    chain, skip = DPSEstimator(DPSSettings(), 8), GRESOSkip(GRESOSettings(), 1)
    for part in (chain, skip):
        before = repr(part.state_dict())
        part.observe([_group(A, 1, 1), _group(B, 0, 0)])
        assert repr(part.state_dict()) == before


# -- BOTS ------------------------------------------------------------------------------------------


def _labelled(prompt: Prompt, **fields) -> Prompt:
    return Prompt(prompt.key, prompt.text, fields=fields)


def test_bots_fuses_own_and_implied_evidence():
    prompts = [_labelled(A, w=0.2, s=0.6), _labelled(B, w=0.4, s=0.8), _labelled(C, w=0.4)]
    bots = BOTSEstimator(prompts, BOTSSettings(weak="w", strong="s"), group_size=8)
    bots.observe([_group(A, 4)])
    assert bots.metrics() == {
        "capability": pytest.approx(0.75),
        "labelled_share": pytest.approx(2 / 3),
    }  # .3 / .4
    assert _beta(bots, A) == (5, 5)
    assert _beta(bots, B) == (1 + 0.8 * 0.7, 1 + 0.8 * 0.3)  # implied rate .4 + .75 * .4
    assert _beta(bots, C) == (1, 1)
    bots.observe([_group(B, 8)])
    assert bots.metrics()["capability"] == pytest.approx(0.9 * 0.75 + 0.1 * 1.5)
    assert _beta(bots, A) == (1 + 3.6 + 0.8 * 0.53, 1 + 3.6 + 0.8 * 0.47)  # .2 + .825 * .4
    assert _beta(bots, B) == (1 + 0.9 * 0.56 + 8, 1 + 0.9 * 0.24)


def test_bots_without_references_is_a_fading_beta():
    bots = BOTSEstimator([A, B], BOTSSettings(), group_size=8)
    fading = HistoryEstimator(HistorySettings(discount=0.9))
    rng = np.random.default_rng(0)
    for _ in range(20):
        batch = [_group(p, int(rng.integers(9))) for p in (A, B) if rng.random() < 0.5] or [
            _group(A, 0, 0)
        ]
        bots.observe(batch)
        fading.observe(batch)
        assert _beta(bots, A) == _beta(fading, A)
        assert _beta(bots, B) == _beta(fading, B)


def test_references_that_agree_say_nothing_of_the_capability():
    bots = BOTSEstimator(
        [_labelled(A, w=0.5, s=0.5)], BOTSSettings(weak="w", strong="s"), group_size=8
    )
    bots.observe([_group(A, 8)])
    assert math.isnan(bots.metrics()["capability"])
    assert _beta(bots, A) == (9, 1)


# -- GRESO -----------------------------------------------------------------------------------------


def _keeps(selector, prompt: Prompt) -> float:
    """The probability with which a selector keeps a prompt, measured."""
    rng = np.random.default_rng(0)
    belief = Prediction(np.full(1, 0.5), np.full(1, 2.0))
    return float(
        np.mean([len(selector.select([prompt], belief, 1, rng).chosen) for _ in range(4000)])
    )


def test_greso_skips_by_the_length_of_the_latest_run():
    greso = GRESOSkip(GRESOSettings(), n_prompts=10**6)  # a first epoch: the rates stay
    runs = [(A, (8, 8)), (B, (0, 8, 0, 0, 0)), (C, (8, 3))]
    for prompt, counts in runs:
        for k in counts:
            greso.observe([_group(prompt, k)])
    assert _keeps(greso, A) == pytest.approx(0.5**2, abs=0.02)
    assert _keeps(greso, B) == pytest.approx(0.5**3, abs=0.02)  # the run since it was right
    assert _keeps(greso, C) == 1.0  # a mixed group ends the run
    assert _keeps(greso, Prompt("unseen", "")) == 1.0
    for _ in range(50):
        greso.observe([_group(B, 0)])
    assert _keeps(greso, B) == pytest.approx(0.01, abs=0.005)  # the floor
    decision = GRESOSkip(GRESOSettings(q_easy=0.0, floor=0.0), 9)
    decision.observe([_group(A, 8)])
    assert decision.select([A, B, C], NO_BELIEF, 1, np.random.default_rng(0)).skipped == {
        0: "too_easy",
        2: "surplus",
    }


def test_greso_adapts_its_rates_from_the_second_epoch_on():
    greso = GRESOSkip(GRESOSettings(), n_prompts=12)

    def batch(n_easy: int, n_hard: int, n_mixed: int) -> tuple[float, float]:
        groups = [_group(A, 8)] * n_easy + [_group(B, 0)] * n_hard + [_group(C, 4)] * n_mixed
        greso.observe(groups)
        greso.select([A], NO_BELIEF, 1, np.random.default_rng(0))
        return greso.metrics()["q_easy"], greso.metrics()["q_hard"]

    assert batch(3, 3, 0) == (0.5, 0.5)
    # 12 groups seen: an epoch. Shares 0 and 1/3 of six; targets 1/12 and 1/6.
    assert batch(0, 2, 4) == pytest.approx((0.51, 0.49))
    assert batch(1, 1, 4) == pytest.approx((0.50, 0.48))  # 1/6 reaches either target
    assert batch(0, 0, 0) == pytest.approx((0.50, 0.48))  # nothing came back
    for _ in range(60):
        rates = batch(0, 6, 0)
    assert rates == pytest.approx((0.95, 0.05))


def test_greso_refills_like_dapo():
    curriculum = build("greso", make_prompts([40]))
    settled = curriculum.settle(
        [_group(p, k) for p, k in zip(curriculum.propose(3), (0, 3, 8), strict=True)]
    )
    assert [s.admitted for s in settled] == [False, True, False]
    assert curriculum.gate.max_rounds == 10


# -- pools, AdaRFT, VCRL, oracle -------------------------------------------------------------------


def test_pools_by_the_last_group():
    pools = DifficultyPools(PoolSettings())
    assert pools.pool_of("a") == "unseen"
    for k, pool in [
        (8, "easy"),
        (7, "easy"),
        (6, "normal"),
        (3, "normal"),
        (2, "hard"),
        (0, "hard"),
    ]:
        pools.observe([_group(A, k)])
        assert pools.pool_of("a") == pool
    pools.observe([_group(B, 4), _group(C, 0, 0)])
    assert pools.metrics() == {"hard": 1.0, "normal": 1.0, "easy": 0.0}
    assert _keeps(pools, A) == pytest.approx(0.2, abs=0.02)
    assert _keeps(pools, B) == _keeps(pools, C) == 1.0
    heavy = DifficultyPools(PoolSettings(hard=4.0))
    heavy.observe([_group(A, 0)])
    assert _keeps(heavy, A) == 1.0
    assert _keeps(heavy, B) == pytest.approx(0.25, abs=0.03)


def test_skipping_at_random_fills_in_the_order_of_the_draw():
    decision = keep_at_random(
        np.array([0.0, 1.0, 1.0, 0.0]), ["x", "", "", "y"], 1, np.random.default_rng(0)
    )
    assert decision.chosen == (1,)
    assert decision.skipped == {0: "x", 2: "surplus", 3: "y"}
    assert decision.score_P[2] > max(decision.score_P[0], decision.score_P[3])


def test_adarft_moves_its_target():
    # difficulty i
    prompts = [Prompt(f"p{i}", "t", fields={"pass_rate": 1 - i / 100}) for i in range(101)]
    curriculum = make_curriculum("adarft", prompts, {"candidate_factor": 101})

    def step(k: int) -> tuple[float, set[str]]:
        batch = curriculum.propose(3)
        for prompt in batch:  # one by one: still one step
            curriculum.settle([_group(prompt, k)])
        return curriculum.metrics()["selector/target"], {p.key for p in batch}

    assert step(8) == (0.0, {"p0", "p1", "p2"})
    assert step(8) == (pytest.approx(50 * math.tanh(1.0)), {"p37", "p38", "p39"})  # 38.08
    assert step(4) == (pytest.approx(76.16, abs=0.01), {"p75", "p76", "p77"})
    assert step(0) == (pytest.approx(76.16, abs=0.01), {"p75", "p76", "p77"})  # half right: stay
    assert step(0) == (pytest.approx(38.08, abs=0.01), {"p37", "p38", "p39"})
    assert step(0)[0] == pytest.approx(0.0, abs=0.01)
    assert step(0)[0] == 0.0


@pytest.mark.parametrize(
    ("min_variance", "group_size", "admitted"),
    [
        (0.64, 8, [2, 3, 4, 5, 6]),  # 4 * .25 * .75 = .75
        (0.64, 5, [1, 2, 3, 4]),  # 1 * 4 / 6 = .67
        (0.64, 16, [4, 5, 6, 7, 8, 9, 10, 11, 12]),  # 3 * 13 / 64 = .61
        (1.0, 8, [4]),
        (0.0, 8, [1, 2, 3, 4, 5, 6, 7]),
    ],
)
def test_vcrl_admits_high_variance(min_variance, group_size, admitted):
    gate = HighVariance(min_variance, max_rounds=10)
    assert [
        k for k in range(group_size + 1) if gate.admit(GroupOutcome("a", k, group_size))
    ] == admitted


class _Scripted:
    """Answers from a script: (right of the first four, right of the other four) of each prompt;
    notes what it did."""

    def __init__(self, right: dict[str, tuple[int, int]]) -> None:
        self.right, self.asked, self.trained = right, [], []

    def rollout(self, prompts, group_size):
        self.asked.append((len(prompts), group_size))
        return [
            GroupOutcome(p.key, self.right[p.key][0], group_size, n_tokens=100) for p in prompts
        ]

    def extend(self, outcomes, n):
        self.asked.append((len(outcomes), n))
        return [
            o.joined(GroupOutcome(o.key, self.right[o.key][1], n, n_tokens=150)) for o in outcomes
        ]

    def advance(self, trained):
        self.trained.append([(o.key, o.n_correct, o.group_size) for o in trained])

    def metrics(self):
        return {}


def test_speed_completes_what_screens_mixed_and_keeps_what_is_left():
    """Two a batch, so eight are screened at a time; of sixteen prompts each third is mixed, at 1 +
    4 of 8."""
    right = {
        f"p{i}": ((1, 4) if i % 3 == 0 else (4, 9) if i % 3 == 1 else (0, 9)) for i in range(16)
    }
    engine = _Scripted(right)
    curriculum = make_curriculum("speed", [Prompt(key, key) for key in right], {"seed": 0})
    order = [
        p.key
        for p in make_curriculum("speed", [Prompt(key, key) for key in right], {"seed": 0}).propose(
            16
        )
    ]
    mixed = [key for key in order if right[key] == (1, 4)]
    n_first = sum(right[key] == (1, 4) for key in order[:8])
    # by this seed: the second batch needs new ones, the third is left over
    assert len(mixed) == 6 and n_first == 2
    result = simulate(curriculum, engine, prompts_per_step=2, steps=3)
    assert engine.asked == [(8, 4), (2, 4), (8, 4), (4, 4)]
    assert engine.trained == [[(key, 5, 8) for key in mixed[i : i + 2]] for i in (0, 2, 4)]
    assert (result.groups, result.rollouts, result.tokens) == (
        16,
        16 * 4 + 6 * 4,
        16 * 100 + 6 * 150,
    )
    assert [row["rollouts"] for row in result.history] == [40, 88, 88]
    assert [row["mixed_share"] for row in result.history] == [0.25, 0.5, None]
    assert (
        result.mixed_share == 6 / 16
        and result.all_pass_share == 5 / 16
        and result.all_fail_share == 5 / 16
    )
    metrics = curriculum.metrics()
    assert (metrics["admitted"], metrics["rejected"], metrics["chosen"]) == (6, 10, 16)


def test_speed_gives_up_after_its_rounds_and_screens_no_more_than_there_is():
    engine = _Scripted({f"p{i}": (0, 9) for i in range(5)})
    curriculum = make_curriculum(
        "speed", [Prompt(key, key) for key in engine.right], {"max_rounds": 3}
    )
    result = simulate(curriculum, engine, prompts_per_step=2, steps=2)
    assert engine.asked == [(5, 4)] * 6 and engine.trained == [[], []]
    assert result.rollouts == 6 * 5 * 4


def test_speed_screens_a_small_group_whole():
    engine = _Scripted({"a": (1, 9), "b": (4, 9), "c": (3, 9)})
    result = simulate(
        make_curriculum("speed", [A, B, C], {"group_size": 4}), engine, prompts_per_step=2, steps=1
    )
    assert engine.asked == [(3, 4)] and {
        key for key, _, size in engine.trained[0] if size == 4
    } == {"a", "c"}
    assert result.rollouts == 12
    gate = make_curriculum("speed", [A, B, C], {"group_size": 3}).gate
    assert gate.screen == 3


def test_the_oracle_takes_the_most_likely_mixed():
    prompts = [Prompt(f"p{i}", "t", fields={"pass_rate": i / 20}) for i in range(21)]
    curriculum = make_curriculum("oracle", prompts, {"candidate_factor": 7})
    assert {p.key for p in curriculum.propose(3)} == {"p9", "p10", "p11"}


@pytest.mark.parametrize("method", ["oracle", "adarft"])
def test_a_column_without_labels_is_refused(method):
    with pytest.raises(
        DataError, match=rf"'{method}'.*'pass_rate'.*none of the 3 prompts.*estimator\.field"
    ):
        make_curriculum(method, [A, B, C])
    with pytest.raises(DataError, match=r"'bots'.*'w'.*none of the 3 prompts.*estimator\.weak"):
        make_curriculum(
            "bots", [A, B, C], {"estimator": {"type": "bots", "weak": "w", "strong": "s"}}
        )


@pytest.mark.parametrize(
    ("config", "message"),
    [
        ({"estimator": {"type": "bots", "weak": "w"}}, "weak and strong must be named together"),
        ({"greso": {"limits": (0.9, 0.1)}}, "limits must be two rates with low <= high"),
        ({"greso": {"q_eesy": 0.1}}, r"unknown setting 'greso.q_eesy'\. Did you mean 'q_easy'\?"),
        ({"pools": {"hard_below": 0.9}}, "hard_below must be <= easy_above"),
        ({"pools": {"unseen": 0.0}}, "pools.unseen = 0.0: .*greater than 0"),
        ({"min_variance": 1.5}, "min_variance = 1.5: .*less than or equal to 1"),
    ],
)
def test_bad_settings_of_the_others_get_one_clear_line(config, message):
    with pytest.raises(ConfigError, match=message) as error:
        make_curriculum("depo", [A, B, C], config)
    assert "\n" not in str(error.value)
