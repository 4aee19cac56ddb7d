"""The other methods together: documented defaults, resume, refused loads, and that each of them is
worth something."""

from __future__ import annotations

import numpy as np
import pytest

from core_world import build, make_prompts, roll_out
from depo_rl import METHODS, GroupOutcome, Prompt, make_curriculum
from depo_rl.checkpoint import load_state, save_state
from depo_rl.errors import StateMismatch

DEFAULTS = {  # method -> estimator, explore, candidate_factor, as docs/paper_index.md says
    "oracle": ("oracle", 0.0, 8),
    "mopps": ("history", 0.0, 16),
    "greso": ("history", 0.0, 8),
    "dps": ("dps", 0.0, 32),
    "bots": ("bots", 0.0, 16),
    "pools": ("history", 0.0, 8),
    "pcl": ("fused", 0.0, 4),
    "adarft": ("oracle", 0.0, 16),
    "vcrl": ("constant", 0.0, 8),
    "speed": ("constant", 0.0, 8),
    "depo+": ("fused", 0.05, "auto"),
}


@pytest.mark.parametrize("method", sorted(DEFAULTS))
def test_defaults_are_the_documented_ones(method):
    config = make_curriculum(method, make_prompts([20])).config
    assert (config.estimator.type, config.explore, config.candidate_factor) == DEFAULTS[method]
    assert (config.warmup_steps, config.guard) == ((2, True) if method == "depo+" else (0, False))
    assert (config.temperature, config.gate) == (0.0, METHODS[method].defaults.get("gate", "none"))
    assert METHODS.keys() - DEFAULTS.keys() == {"grpo", "dapo", "polaris", "depo"}


STATEFUL = [name for name in sorted(DEFAULTS) if name not in ("oracle", "vcrl", "speed")]
PARTS = [(name, "estimator") for name in STATEFUL] + [
    (name, "selector") for name in ("adarft", "greso", "pools")
]


def _run(curriculum, steps: range, late: list[Prompt]) -> list[list[str]]:
    """Prompts of each step; half of each batch comes back a step late, under the step that made its
    policy."""
    trace = []
    for step in steps:
        batch, rng = curriculum.propose(6), np.random.default_rng(step)
        for prompts, policy_step in ((late, step - 1), (batch[:3], step)):
            outcomes = roll_out(prompts, rng)
            curriculum.settle(
                [GroupOutcome(o.key, o.n_correct, 8, policy_step=policy_step) for o in outcomes]
            )
        late[:] = batch[3:]
        trace.append([p.key for p in batch])
    return trace


@pytest.mark.parametrize("method", STATEFUL)
def test_a_run_with_policy_steps_and_late_groups_resumes_exactly(method, tmp_path):
    prompts = make_prompts([40, 25])
    whole, first, second = (make_curriculum(method, prompts, {"seed": 3}) for _ in range(3))
    late: list[Prompt] = []
    expected = _run(whole, range(24), [])
    assert _run(first, range(12), late) == expected[:12]
    save_state(tmp_path / "state", first.state_dict())
    second.load_state_dict(load_state(tmp_path / "state"))
    assert _run(second, range(12, 24), late) == expected[12:]
    assert repr(second.state_dict()["estimator"]) == repr(whole.state_dict()["estimator"])


@pytest.mark.parametrize(("method", "part"), PARTS)
def test_a_refused_load_changes_nothing(method, part):
    prompts = make_prompts([40, 25])
    donor, victim, twin = (make_curriculum(method, prompts, {"seed": 3}) for _ in range(3))
    _run(donor, range(8), [])
    _run(victim, range(5), [])
    _run(twin, range(5), [])
    before = repr(victim.state_dict())
    for name in ["bonus", *(name for name in donor.state_dict()[part] if name != "type")]:
        for value in ("nonsense", [1, 2, {}]):
            state = donor.state_dict()
            state[part] = {**state[part], name: value}
            with pytest.raises(StateMismatch) as error:
                victim.load_state_dict(state)
            assert "\n" not in str(error.value)
    assert repr(victim.state_dict()) == before
    assert _run(victim, range(5, 9), []) == _run(twin, range(5, 9), [])


@pytest.mark.parametrize("method", STATEFUL)
def test_the_state_of_another_method_is_refused(method):
    prompts = make_prompts([40, 25])
    state = make_curriculum("mopps" if method != "mopps" else "dps", prompts).state_dict()
    with pytest.raises(StateMismatch):
        make_curriculum(method, prompts).load_state_dict({**state, "method": method})


@pytest.mark.parametrize(
    "method", ["oracle", "mopps", "dps", "bots", "greso", "pools", "pcl", "adarft"]
)
def test_they_find_more_mixed_groups_than_uniform_choice(method):
    """200 prompts of 16 a step, 60 steps: five visits each on average."""
    shares = {}
    for name in ("grpo", method):
        curriculum, rng, mixed = (
            build(name, make_prompts([200], seed=5)),
            np.random.default_rng(0),
            [],
        )
        for _ in range(60):
            curriculum.settle(roll_out(curriculum.propose(16), rng))
            mixed.append(curriculum.metrics()["mixed_share"])
        shares[name] = np.mean(mixed[30:])
    # The texts of this world, numbered questions, tell pcl nothing.
    assert shares[method] > shares["grpo"] + (-0.1 if method == "pcl" else 0.08), shares
