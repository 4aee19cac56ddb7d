"""Says once that choosing by prediction finds nothing: what it chose is mixed no more often than
what chance chose.

Rule (ours), over the latest ``SELECTED`` groups that the prediction chose and the latest ``FAIR``
ones that were rolled out whatever was predicted (warm-up, explored, guarded), with the mixed shares
s and f of n and m groups:

    d = s - f,    e = sqrt(s (1 - s) / n + f (1 - f) / m)                                                            (1)

It is said when d is below 2 e, so that nothing was found that noise would not explain, and d + 2 e
is below ``GAIN``, so that enough is known to leave out a gain that were worth having. The groups
are the latest because the policy moves, and not the first ``PATIENCE`` of those selected: a
prompt's own groups tell most, and come with the second visit.

A warning and no more: the guard is for predictions that are wrong; here they may be right and of no
use. On a pool of pass rates near 0 and 1, for one, a belief that knows little has a mean near one
half, and a window on the mean lets everything through.
"""

from __future__ import annotations

import logging
import math
from collections import deque
from collections.abc import Sequence

import numpy as np

from .config import CurriculumConfig
from .errors import StateMismatch, expect_fields
from .ledger import BY_PREDICTION
from .types import Settlement, State

SELECTED = 1024  # of 128 groups a step: eight steps of what was chosen
FAIR = 512  # the last four steps of the warm-up
PATIENCE = 2048
LEAST_FAIR = 64
GAIN = 0.08  # of the mixed share; uniform choice has 0.3 to 0.5 on pools of real models
STANDARD_ERRORS = 2.0

_log = logging.getLogger(__name__)


class Futility:
    """Listens to a run's groups and warns once. method, config: what the advice depends on."""

    def __init__(self, method: str, config: CurriculumConfig) -> None:
        self._advice = advice(method, config)
        self._selected: deque[float] = deque(maxlen=SELECTED)  # 1 for each mixed group, else 0
        self._fair: deque[float] = deque(maxlen=FAIR)
        self.told = False
        self._n_selected = 0
        # a draw that leaves others their part gains little where most teach
        self._gentle = config.temperature > 0.0

    def observe(self, settled: Sequence[Settlement]) -> None:
        """Takes finished groups down; of one with fewer than two scored completions nothing is
        known."""
        judged = [s for s in settled if s.outcome.n_scored >= 2]
        selected = [float(s.outcome.mixed) for s in judged if s.because == "selected"]
        self._selected.extend(selected)
        self._n_selected += len(selected)
        self._fair.extend(float(s.outcome.mixed) for s in judged if s.because not in BY_PREDICTION)
        if (
            not (self.told or self._gentle)
            and self._n_selected >= PATIENCE
            and len(self._fair) >= LEAST_FAIR
        ):
            self._judge()

    @property
    def fair_mixed_share(self) -> float:
        """Mixed share under uniform choice, in (0, 1): of the latest fair groups, with a Beta(4, 4)
        beforehand."""
        return (4.0 + sum(self._fair)) / (8.0 + len(self._fair))

    def _judge(self) -> None:
        n = len(self._selected)
        m = len(self._fair)
        selected = sum(self._selected) / n
        fair = sum(self._fair) / m
        if is_futile(selected, n, fair, m):
            self.told = True
            _log.warning(
                "%.1f %% of the latest %d groups that the prediction chose are mixed, of %d rolled out whatever was "
                "predicted %.1f %%: the choice finds nothing here; %s",
                *(100 * selected, n, m, 100 * fair, self._advice),
            )

    def state_dict(self) -> State:
        return {
            "told": self.told,
            "n_selected": self._n_selected,
            "selected": np.array(self._selected, dtype=float),
            "fair": np.array(self._fair, dtype=float),
        }

    def load_state_dict(self, state: State) -> None:
        """Raises StateMismatch or ValueError, with nothing changed, if ``state`` is not a
        futility's."""
        expect_fields("futility", state, self.state_dict())
        if not isinstance(told := state["told"], bool):
            raise StateMismatch(
                f"futility state: told is {told!r}, not true or false: resume from another checkpoint"
            )
        n_selected = int(state["n_selected"])
        selected, fair = (
            np.asarray(state[name], dtype=float).reshape(-1).tolist()
            for name in ("selected", "fair")
        )
        self.told = told
        self._n_selected = n_selected
        self._selected = deque(selected, SELECTED)
        self._fair = deque(fair, FAIR)


def is_futile(selected: float, n: int, fair: float, m: int) -> bool:
    """Rule (1), for mixed shares in [0, 1] of ``n`` selected and ``m`` fair groups, each at least
    1."""
    gain = selected - fair
    error = STANDARD_ERRORS * math.sqrt(selected * (1 - selected) / n + fair * (1 - fair) / m)
    return gain <= error and gain + error < GAIN


def advice(method: str, config: CurriculumConfig) -> str:
    """What to try instead, in words."""
    if method in ("depo", "depo+") and config.band == "window":
        return "band: auto, as depo+ has it, chooses by the probability of a mixed group instead of the pass rate"
    if method in ("depo", "depo+") and config.estimator.type == "fused":
        return "neither texts nor columns tell enough; a column of pass rates or estimator.warm_start would"
    return "method: depo+, with its band: auto, uses more of what is known of a prompt"
