"""What several estimators share: time in policy steps, and Betas with a given P(mixed) or of a
fitted strength."""

from __future__ import annotations

from collections import deque
from collections.abc import Sequence

import numpy as np
from numpy.typing import NDArray

from ..errors import expect_fields
from ..types import FloatArray, GroupOutcome, Prediction, State

_WINDOW = 1024  # judged groups that the strength is fitted to
# strengths to choose from, a sixth apart
_GRID = np.exp(np.linspace(np.log(0.05), np.log(128.0), 48))
_PRECISION = 1.0  # of the normal prior on the logarithm of the strength, about the start


class StepClock:
    """Time in policy steps, as outcomes name them; where they do not, each batch that is learnt
    from is a step."""

    def __init__(self) -> None:
        self.now = 0

    def read(self, outcomes: Sequence[GroupOutcome]) -> int:
        """Moves on to the step of ``outcomes``, a batch that just finished, and returns it. Never
        goes back."""
        known = [o.policy_step for o in outcomes if o.policy_step is not None]
        self.now = max(self.now, *known) if known else self.now + 1
        return self.now


def beta_with_p_mixed(mean_P: FloatArray, p_mixed_P: FloatArray, group_size: int) -> Prediction:
    """The Betas of these means whose groups are mixed with these probabilities, by bisection on log
    strength.

    P(mixed) grows with the strength, from 0 to 1 - m^G - (1 - m)^G; what lies beyond gets a very
    strong Beta.
    """
    low_P = np.full(len(mean_P), -14.0)
    high_P = np.full(len(mean_P), 14.0)
    for _ in range(48):
        middle_P = (low_P + high_P) / 2
        too_weak_P = Prediction(mean_P, np.exp(middle_P)).p_mixed(group_size) < p_mixed_P
        low_P = np.where(too_weak_P, middle_P, low_P)
        high_P = np.where(too_weak_P, high_P, middle_P)
    return Prediction(mean_P, np.exp((low_P + high_P) / 2))


class Strength:
    """One strength for all predictions of an estimator that tells means alone.

    It is the one, of a grid from 0.05 to 128 equivalent rollouts, under which the latest judged
    groups are most likely (Beta-binomial), with a weak prior about ``start``, the value before
    anything is known.
    """

    def __init__(self, start: float) -> None:
        self._start = start
        self.value = start
        # predicted mean, correct, scored
        self._judged: deque[tuple[float, ...]] = deque(maxlen=_WINDOW)

    def judge(self, mean_P: FloatArray, counts_P2: FloatArray) -> None:
        """Takes in the predicted means, in (0, 1), and the completions right and scored, and fits
        anew.

        What is not finite is left out.
        """
        rows_P3 = np.column_stack([mean_P, counts_P2])
        self._judged.extend(
            tuple(row) for row in rows_P3[np.isfinite(rows_P3).all(axis=1)].tolist()
        )
        if self._judged:
            self.value = float(_GRID[np.argmax(self._log_posterior(np.array(self._judged)))])

    def _log_posterior(self, judged_J3: FloatArray) -> NDArray[np.float64]:
        """In nats, up to a constant, of each strength of the grid."""
        from scipy.special import betaln

        mean_J, correct_J, scored_J = judged_J3.T
        a_SJ = np.multiply.outer(_GRID, mean_J)
        b_SJ = np.multiply.outer(_GRID, 1.0 - mean_J)
        likelihood_SJ = betaln(a_SJ + correct_J, b_SJ + scored_J - correct_J) - betaln(a_SJ, b_SJ)
        prior_S = -0.5 * _PRECISION * np.log(_GRID / self._start) ** 2
        result: NDArray[np.float64] = likelihood_SJ.sum(axis=1) + prior_S
        return result

    def state_dict(self) -> State:
        return {
            "value": self.value,
            "judged": np.array(self._judged, dtype=np.float64).reshape(-1, 3),
        }

    def load_state_dict(self, state: State) -> None:
        """Raises StateMismatch or ValueError, with nothing changed, if malformed."""
        expect_fields("strength", state, self.state_dict())
        value = float(state["value"])
        judged = [
            tuple(row)
            for row in np.asarray(state["judged"], dtype=np.float64).reshape(-1, 3).tolist()
        ]
        self.value = value
        self._judged = deque(judged, _WINDOW)
