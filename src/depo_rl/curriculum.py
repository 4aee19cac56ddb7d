"""THE file: predict each prompt's pass rate before the rollout, roll out those that can teach, learn from the result.

    curriculum = make_curriculum("depo", prompts, {"group_size": 8})
    while training:
        prompts = curriculum.propose(n)          # before the engine generates
        ...                                      # the engine rolls out and scores each prompt's group
        settled = curriculum.settle(outcomes)    # after it scored; train on the admitted ones

A method is a choice of estimator, selector and gate (``methods.py``); what is below is the same for all of them, and so
are its guarantees: exactly n distinct prompts or a typed error; nothing in flight is proposed; a bounded number of
candidates, the best-ranked rest filling a short batch; exploration whatever the prediction; drawn = chosen + skipped,
chosen = admitted + rejected + failed + in flight; run(2k) = run(k), save, load, run(k), prompt by prompt.
"""

from __future__ import annotations

import time
from collections import Counter
from collections.abc import Iterable, Sequence
from dataclasses import dataclass

import numpy as np

from .config import CurriculumConfig
from .errors import PoolExhausted, StateMismatch, UnknownPrompt
from .metrics import NAN, PredictionTrack, batch_shares
from .pool import Exploration, PromptPool
from .selectors import Uniform
from .types import Gate, GroupOutcome, PassRateEstimator, Prediction, Prompt, Selector, State

_COUNTS = ("drawn", "chosen", "skipped", "explored", "fallback", "admitted", "rejected", "failed", "duplicates",
           "invalid_predictions", "predicted_dead", "settled_batches", "tokens", "groups_with_tokens")  # fmt: skip


@dataclass(frozen=True, slots=True)
class Settlement:
    """One outcome with what was known before its rollout.

    because: "uniform", "warmup", "selected", "explored", "fallback", or "duplicate" for an outcome of a prompt that
    was not in flight (ignored). predicted_mean, predicted_strength: the belief before the rollout; NaN for duplicates.
    """

    outcome: GroupOutcome
    because: str
    predicted_mean: float
    predicted_strength: float
    admitted: bool


class Curriculum:
    """Composes a pool, an estimator, a selector and a gate. Make one with ``make_curriculum``."""

    def __init__(self, method: str, pool: PromptPool, estimator: PassRateEstimator, selector: Selector, gate: Gate,
                 config: CurriculumConfig) -> None:  # fmt: skip
        self.method, self.pool, self.config = method, pool, config
        self.estimator, self.selector, self.gate = estimator, selector, gate
        self._exploration = Exploration(pool, config.explore, config.seed)
        self._rng = np.random.default_rng([config.seed, 1])
        self._in_flight: dict[str, tuple[str, float, float]] = {}  # key -> because, predicted mean, strength
        self._count = Counter(dict.fromkeys(_COUNTS, 0))
        self._track = PredictionTrack()
        self._last: dict[str, float] = {"seconds_selecting": 0.0, "seconds_learning": 0.0}

    @property
    def in_flight(self) -> frozenset[str]:
        """Keys proposed and not settled yet."""
        return frozenset(self._in_flight)

    @property
    def track(self) -> PredictionTrack:
        return self._track

    def propose(self, n: int) -> list[Prompt]:
        """``n`` distinct prompts to roll out, none of them in flight. Raises PoolExhausted if the pool has fewer."""
        started = time.perf_counter()
        if (free := len(self.pool) - len(self._in_flight)) < n:
            raise PoolExhausted(
                f"{n} prompts asked for, but the pool has {len(self.pool)} of which {len(self._in_flight)} are in flight "
                f"({free} free): use a smaller batch, more prompts, or settle or release what is in flight"
            )
        taken = {self.pool.index_of(key) for key in self._in_flight}
        explored = self._exploration.draw(n, taken)
        self._fly(explored, "explored", self._predict(explored))
        self._count.update(drawn=len(explored), explored=len(explored))
        chosen = explored + self._select(n - len(explored), taken | set(explored))
        self._count["chosen"] += len(chosen)
        self._last["seconds_selecting"] = time.perf_counter() - started
        return [self.pool.prompts[i] for i in chosen]

    def _select(self, n: int, taken: set[int]) -> list[int]:
        """``n`` indices by the selector, from at most ``candidate_factor * n`` candidates; the best-ranked rest fills."""
        warm = self._count["settled_batches"] < self.config.warmup_steps
        selector: Selector = Uniform() if warm else self.selector
        because = "warmup" if warm else "uniform" if isinstance(selector, Uniform) else "selected"
        budget, chosen, rest = n * self.config.candidate_factor, [], []
        while len(chosen) < n and budget > 0:
            drawn = self.pool.draw(min(selector.appetite(n - len(chosen)), budget), taken)
            if not drawn:
                break
            prediction = self._predict(drawn)
            decision = selector.select([self.pool.prompts[i] for i in drawn], prediction, n - len(chosen), self._rng)
            self._fly([drawn[i] for i in decision.chosen], because, prediction.take(decision.chosen))
            chosen += [drawn[i] for i in decision.chosen]
            rest += [(float(decision.score_P[i]), drawn[i], reason, prediction.take([i]))
                     for i, reason in decision.skipped.items()]  # fmt: skip
            taken, budget = taken | set(drawn), budget - len(drawn)
            self._count["drawn"] += len(drawn)
        rest.sort(key=lambda row: -row[0])
        fill, skipped = rest[: n - len(chosen)], rest[n - len(chosen) :]
        for _, index, _, prediction in fill:
            self._fly([index], "fallback", prediction)
        predicted_dead = sum(reason != "surplus" for _, _, reason, _ in skipped)
        self._count.update(fallback=len(fill), skipped=len(skipped), predicted_dead=predicted_dead)
        return chosen + [index for _, index, _, _ in fill]

    def _predict(self, indices: Sequence[int]) -> Prediction:
        """The estimator's beliefs; one that is not a Beta (NaN, infinite) becomes Beta(1, 1) and is counted."""
        if not indices:
            return Prediction(np.empty(0), np.empty(0))
        raw = self.estimator.predict([self.pool.prompts[i] for i in indices])
        mean_P, strength_P = np.asarray(raw.mean_P, dtype=float), np.asarray(raw.strength_P, dtype=float)
        with np.errstate(invalid="ignore"):
            valid_P = (mean_P >= 0) & (mean_P <= 1) & (strength_P > 0) & np.isfinite(strength_P)
        self._count["invalid_predictions"] += int((~valid_P).sum())
        return Prediction(np.where(valid_P, np.clip(mean_P, 1e-6, 1 - 1e-6), 0.5), np.where(valid_P, strength_P, 2.0))

    def _fly(self, indices: Sequence[int], because: str, prediction: Prediction) -> None:
        for i, mean, strength in zip(indices, prediction.mean_P, prediction.strength_P, strict=True):
            self._in_flight[self.pool.prompts[i].key] = (because, float(mean), float(strength))

    def settle(self, outcomes: Iterable[GroupOutcome]) -> list[Settlement]:
        """Judges and learns from finished groups, in any order and number; one settlement per outcome, in order.

        A second outcome of the same proposal is ignored and counted. Raises UnknownPrompt, with nothing changed, if
        an outcome's key is not in the pool.
        """
        outcomes = list(outcomes)
        for outcome in outcomes:
            if outcome.key not in self.pool:
                raise UnknownPrompt(f"outcome of {outcome.key!r}: no prompt of this pool has that key")
        started = time.perf_counter()
        settled = [self._settle_one(outcome) for outcome in outcomes]
        fresh = [s for s in settled if s.because != "duplicate"]
        if any(s.outcome.n_scored for s in fresh):
            self._count["settled_batches"] += 1
        if fresh:
            self.estimator.observe([s.outcome for s in fresh])
            predicted = float(np.mean([s.predicted_mean for s in fresh]))
            self._last |= batch_shares([s.outcome for s in fresh]) | {"predicted_mean": predicted}
        self._last["seconds_learning"] = time.perf_counter() - started
        return settled

    def _settle_one(self, outcome: GroupOutcome) -> Settlement:
        flight = self._in_flight.pop(outcome.key, None)
        if flight is None:
            self._count["duplicates"] += 1
            return Settlement(outcome, "duplicate", NAN, NAN, admitted=False)
        because, mean, strength = flight
        admitted = outcome.n_scored > 0 and self.gate.admit(outcome)
        self._count["failed" if outcome.n_scored == 0 else "admitted" if admitted else "rejected"] += 1
        if outcome.n_tokens is not None:
            self._count.update(tokens=outcome.n_tokens, groups_with_tokens=1)
        if outcome.n_scored > 0:
            belief = Prediction(np.array([mean]), np.array([strength]))
            self._track.add(mean, float(belief.p_mixed(outcome.group_size)[0]), outcome)
        return Settlement(outcome, because, mean, strength, admitted)

    def release(self, keys: Iterable[str] | None = None) -> int:
        """Gives up on prompts in flight (all by default) whose outcomes will never come; they count as failed."""
        lost = self.in_flight if keys is None else self.in_flight & set(keys)
        for key in lost:
            del self._in_flight[key]
        self._count["failed"] += len(lost)
        return len(lost)

    def metrics(self) -> dict[str, float]:
        """Counts since the start; shares and seconds of the last batch; predictions judged over the last 1,024 groups.

        rollouts_saved: G for each candidate skipped because of its prediction, the price of rolling those out too;
        tokens_saved: the same in completion tokens, at the mean length seen so far (NaN while unknown).
        """
        saved = self._count["predicted_dead"] * self.config.group_size
        known = self._count["groups_with_tokens"]
        per_rollout = self._count["tokens"] / (known * self.config.group_size) if known else NAN
        counts = {name: float(self._count[name]) for name in _COUNTS} | {"in_flight": float(len(self._in_flight))}
        chosen = max(self._count["chosen"], 1)
        shares = {f"{name}_share": self._count[name] / chosen for name in ("explored", "fallback")}
        own = {f"estimator/{name}": value for name, value in self.estimator.metrics().items()}
        saved_metrics = {"rollouts_saved": float(saved), "tokens_saved": saved * per_rollout}
        return counts | shares | self._last | self._track.metrics() | saved_metrics | own

    def state_dict(self) -> State:
        """Everything a resumed run needs to go on as if it had never stopped; ``checkpoint.save_state`` writes it."""
        return {
            "version": 1, "method": self.method, "pool": self.pool.state_dict(),
            "exploration": self._exploration.state_dict(), "estimator": self.estimator.state_dict(),
            "rng": self._rng.bit_generator.state, "in_flight": {k: list(v) for k, v in self._in_flight.items()},
            "counts": dict(self._count), "track": self._track.state_dict(),
        }  # fmt: skip

    def load_state_dict(self, state: State) -> None:
        """Strict: raises StateMismatch on unknown or missing fields, another method, data set or estimator."""
        own = self.state_dict()
        if set(state) != set(own) or set(state["counts"]) != set(own["counts"]):
            raise StateMismatch(f"the saved state has fields {sorted(state)}, this version expects {sorted(own)}")
        for name in ("version", "method"):
            if state[name] != own[name]:
                raise StateMismatch(
                    f"the saved state has {name} {state[name]!r}, this run has {own[name]!r}: resume with the {name} "
                    "the run was started with, or start anew in another folder"
                )
        self.pool.load_state_dict(state["pool"])
        self._exploration.load_state_dict(state["exploration"])
        self.estimator.load_state_dict(state["estimator"])
        self._rng.bit_generator.state = state["rng"]
        self._in_flight = {k: (str(b), float(m), float(s)) for k, (b, m, s) in state["in_flight"].items()}
        self._count = Counter({name: int(value) for name, value in state["counts"].items()})
        self._track.load_state_dict(state["track"])
