"""What the policy makes of a prompt before it answers, as features: its own state at the prompt's
end, and the log-probability that it gives the reference answer there.

The states come from an engine that has the policy. They change as it learns, so a prompt's features
are kept as they were when it was chosen, and what a head learns from is what it predicted with.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any

import numpy as np
from numpy.typing import NDArray

from ...config import FusedSettings
from ...errors import ConfigError, StateMismatch, expect_fields
from ...types import FloatArray, Prompt, State

PolicyStates = Callable[[Sequence[Prompt]], NDArray[Any]]
"""Hidden states of prompts under the present policy: floats of shape (P, hidden)."""
AnswerLogprobs = Callable[[Sequence[Prompt]], FloatArray]
"""Log-probabilities (nats, <= 0) of the prompts' answers under the present policy, shape (P,); NaN
where none is."""
Block = NDArray[np.float16]

_STATE_NORM = 1.0  # length of a row of the states' features, as of a row of words
_ANSWER_NORM = 4.0  # logits a standard deviation, about what pools of real models have: a weight near 1 is found soon
_CLIP = 3.0
_ODDS_LIMIT = 12.0  # logits, as everywhere; beyond it answers are not told apart
_MEMORY = 10_000.0  # states after which older ones fade from the statistics: the policy moves
_REMEMBERED = 16_384  # prompts, those looked at last: far more than are ever in flight


def no_policy(settings: FusedSettings, where: str) -> ConfigError:
    """The error of ``where``, which cannot give what ``policy_features`` or ``answer_logprob`` ask
    for."""
    asked = (
        f"policy_features = {settings.policy_features}"
        if settings.policy_features
        else "answer_logprob = true"
    )
    return ConfigError(
        f"estimator.{asked}: {where} has no policy that could be read; the TRL engine has (depo train, "
        f"depo_rl.engines.trl): set it to {'0' if settings.policy_features else 'false'}"
    )


def answer_odds(logprob_P: FloatArray) -> FloatArray:
    """Log-odds of the answer, shape (P, 1): where it is said at once, those of the pass rate.
    Without one, the mean."""
    logprob_P = np.clip(logprob_P, -_ODDS_LIMIT, -1e-6)
    odds_P = logprob_P - np.log(-np.expm1(logprob_P))
    known_P = np.isfinite(odds_P)
    odds_P = np.where(known_P, odds_P, odds_P[known_P].mean() if known_P.any() else 0.0)
    result: FloatArray = np.clip(odds_P, -_ODDS_LIMIT, _ODDS_LIMIT)[:, None]
    return result


class PolicyFeatures:
    """``look`` gives the features of prompts as of now, ``told`` as of when they were last looked
    at; (P, width) each.

    A state is scaled to length 1 and projected by a fixed random matrix to ``policy_features``
    numbers; the answer's log-odds are one more. All are standardised by running statistics, within
    +-3. What is not set is never asked for. scale_F: what a model multiplies them by.
    """

    def __init__(self, settings: FusedSettings) -> None:
        self._settings = settings
        self.width = width = settings.policy_width
        self.scale_F = np.full(width, _STATE_NORM / max(settings.policy_features, 1) ** 0.5)
        if settings.answer_logprob:
            self.scale_F[-1] = _ANSWER_NORM
        self._hidden = 0  # size of the states; 0 until some are seen
        self._n = 0.0
        self._mean_F = np.zeros(width)
        self._variance_F = np.zeros(width)
        self._projection_HF = np.zeros((0, settings.policy_features))
        self._told: dict[
            int, Block
        ] = {}  # by index of the prompt, the one looked at last at the end

    def look(
        self,
        states: PolicyStates | None,
        answers: AnswerLogprobs | None,
        prompts: Sequence[Prompt],
        index_P: NDArray[np.int64],
    ) -> Block:
        """index_P: names of the prompts for ``told``. Raises ConfigError if there is nobody to
        ask."""
        if not self.width or not prompts:
            return np.zeros((len(prompts), self.width), np.float16)
        blocks = []
        if self._settings.policy_features:
            if states is None:
                raise no_policy(self._settings, "this engine")
            blocks.append(self._project(np.asarray(states(prompts), dtype=np.float64)))
        if self._settings.answer_logprob:
            if answers is None:
                raise no_policy(self._settings, "this engine")
            blocks.append(answer_odds(np.asarray(answers(prompts), dtype=np.float64)))
        raw_PF = np.hstack(blocks)
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
            self._projection_HF = rng.standard_normal((hidden, self._settings.policy_features))
        state_PH = np.where(np.isfinite(state_PH), state_PH, 0.0)
        norm_P1 = np.linalg.norm(state_PH, axis=1, keepdims=True)
        result: FloatArray = state_PH @ self._projection_HF / np.maximum(norm_P1, 1e-12)
        return result

    def _follow(self, raw_PF: FloatArray) -> None:
        """Mean and variance of the states before and these together."""
        before = min(self._n, _MEMORY)
        new = float(len(raw_PF))
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
        """Raises StateMismatch if saved with another width, ValueError if malformed; nothing is
        changed."""
        expect_fields("policy features", state, self.state_dict())
        if state["policy_features"] != self.width:
            raise StateMismatch(
                f"estimator state was saved with policy_features {state['policy_features']}, this estimator has "
                f"{self.width}: set estimator.policy_features to the former, or start anew"
            )
        mean_F, variance_F = (
            np.array(state[name], np.float64).reshape(self.width) for name in ("mean", "variance")
        )
        index = np.asarray(state["index"], np.int64).reshape(-1)
        told = np.array(state["told"], np.float16).reshape(len(index), self.width)
        n = float(state["n"])
        hidden = int(state["hidden"])
        self._n = n
        self._hidden = hidden
        self._mean_F = mean_F
        self._variance_F = variance_F
        self._told = dict(zip(index.tolist(), told, strict=True))
