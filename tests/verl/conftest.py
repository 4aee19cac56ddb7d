"""One Ray for the whole suite, ended whatever happens; one thread per process, for the machine has
few cores."""

from __future__ import annotations

import os

for _name, _value in {
    "OMP_NUM_THREADS": "1",
    "TOKENIZERS_PARALLELISM": "false",
    "HF_HUB_OFFLINE": "1",
    "RAY_USAGE_STATS_ENABLED": "0",
    "RAY_DEDUP_LOGS": "0",
    "RAY_prestart_worker_first_driver": "0",  # otherwise a Python process per logical CPU
    "RAY_ACCEL_ENV_VAR_OVERRIDE_ON_ZERO": "0",
}.items():
    os.environ.setdefault(_name, _value)

import pytest


@pytest.fixture(scope="session")
def ray_session():
    """A local Ray and verl's TransferQueue in this process, which plays the TaskRunner."""
    import ray
    import torch
    import transfer_queue

    torch.set_num_threads(1)
    ray.init(
        "local",
        num_cpus=16,
        include_dashboard=False,
        object_store_memory=200_000_000,
        log_to_driver=False,
    )
    try:
        transfer_queue.init()
        yield
    finally:
        try:
            transfer_queue.close()
        finally:
            ray.shutdown()


@pytest.fixture(scope="session")
def folder(tmp_path_factory):
    """Training and validation files of the toy world, and a tokenizer."""
    from world import write_files

    path = tmp_path_factory.mktemp("verl")
    write_files(path)
    return path


@pytest.fixture(scope="module")
def world(tmp_path_factory):
    """Data and the tiny policy of the real runs, which write their outputs beside."""
    from real_run import write_world

    path = tmp_path_factory.mktemp("world")
    write_world(path)
    return path


@pytest.fixture
def trainer_of(ray_session, folder, tmp_path):
    """Makes real trainers with everything real but the agent loop; each test's queue starts
    empty."""
    from world import empty_queue, make_trainer

    made = []

    def make(**kwargs):
        made.append(make_trainer(folder, tmp_path, **kwargs))
        return made[-1]

    empty_queue()
    yield make
    for trainer in made:
        if trainer.train_dataset.driver is not None:
            trainer.train_dataset.driver.close()
