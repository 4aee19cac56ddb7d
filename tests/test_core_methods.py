"""Methods, gates and selectors: each does what its paper says, to the boundary."""

from __future__ import annotations

import numpy as np
import pytest

from core_world import ESTIMATORS, build, make_prompts, rate, roll_out
from depo_rl import METHODS, CurriculumConfig, GroupOutcome, Prediction, Prompt, make_curriculum
from depo_rl.errors import ConfigError, DataError
from depo_rl.gates import AdmitAll, DynamicSampling
from depo_rl.selectors import MostLikelyMixed, PassRateWindow, Uniform

RNG = np.random.default_rng(0)


def _prompts(n: int) -> list[Prompt]:
    return [Prompt(f"p{i}", f"text {i}") for i in range(n)]


@pytest.mark.parametrize("k", range(9))
def test_dynamic_sampling_admits_mixed_groups_only(k):
    gate = DynamicSampling(max_rounds=10)
    # The shaped reward varies even among the all-wrong: the gate must not look at it.
    outcome = GroupOutcome("a", k, 8, reward_mean=-0.3, reward_std=0.7)
    assert gate.admit(outcome) is (0 < k < 8)
    assert AdmitAll().admit(outcome) is True


def test_dapo_rejects_and_counts_and_never_trains_on_the_unscored():
    curriculum = build("dapo", make_prompts([40]))
    kinds = [(0, 8, 0), (8, 8, 0), (3, 8, 0), (0, 0, 8)]
    settled = curriculum.settle(
        [GroupOutcome(p.key, *k) for p, k in zip(curriculum.propose(4), kinds, strict=True)]
    )
    assert [s.admitted for s in settled] == [False, False, True, False]
    metrics = curriculum.metrics()
    assert (metrics["admitted"], metrics["rejected"], metrics["failed"]) == (1, 2, 1)
    assert curriculum.gate.max_rounds == 10
    assert build("dapo", make_prompts([40]), {"max_rounds": 3}).gate.max_rounds == 3


def test_grpo_walks_the_epoch_in_a_shuffled_order_that_changes():
    curriculum = build("grpo", make_prompts([30]))
    epochs = []
    for _ in range(3):
        epochs.append(
            [p.key for _ in range(5) for p in _settled(curriculum, curriculum.propose(6))]
        )
    assert all(sorted(epoch) == sorted(epochs[0]) and len(set(epoch)) == 30 for epoch in epochs)
    assert epochs[0] != epochs[1] != epochs[2]
    again = build("grpo", make_prompts([30]))
    assert [p.key for p in again.propose(6)] == epochs[0][:6]
    other = build("grpo", make_prompts([30]), {"seed": 1})
    assert [p.key for p in other.propose(6)] != epochs[0][:6]


def _settled(curriculum, prompts):
    curriculum.settle(roll_out(prompts, RNG))
    return prompts


def test_polaris_keeps_the_middle_both_ends_included_and_the_unlabelled():
    labels = [0.0, 0.0999, 0.1, 0.5, 0.9, 0.9001, 1.0, None, "high", float("nan"), 7.0, True]
    prompts = [Prompt(f"p{i}", "t", fields={"solved": value}) for i, value in enumerate(labels)]
    curriculum = make_curriculum("polaris", prompts, {"pass_rate_field": "solved"})
    assert [p.key for p in curriculum.pool] == ["p2", "p3", "p4", "p7", "p8", "p9", "p10", "p11"]


def test_polaris_without_labels_says_which_columns_there_are():
    prompts = [Prompt("a", "t", fields={"answer": 3, "level": 2})]
    with pytest.raises(
        DataError, match=r"'pass_rate'.*none of the 1 prompts; columns there: answer, level: name"
    ):
        make_curriculum("polaris", prompts)
    with pytest.raises(DataError, match=r"no prompt's pass_rate lies in keep = \[0.1, 0.9\]"):
        make_curriculum("polaris", [Prompt("a", "t", fields={"pass_rate": 0.0})])


def test_window_boundaries_are_inside():
    just_below, just_above = np.nextafter(0.15, 0), np.nextafter(0.85, 1)
    mean_P = np.array([0.15, just_below, 0.85, just_above, 0.5])
    decision = PassRateWindow(0.15, 0.85).select(
        _prompts(5), Prediction(mean_P, np.full(5, 8.0)), 5, RNG
    )
    assert decision.chosen == (0, 2, 4)
    assert decision.skipped == {1: "too_hard", 3: "too_easy"}
    assert decision.score_P[[0, 2, 4]].tolist() == [0.0, 0.0, 0.0]


def test_the_window_ranks_the_rest_by_distance_and_takes_no_more_than_asked():
    mean_P = np.array([0.1, 0.99, 0.5, 0.4, 0.0])
    decision = PassRateWindow(0.2, 0.8).select(
        _prompts(5), Prediction(mean_P, np.full(5, 8.0)), 1, RNG
    )
    assert decision.chosen == (2,)
    assert decision.skipped == {0: "too_hard", 1: "too_easy", 3: "surplus", 4: "too_hard"}
    assert np.argsort(-decision.score_P, kind="stable").tolist() == [2, 3, 0, 1, 4]


def test_most_likely_mixed_minds_the_group_size_and_the_strength():
    # Sure of 0.2, or wholly unsure around 0.5: with few samples the second, with many the first.
    belief = Prediction(np.array([0.2, 0.5]), np.array([1e6, 1.0]))
    assert MostLikelyMixed(2).select(_prompts(2), belief, 1, RNG).chosen == (
        (1,) if _mixed(belief, 2) else (0,)
    )
    assert MostLikelyMixed(16).select(_prompts(2), belief, 1, RNG).chosen == (0,)
    certain = Prediction(np.array([0.05, 0.5, 0.95]), np.full(3, 1e6))
    assert MostLikelyMixed(8).select(_prompts(3), certain, 1, RNG).chosen == (1,)
    assert MostLikelyMixed(8).appetite(10) >= 40


def _mixed(belief: Prediction, group_size: int) -> bool:
    first, second = belief.p_mixed(group_size)
    return bool(second > first)


def test_ties_keep_the_order_of_the_draw():
    same = Prediction(np.full(6, 0.5), np.full(6, 8.0))
    for selector in (Uniform(), PassRateWindow(0.1, 0.9), MostLikelyMixed(8)):
        assert selector.select(_prompts(6), same, 3, RNG).chosen == (0, 1, 2)


@pytest.mark.parametrize("band", ["window", "auto"])
def test_an_oracle_finds_nearly_only_mixed_groups(band):
    prompts = make_prompts([2000])
    config = {"band": band, "warmup_steps": 0, "explore": 0.0, "estimator": "oracle"}
    shares = {}
    for method, given in (("grpo", {}), ("depo", config)):
        curriculum, rng, mixed = build(method, prompts, given), np.random.default_rng(0), []
        for _ in range(6):
            curriculum.settle(roll_out(curriculum.propose(64), rng))
            mixed.append(curriculum.metrics()["mixed_share"])
        shares[method] = np.mean(mixed)
    assert shares["depo"] > (0.97 if band == "auto" else 0.85)
    assert shares["depo"] > shares["grpo"] + 0.25


@pytest.mark.parametrize("name", sorted(METHODS))
def test_every_method_makes_a_curriculum_and_takes_a_ready_config(name):
    prompts = make_prompts([60])
    by_mapping = make_curriculum(name, prompts, {"group_size": 4, "seed": 5})
    by_config = make_curriculum(name, prompts, CurriculumConfig(group_size=4, seed=5))
    assert by_mapping.config == by_config.config  # the method's own defaults hold in both
    assert [p.key for p in by_mapping.propose(8)] == [p.key for p in by_config.propose(8)]
    assert METHODS[name].summary


def test_the_estimator_may_be_made_by_another_and_then_none_other_is():
    """Whoever makes it is given the pool as the method prepared it; an encoder would have failed
    here."""
    own, given = ESTIMATORS["oracle"](), []

    def make(pool, config):
        given.append((len(pool), config.estimator.backbone))
        return own

    encoder = {"type": "encoder", "backbone": "no such folder"}
    prompts = make_prompts([60])
    curriculum = make_curriculum("polaris", prompts, {"estimator": encoder}, estimator=make)
    kept = sum(0.1 <= rate(prompt) <= 0.9 for prompt in prompts)
    assert curriculum.estimator is own and given == [(kept, "no such folder")] and kept < 60


@pytest.mark.parametrize(
    ("method", "config", "message"),
    [
        ("depp", {}, r"unknown method 'depp'\. Did you mean 'depo'\?"),
        ("xyzzy", {}, r"unknown method 'xyzzy'\. Known: adarft, bots, dapo, depo, "),
        (
            "depo",
            {"explor": 0.1},
            r"method 'depo': unknown setting 'explor'\. Did you mean 'explore'\?",
        ),
        ("depo", {"qqqq": 1}, r"unknown setting 'qqqq'\. Known: adarft, band, "),
        (
            "depo",
            {"group_size": 1},
            r"group_size = 1: .*greater than or equal to 2.*with 1 no group can teach",
        ),
        ("depo", {"group_size": "eight"}, r"group_size = 'eight': .*valid integer"),
        ("depo", {"group_size": 2.5}, r"group_size = 2.5: .*valid integer"),
        ("depo", {"group_size": None}, r"group_size = None: .*valid integer"),
        ("depo", {"explore": 1.5}, r"explore = 1.5: .*less than or equal to 1"),
        ("depo", {"explore": float("nan")}, r"explore = nan: .*finite number"),
        ("depo", {"warmup_steps": -1}, r"warmup_steps = -1: .*greater than or equal to 0"),
        ("depo", {"candidate_factor": 0}, r"candidate_factor = 0: .*greater than or equal to 1"),
        ("depo", {"seed": -3}, r"seed = -3: .*greater than or equal to 0"),
        ("depo", {"band": "narrow"}, r"band = 'narrow': .*'window' or 'auto'"),
        (
            "depo",
            {"window": (0.8, 0.2)},
            r"window must be two rates with 0 <= low < high <= 1, got \(0.8, 0.2\)",
        ),
        ("depo", {"window": (0.2, 1.2)}, r"window must be two rates"),
        ("depo", {"window": 0.5}, r"window = 0.5: "),
        ("polaris", {"keep": (0.5, 0.5)}, r"keep must be two rates"),
        ("depo", {"estimator": "fuse"}, r"unknown estimator 'fuse'\. Did you mean 'fused'\?"),
        (
            "depo",
            {"estimator": "ngrams"},
            r"unknown estimator 'ngrams'\. 'fused' took its place\.$",
        ),
        (
            "depo",
            {"estimator": {"type": "ngrams", "n_features": 64}},
            r"'ngrams'\. 'fused' took its place\.$",
        ),
        (
            "depo",
            {"estimator": {"type": "bert"}},
            r"unknown estimator 'bert'\. Known: bots, constant, dps, encoder, fused, history, oracle",
        ),
        (
            "depo",
            {"estimator": {"type": None}},
            r"unknown estimator 'None'",
        ),
        (
            "depo",
            {"estimator": {"n_bucket": 512}},
            r"unknown setting 'estimator.n_bucket'\. Did you mean 'n_buckets'\?",
        ),
        (
            "depo",
            {"estimator": {"type": "fused", "learning_rate": 0}},
            r"estimator.learning_rate = 0: .*greater than 0",
        ),
        (
            "depo",
            {"estimator": {"type": "constant", "mean": 1.0}},
            r"estimator.mean = 1.0: .*less than 1",
        ),
        ("depo", [("group_size", 8)], r"settings must be a mapping of names to values, got list"),
    ],
)
def test_bad_settings_get_one_clear_line(method, config, message):
    with pytest.raises(ConfigError, match=message) as error:
        make_curriculum(method, make_prompts([10]), config)
    assert "\n" not in str(error.value)
    assert isinstance(error.value, ValueError)


def test_two_bad_settings_are_both_named():
    with pytest.raises(
        ConfigError,
        match=r"unknown setting 'explor'.*; group_size = 0: |group_size = 0: .*; .*'explor'",
    ):
        make_curriculum("depo", make_prompts([10]), {"explor": 1, "group_size": 0})


def test_a_pool_that_cannot_be_used_is_refused():
    with pytest.raises(
        DataError, match=r"the pool has no prompts; a curriculum needs at least one"
    ):
        make_curriculum("grpo", [])
    twice = [Prompt("a", "first"), Prompt("b", "second"), Prompt("a", "third")]
    with pytest.raises(
        DataError,
        match=r"prompts 0 and 2 have the same key 'a' \('third'\).*: remove the duplicate",
    ):
        make_curriculum("grpo", twice)


def test_settings_cannot_be_changed_after_the_fact():
    curriculum = make_curriculum("depo", make_prompts([10]))
    with pytest.raises(ValueError, match="frozen"):
        curriculum.config.group_size = 4


def test_the_oracle_reads_labels_and_knows_what_it_does_not_know():
    prompts = [
        Prompt(f"p{i}", "t", fields={"p": v})
        for i, v in enumerate([0.25, None, "x", 2.0, 0, 1, np.float32(0.5)])
    ]
    curriculum = make_curriculum("depo", prompts, {"estimator": {"type": "oracle", "field": "p"}})
    belief = curriculum.estimator.predict(prompts)
    assert belief.mean_P == pytest.approx([0.25, 0.5, 0.5, 0.5, 1e-6, 1 - 1e-6, 0.5])
    assert belief.strength_P.tolist() == [1e4, 2.0, 2.0, 2.0, 1e4, 1e4, 1e4]
    assert rate(make_prompts([1])[0]) >= 0
