"""Choosing before and filtering after on TRL: any method takes ``gate``; what it admits fills the
batch."""

import shutil

import pytest

pytest.importorskip("trl")

import torch

import trl_toys as toys
from depo_rl.errors import ConfigError
from test_trl_dapo import completions, watched

pytestmark = [pytest.mark.filterwarnings(line) for line in toys.THIRD_PARTY]

BOTH = {
    "method": "depo+",
    "curriculum": {
        "gate": "dynamic",
        "max_rounds": 20,
        "warmup_steps": 1,
        "candidate_factor": 3,
        "temperature": 0.5,
        "estimator": toys.FUSED,
    },
}


def test_chosen_before_and_filled_with_mixed_groups_after(tmp_path):
    made, rounds, batches = watched(tmp_path, **BOTH, max_steps=4)
    made.train()
    assert len(rounds) > len(batches) == 4, (
        "one round a batch would prove nothing: take another seed"
    )
    for step, batch in enumerate(batches):
        of_step = [(groups, admitted) for s, groups, admitted in rounds if s == step]
        kept = [
            g
            for groups, admitted in of_step
            for g, keep in zip(groups, admitted, strict=True)
            if keep
        ][:4]
        assert completions(batch) == [c.fields[1][0] for g in kept for c in g.completions]
        right = torch.stack([g.rewards_GF[:, 0] for g in kept]).sum(1)
        assert len(kept) == 4 and ((right > 0) & (right < 4)).all()
    log = toys.outcome_log(tmp_path)
    assert [row["admitted"] for row in log] == [
        0 < row["n_correct"] < row["n_scored"] for row in log
    ]
    assert {row["chosen_because"] for row in log} >= {"warmup", "selected"}
    assert made.curriculum.metrics()["skipped"] > 0
    drawn = [row["inclusion"] for row in log if row["chosen_because"] == "selected"]
    assert min(drawn) > 0 and len(set(drawn)) > 3
    assert {row["inclusion"] for row in log if row["chosen_because"] == "warmup"} == {1.0}


def test_resume_is_exact(tmp_path):
    save = {"save_strategy": "steps", "save_steps": 1}
    whole, _ = toys.caught(toys.run, tmp_path / "whole", **BOTH, **save)
    log = toys.outcome_log(tmp_path / "whole")
    assert len(log) > 4 * 4 and any(toys.losses(whole))
    again = tmp_path / "again"
    again.mkdir()
    shutil.copytree(tmp_path / "whole" / "checkpoint-2", again / "checkpoint-2")
    shutil.copy(tmp_path / "whole" / "outcomes.jsonl", again)  # rows after the step must go
    resumed, _ = toys.caught(toys.run, again, resume=True, **BOTH)
    assert toys.differences(toys.everything(whole), toys.everything(resumed)) == []
    assert toys.outcome_log(again) == log


def test_dapo_without_its_gate_is_uniform_and_trains_on_all(tmp_path):
    made = toys.run(tmp_path, method="dapo", curriculum={"gate": "none"}, max_steps=2)
    log = toys.outcome_log(tmp_path)
    assert made._sampler is None and len(log) == 2 * 4
    assert all(row["admitted"] and row["chosen_because"] == "uniform" for row in log)
    assert any(row["n_correct"] in (0, row["n_scored"]) for row in log)


@pytest.mark.parametrize("gate", ["dynamic", "high_variance"])
def test_grpo_keeps_trl_s_order_and_names_dapo(tmp_path, gate):
    with pytest.raises(
        ConfigError, match=rf"gate = '{gate}': method 'grpo' keeps TRL's own order.*'dapo'"
    ) as error:
        toys.config(tmp_path, method="grpo", curriculum={"gate": gate})
    assert "\n" not in str(error.value)
    assert (
        toys.config(tmp_path, method="grpo", curriculum={"gate": "none"}).curriculum_config().gate
        == "none"
    )


def test_speed_s_gate_is_its_own_before_a_model_is_loaded(tmp_path):
    with pytest.raises(
        ConfigError, match=r"'speed', gate = 'dynamic': the method has a gate of its own"
    ):
        toys.config(tmp_path, method="speed", curriculum={"gate": "dynamic"})
