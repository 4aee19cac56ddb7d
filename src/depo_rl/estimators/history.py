"""History per prompt: a Beta whose evidence fades, by policy steps or by visits. Knows nothing of
unseen prompts."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np

from ..config import HistorySettings
from ..errors import expect_fields
from ..types import GroupOutcome, Prediction, Prompt, State
from .beliefs import StepClock


class HistoryEstimator:
    """Beta(prior + faded counts of correct and wrong) for each prompt.

    ``fade_by="visits"`` is the posterior of MoPPS (arXiv 2507.04632): at each visit of a prompt a
    <- discount * a + (1 - discount) * a0 + n_correct, and b alike with the wrong ones; without
    visits it stays. ``fade_by="steps"`` fades with the time since, so that the belief goes back to
    the prior as the policy moves on. A group that comes late counts by its own age. Only scored
    completions count, however few they are.
    """

    def __init__(self, settings: HistorySettings) -> None:
        self.settings = settings
        self._clock = StepClock()
        self._seen: dict[
            str, tuple[float, float, int]
        ] = {}  # key -> faded correct, faded wrong, as of which step

    def predict(self, prompts: Sequence[Prompt]) -> Prediction:
        now = self._clock.now
        rows = [self._seen.get(p.key, (0.0, 0.0, now)) for p in prompts]
        rows_P3 = np.array(rows, dtype=np.float64).reshape(-1, 3)
        if self.settings.fade_by == "steps":
            rows_P3[:, :2] *= self.settings.discount ** (now - rows_P3[:, 2:])
        prior = self.settings.prior_mean * self.settings.prior_strength
        strength_P = self.settings.prior_strength + rows_P3[:, 0] + rows_P3[:, 1]
        return Prediction((prior + rows_P3[:, 0]) / strength_P, strength_P)

    def observe(self, outcomes: Sequence[GroupOutcome]) -> None:
        scored = [o for o in outcomes if o.n_scored > 0]
        if not scored:
            return
        now = self._clock.read(scored)
        discount = self.settings.discount
        for o in scored:
            step = now if o.policy_step is None else o.policy_step
            correct, wrong, last = self._seen.get(o.key, (0.0, 0.0, step))
            fade = discount
            weight = 1.0
            if self.settings.fade_by == "steps":
                fade = discount ** max(step - last, 0)
                weight = discount ** max(last - step, 0)
            correct = fade * correct + weight * o.n_correct
            wrong = fade * wrong + weight * (o.n_scored - o.n_correct)
            self._seen[o.key] = (correct, wrong, max(step, last))

    def state_dict(self) -> State:
        return {
            "type": type(self).__name__,
            "now": self._clock.now,
            "keys": list(self._seen),
            "rows": np.array(list(self._seen.values()), dtype=np.float64).reshape(-1, 3),
        }

    def load_state_dict(self, state: State) -> None:
        """Raises StateMismatch if saved by another estimator, ValueError if malformed; then nothing
        is changed."""
        expect_fields("estimator", state, self.state_dict())
        now = int(state["now"])
        rows = np.asarray(state["rows"], dtype=np.float64).reshape(-1, 3).tolist()
        seen = {
            str(key): (k, w, int(last))
            for key, (k, w, last) in zip(state["keys"], rows, strict=True)
        }
        self._clock.now = now
        self._seen = seen

    def metrics(self) -> dict[str, float]:
        """prompts_seen: with at least one scored group."""
        return {"prompts_seen": float(len(self._seen))}
