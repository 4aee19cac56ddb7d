"""One training run on the bed: GRPO, on-policy, whose prompts a curriculum of the package chooses.

Advantages, loss and clipping are TRL's (``scale_rewards="group"``, ``loss_type="dapo"``), one
optimiser step a batch, and a run ends after a number of *generated* tokens, those of discarded
groups included. Accuracy is exact, on held-out problems of every level.
"""

from __future__ import annotations

import math
import time
import zlib
from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass, field
from typing import Any

import numpy as np
import torch
from torch import Tensor

from depo_rl import Curriculum, GroupOutcome, Prediction, Prompt, make_curriculum
from depo_rl.importance import importance_weight

from .policy import Policy, by_level, held_out
from .task import LEVELS, Encoded, make_problems

EVERY = 20_000  # tokens between evaluations
WARM_UP = 10  # optimiser steps over which the rate rises
EVEN: Mapping[str, float] = dict.fromkeys(LEVELS, 1.0)
# What is known, what is out of reach, and a little of all else.
DEAD: Mapping[str, float] = dict.fromkeys(LEVELS, 0.006) | {
    **{"sort3": 0.20, "sort4": 0.18, "sort6": 0.04, "sort12": 0.03},
    **{"mul3": 0.06, "mul4": 0.14, "mul5": 0.20, "sub6": 0.04},
}
# Levels that the policy is part-way to.
ALIVE: Mapping[str, float] = {
    **{
        "add2": 0.2,
        "add3": 0.2,
        "add4": 0.15,
        "add5": 0.05,
        "sub2": 0.15,
        "sub3": 0.15,
        "sort8": 0.1,
    }
}
# Answers of 3 to 5 tokens beside others of 9 to 13, both with something to learn.
LENGTHS: Mapping[str, float] = {
    **{
        "add2": 0.2,
        "add3": 0.2,
        "sub3": 0.1,
        "mul1": 0.15,
        "sort3": 0.05,
        "sort8": 0.1,
        "sort10": 0.1,
        "sort12": 0.1,
    }
}


@dataclass(frozen=True, slots=True)
class Bed:
    """mix: level -> weight in the pool. flaky: share of prompts whose verdict is a coin flip.
    wrong: share whose verdict is "wrong" whatever is answered, as with a wrong reference. What
    else is the task."""

    mix: Mapping[str, float]
    size: int
    flaky: float = 0.0
    wrong: float = 0.0


BEDS: Mapping[str, Bed] = {
    "even": Bed(EVEN, 4000),
    "dead85": Bed(DEAD, 6000),
    "dead20": Bed(ALIVE, 4000),
    "small": Bed(EVEN, 600),
    "large": Bed(EVEN, 50_000),
    "flaky": Bed(EVEN, 4000, flaky=0.1),
    "faults": Bed(EVEN, 800, flaky=0.1, wrong=0.1),
    "lengths": Bed(LENGTHS, 4000),
}


@dataclass(frozen=True)
class Plan:
    """What one run does. completions: of a step, groups of ``group_size``. curriculum: over the
    method's defaults.

    start: weights and second moments of Adam that every run begins with.
    """

    bed: str
    method: str
    seed: int
    group_size: int
    rate: float
    completions: int = 256
    tokens: int = 400_000
    curriculum: Mapping[str, Any] = field(default_factory=dict)
    label: str = ""


@dataclass(frozen=True)
class Start:
    weights: Mapping[str, Tensor]
    squares: Sequence[Tensor]

    def policy(self) -> Policy:
        policy = Policy()
        policy.load_state_dict(self.weights)
        return policy


def make_start(policy: Policy, batches: int = 20, prompts: int = 64, group: int = 4) -> Start:
    """Second moments of uniform GRPO's gradients at the start: without them Adam's first steps have
    full length whatever the gradient, and undo part of the warm start."""
    problems = Encoded(make_problems(prompts * batches, 5, EVEN, held_out=False))
    generator = torch.Generator().manual_seed(5)
    squares = [torch.zeros_like(p) for p in policy.parameters()]
    for index_P in torch.arange(len(problems)).split(prompts):
        tokens = policy.sample(problems, index_P, group, generator)
        right = (tokens == problems.answer_PT[index_P][:, None]).all(-1).float()
        step_gradient(policy, problems, index_P, tokens, advantages(right))
        for square, p in zip(squares, policy.parameters(), strict=True):
            if p.grad is not None:  # no group of the batch was mixed
                square += p.grad**2 / batches
    return Start({name: value.clone() for name, value in policy.state_dict().items()}, squares)


def advantages(reward_PG: Tensor) -> Tensor:
    """TRL's: centred and scaled by the group's own deviation."""
    deviation = reward_PG.std(1, keepdim=True) + 1e-4
    return (reward_PG - reward_PG.mean(1, keepdim=True)) / deviation


def step_gradient(
    policy: Policy, problems: Encoded, index_P: Tensor, tokens_PGT: Tensor, advantage_PG: Tensor
) -> None:
    """The clipped gradient of the token-level loss; groups without an advantage count by their
    tokens alone."""
    policy.zero_grad()
    alive = advantage_PG.abs().amax(1) > 1e-6
    if not alive.any():
        return
    longest = int((tokens_PGT >= 0).sum(-1).max())
    logp = policy.log_probability(problems, index_P[alive], tokens_PGT[alive][..., :longest]).sum(
        -1
    )
    (-(logp * advantage_PG[alive]).sum() / (tokens_PGT >= 0).sum()).backward()
    torch.nn.utils.clip_grad_norm_(policy.parameters(), 1.0)


class TrueRates:
    """The estimator of the upper bound: it asks the policy."""

    def __init__(self, policy: Policy, problems: Encoded) -> None:
        self._policy, self._problems = policy, problems

    def predict(self, prompts: Sequence[Prompt]) -> Prediction:
        rate_P = self._policy.pass_rates(self._problems, np.array([int(p.key) for p in prompts]))
        return Prediction(np.clip(rate_P, 1e-5, 1 - 1e-5), np.full(len(rate_P), 1e6))

    def observe(self, outcomes: Sequence[GroupOutcome]) -> None: ...

    def state_dict(self) -> dict[str, Any]:
        return {}

    def load_state_dict(self, state: Mapping[str, Any]) -> None: ...

    def metrics(self) -> dict[str, float]:
        return {}


class Run:
    """Trains by a plan; ``go`` gives the result as a plain mapping."""

    def __init__(self, plan: Plan, start: Start) -> None:
        self.plan, bed = plan, BEDS[plan.bed]
        self.problems = Encoded(make_problems(bed.size, 1, bed.mix, held_out=False))
        self.evaluation = held_out()
        self.policy = start.policy()
        self.optimiser = torch.optim.Adam(self.policy.parameters(), lr=plan.rate)
        for p, square in zip(self.policy.parameters(), start.squares, strict=True):
            moments = {"exp_avg": torch.zeros_like(p), "exp_avg_sq": square.clone()}
            self.optimiser.state[p] = {"step": torch.tensor(1000.0), **moments}
        self.generator = torch.Generator().manual_seed(1000 + plan.seed)
        chance_P = np.array(
            [zlib.crc32(p.text.encode()[::-1]) % 1000 / 1000 for p in self.problems.problems]
        )
        self.flaky_P = chance_P < bed.flaky
        self.wrong_P = (chance_P >= bed.flaky) & (chance_P < bed.flaky + bed.wrong)
        self.curriculum = self._curriculum()
        self.tokens = self.rollouts = self.step = 0
        self.visits_P = np.zeros(len(self.problems), np.int64)
        self.rows: list[dict[str, float]] = []
        self.evaluations: list[dict[str, Any]] = []
        self.seconds = 0.0

    def _curriculum(self) -> Curriculum:
        plan = self.plan
        rate_P = self.policy.pass_rates(self.problems)
        prompts = [
            Prompt(
                str(i),
                p.text,
                p.family,
                {"answer": "".join(map(str, p.answer)), "pass_rate": float(rate)},
            )
            for i, (p, rate) in enumerate(zip(self.problems.problems, rate_P, strict=True))
        ]
        settings = {"group_size": plan.group_size, "seed": plan.seed, **plan.curriculum}
        if plan.method == "oracle":
            true_rates = TrueRates(self.policy, self.problems)
            return make_curriculum(plan.method, prompts, settings, lambda pool, config: true_rates)
        curriculum = make_curriculum(plan.method, prompts, settings)
        if getattr(curriculum.config.estimator, "answer_logprob", False):
            curriculum.estimator.read_policy(None, lambda asked: np.log(self._rates_of(asked)))
        return curriculum

    def _rates_of(self, prompts: Sequence[Prompt]) -> np.ndarray:
        return np.maximum(
            self.policy.pass_rates(self.problems, np.array([int(p.key) for p in prompts])), 1e-12
        )

    def go(self) -> dict[str, Any]:
        started, due = time.process_time(), 0
        while self.tokens < self.plan.tokens:
            if self.tokens >= due:
                self._evaluate()
                due += EVERY
            self._train(*self._batch())
        self._evaluate()
        return self._result(time.process_time() - started)

    def _batch(self) -> tuple[Tensor, Tensor, Tensor, list[Any]]:
        """Problems, completions and rewards of the admitted groups of one step, dynamic sampling
        included."""
        n = self.plan.completions // self.plan.group_size
        kept: list[tuple[int, Tensor, Tensor, Any]] = []
        drawn = rounds = 0
        while len(kept) < n and rounds < self.curriculum.gate.max_rounds:
            share = max(len(kept), 1) / drawn if drawn else 1.0
            size = min(n, math.ceil((n - len(kept)) / share))
            kept += self._round(size)
            drawn, rounds = drawn + size, rounds + 1
        kept = kept[:n]
        if not kept:
            return torch.zeros(0, dtype=torch.long), torch.zeros(0), torch.zeros(0), []
        index_P = torch.tensor([index for index, *_ in kept])
        return (
            index_P,
            torch.stack([k[1] for k in kept]),
            torch.stack([k[2] for k in kept]),
            [k[3] for k in kept],
        )

    def _round(self, size: int) -> list[tuple[int, Tensor, Tensor, Any]]:
        prompts = self.curriculum.propose(size)
        index = np.array([int(p.key) for p in prompts])
        index_P = torch.tensor(index)
        tokens_PGT = self.policy.sample(
            self.problems, index_P, self.plan.group_size, self.generator
        )
        right_PG = (tokens_PGT == self.problems.answer_PT[index_P][:, None]).all(-1)
        coin_PG = torch.rand(right_PG.shape, generator=self.generator) < 0.5
        right_PG = torch.where(torch.tensor(self.flaky_P[index])[:, None], coin_PG, right_PG)
        right_PG &= ~torch.tensor(self.wrong_P[index])[:, None]
        length_P = (tokens_PGT >= 0).sum((1, 2)).tolist()
        outcomes = [
            GroupOutcome(
                p.key, int(k), self.plan.group_size, n_tokens=length, policy_step=self.step
            )
            for p, k, length in zip(prompts, right_PG.sum(1).tolist(), length_P, strict=True)
        ]
        settled = self.curriculum.settle(outcomes)
        metrics = self.curriculum.metrics()
        self.seconds += metrics["seconds_selecting"] + metrics["seconds_learning"]
        self.tokens += sum(length_P)
        self.rollouts += right_PG.numel()
        self._note(index, settled)
        reward_PG = right_PG.float()
        return [
            (int(i), tokens_PGT[j], reward_PG[j], s)
            for j, (i, s) in enumerate(zip(index, settled, strict=True))
            if s.admitted
        ]

    def _note(self, index: np.ndarray, settled: Sequence[Any]) -> None:
        self.visits_P[index] += 1
        rate_P = (
            self.policy.pass_rates(self.problems, index)
            if self.step % 5 == 0
            else np.full(len(index), np.nan)
        )
        outcomes = [s.outcome for s in settled]
        useful = [o for o in outcomes if o.mixed]
        hard = np.mean([o.pass_rate < 0.2 or False for o in useful]) if useful else np.nan
        mixed_P = np.array([o.mixed for o in outcomes])
        self.rows.append(
            {
                "mixed": float(mixed_P.mean()),
                "all_pass": float(np.mean([o.all_pass for o in outcomes])),
                "all_fail": float(np.mean([o.all_fail for o in outcomes])),
                "p_var": float(np.mean(rate_P * (1 - rate_P))),
                "hard_useful": float(np.mean(rate_P[mixed_P] < 0.2))
                if mixed_P.any() and self.step % 5 == 0
                else np.nan,
                "hard_outcome": float(hard),
                "levels": float(len(set(self.problems.levels[index]))),
                "flaky_useful": float(self.flaky_P[index][mixed_P].mean())
                if mixed_P.any()
                else np.nan,
                "chosen": float(len(index)),
            }
        )

    def _train(
        self, index_P: Tensor, tokens_PGT: Tensor, reward_PG: Tensor, settled: list[Any]
    ) -> None:
        if len(index_P):
            advantage_PG = advantages(reward_PG)
            weight = self._importance(settled)
            if weight is not None:
                advantage_PG = advantage_PG * weight[:, None]
            step_gradient(self.policy, self.problems, index_P, tokens_PGT, advantage_PG)
            for group in self.optimiser.param_groups:
                group["lr"] = self.plan.rate * min(1.0, (self.step + 1) / WARM_UP)
            self.optimiser.step()
        self.step += 1

    def _importance(self, settled: list[Any]) -> Tensor | None:
        config = self.curriculum.config
        if not config.importance:
            return None
        weights = [
            importance_weight(s.inclusion, config.importance, config.importance_cap)
            for s in settled
        ]
        return torch.tensor(weights, dtype=torch.float32)

    def _evaluate(self) -> None:
        rate = by_level(self.policy, self.evaluation)
        self.evaluations.append(
            {"tokens": self.tokens, "rollouts": self.rollouts, "step": self.step, "levels": rate}
        )

    def _result(self, seconds: float) -> dict[str, Any]:
        names = self.rows[0].keys()
        shares = np.array(list(BEDS[self.plan.bed].mix.values()))
        pool = dict(zip(BEDS[self.plan.bed].mix, shares / shares.sum(), strict=True))
        visits = self.visits_P[self.visits_P > 0] / self.visits_P.sum()
        weight = np.array([row["chosen"] for row in self.rows])

        def mean(name: str) -> float:
            value = np.array([row[name] for row in self.rows])
            known = ~np.isnan(value)
            return (
                float(np.average(value[known], weights=weight[known]))
                if known.any()
                else float("nan")
            )

        curve = [
            (e["tokens"], float(np.mean(list(e["levels"].values())))) for e in self.evaluations
        ]
        whole = [sum(w * e["levels"][name] for name, w in pool.items()) for e in self.evaluations]
        late = [i for i, (tokens, _) in enumerate(curve) if tokens >= self.plan.tokens - 60_000]
        return {
            "plan": asdict(self.plan),
            "accuracy_levels": float(np.mean([curve[i][1] for i in late])),
            "accuracy_whole": float(np.mean([whole[i] for i in late])),
            "start_levels": curve[0][1],
            "start_whole": whole[0],
            "curve": curve,
            "curve_whole": [(t, w) for (t, _), w in zip(curve, whole, strict=True)],
            "by_level_start": self.evaluations[0]["levels"],
            "by_level": {
                name: float(np.mean([self.evaluations[i]["levels"][name] for i in late]))
                for name in LEVELS
            },
            "pass_at_8_levels": float(
                np.mean(list(by_level(self.policy, self.evaluation, 8).values()))
            ),
            "area": float(
                np.trapezoid([a for _, a in curve], [t for t, _ in curve]) / curve[-1][0]
            ),
            "steps": self.step,
            "rollouts": self.rollouts,
            **{name: mean(name) for name in names},
            "distinct": int((self.visits_P > 0).sum()),
            "effective": float(np.exp(-(visits * np.log(visits)).sum())),
            "most_visits": int(self.visits_P.max()),
            "seconds": seconds,
            "seconds_ours": self.seconds,
        }
