"""Shared by all tests: no network, and one hypothesis profile, the same examples in every run."""

import os

# before anything reads it; else a name not on the hub is asked for minutes
os.environ.setdefault("HF_HUB_OFFLINE", "1")

import pytest
from hypothesis import HealthCheck, settings

settings.register_profile(
    "depo",
    derandomize=True,
    deadline=None,
    max_examples=60,
    database=None,
    suppress_health_check=[HealthCheck.too_slow, HealthCheck.data_too_large],
)
settings.load_profile("depo")


@pytest.fixture(scope="module")
def one_thread():
    """Sums of floats that do not depend on how many threads torch finds."""
    import torch

    before = torch.get_num_threads()
    torch.set_num_threads(1)
    yield
    torch.set_num_threads(before)
