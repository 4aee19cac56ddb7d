"""The bed of benchmarks/bench_learning.py: its problems are right, its pass rates exact, its runs
repeat."""

from __future__ import annotations

import random
import sys
from pathlib import Path

import numpy as np
import pytest

torch = pytest.importorskip("torch")
sys.path.insert(0, str(Path(__file__).resolve().parents[1] / "benchmarks"))

from learning.policy import by_level, held_out, warm_start  # noqa: E402
from learning.run import BEDS, EVEN, Plan, Run, advantages, make_start  # noqa: E402
from learning.task import END, LEVELS, SIGNS, Encoded, is_held_out, make_problem, make_problems  # noqa: E402


@pytest.mark.parametrize("level", LEVELS)
def test_answers_are_right(level: str) -> None:
    rng = random.Random(0)
    for _ in range(20):
        problem = make_problem(level, rng)
        words = problem.text.split()
        if problem.family == "sort":
            assert "".join(map(str, problem.answer)) == "".join(sorted(words[1]))
        else:
            a, sign, b, _ = words
            value = {"+": int(a) + int(b), "-": int(a) - int(b), "*": int(a) * int(b)}[sign]
            assert sign == SIGNS[problem.family]
            assert int("".join(map(str, problem.answer[::-1]))) == value


def test_no_pool_holds_what_is_judged_on() -> None:
    judged = {problem.text for problem in held_out(5).problems}
    for bed in BEDS.values():
        pool = {problem.text for problem in make_problems(300, 1, bed.mix, held_out=False)}
        assert not pool & judged and not any(
            is_held_out(p) for p in make_problems(50, 1, bed.mix, held_out=False)
        )


def test_exact_pass_rates_are_what_sampling_finds() -> None:
    torch.manual_seed(0)
    policy = warm_start(steps=60)
    problems = Encoded(make_problems(12, 3, {"sort3": 1.0, "sub2": 1.0}, held_out=False))
    index_P = torch.arange(len(problems))
    tokens = policy.sample(problems, index_P, 4000, torch.Generator().manual_seed(1))
    found_P = (tokens == problems.answer_PT[:, None]).all(-1).double().mean(1).numpy()
    exact_P = policy.pass_rates(problems)
    assert exact_P.max() > 0.02
    assert np.all(np.abs(found_P - exact_P) <= 5 * np.sqrt(exact_P * (1 - exact_P) / 4000) + 1e-3)
    assert ((tokens == END).sum(-1) <= 1).all()


def test_advantages_are_trl_s() -> None:
    reward = torch.tensor([[1.0, 0.0, 0.0, 0.0], [1.0, 1.0, 1.0, 1.0]])
    deviation = reward[0].std()
    assert advantages(reward)[0].tolist() == pytest.approx(
        ((reward[0] - 0.25) / (deviation + 1e-4)).tolist()
    )
    assert advantages(reward)[1].abs().max() == 0.0


@pytest.mark.parametrize("method", ["grpo", "dapo", "depo+", "oracle"])
def test_a_run_repeats_and_ends_with_its_tokens(method: str) -> None:
    start = make_start(warm_start(steps=60), batches=2)
    own = (
        {"estimator": {"exclude": ["pass_rate"], "n_buckets": 256, "n_random": 0}}
        if method == "depo+"
        else {}
    )
    plan = Plan(
        "small",
        method,
        seed=3,
        group_size=4,
        rate=5e-4,
        completions=64,
        tokens=6000,
        curriculum=own,
    )
    first, second = Run(plan, start).go(), Run(plan, start).go()
    for result in (first, second):
        result.pop("seconds"), result.pop("seconds_ours")
    assert str(first) == str(second)  # NaN equals nothing, not even itself
    assert 6000 <= first["curve"][-1][0] < 12_000 and set(first["by_level"]) == set(LEVELS)


def test_accuracy_of_eight_answers_is_above_that_of_one() -> None:
    problems = held_out(5)
    policy = warm_start(steps=60)
    one, eight = by_level(policy, problems), by_level(policy, problems, power=8)
    assert all(eight[level] >= one[level] for level in EVEN)
