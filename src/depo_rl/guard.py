"""The guard: while the predictions are worse than a constant, prompts are chosen uniformly.

Rule (ours). The record holds the latest ``RECORD`` judged groups with the P(mixed) that was
predicted of each; a group is judged if two completions or more were scored, for of one it is known
beforehand that it is not mixed. Of each group

    d = log-loss of its predicted P(mixed) - log-loss of the constant, in nats                                       (1)

The constant is what uniform choice is worth: the mixed share of the latest fair groups, those
rolled out whatever was predicted (warm-up, explored, guarded). Against the best constant of the
chosen groups alone an estimator that finds more mixed groups than uniform choice, though fewer than
it says, would count as worse: held back for its success. Where fair groups are too few, and while
engaged, when all are fair, it is the mixed share of the record itself.

* engages when, over at least ``LEAST`` groups, the mean of d is above 0 by more than two standard
  errors, and the sum of d is above ``EXCESS``;
* releases when, over at least ``LEAST`` fair groups since, the mean of d is not above 0 any more.

Either change starts a new record: what was bad before cannot count twice. While engaged, groups
chosen by prediction before and coming back late are left out.
"""

from __future__ import annotations

import logging
import math
from collections import deque
from collections.abc import Sequence

import numpy as np

from .errors import StateMismatch, expect_fields
from .ledger import BY_PREDICTION
from .metrics import PredictionTrack, log_losses
from .types import Settlement, State

LEAST = 256  # two batches of 128: the standard error of d is then some 0.04 nats, an inverted estimator's d above 0.3
RECORD = 512  # four batches of 128: enough to be sure, few enough that a good past does not hide a bad present for long
FAIR = 64  # fair groups from which on their mixed share is known to 0.06, which costs a constant 0.01 nats at most
STANDARD_ERRORS = 2.0
# Two standard errors alone cry wolf: judged after each of 100 steps, a calibrated estimator with
# little to tell apart exceeds them now and then. But if predictions are calibrated, whatever was
# chosen by them, exp(sum of d) against any constant fixed beforehand has mean 1, and the best one
# in hindsight gains a factor of at most 2 sqrt(RECORD) (of Krichevsky and Trofimov, 1981). So by
# Markov's inequality a sum above ln(100 * 2 sqrt(512) / 0.01) = 13.02 occurs at any of 100
# judgements with probability below 1 %.
EXCESS = math.log(100 * 2 * math.sqrt(RECORD) / 0.01)

_log = logging.getLogger(__name__)


class Guard:
    """Says whether to choose uniformly. on: False never does, and keeps no record."""

    def __init__(self, on: bool) -> None:
        self.on = on
        self.engaged = False
        self._record = PredictionTrack(RECORD)
        # 1 for each mixed one of the latest fair groups, else 0
        self._fair: deque[float] = deque(maxlen=RECORD)

    def observe(self, settled: Sequence[Settlement], learnt: bool = True) -> None:
        """Takes finished groups down; those that could not be judged, and late ones of before, are
        left out.

        learnt: False for the first groups of a run: what was predicted before anything was learnt
        is no prediction.
        """
        if self.on:
            judged = [s for s in settled if s.outcome.n_scored >= 2]
            fair = [s for s in judged if s.because not in BY_PREDICTION]
            self._fair.extend(float(s.outcome.mixed) for s in fair)
            if learnt:
                self._record.add(fair if self.engaged else judged)

    def judge(self) -> bool:
        """Engages or releases as the record says, tells the log if that is a change, and returns
        ``engaged``."""
        if not self.on or len(self._record) < LEAST:
            return self.engaged
        _, p_mixed_P, _, mixed_P = self._record.columns()
        own = self.engaged or len(self._fair) < FAIR
        constant = float(mixed_P.mean()) if own else sum(self._fair) / len(self._fair)
        loss_P = log_losses(p_mixed_P, mixed_P)
        constant_P = log_losses(np.full_like(mixed_P, constant), mixed_P)
        worse_P = loss_P - constant_P
        error = float(worse_P.std(ddof=1)) / math.sqrt(len(worse_P))
        sure = float(worse_P.mean()) > STANDARD_ERRORS * error and float(worse_P.sum()) > EXCESS
        if self.engaged == (bool(worse_P.mean() > 0.0) if self.engaged else sure):
            return self.engaged
        self.engaged = not self.engaged
        self._record = PredictionTrack(RECORD)
        _log.warning(
            "guard: over %d groups the log-loss of the predicted P(mixed) is %.3f nats, a constant's %.3f: %s",
            *(len(worse_P), loss_P.mean(), constant_P.mean()),
            "choosing uniformly until it is better"
            if self.engaged
            else "choosing by prediction again",
        )
        return self.engaged

    def state_dict(self) -> State:
        return {
            "engaged": self.engaged,
            "record": self._record.state_dict(),
            "fair": np.array(self._fair, dtype=float),
        }

    def load_state_dict(self, state: State) -> None:
        """Raises StateMismatch or ValueError, with nothing changed, if ``state`` is not a
        guard's."""
        expect_fields("guard", state, self.state_dict())
        if not isinstance(engaged := state["engaged"], bool):
            raise StateMismatch(
                f"guard state: engaged is {engaged!r}, not true or false: resume from another checkpoint"
            )
        fair = np.asarray(state["fair"], dtype=float).reshape(-1).tolist()
        self._record.load_state_dict(state["record"])
        self._fair = deque(fair, maxlen=RECORD)
        self.engaged = engaged
