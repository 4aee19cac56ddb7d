"""Shared by all tests: one hypothesis profile, the same examples in every run."""

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
