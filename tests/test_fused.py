"""The fused estimator: quadrature, evidence, prior, recalibration, and what they make of a world
that is known."""

from __future__ import annotations

import json
import math
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from depo_rl import GroupOutcome, Prompt, make_curriculum
from depo_rl.checkpoint import load_state, save_state
from depo_rl.config import FusedSettings
from depo_rl.errors import ConfigError, StateMismatch
from depo_rl.estimators.fused import FusedEstimator
from depo_rl.estimators.fused.evidence import Evidence
from depo_rl.estimators.fused.logistic_normal import condition, rates
from depo_rl.estimators.fused.prior_heads import Replay
from depo_rl.estimators.recalibration import Recalibration
from depo_rl.metrics import auc, ece
from depo_rl.outcomes.tables import read_lesson

SMALL = {"n_buckets": 2**10, "n_random": 16}


def fused(prompts: list[Prompt], **given: object) -> FusedEstimator:
    return FusedEstimator(prompts, FusedSettings.model_validate({**SMALL, **given}), 8, seed=0)


def pool(n: int, text=lambda i: f"task {i}", **fields: list[object]) -> list[Prompt]:
    return [
        Prompt(f"p{i}", text(i), fields={name: values[i] for name, values in fields.items()})
        for i in range(n)
    ]


def groups(
    prompts: list[Prompt], rate_P: np.ndarray, step: int, rng: np.random.Generator
) -> list[GroupOutcome]:
    return [
        GroupOutcome(p.key, int(k), 8, policy_step=step)
        for p, k in zip(prompts, rng.binomial(8, rate_P), strict=True)
    ]


# -- quadrature ------------------------------------------------------------------------------------


@settings(max_examples=60, deadline=None)
@given(st.floats(-6, 6), st.floats(0.1, 4), st.integers(0, 8))
def test_quadrature_agrees_with_a_fine_grid(mean, spread, correct):
    theta = np.linspace(mean - 12 * spread, mean + 12 * spread, 200_001)
    weight = np.exp(-0.5 * ((theta - mean) / spread) ** 2)
    weight /= weight.sum()
    p = 1 / (1 + np.exp(-np.clip(theta, -700, 700)))
    told = rates(np.array([mean]), np.array([spread**2]), 8)
    assert np.allclose([told.mean[0], told.all_pass[0], told.all_fail[0]],
                       [weight @ p, weight @ p**8, weight @ (1 - p) ** 8], atol=2e-4)  # fmt: skip
    joint = weight * p**correct * (1 - p) ** (8 - correct)
    after = condition(np.array([mean]), np.array([spread**2]), correct, 8)
    exact_mean = joint @ theta / joint.sum()
    # The nodes are the prior's: where the evidence is all but impossible under it (less than 1 in
    # 1,100) they do not reach the mode, and the belief moves the right way, but not all the way.
    if math.log(joint.sum()) < -7:
        assert (after.mean[0] - mean) * (exact_mean - mean) > 0
        return
    assert math.isclose(after.mean[0], exact_mean, abs_tol=0.02)
    assert math.isclose(
        after.variance[0],
        joint @ (theta - exact_mean) ** 2 / joint.sum(),
        rel_tol=0.05,
        abs_tol=0.01,
    )
    assert math.isclose(after.log_evidence[0], math.log(joint.sum()), abs_tol=0.02)


def test_slopes_follow_from_the_conditioned_moments():
    mean, spread, h = 0.4, 1.7, 1e-5

    def log_evidence(m: float, s: float) -> float:
        return float(condition(np.array([m]), np.array([s * s]), 6, 8).log_evidence[0])

    after = condition(np.array([mean]), np.array([spread**2]), 6, 8)
    by_mean = (log_evidence(mean + h, spread) - log_evidence(mean - h, spread)) / (2 * h)
    by_log_spread = (
        log_evidence(mean, spread * math.exp(h)) - log_evidence(mean, spread * math.exp(-h))
    ) / (2 * h)
    moved = after.mean[0] - mean
    assert math.isclose(by_mean, moved / spread**2, rel_tol=1e-3)
    assert math.isclose(by_log_spread, (after.variance[0] + moved**2) / spread**2 - 1, rel_tol=1e-2)


# -- evidence --------------------------------------------------------------------------------------


def evidence(walks: tuple[float, ...] = (0.1,), **given: object) -> Evidence:
    return Evidence(3, FusedSettings.model_validate({"walks": walks, **given}))


AT, MEAN, VARIANCE = np.array([0]), np.array([0.5]), np.array([4.0])


def test_after_one_group_the_belief_is_the_exact_posterior():
    part = evidence()
    part.update(AT, MEAN, VARIANCE, np.array([[3.0, 8.0]]), np.array([7]))
    belief, exact = part.belief(AT, MEAN, VARIANCE, 7), condition(MEAN, VARIANCE, 3, 8)
    assert np.allclose(
        [belief.mean_WP[0], belief.variance_WP[0]], [exact.mean, exact.variance], atol=1e-4
    )


def test_evidence_fades_to_the_prior_with_policy_steps_not_with_visits():
    part = evidence(drift=False)
    part.update(AT, MEAN, VARIANCE, np.array([[8.0, 8.0]]), np.array([1]))
    ages = [part.belief(AT, MEAN, VARIANCE, now) for now in (1, 10, 100, 5000)]
    means, variances = (
        [float(b.mean_WP[0, 0]) for b in ages],
        [float(b.variance_WP[0, 0]) for b in ages],
    )
    assert means == sorted(means, reverse=True) and variances == sorted(variances)
    assert means[-1] < 1.0 and math.isclose(variances[-1], 4.0, rel_tol=0.2)


def test_a_prompt_not_seen_for_long_moves_with_the_drift_of_the_rest():
    n, drift, rng = 400, 0.02, np.random.default_rng(0)
    settings_ = FusedSettings.model_validate({"walks": (0.05,)})
    part, theta = Evidence(n + 1, settings_), rng.normal(0, 1, n)
    mean_P, variance_P = np.zeros(n), np.full(n, 4.0)
    part.update(np.array([n]), MEAN * 0, VARIANCE, np.array([[4.0, 8.0]]), np.array([0]))
    before = float(part.belief(np.array([n]), MEAN * 0, VARIANCE, 0).mean_WP[0, 0])
    for step in range(0, 100, 2):
        p = 1 / (1 + np.exp(-(theta + drift * step)))
        counts = np.column_stack([rng.binomial(8, p), np.full(n, 8)]).astype(float)
        part.update(np.arange(n), mean_P, variance_P, counts, np.full(n, step))
    assert math.isclose(part.drift, drift, rel_tol=0.4)
    after = float(part.belief(np.array([n]), MEAN * 0, VARIANCE, 98).mean_WP[0, 0])
    assert after - before > 0.5


def test_the_walk_that_fits_gets_the_weight():
    rng, n = np.random.default_rng(0), 300
    for true_walk, best in ((0.0, 0), (0.5, 2)):
        part = Evidence(n, FusedSettings.model_validate({"walks": (0.01, 0.1, 0.5)}))
        theta = rng.normal(0, 1.5, n)
        for step in range(25):
            theta = theta + true_walk * rng.normal(size=n)
            counts = np.column_stack(
                [rng.binomial(8, 1 / (1 + np.exp(-theta))), np.full(n, 8)]
            ).astype(float)
            part.update(np.arange(n), np.zeros(n), np.full(n, 4.0), counts, np.full(n, step))
        assert part.weight_W.argmax() == best and part.weight_W.max() > 0.9


def test_a_group_that_comes_late_does_not_turn_time_back():
    part = evidence()
    part.update(AT, MEAN, VARIANCE, np.array([[3.0, 8.0]]), np.array([9]))
    part.update(AT, MEAN, VARIANCE, np.array([[3.0, 8.0]]), np.array([4]))
    assert (
        part.belief(AT, MEAN, VARIANCE, 9).variance_WP[0, 0]
        < condition(MEAN, VARIANCE, 3, 8).variance[0]
    )


# -- replay ----------------------------------------------------------------------------------------


def test_the_replay_has_one_row_a_prompt_and_forgets_the_oldest():
    replay, nothing = Replay(10, size=3), np.zeros((1, 0), np.float16)
    for index, k in ((0, 1), (1, 2), (0, 5), (2, 3), (3, 4)):
        replay.add(np.array([index]), nothing, np.array([[k, 8.0]]), np.array([k]))
    rows = dict(zip(replay.index_R.tolist(), replay.counts_R2[:, 0].tolist(), strict=True))
    assert rows == {1: 2.0, 2: 3.0, 3: 4.0}
    # forgotten, and known again
    replay.add(np.array([0]), nothing, np.array([[7.0, 8.0]]), np.array([9]))
    assert sorted(replay.index_R.tolist()) == [0, 2, 3]


# -- recalibration ---------------------------------------------------------------------------------


def test_recalibration_mends_overconfidence_and_leaves_what_is_right():
    rng = np.random.default_rng(0)
    honest, seen = rng.uniform(0.05, 0.95, 4000), rng.random(4000) < 0.5
    logit = np.log(honest / (1 - honest))
    for told in (honest, 1 / (1 + np.exp(-(2 * logit + 1)))):
        part = Recalibration()
        part.judge(told, seen, rng.random(4000) < honest)
        assert np.abs(part.apply(told, seen) - honest).max() < 0.06


def test_recalibration_never_turns_the_order_round():
    part, p = Recalibration(), np.linspace(0.1, 0.9, 500)
    part.judge(p, np.zeros(500), p < 0.5)
    assert (np.diff(part.apply(p, np.zeros(500))) >= 0).all()


# -- the whole -------------------------------------------------------------------------------------


def test_it_learns_from_text_columns_and_history_and_is_calibrated():
    rng, n = np.random.default_rng(1), 1500
    level, noise = rng.integers(0, 5, n), rng.normal(0, 1.0, n)
    other = 1 / (1 + np.exp(-(2.0 - 1.5 * level + noise)))
    theta = 1.5 * (2.0 - 1.5 * level) + 1.5 * noise + rng.normal(0, 0.5, n)
    rate = 1 / (1 + np.exp(-theta))
    prompts = pool(
        n, text=lambda i: f"a problem of level {'abcde'[level[i]]}", other_rate=other.tolist()
    )
    scores = {}
    for name, given_ in (
        ("all", {}),
        ("text", {"columns": ()}),
        ("no history", {"history": False, "columns": ()}),
    ):
        estimator, judged, order = fused(prompts, **given_), [], np.random.default_rng(2)
        for step in range(60):
            index = order.choice(n, 64, replace=False)
            batch = [prompts[i] for i in index]
            p_mixed = estimator.predict(batch).p_mixed(8)
            outcomes = groups(batch, rate[index], step, order)
            estimator.observe(outcomes)
            if step >= 20:
                judged += zip(p_mixed.tolist(), [o.mixed for o in outcomes], strict=True)
        told, truth = np.array(judged).T
        scores[name] = auc(told, truth)
        assert ece(told, truth) < 0.06  # of 2,560 groups 0.03 is chance
    assert scores["all"] > scores["text"] + 0.02 and scores["text"] > scores["no history"] + 0.02
    assert scores["no history"] > 0.65


def test_an_unseen_prompt_is_judged_by_its_neighbours():
    prompts = pool(200, text=lambda i: "easy sum" if i % 2 else "hard integral")
    estimator, rng = fused(prompts), np.random.default_rng(0)
    for step in range(20):
        batch = [prompts[i] for i in rng.choice(180, 40, replace=False)]
        rate = np.array([0.98 if "easy" in p.text else 0.02 for p in batch])
        estimator.observe(groups(batch, rate, step, rng))
    mean_P = estimator.predict(prompts[180:]).mean_P
    assert mean_P[1::2].min() > 0.7 and mean_P[0::2].max() < 0.3


@settings(max_examples=25, deadline=None)
@given(
    st.lists(
        st.tuples(st.integers(0, 5), st.integers(0, 8), st.integers(0, 8), st.integers(0, 50)),
        max_size=30,
    )
)
def test_any_groups_leave_finite_beliefs(rows):
    """Partial, failed and repeated groups, in any order of steps."""
    prompts = pool(6, text=lambda i: "" if i == 0 else f"x{i}")
    estimator = fused(prompts)
    for start in range(0, len(rows), 7):
        estimator.observe(
            [
                GroupOutcome(f"p{i}", min(k, n), n, 8 - n, policy_step=step)
                for i, k, n, step in rows[start : start + 7]
            ]
        )
    told = estimator.predict(prompts)
    assert told.sanitised(6)[1] == 0
    assert all(math.isfinite(v) for name, v in estimator.metrics().items() if name != "loss")


def test_unscorable_groups_change_nothing():
    prompts = pool(4)
    estimator = fused(prompts)
    before = estimator.state_dict()
    estimator.observe([GroupOutcome(p.key, 0, 0, 8, policy_step=3) for p in prompts])
    assert str(before) == str(estimator.state_dict())


def test_resume_equals_never_stopped(tmp_path):
    prompts, rng = pool(60), np.random.default_rng(0)
    batches = [groups([prompts[i] for i in rng.choice(60, 12, replace=False)], rng.random(12), s, rng)
               for s in range(14)]  # fmt: skip
    whole, first, second = fused(prompts), fused(prompts), fused(prompts)
    for batch in batches:
        whole.observe(batch)
    for batch in batches[:7]:
        first.observe(batch)
    save_state(tmp_path / "state", first.state_dict())
    second.load_state_dict(load_state(tmp_path / "state"))
    for batch in batches[7:]:
        second.observe(batch)
    a, b = whole.predict(prompts), second.predict(prompts)
    assert (a.mean_P == b.mean_P).all() and (a.strength_P == b.strength_P).all()
    assert str(whole.state_dict()) == str(second.state_dict())


def test_a_state_of_other_walks_or_features_is_refused():
    prompts = pool(5)
    state = fused(prompts).state_dict()
    with pytest.raises(StateMismatch, match="walks"):
        fused(prompts, walks=(0.1,)).load_state_dict(state)
    config = {"estimator": {"type": "fused", **SMALL}}
    other = {"estimator": {"type": "fused", **SMALL, "n_random": 8}}
    with pytest.raises(StateMismatch):
        make_curriculum("depo+", prompts, other).load_state_dict(
            make_curriculum("depo+", prompts, config).state_dict()
        )


def test_missing_and_non_finite_column_values_are_handled_by_the_model():
    values = [0.2, None, float("nan"), float("inf"), 0.9, "?"] * 5
    prompts = pool(30, rate=values)
    estimator = fused(prompts)
    rng = np.random.default_rng(0)
    estimator.observe(groups(prompts, np.full(30, 0.5), 1, rng))
    assert estimator.predict(prompts).sanitised(30)[1] == 0


def test_a_published_pass_rate_is_believed_from_the_start():
    rates_ = [0.02, 0.3, 0.5, 0.8, 0.99] * 8
    told = fused(pool(40, other_pass_rate=rates_)).predict(pool(40))
    assert (np.diff(told.mean_P[:5]) > 0).all()
    turned = fused(pool(40, difficulty=rates_)).predict(pool(40))
    assert (np.diff(turned.mean_P[:5]) < 0).all()
    flag = fused(pool(40, flag=[0, 1, 1, 0, 1] * 8)).predict(pool(40))
    assert np.ptp(flag.mean_P) == 0


# -- a warm start ----------------------------------------------------------------------------------


def lesson_file(folder: Path, rate_of: Callable[[int], float], n: int = 300) -> str:
    """Labels of other problems: the word says what the pass rate is."""
    path = folder / "labels.jsonl"
    rows = [
        {"prompt": f"{'hard' if i % 2 else 'fair'} puzzle {i}", "pass_rate": rate_of(i), "k": 8}
        for i in range(n)
    ]
    path.write_text("".join(json.dumps(row) + "\n" for row in rows))
    return str(path)


def test_a_warm_start_tells_mixed_before_the_first_group(tmp_path):
    path = lesson_file(tmp_path, lambda i: 0.0 if i % 2 else 0.5)
    prompts = pool(60, lambda i: f"{'hard' if i % 2 else 'fair'} riddle {i}")
    mixed = [i % 2 == 0 for i in range(60)]
    cold = make_curriculum("depo+", prompts, {"estimator": {"type": "fused", **SMALL}}).estimator
    warm = make_curriculum(
        "depo+", prompts, {"estimator": {"type": "fused", **SMALL, "warm_start": path}}
    ).estimator
    assert auc(cold.predict(prompts).p_mixed(8), mixed) < 0.7
    assert auc(warm.predict(prompts).p_mixed(8), mixed) > 0.95
    level = warm.predict(prompts).mean_P.mean()
    assert 0.25 < level < 0.55, "another policy's level is not believed"


def test_a_warm_start_is_part_of_a_checkpoint(tmp_path):
    path = lesson_file(tmp_path, lambda i: 0.0 if i % 2 else 0.5)
    prompts = pool(60, lambda i: f"{'hard' if i % 2 else 'fair'} riddle {i}")
    given = {"estimator": {"type": "fused", **SMALL, "warm_start": path}}
    one, other = (make_curriculum("depo+", prompts, given) for _ in range(2))
    rng = np.random.default_rng(0)
    one.settle(groups(one.propose(20), np.full(20, 0.5), 0, rng))
    save_state(tmp_path / "state", one.state_dict())
    other.load_state_dict(load_state(tmp_path / "state"))
    assert [p.key for p in one.propose(20)] == [p.key for p in other.propose(20)]
    lesson_file(tmp_path, lambda i: 0.5)
    changed = make_curriculum("depo+", prompts, given)
    with pytest.raises(StateMismatch, match="warm_start"):
        changed.load_state_dict(load_state(tmp_path / "state"))


def test_a_warm_start_never_sees_the_label_as_a_column(tmp_path):
    """A column of the pool with the name of the lesson's label is another model's, and keeps its
    own meaning."""
    path = lesson_file(tmp_path, lambda i: 0.0 if i % 2 else 0.5)
    lesson = read_lesson(path, "estimator.warm_start")
    assert all("pass_rate" not in p.fields and "k" not in p.fields for p in lesson.prompts)
    assert lesson.counts_P2[:2].tolist() == [[4.0, 8.0], [0.0, 8.0]]


@pytest.mark.parametrize(
    ("content", "message"),
    [
        (None, "no such file"),
        ("", "holds no row"),
        ('{"prompt": "a", "pass_rate": 2}\n', r"row 1.*pass_rate = 2"),
    ],
)
def test_a_bad_warm_start_is_refused_in_one_line(tmp_path, content, message):
    path = tmp_path / "labels.jsonl"
    if content is not None:
        path.write_text(content)
    given = {"estimator": {"type": "fused", **SMALL, "warm_start": str(path)}}
    with pytest.raises(ConfigError, match="(?i)" + message) as caught:
        make_curriculum("depo+", pool(10), given)
    assert str(caught.value).startswith("estimator.warm_start: ") and "\n" not in str(caught.value)


@settings(max_examples=60, deadline=None)
@given(st.integers(0, 10**6), st.floats(0.5, 0.9999), st.integers(1, 12))
def test_mending_never_runs_off(seed, level, n_batches):
    """Probabilities near one end, nearly all of them right: where whole Newton steps overshoot and
    never come back."""
    rng, mending = np.random.default_rng(seed), Recalibration()
    for _ in range(n_batches):
        p_P = np.clip(rng.beta(50 * level, 50 * (1 - level), 128), 1e-9, 1 - 1e-9)
        mending.judge(p_P, rng.random(128) < 0.9, rng.random(128) < 0.99)
    assert np.abs(mending.coefficients_3).max() < 30 and mending.coefficients_3[0] > 0
    assert mending.apply(p_P, np.ones(128)).mean() == pytest.approx(0.99, abs=0.06)


def test_what_is_learnt_does_not_depend_on_the_order_that_workers_finished_in():
    prompts = [Prompt(str(i), f"what is {i} plus {3 * i % 17}?") for i in range(64)]
    batches = [
        [GroupOutcome(str(i), (i * step) % 9, 8, policy_step=step) for i in range(step, step + 16)]
        for step in (1, 5, 9)
    ]
    told = []
    for order in (1, -1):
        estimator = FusedEstimator(prompts, FusedSettings(n_buckets=2**10, n_random=16), 8, 0)
        for batch in batches:
            estimator.observe(batch[::order])
        told.append(estimator.predict(prompts))
    assert np.array_equal(told[0].mean_P, told[1].mean_P)
    assert np.array_equal(told[0].strength_P, told[1].strength_P)
