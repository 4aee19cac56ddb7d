"""SIGKILL at any moment, again and again, also while a checkpoint is written: the run ends as if it never happened."""

import os
import random
import signal
import subprocess
import sys
import threading
import time
from pathlib import Path

import pytest

pytest.importorskip("trl")

import torch
import trl_toys as toys

SCRIPT = Path(__file__).parent / "scripts_trl" / "chain.py"
LIMIT = 240  # seconds, for the whole chain


def start(folder, method: str, steps: int, slow: float) -> subprocess.Popen:
    environment = os.environ | {"OMP_NUM_THREADS": "1", "PYTHONPATH": os.pathsep.join(sys.path)}
    command = [sys.executable, str(SCRIPT), str(folder), method, str(steps), str(slow)]
    return subprocess.Popen(command, env=environment, stdout=subprocess.PIPE, stderr=subprocess.STDOUT, text=True)


def follow(process: subprocess.Popen) -> list[str]:
    """Its lines, as they come."""
    lines: list[str] = []

    def read():
        for line in process.stdout:
            lines.append(line.strip())

    threading.Thread(target=read, daemon=True).start()
    return lines


def kill(process: subprocess.Popen, lines: list[str], saves: int, delay: float) -> str | None:
    """SIGKILL ``delay`` seconds after its ``saves``-th save began; says where it hit, None if it had ended before."""
    deadline = time.monotonic() + LIMIT
    while sum(line.startswith("saving") for line in lines) < saves and process.poll() is None:
        assert time.monotonic() < deadline, lines[-5:]
        time.sleep(0.005)
    time.sleep(delay)
    if process.poll() is not None:
        return None
    process.send_signal(signal.SIGKILL)
    process.wait(30)
    last = next((line for line in reversed(lines) if line.startswith(("saving", "saved", "starting"))), "importing")
    return f"inside the save of step {last.split()[1]}" if last.startswith("saving") else "between saves"


def chain(folder, method: str, steps: int, kills: int, slow: float, seed: int) -> list[str]:
    """Runs until done, killed ``kills`` times; where each kill hit."""
    rng, hits = random.Random(seed), []
    deadline = time.monotonic() + LIMIT
    while True:
        process = start(folder, method, steps, slow)
        lines = follow(process)
        try:
            if len(hits) < kills and (hit := kill(process, lines, rng.choice((1, 1, 2)), rng.uniform(0, 6 * slow))):
                hits.append(hit)
                continue
            assert process.wait(max(deadline - time.monotonic(), 1)) == 0, "\n".join(lines[-20:])
            return hits
        finally:
            process.kill()


def uninterrupted(folder, method: str, steps: int) -> dict:
    process = start(folder, method, steps, 0.0)
    lines = follow(process)
    assert process.wait(LIMIT) == 0, "\n".join(lines[-20:])
    return torch.load(folder / "result.pt")


def test_sigkill_at_any_moment(tmp_path):
    expected = uninterrupted(tmp_path / "whole", "depo", 6)
    hits = chain(tmp_path / "killed", "depo", 6, kills=4, slow=0.15, seed=1)
    assert len(hits) == 4 and any("inside" in hit for hit in hits)
    assert toys.differences(expected, torch.load(tmp_path / "killed" / "result.pt")) == []
    assert toys.outcome_log(tmp_path / "killed") == toys.outcome_log(tmp_path / "whole")
