"""THE file: predict each prompt's pass rate before the rollout, roll out those that can teach,
learn from the result.

    curriculum = make_curriculum("depo", prompts, {"group_size": 8})
    while training:
        prompts = curriculum.propose(n)          # before the engine generates and scores a group for each
        settled = curriculum.settle(outcomes)    # after it scored; train on the admitted ones

A method is a choice of estimator, selector and gate (``methods.py``). Guarantees, whatever the
method: n distinct prompts or a typed error; none in flight; a bounded number of candidates, the
best-ranked rest filling a short batch; exploration; drawn = chosen + skipped, chosen = admitted +
rejected + failed + in flight; exact resume.
"""

from __future__ import annotations

import time
from collections.abc import Iterable, Sequence, Set

import numpy as np

from .breadth import Breadth
from .checkpoint import RngState, Stateful, load_all_or_nothing
from .config import CurriculumConfig
from .errors import PoolExhausted, expect_fields, expect_same
from .filling import candidates_per_place, fill, fly
from .futility import Futility
from .guard import Guard
from .importance import importance_weight
from .ledger import Ledger
from .metrics import PredictionTrack
from .pool import Exploration, PromptPool
from .protocols import Gate, Learner, PassRateEstimator, Selector
from .selectors import Uniform
from .types import GroupOutcome, Prediction, Prompt, Settlement, State


class Curriculum:
    """Composes a pool, an estimator, a selector and a gate. Make one with ``make_curriculum``."""

    def __init__(
        self,
        method: str,
        pool: PromptPool,
        estimator: PassRateEstimator,
        selector: Selector,
        gate: Gate,
        config: CurriculumConfig,
    ) -> None:
        self.method = method
        self.pool = pool
        self.config = config
        self.estimator = estimator
        self.selector = selector
        self.gate = gate
        self._exploration = Exploration(pool, config.explore)
        self._rng = np.random.default_rng([config.seed, 1])
        self._ledger = Ledger(pool.index, pool.source_of, config.reward_range)
        self._guard = Guard(config.guard)
        self._futility = Futility(method, config)
        parts = {"estimator": estimator, "selector": selector}
        self._learners = {name: part for name, part in parts.items() if isinstance(part, Learner)}
        self._parts: dict[str, Stateful] = {
            "pool": pool,
            "exploration": self._exploration,
            "ledger": self._ledger,
            "guard": self._guard,
            "futility": self._futility,
            **self._learners,
            "rng": RngState(self._rng),
        }

    @property
    def in_flight(self) -> frozenset[str]:
        """Keys proposed and not settled yet."""
        return frozenset(self._ledger.flights)

    @property
    def track(self) -> PredictionTrack:
        """The latest scored groups with what had been predicted of them."""
        return self._ledger.track

    @property
    def breadth(self) -> Breadth:
        """How often each prompt was chosen, and figures of how widely that was."""
        return self._ledger.breadth

    def propose(self, n: int) -> list[Prompt]:
        """``n`` distinct prompts to roll out, none in flight. Raises PoolExhausted if too few are."""
        started = time.perf_counter()
        taken = self.in_flight
        if (free := len(self.pool) - len(taken)) < n:
            raise PoolExhausted(
                f"{n} prompts asked for, but the pool has {len(self.pool)} of which {len(taken)} are in flight "
                f"({free} free): use a smaller batch, more prompts, or settle or release what is in flight"
            )
        explored = self._exploration.draw(n, taken)
        flights = fly(explored, "explored", self._predict(explored))
        taken |= flights.keys()

        def draw(k: int, seen: Set[str]) -> list[Prompt]:
            return self.pool.draw(k, taken | seen)

        rule = self._rule(n)
        places = n - len(explored)
        factor = self.candidate_factor
        filled = fill(places, rule, draw, self._predict, self.config, factor, self._rng)
        flights = filled.included(rule[0], flights | filled.flights)
        self._ledger.depart(
            flights, filled.n_skipped, filled.wasted_groups, time.perf_counter() - started
        )
        return [self.pool[key] for key in flights]

    def _rule(self, n: int) -> tuple[Selector, str]:
        """Nothing is filtered in the first ``warmup_steps`` batches of groups, or while guarded."""
        if isinstance(self.selector, Uniform):
            return self.selector, "uniform"
        if self._ledger.n_scored < self.config.warmup_steps * n:
            return Uniform(), "warmup"
        return (Uniform(), "guarded") if self._guard.judge() else (self.selector, "selected")

    @property
    def candidate_factor(self) -> float:
        """Candidates per place, at most; no prompt is chosen more often than that times its share."""
        epochs = self._ledger.count["chosen"] / len(self.pool)
        return candidates_per_place(self.config, self._futility.fair_mixed_share, epochs)

    def _predict(self, prompts: Sequence[Prompt]) -> Prediction:
        """The estimator's beliefs; what is no Beta (NaN, infinite) becomes Beta(1, 1), counted."""
        told = self.estimator.predict(prompts) if prompts else Prediction(np.empty(0), np.empty(0))
        belief, n_invalid = told.sanitised(len(prompts))
        self._ledger.count["invalid_predictions"] += n_invalid
        return belief

    def settle(self, outcomes: Iterable[GroupOutcome]) -> list[Settlement]:
        """Judges and learns from finished groups, in any order and number; one settlement per
        outcome, in order.

        A second outcome of the same proposal is ignored and counted. Raises UnknownPrompt, with
        nothing changed.
        """
        started = time.perf_counter()
        learnt = self._ledger.n_scored > 0
        outcomes = list(outcomes)
        for outcome in outcomes:  # UnknownPrompt comes before anything is changed
            _ = self.pool[outcome.key]
        settled = [self._ledger.land(outcome, self.gate) for outcome in outcomes]
        if fresh := [s for s in settled if s.because != "duplicate"]:
            for learner in self._learners.values():
                learner.observe([s.outcome for s in fresh])
            self._guard.observe(fresh, learnt)
            self._futility.observe(fresh)
            self._ledger.judge(fresh, time.perf_counter() - started)
        return settled

    def importance(self, keys: Iterable[str]) -> list[float]:
        """What to multiply the advantages of these groups by, each > 0; 1 if not in flight."""
        beta = self.config.importance
        cap = self.config.importance_cap
        return [importance_weight(x, beta, cap) for x in self._ledger.inclusions(keys)]

    def predicted(self, keys: Iterable[str]) -> list[float]:
        """Pass rates predicted for these prompts when proposed; NaN for one not in flight."""
        return self._ledger.predicted(keys)

    def adopt(self, keys: Iterable[str]) -> None:
        """Takes prompts that the engine chose by an order of its own as proposed, unless in flight."""
        prompts = [self.pool[key] for key in dict.fromkeys(keys) if key not in self._ledger.flights]
        flights = fly(prompts, "uniform", self._predict(prompts))
        self._ledger.adopt({key: flight._replace(inclusion=1.0) for key, flight in flights.items()})

    def release(self, keys: Iterable[str] | None = None) -> int:
        """Gives up on prompts in flight (all by default) that will never land: they have failed."""
        return self._ledger.lose(self.in_flight if keys is None else keys)

    def max_unvisited_batches(self, n: int) -> int | None:
        """No prompt that is free goes unproposed for more than this many batches of ``n`` in a row;
        None: no bound."""
        return self._exploration.max_unvisited_batches(n, isinstance(self.selector, Uniform))

    def metrics(self) -> dict[str, float]:
        """What ``Ledger.metrics`` tells, and the parts' own under ``estimator/`` and ``selector/``."""
        told = self._ledger.metrics(self.config.group_size)
        for part, learner in self._learners.items():
            told |= {f"{part}/{name}": value for name, value in learner.metrics().items()}
        return told

    def state_dict(self) -> State:
        """Everything a resumed run needs to go on as if it had never stopped."""
        parts = {name: part.state_dict() for name, part in self._parts.items()}
        return {"version": 4, "method": self.method, **parts}

    def load_state_dict(self, state: State) -> None:
        """Strict: StateMismatch, with nothing changed, if it is of another method, data set, ..."""
        expect_fields("curriculum", state, ("version", "method", *self._parts))
        expect_same("curriculum", "version", state["version"], 4)
        expect_same("curriculum", "method", state["method"], self.method)
        load_all_or_nothing(self._parts, state)
