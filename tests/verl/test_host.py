"""The estimator in a Ray actor; its loss, its return, and an estimator that fails where it is."""

from __future__ import annotations

import time

import numpy as np
import pytest
import ray

from depo_rl import GroupOutcome, Prompt, make_curriculum
from depo_rl.config import CurriculumConfig
from depo_rl.engines.verl.host import start_host
from depo_rl.engines.verl.settings import parse_settings
from depo_rl.errors import ConfigError, EngineError, StateMismatch
from limits import HANG_S
from world import CURRICULUM, can_teach, resume, save, step

PROMPTS = [Prompt(f"p{i}", f"what is {i} + {i % 7}?") for i in range(40)]
CONFIG = CurriculumConfig.model_validate({"group_size": 8})
ALWAYS = "+data.depo.host.use=always"


def outcome(i, correct):
    return GroupOutcome(f"p{i}", correct, 8, policy_step=i)


def hosted(**host):
    settings = parse_settings({"host": {"use": "always", "timeout_s": 60, **host}})
    return start_host(PROMPTS, settings, CONFIG)


def until_back(estimator, prompts=PROMPTS):
    deadline = time.monotonic() + HANG_S
    while np.isnan(estimator.predict(prompts).mean_P).any():
        assert time.monotonic() < deadline, "the actor did not come back"
        time.sleep(0.2)


def test_a_hosted_estimator_is_the_estimator(ray_session):
    local, remote = make_curriculum("depo", PROMPTS, CONFIG).estimator, hosted(snapshot_every=2)
    for batch in range(5):
        outcomes = [outcome(i, i % 9) for i in range(batch, batch + 8)]
        local.observe(outcomes)
        remote.observe(outcomes)
        np.testing.assert_array_equal(local.predict(PROMPTS).mean_P, remote.predict(PROMPTS).mean_P)
        np.testing.assert_array_equal(
            local.predict(PROMPTS).suspicion_P, remote.predict(PROMPTS).suspicion_P
        )
    state = remote.state_dict()
    local.load_state_dict(state)  # the same format, here and there
    remote.predict(PROMPTS)  # figures of an update are known from the next call on
    assert remote.metrics()["loss"] == local.metrics()["loss"]
    other = hosted()
    other.load_state_dict(state)
    np.testing.assert_array_equal(other.predict(PROMPTS).mean_P, remote.predict(PROMPTS).mean_P)
    with pytest.raises(StateMismatch) as caught:
        other.load_state_dict({"type": "nonsense"})
    assert "\n" not in str(caught.value)


def test_a_killed_actor_comes_back_as_it_would_have_been(ray_session):
    local, remote = make_curriculum("depo", PROMPTS, CONFIG).estimator, hosted(snapshot_every=3)
    for batch in range(8):
        outcomes = [outcome(i, i % 9) for i in range(batch, batch + 8)]
        local.observe(outcomes)
        remote.observe(outcomes)
        if batch == 4:
            remote.predict(PROMPTS)
            ray.kill(remote._actor)
            time.sleep(0.5)
            assert np.isnan(remote.predict(PROMPTS).mean_P).all(), "unknown, not made up"
            assert remote.state_dict(), "the last copy"
    until_back(remote)
    np.testing.assert_array_equal(local.predict(PROMPTS).mean_P, remote.predict(PROMPTS).mean_P)
    assert remote.metrics()["restarts"] == 1


def test_a_cluster_without_the_resources_is_refused(ray_session):
    with pytest.raises(
        EngineError,
        match=r"no node took the estimator's actor within 2 s.*resources=\{'moon': 1.0\}",
    ):
        hosted(resources={"moon": 1}, start_timeout_s=2)


def test_an_estimator_that_cannot_be_built_says_so_early(trainer_of):
    encoder = [
        "+data.depo.curriculum.estimator.type=encoder",
        "+data.depo.curriculum.estimator.backbone=no/such",
    ]
    with pytest.raises(ConfigError, match="no/such") as caught:
        trainer_of(extra=encoder)
    assert "\n" not in str(caught.value)


def test_an_encoder_is_hosted_and_resumes(trainer_of):
    encoder = [
        "+data.depo.curriculum.estimator.type=encoder",
        "+data.depo.curriculum.warmup_steps=2",
    ]
    encoder += [
        "+data.depo.curriculum.estimator.backbone=tiny-random",
        "+data.depo.curriculum.estimator.width=16",
    ]

    def asked(trainer, n):
        trainer.agent_loop_manager.asked.clear()
        for _ in range(n):
            step(trainer)
        return trainer.agent_loop_manager.asked

    first = trainer_of(extra=encoder)
    for _ in range(4):
        metrics = step(first)
    assert metrics["depo/estimator/hosted"] == 1 and metrics["depo/seconds_waiting"] < 1
    save(first)
    unbroken = asked(first, 3)
    second = trainer_of(extra=encoder)
    resume(second)
    assert asked(second, 3) == unbroken
    assert second.train_dataset.driver.curriculum.metrics()["estimator/distill_missing"] == 0


def test_a_run_goes_on_uniformly_without_its_estimator_and_learns_again(trainer_of, caplog):
    trainer = trainer_of(extra=[*CURRICULUM, ALWAYS])
    for _ in range(12):
        step(trainer)
    driver = trainer.train_dataset.driver
    driver.join()
    start, driver.curriculum.estimator.inner._start = driver.curriculum.estimator.inner._start, None
    options = {"resources": {"moon": 1}}
    lost = ray.remote(
        type("Never", (), {"restore": lambda self, *given: None, "observe": lambda self, given: {}})
    )
    driver.curriculum.estimator.inner._start = lambda: lost.options(**options).remote()
    ray.kill(driver.curriculum.estimator.inner._actor)
    time.sleep(0.5)
    before = len(trainer.agent_loop_manager.asked)
    for _ in range(12):
        metrics = step(trainer)
    assert metrics["depo/estimator/hosted"] == 0 and "prompts are chosen uniformly" in caplog.text
    uniform = [row for rows in trainer.agent_loop_manager.asked[before:] for row in rows]
    assert can_teach(uniform) < 0.6, "0.375 by chance"
    driver.curriculum.estimator.inner._start = start
    driver.join()
    driver.curriculum.estimator.inner._lose(RuntimeError("for the test"))
    until_back(driver.curriculum.estimator, driver.curriculum.pool.prompts)
    for _ in range(10):
        step(trainer)
    again = [row for rows in trainer.agent_loop_manager.asked[-10:] for row in rows]
    assert can_teach(again) > 0.6


def test_an_estimator_that_raises_does_not_end_the_run(trainer_of, caplog):
    trainer = trainer_of()
    driver = trainer.train_dataset.driver
    step(trainer)
    driver.join()

    def broken(*given):
        raise ZeroDivisionError("a bug")

    driver.curriculum.estimator.inner.predict = driver.curriculum.estimator.inner.observe = broken
    for _ in range(4):
        metrics = step(trainer)
    assert (
        metrics["depo/estimator/failed_predictions"] > 0
        and metrics["depo/estimator/failed_updates"] > 0
    )
    assert caplog.text.count("the pass-rate estimator failed") == 2, "once for each kind"
    driver.join()
    assert driver.curriculum.metrics()["admitted"] == 20
