"""Every known trap of verl is impossible here, or a loud early error that names the mend."""

from __future__ import annotations

import importlib.metadata

import pytest

from depo_rl.engines.verl import checks
from depo_rl.errors import ConfigError, EngineError, RewardError
from world import BATCH, CURRICULUM, step, warm_up

POLICY = "{type: fused, policy_features: 8}"
DRAWN = [
    f"+data.depo.curriculum.{setting}" for setting in ("band=auto", "temperature=1", "importance=1")
]
WEIGHTED = [*DRAWN, "algorithm.adv_estimator=depo_grpo"]
BUFFER = "trainer.v1.sampler.custom_sampler"


@pytest.mark.parametrize(
    ("mode", "extra", "message"),
    [
        (
            "sync",
            ["data.dataloader_num_workers=2"],
            "data.dataloader_num_workers = 2: must be 0.*num_workers=0",
        ),
        (
            "sync",
            [f"{BUFFER}.path=null"],
            f"no replay buffer.*Set {BUFFER}.path=pkg://depo_rl.engines.verl.replay",
        ),
        ("sync", [f"{BUFFER}.name=CurriculumReplayBufferAsync"], "name=CurriculumReplayBuffer$"),
        (
            "colocate_async",
            [f"{BUFFER}.name=CurriculumReplayBuffer"],
            "name=CurriculumReplayBufferAsync$",
        ),
        (
            "sync",
            ["data.custom_cls.path=null"],
            "nothing would be chosen.*data.custom_cls.name=CurriculumDataset",
        ),
        ("sync", ["data.val_files=${data.train_files}"], "validation would be taken for training"),
        (
            "sync",
            ["+data.depo.curriculum.windw=[0.1,0.9]"],
            "unknown setting 'windw'. Did you mean 'window'",
        ),
        (
            "sync",
            ["+data.depo.metod=depo"],
            "data.depo: unknown setting 'metod'. Did you mean 'method'",
        ),
        ("sync", ["data.depo.method=depp"], "unknown method 'depp'"),
        (
            "sync",
            ["+data.depo.curriculum.group_size=4"],
            "contradicts actor_rollout_ref.rollout.n = 8",
        ),
        (
            "sync",
            [f"+data.depo.curriculum.estimator={POLICY}"],
            "policy_features = 8: .* no policy .* set it to 0",
        ),
        ("sync", ["data.depo.method=dapo"], "set algorithm.filter_groups.enable=True"),
        ("sync", ["data.depo.method=vcrl"], "a rule that verl does not have"),
        (
            "sync",
            ["+data.depo.curriculum.gate=dynamic"],
            "'depo' with gate 'dynamic' .*filter_groups.enable=True",
        ),
        (
            "sync",
            ["+data.depo.curriculum.gate=high_variance"],
            "a rule that verl does not have.*gate to dynamic or none",
        ),
        (
            "sync",
            ["data.depo.method=speed", "+data.depo.curriculum.gate=none"],
            "'speed', gate = 'none': .*leave gate out",
        ),
        (
            "sync",
            [*DRAWN],
            "importance = 1.0: algorithm.adv_estimator = 'grpo' has no weights: set .*=depo_grpo",
        ),
        (
            "sync",
            [*DRAWN, "trainer.use_v1=False"],
            "importance = 1.0: verl's older trainers .*set it to 0, or use V1",
        ),
        (
            "sync",
            [*WEIGHTED, "data.depo.curriculum.temperature=0"],
            "importance = 1.0: .*set temperature above 0",
        ),
        ("sync", ["reward.reward_model.enable=True"], "enable_resource_pool=True"),
        ("sync", ["+trainer.v1.sampler.sampler_kwargs.poll=1"], "unknown setting 'poll'"),
        ("sync", ["data.depo.method=dapo", "trainer.use_v1=False"], "older trainers cannot"),
        ("sync", ["data.depo.method=dapo", "+rollout.nnodes=1"], "older trainers cannot"),
        (
            "sync",
            ["+async_training.staleness_threshold=0.1"],
            "fully_async.*trainer_mode=separate_async",
        ),
        ("separate_async", ["actor_rollout_ref.hybrid_engine=False"], "VERL_LOGGING_LEVEL=WARN"),
    ],
)
def test_refused_before_the_first_rollout(trainer_of, monkeypatch, mode, extra, message):
    monkeypatch.delenv("VERL_LOGGING_LEVEL", raising=False)
    with pytest.raises(ConfigError, match=message) as caught:
        trainer_of(mode=mode, extra=extra)
    assert "\n" not in str(caught.value)


def test_a_method_that_extends_groups_is_refused_at_the_start(trainer_of):
    with pytest.raises(
        EngineError, match=r"'speed' extends .* which verl cannot: .*dapo, depo, .*'depo replay'"
    ) as e:
        trainer_of(method="speed", extra=[])
    assert "\n" not in str(e.value)


def test_hybrid_engine_off_is_fine_with_the_log_level_that_verl_needs(trainer_of, monkeypatch):
    monkeypatch.setenv("VERL_LOGGING_LEVEL", "WARN")
    trainer = trainer_of(mode="separate_async", extra=["actor_rollout_ref.hybrid_engine=False"])
    warm_up(trainer)
    step(trainer)
    driver = trainer.train_dataset.driver
    driver.join()
    assert driver.curriculum.metrics()["admitted"] >= BATCH


@pytest.mark.parametrize(
    ("package", "name"),
    [
        ("fully_async_policy", "fully_async_ppo_trainer"),
        ("one_step_off_policy", "one_step_off_ppo_trainer"),
    ],
)
def test_the_other_trainers_own_configurations_are_told_apart(folder, tmp_path, package, name):
    from pathlib import Path

    import verl
    from hydra import compose, initialize_config_dir
    from verl.trainer.ppo.utils import create_rl_dataset

    from world import overrides

    given = [*overrides(folder, "sync", tmp_path), f"{BUFFER}.path=null", "+data.depo.method=depo"]
    own = Path(verl.__file__).parent / "experimental" / package / "config"
    with initialize_config_dir(str(own), version_base=None):
        config = compose(name, overrides=["hydra.searchpath=[pkg://verl.trainer.config]", *given])
    if package == "fully_async_policy":
        with pytest.raises(ConfigError, match=r"fully_async.*trainer_mode=separate_async"):
            create_rl_dataset(config.data.train_files, config.data, None, None)
    else:
        dataset = create_rl_dataset(config.data.train_files, config.data, None, None)
        assert len(dataset.__getitems__(range(BATCH))) == BATCH and not checks.uses_v1(config)


def test_a_trainer_under_another_name_is_refused(trainer_of):
    """verl would take it for an asynchronous one, whatever its class."""
    from verl.trainer.ppo.v1.trainer_base import TRAINER_REGISTRY, register_trainer
    from verl.trainer.ppo.v1.trainer_sync import PPOTrainerSync

    class Mine(PPOTrainerSync):
        pass

    register_trainer("mine")(Mine)
    try:
        with pytest.raises(
            ConfigError, match=r"trainer_mode = 'mine'.*sync, colocate_async, separate_async"
        ):
            trainer_of(mode="mine", extra=["+trainer.v1.mine={}"])
    finally:
        del TRAINER_REGISTRY["mine"]


def versions(monkeypatch, **given):
    real = importlib.metadata.version

    def version(name):
        return given.get(name) or real(name)

    monkeypatch.setattr(importlib.metadata, "version", version)


def test_another_release_of_verl_is_refused(monkeypatch):
    versions(monkeypatch, verl="0.7.1")
    with pytest.raises(EngineError, match=r"verl 0.7.1 is not supported: install verl==0.9.1"):
        checks.require_verl([])


@pytest.mark.parametrize(
    ("trl", "refused"), [("1.16.0", True), ("1.13.0", True), ("1.12.1", False)]
)
def test_trl_beside_verl_is_refused_where_it_breaks(monkeypatch, trl, refused):
    versions(monkeypatch, trl=trl)
    if refused:
        with pytest.raises(
            EngineError, match=f"trl {trl} is installed beside verl.*environment of its own"
        ):
            checks.require_verl([])
    else:
        checks.require_verl([])


def test_a_verl_whose_methods_differ_is_refused():
    class Changed:
        def sample(self, step): ...

    with pytest.raises(
        EngineError, match=r"Changed.sample takes \['step'\], expected \['global_steps'\]"
    ):
        checks.require_verl([(Changed, "sample", ["global_steps"])])


def test_a_missing_key_is_explained_with_the_keys_that_were_there(trainer_of):
    trainer = trainer_of()
    trainer.agent_loop_manager.judge = lambda row, right: {"score": 1.0, "pred": "7"}
    with pytest.raises(
        RewardError, match=r"none of 32 completions has 'acc'.*keys there: pred, score.*correct_key"
    ):
        step(trainer)


def test_another_key_and_threshold_may_judge(trainer_of):
    trainer = trainer_of(
        extra=[*CURRICULUM, "+data.depo.correct_key=grade", "+data.depo.correct_threshold=3"]
    )
    trainer.agent_loop_manager.judge = lambda row, right: {
        "acc": 0.0,
        "grade": 3.0 if right else 2.9,
    }
    assert sum(step(trainer)["depo/observed_mean"] for _ in range(3)) > 0


def test_unscorable_is_not_wrong(trainer_of):
    trainer = trainer_of(extra=[*CURRICULUM, "+data.depo.max_unscorable_steps=3"])
    trainer.agent_loop_manager.judge = lambda row, right: {"acc": None if row % 2 else float("nan")}
    with pytest.warns(UserWarning, match="could be scored: nothing was learnt"):
        assert "depo/observed_mean" not in step(trainer)
    step(trainer)
    with pytest.raises(RewardError, match=r"in 3 steps in a row.*max_unscorable_steps"):
        step(trainer)
    driver = trainer.train_dataset.driver
    driver.join()
    assert driver.curriculum.metrics()["failed"] == 2 * BATCH


@pytest.mark.parametrize("mode", ["colocate_async", "separate_async"])
def test_rollouts_that_all_fail_end_an_asynchronous_run(trainer_of, mode):
    """verl would replace them without end."""
    trainer = trainer_of(mode=mode, extra=[*CURRICULUM, "+data.depo.max_unscorable_steps=3"])
    warm_up(trainer)
    step(trainer)
    trainer.agent_loop_manager.die = lambda row: True
    with pytest.raises(RewardError, match=rf"of {3 * BATCH}.* prompts in a row.*_run_prompt"):
        for _ in range(3):
            step(trainer)


@pytest.mark.parametrize(
    "sign", ["trainer.use_v1=False", "+rollout.nnodes=1"], ids=["v0", "one_step_off"]
)
def test_the_older_trainers_feed_back_through_the_dataset(folder, tmp_path, ray_session, sign):
    import numpy as np
    import torch
    from verl import DataProto
    from verl.trainer.ppo.utils import create_rl_dataset

    from world import make_config

    config = make_config(folder, tmp_path, extra=[sign, f"{BUFFER}.path=null", *CURRICULUM])
    dataset = create_rl_dataset(config.data.train_files, config.data, None, None)
    rows = dataset.__getitems__(list(range(BATCH)))
    extra = [row["extra_info"] for row in rows for _ in range(8)]
    acc = np.array([float(i % 8 < 2) for i in range(8 * BATCH)])
    batch = DataProto.from_single_dict(
        {
            "token_level_scores": torch.full((8 * BATCH, 3), -0.3),
            "response_mask": torch.ones(8 * BATCH, 3),
            "extra_info": np.array(extra, dtype=object),
            "uid": np.array([str(i // 8) for i in range(8 * BATCH)], dtype=object),
            "acc": acc,
        }
    )
    saved = dataset.state_dict()  # verl saves before it calls back
    dataset.on_batch_end(batch)
    dataset.driver.join()
    counts = dataset.driver.curriculum.metrics()
    assert (
        counts["admitted"] == BATCH and counts["in_flight"] == 0 and counts["observed_mean"] == 0.25
    )
    dataset.driver.close()

    def resumed():
        again = create_rl_dataset(config.data.train_files, config.data, None, None)
        again.load_state_dict(saved)
        return again.driver

    told = resumed()  # the batch is in the outcome log
    assert told.step == dataset.driver.step == 1
    assert told.curriculum.metrics()["admitted"] == BATCH
    assert told.choose(range(BATCH)) == dataset.driver.choose(range(BATCH))
    log = tmp_path / "outcomes.jsonl"
    lines = log.read_text().splitlines(keepends=True)
    log.write_text("".join(lines[:-1]) + lines[-1][:20])  # killed while it was written
    counts = resumed().curriculum.metrics()
    assert (counts["admitted"], counts["failed"], counts["in_flight"]) == (BATCH - 1, 1, 0)
    log.unlink()  # killed before it was told
    counts = resumed().curriculum.metrics()
    assert counts["failed"] == BATCH and counts["in_flight"] == 0
