"""An estimator that raises neither ends a run nor bends it."""

from __future__ import annotations

import copy

import numpy as np
import pytest

from depo_rl import GroupOutcome, Prediction, Prompt
from depo_rl.engines.session import live_curriculum
from depo_rl.errors import ConfigError, DataError, StateMismatch
from depo_rl.methods import get_method
from depo_rl.survival import SurvivingEstimator

PROMPTS = [Prompt(str(i), f"{i}+{i}=", fields={"pass_rate": i / 64}) for i in range(64)]


class Failing:
    """Predicts 0.5, or raises what it was told to, as often as it was told to."""

    detail = "only this one has it"

    def __init__(self, error: Exception | None = None, times: int = 10**9) -> None:
        self.error, self.times, self.observed = error, times, 0

    def _fail(self) -> None:
        if self.error is not None and self.times:
            self.times -= 1
            raise self.error

    def predict(self, prompts):
        self._fail()
        return Prediction(np.full(len(prompts), 0.5), np.full(len(prompts), 2.0))

    def observe(self, outcomes):
        self._fail()
        self.observed += len(outcomes)

    def state_dict(self):
        return {"observed": self.observed}

    def load_state_dict(self, state):
        self.observed = state["observed"]

    def metrics(self):
        return {"observed": float(self.observed)}


def test_a_failed_prediction_is_unknown_counted_and_said_once_in_a_row(caplog):
    made = SurvivingEstimator(Failing(RuntimeError("two\nlines"), times=3))
    for _ in range(3):
        assert np.isnan(made.predict(PROMPTS[:4]).mean_P).tolist() == [True] * 4
    assert made.metrics() == {"observed": 0.0, "failed_predictions": 3.0, "failed_updates": 0.0}
    (said,) = caplog.messages
    assert "RuntimeError: two lines" in said and "chosen uniformly" in said
    assert made.predict(PROMPTS).mean_P.tolist() == [0.5] * 64
    made.inner.times = 1
    made.predict(PROMPTS)
    assert len(caplog.messages) == 2, "a new failure after a success is news"


def test_a_wrong_number_of_predictions_is_a_failure(monkeypatch):
    made = SurvivingEstimator(Failing())
    monkeypatch.setattr(made.inner, "predict", lambda prompts: Prediction(np.zeros(1), np.ones(1)))
    assert np.isnan(made.predict(PROMPTS[:3]).strength_P).sum() == 3


@pytest.mark.parametrize(
    "error", [ConfigError("a setting"), DataError("a row"), StateMismatch("another model")]
)
def test_what_the_user_has_to_mend_is_not_survived(error):
    made = SurvivingEstimator(Failing(error))
    with pytest.raises(type(error)):
        made.predict(PROMPTS)
    with pytest.raises(type(error)):
        made.observe([])


def test_it_stands_in_for_the_estimator_in_all_else():
    made = SurvivingEstimator(Failing())
    made.observe([GroupOutcome("1", 1, 2)])
    other = copy.deepcopy(made)
    other.load_state_dict({"observed": 7})
    assert (made.state_dict(), other.state_dict()) == ({"observed": 1}, {"observed": 7})
    assert made.detail == "only this one has it"
    with pytest.raises(AttributeError):
        _ = made.nothing


@pytest.mark.parametrize("method", ["depo", "depo+", "pcl", "oracle"])
def test_without_predictions_the_choice_does_not_depend_on_the_prompt(method):
    """Beyond the warm-up, and whatever the selector: all prompts are chosen about equally often."""
    given = {"warmup_steps": 0, "explore": 0.0, "group_size": 8, "candidate_factor": 4}
    settings = get_method(method).config(given)
    made = live_curriculum(
        method, PROMPTS, settings, lambda pool, config: Failing(RuntimeError("a bug"))
    )
    for _ in range(400):
        keys = [prompt.key for prompt in made.propose(8)]
        made.settle([GroupOutcome(key, int(key) % 9, 8) for key in keys])
    figures = made.metrics()
    assert np.abs(made.breadth.visits - 50).max() < 4 * 50**0.5, (
        "four standard deviations of a Poisson count"
    )
    assert figures["invalid_predictions"] >= 3200 and figures["admitted"] == 3200
    assert figures["estimator/failed_predictions"] >= figures["estimator/failed_updates"] == 400
