"""Importance weights: exact on every draw there is, capped, and refused where nothing is drawn."""

from __future__ import annotations

import itertools
import math
import re
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from core_world import FakeEstimator, build, make_prompts, methods
from depo_rl import GroupOutcome, Prompt, make_curriculum
from depo_rl.cli import main
from depo_rl.errors import ConfigError
from depo_rl.importance import effective_share, importance_weight

G = 4
SMALL = {"type": "fused", "n_buckets": 2**10, "n_random": 16}
DRAW = {
    "group_size": G,
    "warmup_steps": 0,
    "explore": 0.0,
    "guard": False,
    "temperature": 1.0,
    "estimator": SMALL,
}


def test_a_weight_is_a_power_of_one_over_inclusion_up_to_the_cap() -> None:
    assert importance_weight(4.0, 1.0, 5.0) == 0.25
    assert importance_weight(4.0, 0.5, 5.0) == 0.5
    assert importance_weight(0.1, 1.0, 5.0) == 5.0
    assert importance_weight(0.1, 1.0, None) == 10.0
    assert importance_weight(math.nan, 1.0, 5.0) == importance_weight(7.0, 0.0, 5.0) == 1.0


@given(st.lists(st.floats(0.01, 100.0), min_size=1, max_size=20))
def test_the_effective_share_is_that_of_kish(weights: list[float]) -> None:
    share = effective_share(weights)
    assert 1 / len(weights) - 1e-9 <= share <= 1 + 1e-9
    assert effective_share([w * 3 for w in weights]) == pytest.approx(share)
    assert effective_share([2.0] * 5) == pytest.approx(1.0) and effective_share(
        [1.0, 0.0]
    ) == pytest.approx(0.5)
    assert math.isnan(effective_share([]))


# -- unbiased, draw by draw


def group_gradient(rate: float) -> float:
    """Expected GRPO gradient of one group by the prompt's logit: all 2^G groups of its Bernoulli
    completions."""
    total = 0.0
    for group in itertools.product([0.0, 1.0], repeat=G):
        right_G = np.array(group)
        advantage_G = (right_G - right_G.mean()) / (right_G.std(ddof=1) + 1e-4)
        chance = np.prod(np.where(right_G == 1.0, rate, 1.0 - rate))
        total += float(chance * np.mean(advantage_G * (right_G - rate)))
    return total


class FixedDraw:
    """In the place of the generator: the start of the systematic walk; ties are in order."""

    def __init__(self, start: float) -> None:
        self.start = start

    def random(self, n: int) -> np.ndarray:
        return np.zeros(n)

    def uniform(self, low: float, high: float) -> float:
        return self.start


def every_draw(rates: list[float], n: int, **config: Any) -> list[tuple[float, dict[int, float]]]:
    """(probability, weight of each prompt chosen) of all draws of ``n``: the walk starts anywhere
    in [0, 1)."""
    chance_P = _chances(rates, n)
    edges = sorted({0.0, 1.0, *(-np.cumsum(chance_P) % 1.0).tolist()})
    draws = []
    for low, high in itertools.pairwise(edges):
        prompts = [Prompt(str(i), f"question {i}") for i in range(len(rates))]
        curriculum = build(
            "depo+", prompts, DRAW | config, FakeEstimator(lambda p: rates[int(p.key)])
        )
        curriculum._rng = FixedDraw((low + high) / 2)  # type: ignore[assignment]
        keys = [p.key for p in curriculum.propose(n)]
        draws.append(
            (high - low, dict(zip(map(int, keys), curriculum.importance(keys), strict=True)))
        )
    return draws


def _chances(rates: list[float], n: int) -> np.ndarray:
    """Worked out apart from the package: in proportion to P(mixed) of the belief, none above 1;
    ascending rates."""
    a, b = np.array(rates) * 16.0, (1 - np.array(rates)) * 16.0
    dead = sum(
        np.prod([(x + i) / (16.0 + i) for i in range(G)], axis=0)  # Beta-binomial, all of one kind
        for x in (a, b)
    )
    chance_P, certain_P = 1.0 - dead, np.zeros(len(rates), dtype=bool)
    while True:
        scaled_P = chance_P * (n - certain_P.sum()) / chance_P[~certain_P].sum()
        if not ((scaled_P > 1.0) & ~certain_P).any():
            return np.where(certain_P, 1.0, scaled_P)
        certain_P |= scaled_P > 1.0


@pytest.mark.parametrize(
    ("rates", "n"), [([0.05, 0.5], 1), ([0.02, 0.1, 0.5, 0.7, 0.97], 2), ([0.01, 0.02, 0.5], 2)]
)
def test_over_all_draws_the_weighted_gradient_is_that_of_uniform_choice(
    rates: list[float], n: int
) -> None:
    gradient_P = np.array([group_gradient(rate) for rate in rates])
    uniform_P = gradient_P / len(rates)

    def expected(**config: Any) -> np.ndarray:
        result_P = np.zeros(len(rates))
        for chance, weights in every_draw(rates, n, importance_cap=None, **config):
            for i, weight in weights.items():
                result_P[i] += chance * weight * gradient_P[i] / n
        return result_P

    assert sum(chance for chance, _ in every_draw(rates, n)) == pytest.approx(1.0)
    np.testing.assert_allclose(expected(importance=1.0), uniform_P, rtol=0, atol=1e-9)
    unweighted = np.abs(expected(importance=0.0) - uniform_P).max()
    halfway = np.abs(expected(importance=0.5) - uniform_P).max()
    assert unweighted > 0.01 and 1e-3 < halfway < unweighted


def test_the_cap_holds_and_a_weight_goes_by_what_is_in_flight() -> None:
    draws = every_draw([0.02, 0.1, 0.5, 0.7, 0.97], 2, importance=1.0, importance_cap=1.2)
    weights = {i: weight for _, draw in draws for i, weight in draw.items()}
    assert max(weights.values()) == 1.2 and min(weights.values()) < 1.0
    prompts = make_prompts([40])
    curriculum = build("depo+", prompts, DRAW | {"importance": 1.0})
    keys = [p.key for p in curriculum.propose(8)]
    before = curriculum.importance(keys)
    settled = curriculum.settle([GroupOutcome(key, 1, G) for key in keys])
    assert before == [min(1.0 / s.inclusion, 5.0) for s in settled] and len(set(before)) > 1
    assert curriculum.importance(keys) == [1.0] * 8


@pytest.mark.parametrize("settings", [{"warmup_steps": 9}, {"explore": 1.0}])
def test_what_was_chosen_uniformly_weighs_one(settings: dict[str, Any]) -> None:
    curriculum = build("depo+", make_prompts([40]), DRAW | {"importance": 1.0} | settings)
    assert curriculum.importance([p.key for p in curriculum.propose(8)]) == [1.0] * 8


@pytest.mark.parametrize("method", ["depo+", "depo", "oracle", "dps"])
def test_methods_that_draw_take_it(method: str) -> None:
    settings = {"temperature": 0.5, "importance": 1.0, "warmup_steps": 0}
    own = {"depo+": {"estimator": SMALL}, "depo": {"band": "auto"}}.get(method, {})
    curriculum = build(method, make_prompts([60]), settings | own)
    assert all(
        weight > 0 for weight in curriculum.importance([p.key for p in curriculum.propose(8)])
    )


# -- refusals


@pytest.mark.parametrize(
    ("method", "settings"),
    [
        ("depo+", {"temperature": 0.0}),
        ("depo", {}),  # by the window
        ("grpo", {}),
        ("dapo", {}),
        ("mopps", {}),
        ("greso", {}),
        ("speed", {}),
    ],
)
def test_without_a_draw_it_is_refused_in_a_line_that_names_temperature(
    method: str, settings: dict[str, Any]
) -> None:
    with pytest.raises(
        ConfigError, match=rf"'{re.escape(method)}', importance = 0.5: .*set temperature above 0"
    ) as error:
        make_curriculum(method, make_prompts([40]), settings | {"importance": 0.5})
    assert "\n" not in str(error.value) and len(str(error.value)) < 400
    make_curriculum(method, make_prompts([40]), settings | {"importance": 0.0})


@pytest.mark.parametrize(
    ("given", "message"),
    [
        ({"importance": 1.5}, "importance = 1.5: .*less than or equal to 1.*temperature"),
        ({"importance": -0.1}, "importance = -0.1: .*greater than or equal to 0"),
        ({"importance_cap": 0.5}, "importance_cap = 0.5: .*greater than or equal to 1.*null: none"),
    ],
)
def test_out_of_range_is_one_line(given: dict[str, Any], message: str) -> None:
    with pytest.raises(ConfigError, match=message):
        make_curriculum("depo+", make_prompts([40]), DRAW | given)


def test_the_command_line_refuses_it_with_exit_code_2(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    (tmp_path / "pool.jsonl").write_text(
        "".join(f'{{"prompt": "p{i}", "pass_rate": 0.5}}\n' for i in range(32))
    )
    options = [
        "--methods",
        "depo+",
        "--set",
        "importance=1",
        "--set",
        "temperature=0",
        "--prompts-per-step",
        "4",
        "--steps",
        "2",
    ]
    assert (
        main(["replay", str(tmp_path / "pool.jsonl"), "--out", str(tmp_path / "out"), *options])
        == 2
    )
    err = capsys.readouterr().err
    assert (
        err.startswith("depo: method 'depo+', importance = 1.0")
        and "temperature" in err
        and err.count("\n") == 1
    )
    assert not (tmp_path / "out").exists()


@given(methods, st.sampled_from([0.0, 0.5]))
def test_at_zero_every_method_s_weights_are_one(
    method: tuple[str, dict[str, Any]], temperature: float
) -> None:
    name, settings = method
    curriculum = build(name, make_prompts([40]), settings, shared={"temperature": temperature})
    assert curriculum.importance([p.key for p in curriculum.propose(8)]) == [1.0] * 8
