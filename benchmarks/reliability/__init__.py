"""The parts of ``bench_reliability.py``: what is done to the product on purpose, and what held.

Each module has ``cases(toy)``. They borrow the toys of the test suite: tiny policies, simulated
prompts, verifiers that misbehave.
"""

import sys
from pathlib import Path

sys.path.insert(0, str(Path(__file__).resolve().parents[2] / "tests"))

PARTS = ("kills", "outage", "verifiers", "disks", "endurance", "ranks", "checkpoints", "inputs")
"""In the order of the table."""
