"""A small world for tests of the core: pools, estimators right, wrong and broken, and groups that
come back."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Mapping, Sequence
from typing import Any

import numpy as np
from hypothesis import strategies as st

from depo_rl import Curriculum, GroupOutcome, Prediction, Prompt, make_curriculum
from depo_rl.errors import expect_fields
from depo_rl.methods import get_method

METHODS: list[tuple[str, dict[str, Any]]] = [
    ("grpo", {}),
    ("dapo", {}),
    ("polaris", {}),
    ("depo", {"band": "window", "warmup_steps": 2}),
    ("depo", {"band": "auto", "warmup_steps": 2}),
    ("oracle", {}),
    ("mopps", {}),
    ("greso", {}),
    ("dps", {}),
    ("bots", {}),
    ("pools", {}),
    ("pcl", {}),
    ("adarft", {}),
    ("vcrl", {}),
    ("speed", {}),
    ("depo+", {"estimator": {"type": "fused", "n_buckets": 2**10, "n_random": 16}}),
]
METHOD_IDS = [
    *("grpo", "dapo", "polaris", "depo-window", "depo-auto"),
    *(name for name, _ in METHODS[5:]),
]
UNIFORM = {"grpo", "dapo", "polaris", "vcrl", "speed"}  # roll every prompt out, without exploration


class FakeEstimator:
    """Says ``mean(prompt)`` of every prompt; remembers what it was told. state_dict: how many
    outcomes that was."""

    def __init__(self, mean: Callable[[Prompt], float], strength: float = 16.0) -> None:
        self._mean, self._strength, self.n_seen = mean, strength, 0
        self.calls: list[int] = []
        self.seen: list[GroupOutcome] = []

    def predict(self, prompts: Sequence[Prompt]) -> Prediction:
        self.calls.append(len(prompts))
        return Prediction(
            np.array([self._mean(p) for p in prompts]), np.full(len(prompts), self._strength)
        )

    def observe(self, outcomes: Sequence[GroupOutcome]) -> None:
        self.n_seen += len(outcomes)
        self.seen += outcomes

    def state_dict(self) -> dict[str, Any]:
        return {"type": "fake", "n_seen": self.n_seen}

    def load_state_dict(self, state: dict[str, Any]) -> None:
        expect_fields("estimator", state, self.state_dict())
        self.n_seen = state["n_seen"]

    def metrics(self) -> dict[str, float]:
        return {"n_seen": float(self.n_seen)}


def rate(prompt: Prompt) -> float:
    return float(prompt.fields["pass_rate"])


ESTIMATORS: dict[str, Callable[[], FakeEstimator]] = {
    "constant": lambda: FakeEstimator(lambda p: 0.3),
    "oracle": lambda: FakeEstimator(rate, strength=1e4),
    "inverted": lambda: FakeEstimator(lambda p: 1.0 - rate(p)),
    "nan": lambda: FakeEstimator(lambda p: float("nan")),
    "infinite": lambda: FakeEstimator(lambda p: float("inf"), strength=float("inf")),
    "out of range": lambda: FakeEstimator(lambda p: 2.0, strength=-1.0),
    "all dead": lambda: FakeEstimator(lambda p: 0.0, strength=1e6),
    "few alive": lambda: FakeEstimator(
        lambda p: 0.5 if int(p.key.split("-")[1]) < 3 else 0.0, strength=1e6
    ),
}


def make_prompts(sizes: Sequence[int], seed: int = 0) -> list[Prompt]:
    """``sizes[i]`` prompts of source i, with random pass rates, a fifth of them 0 and a fifth 1."""
    rng = np.random.default_rng(seed)
    prompts = []
    for source, size in enumerate(sizes):
        for i in range(size):
            p = float(rng.choice([0.0, rng.random(), rng.random(), rng.random(), 1.0]))
            prompts.append(
                Prompt(
                    f"s{source}-{i}", f"question {i} of {source}", f"s{source}", {"pass_rate": p}
                )
            )
    return prompts


def build(
    method: str,
    prompts: Sequence[Prompt],
    config: Mapping[str, Any] | None = None,
    estimator: Any = None,
    shared: Mapping[str, Any] | None = None,
) -> Curriculum:
    """``make_curriculum`` with an estimator of the test's own in the place of the configured one.

    shared: settings that a test gives to any method; those that it does not read are left out.
    """
    if shared:
        config = get_method(method).share(shared, config or {})
    if estimator is None:
        return make_curriculum(method, prompts, config)
    return make_curriculum(method, prompts, config, lambda pool, settings: estimator)


def roll_out(
    prompts: Iterable[Prompt], rng: np.random.Generator, group_size: int = 8, kind: str = "scored"
) -> list[GroupOutcome]:
    """Groups by the prompts' true pass rates. kind: "scored", "partial" (some unscorable), "failed"
    (all of them)."""
    outcomes = []
    for prompt in prompts:
        n_failed = {
            "scored": 0,
            "partial": int(rng.integers(0, group_size + 1)),
            "failed": group_size,
        }[kind]
        n_scored = group_size - n_failed
        n_correct = int(rng.binomial(n_scored, rate(prompt)))
        outcomes.append(
            GroupOutcome(prompt.key, n_correct, n_scored, n_failed, n_tokens=100 * group_size)
        )
    return outcomes


def conserved(curriculum: Curriculum) -> bool:
    """drawn = chosen + skipped, and chosen = admitted + rejected + failed + in flight."""
    m = curriculum.metrics()
    back = m["admitted"] + m["rejected"] + m["failed"] + m["in_flight"]
    return m["drawn"] == m["chosen"] + m["skipped"] and m["chosen"] == back


methods = st.sampled_from(METHODS)
estimators = st.sampled_from([*sorted(ESTIMATORS), None])  # None: the method's own
source_sizes = st.lists(st.integers(1, 30), min_size=1, max_size=5).filter(
    lambda sizes: sum(sizes) >= 8
)
shares = st.sampled_from([0.0, 0.03, 0.05, 0.3, 1.0])
