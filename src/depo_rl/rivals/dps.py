"""DPS (arXiv 2603.10887): each prompt is a chain of three states, whose transitions are learnt from
its own groups."""

from __future__ import annotations

import math
from collections.abc import Sequence

import numpy as np
from numpy.typing import NDArray

from ..errors import expect_fields
from ..estimators.beliefs import StepClock, beta_with_p_mixed
from ..rivals_config import DPSSettings
from ..types import FloatArray, GroupOutcome, Prediction, Prompt, State

ALL_WRONG, MIXED, ALL_RIGHT = range(3)
_MOST_TICKS = 512  # by then a chain has settled, unless its transitions never fade


class DPSEstimator:
    """Per prompt, Dirichlet counts of the transitions between all wrong, mixed and all right, and a
    state belief.

    As the authors' code has it. With M = counts / their column sums (column: from, row: to), a
    group of state s after a belief q adds M[s] * q / (M[s] @ q) to row s of the counts, which fade
    towards the prior (``prior`` everywhere) by ``decay`` each step; the belief becomes certain of
    s. Without a group the belief moves on by M. The prediction is one step ahead: P(mixed) = (M
    q)[mixed]. An unseen prompt has a third.

    It is told as the Beta that has that P(mixed) for groups of ``group_size``, at the mean P(all
    right) + P(mixed) / 2. A group with fewer than two scored completions shows no state and teaches
    nothing.
    """

    def __init__(self, settings: DPSSettings, group_size: int) -> None:
        self.settings = settings
        self._group_size = group_size
        self._clock = StepClock()
        self._row: dict[str, int] = {}
        self._counts_R33 = np.empty((0, 3, 3))
        self._belief_R3 = np.empty((0, 3))
        self._step_R = np.empty(0, dtype=np.int64)  # as of which the row is

    def predict(self, prompts: Sequence[Prompt]) -> Prediction:
        states_P3 = self.states(prompts)
        mean_P = states_P3[:, ALL_RIGHT] + 0.5 * states_P3[:, MIXED]
        return beta_with_p_mixed(mean_P, states_P3[:, MIXED], self._group_size)

    def states(self, prompts: Sequence[Prompt]) -> FloatArray:
        """P(all wrong), P(mixed), P(all right) of each prompt's next group, shape (P, 3)."""
        states_P3 = np.full((len(prompts), 3), 1 / 3)
        known = [i for i, p in enumerate(prompts) if p.key in self._row]
        rows = np.array([self._row[prompts[i].key] for i in known], dtype=np.int64)
        counts_R33, belief_R3 = self._at(rows, self._clock.now)
        states_P3[known] = _moved(counts_R33, belief_R3)
        return states_P3

    def _at(self, rows: NDArray[np.int64], step: int) -> tuple[FloatArray, FloatArray]:
        """Counts and beliefs of ``rows`` as of ``step``, after the steps in which they had no
        group."""
        counts_R33 = self._counts_R33[rows]
        belief_R3 = self._belief_R3[rows]
        settled = (
            math.log(1e-9) / math.log(self.settings.decay)
            if 0 < self.settings.decay < 1
            else _MOST_TICKS
        )
        ticks_R = np.minimum(step - self._step_R[rows], min(math.ceil(settled), _MOST_TICKS))
        while (late := ticks_R > 0).any():
            belief_R3[late] = _moved(counts_R33[late], belief_R3[late])
            counts_R33[late] = self._faded(counts_R33[late])
            ticks_R = ticks_R - 1
        return counts_R33, belief_R3

    def _faded(self, counts_R33: FloatArray) -> FloatArray:
        return self.settings.decay * counts_R33 + (1 - self.settings.decay) * self.settings.prior

    def observe(self, outcomes: Sequence[GroupOutcome]) -> None:
        latest = {o.key: o for o in outcomes if o.n_scored >= 2}
        if not latest:
            return
        now = self._clock.read(list(latest.values()))
        self._make_room([key for key in latest if key not in self._row], now)
        rows = np.array([self._row[key] for key in latest])
        state_R = [
            ALL_RIGHT if o.all_pass else MIXED if o.mixed else ALL_WRONG for o in latest.values()
        ]
        counts_R33, before_R3 = self._at(rows, now - 1)
        at = np.arange(len(rows)), state_R
        into_R3 = _transitions(counts_R33)[at] * before_R3
        counts_R33 = self._faded(counts_R33)
        counts_R33[at] += into_R3 / into_R3.sum(axis=1, keepdims=True)
        self._counts_R33[rows] = counts_R33
        self._belief_R3[rows] = np.eye(3)[state_R]
        self._step_R[rows] = now

    def _make_room(self, keys: list[str], now: int) -> None:
        self._row |= {key: len(self._row) + i for i, key in enumerate(keys)}
        new = len(keys)
        self._counts_R33 = np.concatenate(
            [self._counts_R33, np.full((new, 3, 3), self.settings.prior)]
        )
        self._belief_R3 = np.concatenate([self._belief_R3, np.full((new, 3), 1 / 3)])
        self._step_R = np.concatenate([self._step_R, np.full(new, now - 1)])

    def state_dict(self) -> State:
        return {
            "type": type(self).__name__,
            "now": self._clock.now,
            "keys": list(self._row),
            "counts": self._counts_R33.copy(),
            "belief": self._belief_R3.copy(),
            "step": self._step_R.copy(),
        }

    def load_state_dict(self, state: State) -> None:
        """Raises StateMismatch if saved by another estimator, ValueError if malformed; then nothing
        is changed."""
        expect_fields("estimator", state, self.state_dict())
        row = {str(key): i for i, key in enumerate(state["keys"])}
        n = len(row)
        now = int(state["now"])
        counts = np.array(state["counts"], dtype=np.float64).reshape(n, 3, 3)
        belief = np.array(state["belief"], dtype=np.float64).reshape(n, 3)
        step = np.array(state["step"], dtype=np.int64).reshape(n)
        self._row = row
        self._clock.now = now
        self._counts_R33 = counts
        self._belief_R3 = belief
        self._step_R = step

    def metrics(self) -> dict[str, float]:
        """prompts_seen: with at least one group of two or more scored completions."""
        return {"prompts_seen": float(len(self._row))}


def _transitions(counts_R33: FloatArray) -> FloatArray:
    result: FloatArray = counts_R33 / counts_R33.sum(axis=1, keepdims=True)
    return result


def _moved(counts_R33: FloatArray, belief_R3: FloatArray) -> FloatArray:
    result: FloatArray = np.einsum("rij,rj->ri", _transitions(counts_R33), belief_R3)
    result /= result.sum(axis=1, keepdims=True)
    return result
