"""Ray nodes on this machine, ``ray start`` once for each, in a cluster of their own."""

from __future__ import annotations

import json
import shutil
import socket
import subprocess
import sys
import tempfile
import time
from collections.abc import Mapping
from pathlib import Path

from limits import HANG_S
from real_run import stop

Process = subprocess.Popen[bytes]
LIST_NODES = """
import json, sys, ray
ray.init(sys.argv[1], log_to_driver=False, logging_level="ERROR")
print("NODES", json.dumps([node["Resources"] for node in ray.nodes() if node["Alive"]]))
"""


class Cluster:
    """logs: folder for what the processes say. environment: of them all; Ray's workers inherit
    their node's."""

    def __init__(self, logs: Path, environment: Mapping[str, str]) -> None:
        self.logs = logs
        self.environment = dict(environment) | {"RAY_AUTH_MODE": "disabled"}
        self.environment.pop("RAY_ADDRESS", None)
        self.port = _free_port()
        self.started: list[Process] = []
        # short, for its sockets; not Ray's own, where it notes a current cluster
        self.temporary = tempfile.mkdtemp(prefix="ray")

    @property
    def address(self) -> str:
        return f"127.0.0.1:{self.port}"

    def launch(self, name: str, command: list[str], listens: bool = False) -> Process:
        """listens: its output is a pipe for the test and not in its log."""
        log = (self.logs / f"{name}.log").open("ab")
        process = subprocess.Popen(
            command,
            env=self.environment,
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE if listens else log,
            stderr=log,
            start_new_session=True,
        )
        self.started.append(process)
        return process

    def node(self, name: str, *sizes: str, head: bool = False) -> Process:
        """sizes: further words for ``ray start``. A head is returned when it listens."""
        ray = [sys.executable, "-m", "ray.scripts.scripts", "start", "--block"]
        own = [
            "--head",
            f"--port={self.port}",
            "--include-dashboard=false",
            f"--temp-dir={self.temporary}",
        ]
        where = own if head else [f"--address={self.address}"]
        common = ["--disable-usage-stats", "--node-ip-address=127.0.0.1", "--num-cpus=8"]
        process = self.launch(
            name, [*ray, *common, "--object-store-memory=150000000", *where, *sizes]
        )
        if head:
            self._wait_for_port(process)
        return process

    def wait_for_nodes(self, *names: str) -> None:
        """Until Ray believes just these nodes to be alive: a lost one is noticed after a while, and
        is given work until then. names: a resource of each."""
        deadline = time.monotonic() + HANG_S
        command = [sys.executable, "-c", LIST_NODES, self.address]
        while True:
            run = subprocess.run(command, env=self.environment, stdout=subprocess.PIPE, check=True)
            # Ray writes what it has to say there too
            told = next(s for s in run.stdout.splitlines() if s.startswith(b"NODES "))
            alive = json.loads(told.removeprefix(b"NODES "))
            if len(alive) == len(names) and all(any(n in has for has in alive) for n in names):
                return
            assert time.monotonic() < deadline, f"alive are {alive}"
            time.sleep(1.0)

    def _wait_for_port(self, head: Process) -> None:
        deadline = time.monotonic() + HANG_S
        while True:
            assert head.poll() is None, "the head node did not start"
            assert time.monotonic() < deadline, "the head node does not listen"
            with socket.socket() as s:
                if s.connect_ex(("127.0.0.1", self.port)) == 0:
                    return
            time.sleep(0.2)

    def close(self) -> None:
        """Kills what was started, whatever happened."""
        for process in reversed(self.started):
            stop(process)
        shutil.rmtree(self.temporary, ignore_errors=True)


def _free_port() -> int:
    with socket.socket() as s:
        s.bind(("127.0.0.1", 0))
        return int(s.getsockname()[1])
