"""What a curriculum did: prompts in flight, counts that always add up, predictions against what
became of them."""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence

import numpy as np
from numpy.typing import NDArray

from .breadth import Breadth
from .errors import StateMismatch, expect_fields
from .metrics import NAN, PredictionTrack, batch_shares
from .protocols import Gate
from .types import Flight, GroupOutcome, Settlement, State

REASONS = ("explored", "fallback", "guarded")  # why a prompt was chosen, where that is counted
BY_PREDICTION = ("selected", "fallback")
COUNTS = (
    *("drawn", "chosen", "skipped", *REASONS),
    *("admitted", "rejected", "failed", "duplicates", "invalid_predictions"),
)
LAST_BATCH = ("mixed_share", "all_pass_share", "all_fail_share", "observed_mean", "predicted_mean")


class Ledger:
    """What a curriculum did: prompts in flight, counts since the start, the last batch, predictions
    against results.

    At every moment drawn = chosen + skipped, and chosen = admitted + rejected + failed + in flight,
    which is the sum of ``breadth.visits``. index, source_of: of the pool, see ``Breadth``.
    reward_range: groups count by their rewards, in that range (``GroupOutcome.graded``); None: by
    correctness.
    """

    def __init__(
        self,
        index: Mapping[str, int],
        source_of: NDArray[np.int64],
        reward_range: tuple[float, float] | None = None,
    ) -> None:
        self.breadth = Breadth(index, source_of)
        self._reward_range = reward_range
        self.flights: dict[str, Flight] = {}  # by key
        self.count = dict.fromkeys(COUNTS, 0)
        self._wasted_groups = 0.0
        self._tokens = 0
        self._rollouts_with_tokens = 0
        self._last = dict.fromkeys(LAST_BATCH, NAN)
        self._seconds = {"seconds_selecting": 0.0, "seconds_learning": 0.0}
        self.track = PredictionTrack()

    @property
    def n_scored(self) -> int:
        """Groups settled so far that had at least one scored completion."""
        return self.count["admitted"] + self.count["rejected"]

    def adopt(self, flights: Mapping[str, Flight]) -> None:
        """Books what an engine chose by an order of its own; it may hand a batch over in parts."""
        self.depart(flights, joins=True)

    def depart(
        self,
        flights: Mapping[str, Flight],
        n_skipped: int = 0,
        wasted_groups: float = 0.0,
        seconds: float = 0.0,
        joins: bool = False,
    ) -> None:
        """Books a proposal. wasted_groups: expected groups without a gradient among those the
        prediction skipped."""
        self.flights |= flights
        self.breadth.add(flights, joins)
        reasons = [flight.because for flight in flights.values()]
        self._add(drawn=len(flights) + n_skipped, chosen=len(flights), skipped=n_skipped)
        self._add(**{name: reasons.count(name) for name in REASONS})
        self._wasted_groups += wasted_groups
        self._seconds["seconds_selecting"] = seconds

    def land(self, outcome: GroupOutcome, gate: Gate) -> Settlement:
        """The settlement of one outcome, which is no longer in flight."""
        if self._reward_range is not None:
            outcome = outcome.graded(*self._reward_range)
        flight = self.flights.pop(outcome.key, None)
        self.breadth.close()
        if flight is None:
            self._add(duplicates=1)
            return Settlement(outcome, "duplicate", NAN, NAN, NAN, NAN, admitted=False)
        admitted = outcome.n_scored > 0 and gate.admit(outcome)
        scored_as = "admitted" if admitted else "rejected"
        self._add(**{scored_as if outcome.n_scored else "failed": 1})
        if outcome.n_tokens is not None:
            self._tokens += outcome.n_tokens
            self._rollouts_with_tokens += outcome.group_size
        return Settlement(outcome, *flight, admitted=admitted)

    def judge(self, fresh: Sequence[Settlement], seconds: float) -> None:
        """Books a finished batch: its shares, and what had been predicted of it."""
        self._seconds["seconds_learning"] = seconds
        if fresh:
            self.track.add(fresh)
            predicted = [s.predicted_mean for s in fresh if s.outcome.n_scored > 0]
            self._last = batch_shares([s.outcome for s in fresh])
            self._last["predicted_mean"] = sum(predicted) / len(predicted) if predicted else NAN

    def inclusions(self, keys: Iterable[str]) -> list[float]:
        """As ``Flight.inclusion``, of each of these prompts; 1 for one that is not in flight."""
        return [self.flights[key].inclusion if key in self.flights else 1.0 for key in keys]

    def predicted(self, keys: Iterable[str]) -> list[float]:
        """Pass rate that was predicted for each of these prompts; NaN for one that is not in
        flight."""
        return [self.flights[key].predicted_mean if key in self.flights else NAN for key in keys]

    def lose(self, keys: Iterable[str]) -> int:
        """Books prompts in flight that will never come back as failed; how many they were."""
        self.breadth.close()
        lost = self.flights.keys() & set(keys)
        for key in lost:
            del self.flights[key]
        self._add(failed=len(lost))
        return len(lost)

    def _add(self, **counts: int) -> None:
        for name, value in counts.items():
            self.count[name] += value

    def metrics(self, group_size: int) -> dict[str, float]:
        """Counts since the start, shares and seconds of the last batch, predictions judged over the
        last 1,024 groups.

        NaN while unknown. How widely was chosen: ``Breadth.metrics``. ``docs/metrics.md`` is made
        from these lines.

        drawn: candidates looked at, chosen or skipped. chosen: prompts proposed. skipped:
        candidates that the prediction left out. explored: prompts chosen whatever the prediction.
        fallback: best-ranked rest that filled a batch for which too few candidates qualified.
        guarded: prompts chosen uniformly because the guard was engaged. admitted: groups to train
        on. rejected: scored groups that the gate did not admit. failed: groups of which nothing
        could be judged, or that never came back. duplicates: second outcomes of one proposal,
        ignored. invalid_predictions: beliefs that were not numbers, replaced by Beta(1, 1).
        in_flight: prompts proposed and not settled yet. explored_share, fallback_share,
        guarded_share: those as shares of the prompts chosen. mixed_share: of the scored groups,
        those with right and wrong answers, which teach. all_pass_share: those that are all right.
        all_fail_share: those that are all wrong. observed_mean: mean pass rate of the scored
        groups. predicted_mean: mean pass rate predicted for them before the rollout.
        seconds_selecting: of choosing a batch. seconds_learning: of learning from one. log_loss:
        nats per group of the predicted P(mixed); below that of a constant is good, 0.69 is a
        coin's. auc_mixed: probability that a mixed group was given a larger P(mixed) than one that
        was not; 0.5 is chance. ece: expected calibration error of P(mixed). ece_floor: what of it
        is chance with as many groups. rollouts_saved: expected rollouts in groups without a
        gradient among the candidates that the prediction skipped, the waste of rolling those out
        too. tokens_saved: the same in completion tokens, at the mean length so far.
        """
        counts = {name: float(value) for name, value in self.count.items()}
        chosen = self.count["chosen"]
        shares = {f"{name}_share": self.count[name] / chosen if chosen else NAN for name in REASONS}
        saved = self._wasted_groups * group_size
        known = self._rollouts_with_tokens
        tokens = saved * self._tokens / known if known else NAN
        return {
            **counts,
            **shares,
            **self._last,
            **self._seconds,
            **self.track.metrics(),
            **self.breadth.metrics(),
            "in_flight": float(len(self.flights)),
            "rollouts_saved": saved,
            "tokens_saved": tokens,
        }

    def state_dict(self) -> State:
        return {
            "in_flight": {key: list(flight) for key, flight in self.flights.items()},
            "count": dict(self.count),
            "wasted_groups": self._wasted_groups,
            "tokens": self._tokens,
            "rollouts_with_tokens": self._rollouts_with_tokens,
            "last": dict(self._last),
            "track": self.track.state_dict(),
            "breadth": self.breadth.state_dict(),
        }

    def load_state_dict(self, state: State) -> None:
        own = self.state_dict()
        expect_fields("ledger", state, own)
        for name in ("count", "last"):
            expect_fields(f"ledger {name}", state[name], own[name])
        count = {k: int(state["count"][k]) for k in COUNTS}
        last = {k: float(state["last"][k]) for k in LAST_BATCH}
        tokens = int(state["tokens"])
        rollouts = int(state["rollouts_with_tokens"])
        wasted = float(state["wasted_groups"])
        flights = {
            k: Flight(str(b), *map(float, belief)) for k, (b, *belief) in state["in_flight"].items()
        }
        if (visited := int(np.sum(state["breadth"]["visits"]))) != count["chosen"]:
            raise StateMismatch(
                f"ledger state counts {count['chosen']} prompts as chosen and {visited} visits, which must be as many: "
                "resume from another checkpoint"
            )
        self.track.load_state_dict(state["track"])
        self.breadth.load_state_dict(state["breadth"])
        self.count = count
        self._last = last
        self._wasted_groups = wasted
        self._tokens = tokens
        self._rollouts_with_tokens = rollouts
        self.flights = flights
