"""The replay engines answer as the record says, and count what they cannot answer."""

from __future__ import annotations

import numpy as np
import pytest

from depo_rl import GroupOutcome, Prompt
from depo_rl.engines.replay import HistoryEngine, LabelledPoolEngine, make_replay_engine
from depo_rl.engines.synthetic import SyntheticEngine, SyntheticSettings
from depo_rl.errors import ConfigError
from depo_rl.outcomes import LogRow
from depo_rl.outcomes.tables import GroupHistory, LabelledPool


def history(visits: dict[str, list[tuple[int, int, int, int]]]) -> GroupHistory:
    """prompt -> [(step, n_correct, n_scored, group_size)]"""
    rows = {
        key: tuple(LogRow(key, key, "s", step, size, k, n, size - n) for step, k, n, size in each)
        for key, each in visits.items()
    }
    return GroupHistory(tuple(Prompt(key, key) for key in visits), rows)


def at(engine: HistoryEngine, step: int, key: str, group_size: int) -> tuple[int, int, int]:
    engine.step = step
    (o,) = engine.rollout([Prompt(key, key)], group_size)
    assert o.group_size == group_size
    return o.n_correct, o.n_scored, o.n_failed


A_AND_B = (Prompt("p1", "a"), Prompt("p0", "b"))  # as the synthetic world calls its own
ENGINES = {
    "history": lambda: make_replay_engine(
        history({key: [(s, 3, 8, 8) for s in (1, 2)] for key in ("p0", "p1")}), 8
    ),
    "labelled pool": lambda: make_replay_engine(LabelledPool(A_AND_B, np.array([0.5, 0.5])), 8),
    "synthetic": lambda: SyntheticEngine(SyntheticSettings(n_prompts=2)),
}


@pytest.mark.parametrize("name", ENGINES)
def test_engines_keep_the_contract(name):
    """A group for each prompt, in order, of the size that was asked for; the rest joins it; a step
    follows a step."""
    engine = ENGINES[name]()
    for step in (1, 2):
        screened = engine.rollout(A_AND_B, 3)
        whole = engine.extend(screened, 5)
        for groups, size in ((screened, 3), (whole, 8)):
            assert [(o.key, o.group_size, o.n_failed, o.policy_step) for o in groups] == [
                (prompt.key, size, 0, step) for prompt in A_AND_B
            ]
        assert all(
            0 <= o.n_correct - s.n_correct <= 5 for s, o in zip(screened, whole, strict=True)
        )
        engine.advance(whole)
    assert set(engine.metrics()) == set(ENGINES[name]().metrics())


def test_a_labelled_pool_is_drawn_binomially():
    prompts = tuple(Prompt(str(i), str(i)) for i in range(3))
    engine = LabelledPoolEngine(LabelledPool(prompts, np.array([0.0, 0.3, 1.0])), seed=1)
    drawn = np.array([[o.n_correct for o in engine.rollout(prompts, 8)] for _ in range(4000)])
    assert set(drawn[:, 0]) == {0} and set(drawn[:, 2]) == {8}
    assert drawn[:, 1].mean() == pytest.approx(2.4, abs=0.07)
    assert drawn[:, 1].var() == pytest.approx(8 * 0.3 * 0.7, rel=0.08)


def test_a_group_is_extended_by_the_rest_of_what_was_recorded():
    """3 of 8 right, 1 failed: the first four and the other four are the whole group, whatever was
    drawn first."""
    engine = HistoryEngine(history({"a": [(1, 3, 7, 8)], "b": [(1, 6, 12, 12)]}), 8, seed=2)
    firsts = set()
    for _ in range(50):
        screened = engine.rollout([Prompt("a", "a"), Prompt("b", "b")], 4)
        whole, part = engine.extend(screened, 4)
        firsts.add(screened[0].n_correct)
        assert (whole.n_correct, whole.n_scored, whole.n_failed, whole.policy_step) == (3, 7, 1, 1)
        assert part.group_size == 8 and 2 <= part.n_correct <= 6
    assert firsts == {0, 1, 2, 3}
    with pytest.raises(ValueError, match="nothing to extend"):
        engine.extend([GroupOutcome("c", 0, 0, 4)], 4)


def test_a_labelled_group_is_extended_at_its_rate():
    prompts = tuple(Prompt(str(i), str(i)) for i in range(3))
    engine = LabelledPoolEngine(LabelledPool(prompts, np.array([0.0, 0.3, 1.0])), seed=1)
    whole = [engine.extend(engine.rollout(prompts, 4), 12) for _ in range(2000)]
    assert {o.group_size for group in whole for o in group} == {16}
    drawn = np.array([[o.n_correct for o in group] for group in whole])
    assert set(drawn[:, 0]) == {0} and set(drawn[:, 2]) == {16}
    assert drawn[:, 1].mean() == pytest.approx(4.8, abs=0.15)
    assert drawn[:, 1].var() == pytest.approx(16 * 0.3 * 0.7, rel=0.12)


def test_the_same_seed_gives_the_same_groups():
    prompts = tuple(Prompt(str(i), str(i)) for i in range(50))
    pool = LabelledPool(prompts, np.linspace(0, 1, 50))
    first, again, other = (LabelledPoolEngine(pool, seed).rollout(prompts, 8) for seed in (3, 3, 4))
    assert first == again != other


def test_the_nearest_visit_answers_and_the_earlier_of_two():
    engine = HistoryEngine(history({"a": [(10, 1, 4, 4), (20, 2, 4, 4), (40, 3, 4, 4)]}), 4)
    nearest = {1: 1, 14: 1, 15: 1, 16: 2, 30: 2, 31: 3, 999: 3}
    assert {step: at(engine, step, "a", 4)[0] for step in nearest} == nearest
    assert engine.metrics()["largest_gap"] == 959
    assert engine.metrics()["unanswered"] == 0


def test_failed_completions_are_replayed_as_failed():
    engine = HistoryEngine(history({"a": [(1, 2, 5, 8)]}), 8)
    assert at(engine, 1, "a", 8) == (2, 5, 3)


def test_a_smaller_group_is_drawn_without_replacement():
    engine = HistoryEngine(history({"a": [(1, 3, 6, 8)]}), 4)
    drawn = np.array([at(engine, 1, "a", 4) for _ in range(3000)])
    assert drawn.mean(axis=0) == pytest.approx([1.5, 3.0, 1.0], abs=0.06)
    assert drawn[:, 0].max() == 3 and drawn[:, 2].max() == 2


def test_what_cannot_be_answered_is_a_failed_group_and_counted():
    engine = HistoryEngine(history({"a": [(1, 1, 4, 4)], "b": [(1, 1, 2, 2)]}), 4, max_gap=5)
    assert at(engine, 6, "a", 4) == (1, 4, 0)
    assert at(engine, 7, "a", 4) == (0, 0, 4)  # too far away
    assert at(engine, 1, "b", 4) == (0, 0, 4)  # no group that large
    assert engine.metrics() == {"unanswered": 2.0, "mean_gap": 5.0, "largest_gap": 5.0}
    with pytest.raises(ConfigError, match="group_size = 8: the recorded groups have at most 4"):
        HistoryEngine(history({"a": [(1, 1, 4, 4)]}), 8)


def test_a_larger_group_nearby_is_preferred_to_none():
    engine = HistoryEngine(history({"a": [(5, 1, 2, 2), (9, 3, 4, 4)]}), 4)
    assert at(engine, 5, "a", 4) == (3, 4, 0)
