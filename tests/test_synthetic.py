"""The synthetic world keeps its equations: item response, binomial groups, learning from mixed
groups only."""

from __future__ import annotations

import numpy as np
import pytest

from depo_rl import GroupOutcome, make_curriculum
from depo_rl.commands.replay.simulate import simulate
from depo_rl.engines.synthetic import SyntheticEngine, SyntheticSettings
from depo_rl.errors import ConfigError


def world(seed: int = 0, **settings: object) -> SyntheticEngine:
    return SyntheticEngine(SyntheticSettings(**{"n_prompts": 2000, **settings}), seed)  # type: ignore[arg-type]


def test_pass_rates_follow_the_item_response_model():
    engine = world(guess=0.25, n_prompts=500)
    logit_P = engine._discrimination_P * (engine.ability_S[engine._skill_P] - engine._difficulty_P)
    assert engine.pass_rates() == pytest.approx(0.25 + 0.75 / (1 + np.exp(-logit_P)))
    assert engine.pass_rates([7, 3]) == pytest.approx(engine.pass_rates()[[7, 3]])
    rates = engine.pass_rates()
    assert rates.min() >= 0.25 and rates.max() <= 1
    engine.ability_S += 1e6  # extreme abilities overflow nothing
    assert engine.pass_rates() == pytest.approx(np.ones(500))


def test_the_pool_depends_on_its_seed_alone_and_groups_on_the_other():
    assert (
        world(0).prompts()
        == world(1).prompts()
        != SyntheticEngine(SyntheticSettings(n_prompts=2000, seed=5)).prompts()
    )
    prompts = world().prompts()
    first, again, other = (world(seed).rollout(prompts, 8) for seed in (1, 1, 2))
    assert first == again != other


def test_groups_are_binomial():
    engine = world(n_prompts=200)
    prompts = engine.prompts()
    mean_P = (
        np.mean([[o.n_correct for o in engine.rollout(prompts, 8)] for _ in range(500)], axis=0) / 8
    )
    assert np.abs(mean_P - engine.pass_rates()).max() < 0.04


def test_only_mixed_groups_teach_and_half_right_teaches_most():
    def gain(k: int) -> float:
        engine = world(transfer=0.0, learning_rate=0.1)
        before = engine.ability_S.copy()
        engine.advance([GroupOutcome("p0", k, 8)])
        gained_S = engine.ability_S - before
        assert np.count_nonzero(gained_S) == (0 < k < 8)
        return float(gained_S.sum())

    assert gain(0) == gain(8) == 0.0
    assert gain(4) == pytest.approx(0.1)
    assert gain(1) == pytest.approx(0.1 * 4 * (1 / 8) * (7 / 8)) == pytest.approx(gain(7))


def test_what_is_learnt_in_one_skill_helps_the_others():
    engine = world(n_skills=4, transfer=1.0, learning_rate=0.1)
    before = engine.ability_S.copy()
    engine.advance([GroupOutcome("p0", 4, 8)])
    gained = sorted((engine.ability_S - before).tolist())
    assert gained == pytest.approx([0.025, 0.025, 0.025, 0.125])


def test_the_text_tells_as_much_as_it_says():
    for signal in (0.0, 0.6, 1.0):
        engine = world(text_signal=signal, n_prompts=20_000)
        found = np.corrcoef(engine._grade_P, engine._difficulty_P)[0, 1]
        assert found == pytest.approx(signal, abs=0.02)


def test_rates_drift_and_a_method_that_finds_mixed_groups_learns_faster():
    ability = {}
    for method, config in (("grpo", {}), ("depo", {"band": "auto", "warmup_steps": 2})):
        engine = world(learning_rate=0.005)
        curriculum = make_curriculum(method, engine.prompts(), {**config, "seed": 0})
        result = simulate(curriculum, engine, prompts_per_step=32, steps=25)
        ability[method] = engine.metrics()["ability"]
        assert result.history is not None and len(result.history) == 25
        assert engine.metrics()["accuracy"] > world().metrics()["accuracy"]
    assert ability["depo"] > ability["grpo"] > -0.5


def test_settings_out_of_range_are_refused():
    for wrong in ({"n_prompts": 0}, {"guess": 1.0}, {"text_signal": 1.2}, {"learning_rate": -1.0}):
        with pytest.raises(ConfigError):
            world(**wrong)
    with pytest.raises(ValueError, match="no prompt of a synthetic pool"):
        world().rollout([type(world().prompts()[0])("x", "x")], 8)
