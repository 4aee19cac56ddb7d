"""Two Ray nodes on this machine, ``ray start`` twice: the estimator's node is lost in the middle of
a run."""

from __future__ import annotations

import json
import os
import sys
from pathlib import Path

import pytest

from limits import HANG_S
from nodes import Cluster
from real_run import PYTHONPATH, stop

HERE = Path(__file__).parent


@pytest.fixture
def cluster(tmp_path):
    cluster = Cluster(tmp_path, os.environ | {"PYTHONPATH": PYTHONPATH})
    yield cluster
    cluster.close()


def estimator_node(cluster, name):
    return cluster.node(name, '--resources={"estimator": 1}')


def listen(run, log):
    for line in run.stdout:
        if line.startswith(b"TOLD "):
            return json.loads(line[5:])
    raise AssertionError(log.read_text()[-4000:])


def go_on(run):
    run.stdin.write(b"\n")
    run.stdin.flush()


@pytest.mark.slow
def test_the_loss_of_the_estimator_s_node(cluster, tmp_path):
    cluster.node("head", '--resources={"trainer": 1}', head=True)
    other = estimator_node(cluster, "estimator")
    command = [sys.executable, str(HERE / "two_nodes.py"), cluster.address, str(tmp_path)]
    run = cluster.launch("run", command, listens=True)
    log = tmp_path / "run.log"

    before = listen(run, log)
    assert before["there"] != before["here"] and before["hosted"] == 1

    stop(other)
    go_on(run)
    alone = listen(run, log)
    assert alone["hosted"] == 0 and alone["restarts"] >= 1 and alone["rows"] == 48
    assert "prompts are chosen uniformly" in log.read_text()
    assert alone["can_teach"] < 0.6, "0.375 by chance"

    estimator_node(cluster, "another")
    go_on(run)
    after = listen(run, log)
    assert after["there"] not in (before["here"], before["there"]) and after["hosted"] == 1
    assert "the estimator is back, with everything it had learnt" in log.read_text()
    assert after["can_teach"] > 0.6
    assert after["counts"]["admitted"] == 38 * 4 and after["counts"]["failed"] == 0
    go_on(run)
    assert run.wait(HANG_S) == 0
    print(
        f"seconds: {before['seconds']:.1f} before, {alone['seconds']:.1f} while lost, {after['seconds']:.1f} after"
    )
