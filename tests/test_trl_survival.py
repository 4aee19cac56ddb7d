"""A TRL run goes on without its estimator, uniformly, counts that, and learns again when it can."""

import pytest

pytest.importorskip("trl")

import trl_toys as toys
from depo_rl.errors import StateMismatch

pytestmark = [pytest.mark.filterwarnings(line) for line in toys.THIRD_PARTY]

CURRICULUM = {"warmup_steps": 0, "explore": 0.0, "candidate_factor": 2, "estimator": toys.FUSED}


def failing_at(made, name, calls):
    """Lets the estimator's own method ``name`` raise at these calls of it (None: at all); the
    number of its calls."""
    inner, seen = made.curriculum.estimator.inner, []
    real = getattr(inner, name)

    def call(given):
        seen.append(len(given))
        if calls is None or len(seen) in calls:
            raise RuntimeError("CUDA out of memory")
        return real(given)

    setattr(inner, name, call)
    return seen


@pytest.mark.parametrize("name", ["predict", "observe"])
@pytest.mark.parametrize("method", ["depo+", "depo"])
def test_a_trl_run_survives_an_estimator_that_raises_once(tmp_path, caplog, name, method):
    made = toys.trainer(tmp_path, method=method, curriculum=CURRICULUM, max_steps=4)
    seen = failing_at(made, name, {2})
    made.train()
    figures = made.curriculum.metrics()
    failed, other = ("failed_predictions", "failed_updates")[:: 1 if name == "predict" else -1]
    assert made.state.global_step == 4 and figures["admitted"] == 16 and len(seen) >= 4
    assert (figures[f"estimator/{failed}"], figures[f"estimator/{other}"]) == (1, 0)
    assert made.state.log_history[3][f"depo/estimator/{failed}"] == 1
    assert caplog.text.count("the pass-rate estimator failed") == 1
    assert figures["estimator/prompts_seen"] > 0, "it learns from the other generations"


def test_a_trl_run_whose_estimator_always_raises_is_uniform_to_the_end_and_saves(tmp_path, caplog):
    settings = {
        "method": "depo+",
        "curriculum": CURRICULUM,
        "save_strategy": "steps",
        "save_steps": 2,
    }
    made = toys.trainer(tmp_path, max_steps=4, **settings)
    for name in ("predict", "observe"):
        failing_at(made, name, None)
    made.train()
    figures = made.curriculum.metrics()
    assert figures["estimator/failed_updates"] == 4 and figures["estimator/failed_predictions"] >= 4
    assert figures["admitted"] == 16 and any(toys.losses(made))
    assert {row["predicted_mean"] for row in toys.outcome_log(tmp_path)} == {0.5}
    assert caplog.text.count("the pass-rate estimator failed") == 2, "once for each kind"
    again = toys.trainer(tmp_path, max_steps=6, **settings)
    again.train(resume_from_checkpoint=True)
    assert again.curriculum.metrics()["admitted"] == 24
    assert again.curriculum.metrics()["estimator/failed_updates"] == 0, "of this process"


def test_a_trl_run_ends_where_the_policy_is_not_the_one_the_state_is_of(tmp_path):
    made = toys.trainer(tmp_path, method="depo+", curriculum=CURRICULUM, max_steps=2)

    def predict(prompts):
        raise StateMismatch("resume with the model the run was started with")

    made.curriculum.estimator.inner.predict = predict
    with pytest.raises(StateMismatch, match="resume with the model"):
        made.train()
