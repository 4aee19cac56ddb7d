"""Settings that are given in part change those parts of the method's own, wherever they are
given."""

from __future__ import annotations

import copy
import json

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from core_world import make_prompts
from depo_rl import METHODS, make_curriculum
from depo_rl.commands.replay.plan import ReplayPlan
from depo_rl.commands.replay.run import parse_settings
from depo_rl.commands.train.config import TrainConfig
from depo_rl.config import CurriculumConfig, FusedSettings, HistorySettings, merged
from depo_rl.errors import ConfigError

FUSED = FusedSettings(drift=False)  # what depo+ has

names = st.sampled_from(["a", "b", "type", "estimator"])
values = st.one_of(
    st.integers(0, 3), st.sampled_from(["x", "y"]), st.none(), st.lists(st.integers(), max_size=2)
)
trees = st.recursive(
    st.dictionaries(names, values, max_size=3),
    lambda inner: st.dictionaries(names, values | inner, max_size=3),
)


@settings(deadline=None)
@given(base=trees, over=trees)
def test_merging_is_idempotent_changes_neither_and_what_is_given_wins(base, over):
    before = copy.deepcopy((base, over))
    result = merged(base, over)
    assert (base, over) == before
    assert merged(result, over) == result
    assert base.keys() | over.keys() == result.keys()
    for name, value in over.items():
        if not isinstance(value, dict) and name != "estimator":
            assert result[name] == value
    for name in base.keys() - over.keys():
        assert result[name] == base[name]


def test_another_type_replaces_and_the_same_or_none_changes_in_place():
    base = {
        "estimator": {"type": "history", "discount": 0.5, "inner": {"a": 1, "b": 2}},
        "explore": 0.1,
    }
    change = merged(base, {"estimator": {"inner": {"b": 3}}})
    assert change == {
        "estimator": {"type": "history", "discount": 0.5, "inner": {"a": 1, "b": 3}},
        "explore": 0.1,
    }
    same = merged(base, {"estimator": {"type": "history", "discount": 1.0}})
    assert same["estimator"] == {"type": "history", "discount": 1.0, "inner": {"a": 1, "b": 2}}
    assert merged(base, {"estimator": {"type": "dps", "decay": 0.1}})["estimator"] == {
        "type": "dps",
        "decay": 0.1,
    }
    assert merged(base, {"estimator": "dps"})["estimator"] == {"type": "dps"}
    assert merged({"estimator": "fused"}, {"estimator": {"drift": False}})["estimator"] == {
        "type": "fused",
        "drift": False,
    }


@pytest.mark.parametrize("method", sorted(METHODS))
def test_a_partial_estimator_is_the_methods_own_with_that_change(method):
    own = METHODS[method].config().estimator
    assert METHODS[method].config({"estimator": {}}).estimator == own
    assert METHODS[method].config({"estimator": {"type": own.type}}).estimator == own
    field = {
        "constant": "mean",
        "oracle": "strength",
        "history": "prior_mean",
        "dps": "decay",
        "bots": "rho",
    }
    name = field.get(own.type, "learning_rate")
    changed = METHODS[method].config({"estimator": {name: 0.25}}).estimator
    assert changed == own.model_copy(update={name: 0.25})


def test_a_ready_object_is_taken_as_it_is():
    """Whoever built the settings said all of them: nothing of the method's own is mixed in."""
    ready = HistorySettings.model_validate({"prior_mean": 0.3})
    mopps = METHODS["mopps"]
    assert mopps.config({"estimator": ready}).estimator == ready
    assert mopps.config(CurriculumConfig(estimator=ready)).estimator == ready
    assert mopps.config({"estimator": {"prior_mean": 0.3}}).estimator.fade_by == "visits"


@pytest.mark.parametrize("method", sorted(METHODS))
def test_a_methods_config_may_be_given_back_to_it(method):
    """An engine makes it once and hands it on: what the method set itself is not taken for
    given."""
    own = METHODS[method].config({"group_size": 4, "seed": 7})
    assert METHODS[method].config(own) == own
    assert METHODS[method].config(CurriculumConfig(seed=7)).estimator == own.estimator


def test_make_curriculum_takes_a_partial_estimator():
    curriculum = make_curriculum("depo+", make_prompts([12]), {"estimator": {"n_random": 0}})
    assert curriculum.config.estimator == FUSED.model_copy(update={"n_random": 0})
    assert curriculum.config.band == "auto"


def test_a_wrong_name_in_a_partial_estimator_is_one_line():
    with pytest.raises(
        ConfigError, match=r"unknown setting 'estimator.n_randm'\. Did you mean 'n_random'\?"
    ):
        make_curriculum("depo+", make_prompts([12]), {"estimator": {"n_randm": 0}})
    with pytest.raises(ConfigError, match=r"unknown setting 'estimator.n_random'"):
        make_curriculum("dps", make_prompts([12]), {"estimator": {"n_random": 0}})


def test_replays_settings_reach_into_the_methods_estimator(tmp_path):
    given = [
        "estimator.decay=0.5",
        "depo+.estimator.encoder.backbone=DIR",
        "depo+.estimator.encoder.dims=8",
    ]
    common, own = parse_settings(given[1:])
    plan = ReplayPlan(tmp_path / "x", tmp_path, ("depo+",), settings=common, method_settings=own)
    estimator = plan.config("depo+", 0).estimator
    assert isinstance(estimator, FusedSettings) and estimator.encoder is not None
    assert (estimator.encoder.backbone, estimator.encoder.dims) == ("DIR", 8)
    common, own = parse_settings([given[0], "dps.estimator.prior=2"])
    plan = ReplayPlan(tmp_path / "x", tmp_path, ("dps",), settings=common, method_settings=own)
    assert plan.config("dps", 0).estimator.model_dump() == {
        "type": "dps",
        "decay": 0.5,
        "prior": 2.0,
    }


def test_a_training_file_takes_a_partial_estimator():
    raw = {
        "method": "depo+",
        "model": {"path": "m"},
        "data": {"path": "d.jsonl"},
        "reward": [{"kind": "boxed"}],
        "output": "out",
        "curriculum": {"estimator": {"n_random": 0}},
    }
    config = TrainConfig.model_validate(raw).curriculum_config()
    assert config.estimator == FUSED.model_copy(update={"n_random": 0})


def test_the_trl_config_takes_a_partial_estimator(tmp_path):
    pytest.importorskip("trl")
    from depo_rl.engines import trl

    for curriculum in ({"estimator": {"n_random": 0}}, json.dumps({"estimator": {"n_random": 0}})):
        args = trl.DEPOConfig(
            str(tmp_path),
            method="depo+",
            curriculum=curriculum,
            report_to="none",
            use_cpu=True,
            bf16=False,
        )
        assert args.curriculum_config().estimator == FUSED.model_copy(update={"n_random": 0})
