"""run(2k) = run(k), save, load, run(k), prompt by prompt and metric by metric; a refused load
changes nothing."""

from __future__ import annotations

import copy
from itertools import pairwise

import numpy as np
import pytest

from core_world import METHOD_IDS, METHODS, FakeEstimator, build, make_prompts, rate, roll_out
from depo_rl import Curriculum, Prompt
from depo_rl.checkpoint import load_state, save_state
from depo_rl.errors import StateMismatch

FUSED = {
    "type": "fused",
    "n_buckets": 512,
    "n_random": 16,
    "replay_prompts": 50,
    "updates_per_observe": 2,
}
ESTIMATORS = {"constant": {"type": "constant"}, "oracle": {"type": "oracle"}, "fused": FUSED}
OWN = "the method's own"
SECONDS = ("seconds_selecting", "seconds_learning")


def _fresh(
    method: str, config: dict, estimator: str, prompts: list[Prompt] | None = None
) -> Curriculum:
    given = {} if estimator == OWN else {"estimator": ESTIMATORS[estimator]}
    prompts = make_prompts([40, 25]) if prompts is None else prompts
    return build(method, prompts, {**config, **given, "seed": 3}, shared={"explore": 0.1})


def _run(
    curriculum: Curriculum, steps: range, late: list[Prompt]
) -> list[tuple[list[str], dict[str, float]]]:
    """Each step's prompts and metrics. Half of every batch comes back a step late: prompts are in
    flight throughout."""
    trace = []
    for step in steps:
        batch = curriculum.propose(6)
        rng = np.random.default_rng(step)
        curriculum.settle(
            roll_out(late + batch[:3], rng, kind="partial" if step % 3 == 0 else "scored")
        )
        late[:] = batch[3:]
        metrics = {
            name: value for name, value in curriculum.metrics().items() if name not in SECONDS
        }
        trace.append(([p.key for p in batch], metrics))
    return trace


def _assert_same(left, right) -> None:
    assert [keys for keys, _ in left] == [keys for keys, _ in right]
    for (_, a), (_, b) in zip(left, right, strict=True):
        assert a.keys() == b.keys()
        assert all(a[k] == b[k] or (np.isnan(a[k]) and np.isnan(b[k])) for k in a), (a, b)


@pytest.mark.parametrize("estimator", [*sorted(ESTIMATORS), OWN])
@pytest.mark.parametrize(("method", "config"), METHODS, ids=METHOD_IDS)
def test_a_resumed_run_goes_on_as_if_it_had_never_stopped(method, config, estimator, tmp_path):
    whole = _run(_fresh(method, config, estimator), range(16), [])

    first, late = _fresh(method, config, estimator), []
    head = _run(first, range(8), late)
    assert first.in_flight
    save_state(tmp_path / "state.safetensors", first.state_dict())

    second = _fresh(method, config, estimator)
    second.load_state_dict(load_state(tmp_path / "state.safetensors"))
    assert second.in_flight == first.in_flight
    _assert_same(whole, head + _run(second, range(8, 16), late))


@pytest.mark.parametrize("estimator", sorted(ESTIMATORS))
def test_save_load_save_gives_the_same_bytes(estimator, tmp_path):
    curriculum = _fresh("depo", {"band": "auto", "warmup_steps": 1}, estimator)
    _run(curriculum, range(4), [])
    files = [tmp_path / f"{i}" for i in range(6)]
    save_state(files[0], curriculum.state_dict())
    for before, after in pairwise(files):
        fresh = _fresh("depo", {"band": "auto", "warmup_steps": 1}, estimator)
        fresh.load_state_dict(load_state(before))
        save_state(after, fresh.state_dict())
    assert len({file.read_bytes() for file in files}) == 1


def _set(*path, value):
    def change(state: dict) -> None:
        for name in path[:-1]:
            state = state[name]
        state[path[-1]] = value

    return change


def _delete(*path):
    def change(state: dict) -> None:
        for name in path[:-1]:
            state = state[name]
        del state[path[-1]]

    return change


BROKEN = {
    "unknown field": (_set("bonus", value=1), r"curriculum .*unknown: bonus"),
    "missing field": (_delete("rng"), r"curriculum .*missing: rng"),
    "another version": (_set("version", value=2), r"version 2, this run has 4"),
    "another method": (_set("method", value="grpo"), r"method 'grpo', this run has 'depo'"),
    "another data set": (
        _set("pool", "fingerprint", value="7 prompts"),
        r"saved with 7 prompts, this pool has 65 prompts",
    ),
    "another seed": (_set("pool", "seed", value=9), r"seed 9, this run has 3"),
    "unknown pool field": (_set("pool", "bonus", value=1), r"pool .*unknown: bonus"),
    "walk out of the pool": (
        _set("pool", "walk", "cursor", value=66),
        r"cursor 66; this pool has 65",
    ),
    "walk of text": (_set("pool", "walk", "epoch", value="0"), r"epoch '0'"),
    "exploration": (_delete("exploration", "owed"), r"exploration .*missing: owed"),
    "exploration's type": (_set("exploration", "owed", value=None), r"'exploration' is malformed"),
    "another estimator": (
        _set("estimator", value={"type": "EncoderEstimator"}),
        r"'EncoderEstimator'.*'FusedEstimator'",
    ),
    "estimator field": (_set("estimator", "bonus", value=1), r"estimator .*unknown: bonus"),
    "no estimator": (
        _set("estimator", value=None),
        r"estimator state must be a dict, got NoneType",
    ),
    "rng": (_set("rng", "bit_generator", value="MT19937"), r"'rng' is malformed"),
    "estimator's rng": (_set("estimator", "heads", "rng", value={}), r"'estimator' is malformed"),
    "in flight": (
        _set("ledger", "in_flight", value={"s0-1": ["selected"]}),
        r"'ledger' is malformed",
    ),
    "counts": (_set("ledger", "count", "chosen", value=None), r"'ledger' is malformed"),
    "count names": (_delete("ledger", "count", "chosen"), r"ledger count .*missing: chosen"),
    "visits": (_set("ledger", "breadth", "visits", value=None), r"'ledger' is malformed"),
    "visits of another pool": (
        _set("ledger", "breadth", "visits", value=np.array([30, 0])),
        r"visits of 2 prompts",
    ),
    "visits and choices": (
        _set("ledger", "breadth", "visits", value=np.ones(65)),
        r"30 prompts as chosen and 65 v",
    ),
    "batches out of the pool": (
        _set("ledger", "breadth", "recent", value=[[65]]),
        r"this pool has 65 prompts",
    ),
    "batches never chosen": (
        _set("ledger", "breadth", "recent", value=[[0] * 31]),
        r"more often than was counted",
    ),
    "breadth field": (_delete("ledger", "breadth", "open"), r"breadth .*missing: open"),
    "track": (_set("ledger", "track", "rows", value=np.zeros(3)), r"'ledger' is malformed"),
    "not a state": (lambda state: state.clear(), r"curriculum .*missing: estimator, exploration"),
}


@pytest.mark.parametrize("fault", sorted(BROKEN))
def test_a_refused_load_changes_nothing(fault):
    config = {"band": "auto", "warmup_steps": 1}
    donor = _fresh("depo", config, "fused")
    _run(donor, range(5), [])
    change, message = BROKEN[fault]
    state = copy.deepcopy(donor.state_dict())
    change(state)

    victim, twin, late, twin_late = (
        _fresh("depo", config, "fused"),
        _fresh("depo", config, "fused"),
        [],
        [],
    )
    _run(victim, range(3), late)
    _run(twin, range(3), twin_late)
    with pytest.raises(StateMismatch, match=message) as error:
        victim.load_state_dict(state)
    assert "\n" not in str(error.value)
    _assert_same(_run(victim, range(3, 8), late), _run(twin, range(3, 8), twin_late))


def _change_one(prompts: list[Prompt], **change) -> list[Prompt]:
    first = prompts[0]
    values = {
        "key": first.key,
        "text": first.text,
        "source": first.source,
        "fields": first.fields,
        **change,
    }
    return [Prompt(**values), *prompts[1:]]


@pytest.mark.parametrize(
    "edit",
    [
        lambda prompts: prompts[1:],
        lambda prompts: [*prompts, Prompt("new", "new", "s0", {"pass_rate": 0.5})],
        lambda prompts: prompts[::-1],
        lambda prompts: _change_one(prompts, key="other"),
        lambda prompts: _change_one(prompts, source="s1"),
        lambda prompts: _change_one(prompts, text="edited"),
    ],
    ids=["fewer", "more", "order", "key", "source", "text"],
)
def test_another_data_set_is_refused_naming_both(edit):
    prompts = make_prompts([40, 25])
    state = _fresh("grpo", {}, "constant", prompts).state_dict()
    other = _fresh("grpo", {}, "constant", edit(prompts))
    with pytest.raises(StateMismatch) as error:
        other.load_state_dict(state)
    assert state["pool"]["fingerprint"] in str(error.value)
    assert other.pool.fingerprint in str(error.value)
    assert state["pool"]["fingerprint"] != other.pool.fingerprint


@pytest.mark.parametrize(
    "others", [("constant", "fused"), ("fused", "oracle"), ("oracle", "constant")]
)
def test_another_estimator_is_refused_naming_both(others):
    state = _fresh("depo", {}, others[0]).state_dict()
    with pytest.raises(StateMismatch, match=r"type '\w+Estimator', this run has '\w+Estimator'"):
        _fresh("depo", {}, others[1]).load_state_dict(state)


def test_a_load_is_all_or_nothing_even_if_an_estimator_breaks_halfway():
    class HalfLoading(FakeEstimator):
        def load_state_dict(self, state):
            self.n_seen = state["n_seen"]
            if state.get("broken"):
                raise RuntimeError("disk gone")

    donor, victim = (build("depo", make_prompts([40]), {}, HalfLoading(rate)) for _ in range(2))
    donor.settle(roll_out(donor.propose(5), np.random.default_rng(0)))
    state = donor.state_dict()
    state["estimator"]["broken"] = True
    before = victim.state_dict()
    with pytest.raises(RuntimeError, match="disk gone"):
        victim.load_state_dict(state)
    assert repr(victim.state_dict()) == repr(before)


def test_a_state_is_a_copy_and_not_a_view():
    curriculum = _fresh("depo", {"band": "auto", "warmup_steps": 1}, "fused")
    late: list[Prompt] = []
    _run(curriculum, range(3), late)
    state = curriculum.state_dict()
    frozen = repr(copy.deepcopy(state))
    _run(curriculum, range(3, 5), late)
    assert repr(state) == frozen
