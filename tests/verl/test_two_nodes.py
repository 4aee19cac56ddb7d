"""Two Ray nodes on this machine, ``ray start`` twice: the estimator's node is lost in the middle of
a run."""

from __future__ import annotations

import json
import os
import shutil
import socket
import subprocess
import sys
import tempfile
import time
from pathlib import Path

import pytest

from limits import HANG_S
from real_run import stop

HERE = Path(__file__).parent


def free_port() -> int:
    with socket.socket() as s:
        s.bind(("127.0.0.1", 0))
        return int(s.getsockname()[1])


@pytest.fixture
def cluster(tmp_path):
    """Starts processes of a cluster of its own; all of them are killed at the end, whatever
    happens."""
    port, started = free_port(), []
    # short, for its sockets; not Ray's own, where it notes a current cluster
    temporary = tempfile.mkdtemp(prefix="ray")
    environment = os.environ | {"PYTHONPATH": str(HERE), "RAY_AUTH_MODE": "disabled"}
    environment.pop("RAY_ADDRESS", None)

    def launch(name, command):
        log = (tmp_path / f"{name}.log").open("wb")
        out = subprocess.PIPE if name == "run" else log
        process = subprocess.Popen(
            command,
            env=environment,
            stdin=subprocess.PIPE,
            stdout=out,
            stderr=log,
            start_new_session=True,
        )
        started.append(process)
        return process

    def node(name, resource, head=False):
        own = ["--head", f"--port={port}", "--include-dashboard=false", f"--temp-dir={temporary}"]
        where = own if head else [f"--address=127.0.0.1:{port}"]
        sizes = [
            "--num-cpus=8",
            "--object-store-memory=150000000",
            f'--resources={{"{resource}": 1}}',
        ]
        ray = [
            sys.executable,
            "-m",
            "ray.scripts.scripts",
            "start",
            "--block",
            "--disable-usage-stats",
        ]
        return launch(name, [*ray, "--node-ip-address=127.0.0.1", *where, *sizes])

    def run():
        return launch(
            "run", [sys.executable, str(HERE / "two_nodes.py"), f"127.0.0.1:{port}", str(tmp_path)]
        )

    yield port, node, run
    for process in reversed(started):
        stop(process)
    shutil.rmtree(temporary, ignore_errors=True)


def wait_for_port(port, process):
    deadline = time.monotonic() + HANG_S
    while True:
        assert process.poll() is None and time.monotonic() < deadline, "the head node did not start"
        with socket.socket() as s:
            if s.connect_ex(("127.0.0.1", port)) == 0:
                return
        time.sleep(0.2)


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
    port, node, start_run = cluster
    head = node("head", "trainer", head=True)
    wait_for_port(port, head)
    other = node("estimator", "estimator")
    run, log = start_run(), tmp_path / "run.log"

    before = listen(run, log)
    assert before["there"] != before["here"] and before["hosted"] == 1

    stop(other)
    go_on(run)
    alone = listen(run, log)
    assert alone["hosted"] == 0 and alone["restarts"] >= 1 and alone["rows"] == 48
    assert "prompts are chosen uniformly" in log.read_text()
    assert alone["can_teach"] < 0.6, "0.375 by chance"

    node("another", "estimator")
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
