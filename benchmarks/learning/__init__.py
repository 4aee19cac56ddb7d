"""The bed of ``bench_learning.py``: a tiny policy, real tasks of many levels, pass rates that are
known exactly."""
