"""How good the predictions are, and what the curriculum did: counts that always add up, and a rolling judgement."""

from __future__ import annotations

from collections import deque
from collections.abc import Iterable, Mapping, Sequence

import numpy as np
from numpy.typing import ArrayLike, NDArray

from .breadth import Breadth
from .errors import StateMismatch, expect_fields
from .types import Flight, FloatArray, Gate, GroupOutcome, Prediction, Settlement, State

NAN = float("nan")
REASONS = ("explored", "fallback", "guarded")  # why a prompt was chosen, where that is counted
BY_PREDICTION = ("selected", "fallback")
COUNTS = (
    *("drawn", "chosen", "skipped", *REASONS),
    *("admitted", "rejected", "failed", "duplicates", "invalid_predictions"),
)
LAST_BATCH = ("mixed_share", "all_pass_share", "all_fail_share", "observed_mean", "predicted_mean")


def auc(score_P: ArrayLike, truth_P: ArrayLike) -> float:
    """Probability that a true one scores above a false one (ties count half); NaN if either class is absent."""
    from scipy.stats import rankdata

    score, truth = np.asarray(score_P, dtype=np.float64), np.asarray(truth_P, dtype=bool)
    n_true, n_false = int(truth.sum()), int((~truth).sum())
    if n_true == 0 or n_false == 0:
        return NAN
    return float((rankdata(score)[truth].sum() - n_true * (n_true + 1) / 2) / (n_true * n_false))


def log_losses(probability_P: ArrayLike, truth_P: ArrayLike) -> FloatArray:
    """Of each binary truth its negative log-likelihood in nats, shape (P,); probabilities within [1e-6, 1 - 1e-6]."""
    p_P = np.clip(np.asarray(probability_P, dtype=np.float64), 1e-6, 1 - 1e-6)
    truth = np.asarray(truth_P, dtype=np.float64)
    losses_P: FloatArray = -(truth * np.log(p_P) + (1 - truth) * np.log1p(-p_P))
    return losses_P


def log_loss(probability_P: ArrayLike, truth_P: ArrayLike) -> float:
    """Mean of ``log_losses``; NaN without data."""
    losses_P = log_losses(probability_P, truth_P)
    return float(losses_P.mean()) if len(losses_P) else NAN


def reliability(probability_P: ArrayLike, truth_P: ArrayLike, bins: int = 15) -> list[dict[str, float]]:
    """Rows of {predicted, observed, count} for the non-empty ones of ``bins`` equal-width bins of [0, 1]."""
    p, truth = np.asarray(probability_P, dtype=np.float64), np.asarray(truth_P, dtype=np.float64)
    which = np.minimum((p * bins).astype(int), bins - 1)
    return [
        {"predicted": float(p[m].mean()), "observed": float(truth[m].mean()), "count": int(m.sum())}
        for m in (which == b for b in range(bins))
        if m.any()
    ]


def ece(probability_P: ArrayLike, truth_P: ArrayLike, bins: int = 15) -> float:
    """Expected calibration error: |predicted - observed| averaged over bins by their counts; NaN without data."""
    rows = reliability(probability_P, truth_P, bins)
    total = sum(row["count"] for row in rows)
    return sum(row["count"] * abs(row["predicted"] - row["observed"]) for row in rows) / total if total else NAN


def ece_floor(probability_P: ArrayLike, bins: int = 15) -> float:
    """What ``ece`` is expected to be, in [0, 0.5], if the truths are drawn from the probabilities themselves.

    So much of an ECE is chance: 0.02 with 2,000 groups, 0.06 to 0.1 with 200. A bin of n truths of mean probability p
    deviates by E|X - n p| with X ~ Binomial(n, p), which is 2 m C(n, m) p^m (1 - p)^(n - m + 1), m = floor(n p) + 1
    (de Moivre; Diaconis and Zabell, 1991). That the probabilities of a bin are not all p makes it a little too large,
    by a few per cent at most with 15 bins. NaN without data.
    """
    from scipy.special import gammaln

    p = np.asarray(probability_P, dtype=np.float64)
    if not len(p):
        return NAN
    which = np.minimum((p * bins).astype(int), bins - 1)
    n_B = np.bincount(which, minlength=bins)
    mean_B = np.bincount(which, p, bins)[n_B > 0] / n_B[n_B > 0]
    n_B, mean_B = n_B[n_B > 0], np.clip(mean_B, 1e-12, 1 - 1e-12)
    m_B = np.minimum(np.floor(n_B * mean_B) + 1, n_B)
    log_choose_B = gammaln(n_B + 1) - gammaln(m_B + 1) - gammaln(n_B - m_B + 1)
    log_B = np.log(2 * m_B) + log_choose_B + m_B * np.log(mean_B) + (n_B - m_B + 1) * np.log1p(-mean_B)
    return float(np.exp(log_B).sum() / len(p))


def judged(p_mixed_P: ArrayLike, mixed_P: ArrayLike) -> dict[str, float]:
    """log_loss, auc_mixed, ece and ece_floor of predicted P(mixed) against what became of the groups, shape (P,)."""
    return {
        "log_loss": log_loss(p_mixed_P, mixed_P),
        "auc_mixed": auc(p_mixed_P, mixed_P),
        "ece": ece(p_mixed_P, mixed_P),
        "ece_floor": ece_floor(p_mixed_P),
    }


class PredictionTrack:
    """The last ``size`` scored groups, each with what had been predicted before its rollout."""

    def __init__(self, size: int = 1024) -> None:
        self._rows: deque[tuple[float, ...]] = deque(maxlen=size)

    def __len__(self) -> int:
        return len(self._rows)

    def add(self, settlements: Sequence[Settlement]) -> None:
        """P(mixed) is of the group as it was scored: a partial group is a smaller one."""
        for n in sorted({s.outcome.n_scored for s in settlements} - {0}):
            same = [s for s in settlements if s.outcome.n_scored == n]
            belief = Prediction(
                np.array([s.predicted_mean for s in same]), np.array([s.predicted_strength for s in same])
            )
            for s, p_mixed in zip(same, belief.p_mixed(n).tolist(), strict=True):
                self._rows.append((s.predicted_mean, p_mixed, s.outcome.n_correct / n, float(s.outcome.mixed)))

    def columns(self) -> tuple[FloatArray, FloatArray, FloatArray, FloatArray]:
        """(predicted mean, predicted P(mixed), observed pass rate, mixed), each of shape (rows,)."""
        array = np.array(self._rows, dtype=np.float64).reshape(-1, 4)
        return array[:, 0], array[:, 1], array[:, 2], array[:, 3]

    def metrics(self) -> dict[str, float]:
        _, p_mixed, _, mixed = self.columns()
        return judged(p_mixed, mixed)

    def state_dict(self) -> State:
        return {"rows": np.array(self._rows, dtype=np.float64).reshape(-1, 4)}

    def load_state_dict(self, state: State) -> None:
        expect_fields("track", state, self.state_dict())
        rows = [tuple(row) for row in np.asarray(state["rows"], dtype=np.float64).reshape(-1, 4).tolist()]
        self._rows.clear()
        self._rows.extend(rows)


class Ledger:
    """What a curriculum did: prompts in flight, counts since the start, the last batch, predictions against results.

    At every moment drawn = chosen + skipped, and chosen = admitted + rejected + failed + in flight, which is the sum of
    ``breadth.visits``. index, source_of: of the pool, see ``Breadth``.
    reward_range: groups count by their rewards, in that range (``GroupOutcome.graded``); None: by correctness.
    """

    def __init__(
        self, index: Mapping[str, int], source_of: NDArray[np.int64], reward_range: tuple[float, float] | None = None
    ) -> None:
        self.breadth, self._reward_range = Breadth(index, source_of), reward_range
        self.flights: dict[str, Flight] = {}  # by key
        self.count = dict.fromkeys(COUNTS, 0)
        self._wasted_groups, self._tokens, self._rollouts_with_tokens = 0.0, 0, 0
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
        """Books a proposal. wasted_groups: expected groups without a gradient among those the prediction skipped."""
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
        self._add(**{"failed" if outcome.n_scored == 0 else "admitted" if admitted else "rejected": 1})
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
        """Counts since the start, shares and seconds of the last batch, predictions judged over the last 1,024 groups.

        NaN while unknown. How widely was chosen: ``Breadth.metrics``. ``docs/metrics.md`` is made from these lines.

        drawn: candidates looked at, chosen or skipped. chosen: prompts proposed. skipped: candidates that the
        prediction left out. explored: prompts chosen whatever the prediction. fallback: best-ranked rest that filled a
        batch for which too few candidates qualified. guarded: prompts chosen uniformly because the guard was engaged.
        admitted: groups to train on. rejected: scored groups that the gate did not admit. failed: groups of which
        nothing could be judged, or that never came back. duplicates: second outcomes of one proposal, ignored.
        invalid_predictions: beliefs that were not numbers, replaced by Beta(1, 1). in_flight: prompts proposed and not
        settled yet.
        explored_share, fallback_share, guarded_share: those as shares of the prompts chosen.
        mixed_share: of the scored groups, those with right and wrong answers, which teach. all_pass_share: those that
        are all right. all_fail_share: those that are all wrong. observed_mean: mean pass rate of the scored groups.
        predicted_mean: mean pass rate predicted for them before the rollout.
        seconds_selecting: of choosing a batch. seconds_learning: of learning from one.
        log_loss: nats per group of the predicted P(mixed); below that of a constant is good, 0.69 is a coin's.
        auc_mixed: probability that a mixed group was given a larger P(mixed) than one that was not; 0.5 is chance.
        ece: expected calibration error of P(mixed). ece_floor: what of it is chance with as many groups.
        rollouts_saved: expected rollouts in groups without a gradient among the candidates that the prediction skipped,
        the waste of rolling those out too. tokens_saved: the same in completion tokens, at the mean length so far.
        """
        counts = {name: float(value) for name, value in self.count.items()}
        chosen = self.count["chosen"]
        shares = {f"{name}_share": self.count[name] / chosen if chosen else NAN for name in REASONS}
        saved = self._wasted_groups * group_size
        tokens = saved * self._tokens / self._rollouts_with_tokens if self._rollouts_with_tokens else NAN
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
        count, last = {k: int(state["count"][k]) for k in COUNTS}, {k: float(state["last"][k]) for k in LAST_BATCH}
        tokens, rollouts = int(state["tokens"]), int(state["rollouts_with_tokens"])
        wasted = float(state["wasted_groups"])
        flights = {k: Flight(str(b), *map(float, belief)) for k, (b, *belief) in state["in_flight"].items()}
        if (visited := int(np.sum(state["breadth"]["visits"]))) != count["chosen"]:
            raise StateMismatch(
                f"ledger state counts {count['chosen']} prompts as chosen and {visited} visits, which must be as many: "
                "resume from another checkpoint"
            )
        self.track.load_state_dict(state["track"])
        self.breadth.load_state_dict(state["breadth"])
        self.count, self._last, self._wasted_groups = count, last, wasted
        self._tokens, self._rollouts_with_tokens, self.flights = tokens, rollouts, flights


def batch_shares(outcomes: Sequence[GroupOutcome]) -> dict[str, float]:
    """mixed_share, all_pass_share, all_fail_share and observed_mean of the scored groups; NaN if there is none."""
    scored = [o for o in outcomes if o.n_scored > 0]
    if not scored:
        return dict.fromkeys(("mixed_share", "all_pass_share", "all_fail_share", "observed_mean"), NAN)
    return {
        "mixed_share": sum(o.mixed for o in scored) / len(scored),
        "all_pass_share": sum(o.all_pass for o in scored) / len(scored),
        "all_fail_share": sum(o.all_fail for o in scored) / len(scored),
        "observed_mean": sum(o.n_correct / o.n_scored for o in scored) / len(scored),
    }
