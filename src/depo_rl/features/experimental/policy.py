"""The policy's own state at the end of each prompt, as features: what the policy makes of it before it answers.

The states come from an engine that has the policy. They change as it learns, so a prompt's features are kept as they
were when it was chosen, and what a head learns from is what it predicted with.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any

import numpy as np
from numpy.typing import NDArray

from ...errors import ConfigError, StateMismatch, expect_fields
from ...types import FloatArray, Prompt, State

PolicyStates = Callable[[Sequence[Prompt]], NDArray[Any]]
"""Hidden states of prompts under the present policy: floats of shape (P, hidden)."""
Block = NDArray[np.float16]

_CLIP = 3.0
_MEMORY = 10_000.0  # states after which older ones fade from the statistics: the policy moves
_REMEMBERED = 16_384  # prompts, those looked at last: far more than are ever in flight


def no_policy(width: int, where: str) -> ConfigError:
    """The error of ``where``, which cannot give the states that ``policy_features = width`` asks for."""
    return ConfigError(
        f"estimator.policy_features = {width}: {where} has no policy whose states could be read; the TRL engine has "
        "(depo train, depo_rl.engines.trl): set it to 0"
    )


class PolicyFeatures:
    """``look`` gives the features of prompts as of now, ``told`` as of when they were last looked at; (P, width) each.

    A state is scaled to length 1, projected by a fixed random matrix and standardised by running statistics, within
    +-3. width: dimensions of the projection; with 0 no state is ever asked for.
    """

    def __init__(self, width: int) -> None:
        self.width, self._hidden = width, 0  # hidden: size of the states; 0 until some are seen
        self._n, self._mean_F, self._variance_F = 0.0, np.zeros(width), np.zeros(width)
        self._projection_HF = np.zeros((0, width))
        self._told: dict[int, Block] = {}  # by index of the prompt, the one looked at last at the end

    def look(self, states: PolicyStates | None, prompts: Sequence[Prompt], index_P: NDArray[np.int64]) -> Block:
        """index_P: names of the prompts for ``told``. Raises ConfigError if there are no ``states`` to ask."""
        if not self.width or not prompts:
            return np.zeros((len(prompts), self.width), np.float16)
        if states is None:
            raise no_policy(self.width, "this engine")
        raw_PF = self._project(np.asarray(states(prompts), dtype=np.float64))
        self._follow(raw_PF)
        deviation_F = np.sqrt(self._variance_F) + 1e-9
        block_PF = np.clip((raw_PF - self._mean_F) / deviation_F, -_CLIP, _CLIP).astype(np.float16)
        self._remember(index_P, block_PF)
        return block_PF

    def told(self, index_P: NDArray[np.int64]) -> Block:
        """0, the mean of all prompts, for one that was not looked at."""
        unknown = np.zeros(self.width, np.float16)
        rows = [self._told.get(index, unknown) for index in index_P.tolist()]
        return np.array(rows, np.float16).reshape(len(rows), self.width)

    def _project(self, state_PH: FloatArray) -> FloatArray:
        hidden = state_PH.shape[1]
        if self._hidden not in (0, hidden):
            raise StateMismatch(
                f"the policy's states have {hidden} numbers, those that the estimator learnt from had {self._hidden}: "
                "resume with the model the run was started with, or start anew in another folder"
            )
        self._hidden = hidden
        if len(self._projection_HF) != hidden:
            rng = np.random.default_rng(20240229)  # fixed: the same features in every run
            self._projection_HF = rng.standard_normal((hidden, self.width))
        state_PH = np.where(np.isfinite(state_PH), state_PH, 0.0)
        norm_P1 = np.linalg.norm(state_PH, axis=1, keepdims=True)
        result: FloatArray = state_PH @ self._projection_HF / np.maximum(norm_P1, 1e-12)
        return result

    def _follow(self, raw_PF: FloatArray) -> None:
        """Mean and variance of the states before and these together."""
        before, new = min(self._n, _MEMORY), float(len(raw_PF))
        self._n = before + new
        moved_F = raw_PF.mean(axis=0) - self._mean_F
        within_F = before * self._variance_F + new * raw_PF.var(axis=0)
        self._variance_F = (within_F + moved_F**2 * before * new / self._n) / self._n
        self._mean_F = self._mean_F + moved_F * new / self._n

    def _remember(self, index_P: NDArray[np.int64], block_PF: Block) -> None:
        for index, row in zip(index_P.tolist(), block_PF, strict=True):
            self._told.pop(index, None)
            self._told[index] = row.copy()  # not a view, which would keep all the rest alive
        for index in list(self._told)[: max(len(self._told) - _REMEMBERED, 0)]:
            del self._told[index]

    def state_dict(self) -> State:
        index = np.array(list(self._told), dtype=np.int64)
        return {
            "policy_features": self.width,
            "hidden": self._hidden,
            "n": self._n,
            "mean": self._mean_F.copy(),
            "variance": self._variance_F.copy(),
            "index": index,
            "told": self.told(index),
        }

    def load_state_dict(self, state: State) -> None:
        """Raises StateMismatch if saved with another width, ValueError if malformed; nothing is changed."""
        expect_fields("policy features", state, self.state_dict())
        if state["policy_features"] != self.width:
            raise StateMismatch(
                f"estimator state was saved with policy_features {state['policy_features']}, this estimator has "
                f"{self.width}: set estimator.policy_features to the former, or start anew"
            )
        mean_F, variance_F = (np.array(state[name], np.float64).reshape(self.width) for name in ("mean", "variance"))
        index = np.asarray(state["index"], np.int64).reshape(-1)
        told = np.array(state["told"], np.float16).reshape(len(index), self.width)
        self._n, self._hidden = float(state["n"]), int(state["hidden"])
        self._mean_F, self._variance_F = mean_F, variance_F
        self._told = dict(zip(index.tolist(), told, strict=True))
