"""Two back ends and a LiteLLM proxy, all processes, on free ports of this machine."""

from __future__ import annotations

import json
import os
import shutil
import socket
import subprocess
import sys
import time
import urllib.error
import urllib.request
from collections.abc import Iterator, Mapping, Sequence
from contextlib import ExitStack, contextmanager
from pathlib import Path
from typing import Any

import yaml

import depo_rl

KEY = "sk-secret-of-the-test"
START_S = 240.0  # catches a hang only: the proxy imports for half a minute on a busy machine
SLOW_IS_FINE = (
    "--limit-ms",
    "20000",
)  # these tests are not about time, and the machine may be busy
HERE = Path(__file__).parent
SOURCE = str(Path(depo_rl.__file__).parents[1])


class World:
    def __init__(self, folder: Path, url: str, process: subprocess.Popen[bytes]) -> None:
        self.folder = folder
        self.url = url
        self.process = process

    def client(self, **options: Any) -> Any:
        from openai import OpenAI

        return OpenAI(base_url=f"{self.url}/v1", api_key=KEY, max_retries=0, **options)

    def asked(self, name: str) -> list[dict[str, Any]]:
        """Bodies that a back end was sent."""
        log = self.folder / f"{name}.jsonl"
        return [json.loads(line) for line in log.read_text().splitlines()] if log.exists() else []

    def log(self) -> str:
        return (self.folder / "proxy.log").read_text(errors="replace")

    def metrics(self) -> str:
        request = urllib.request.Request(
            f"{self.url}/metrics/", headers={"authorization": f"Bearer {KEY}"}
        )
        return urllib.request.urlopen(request).read().decode()


@contextmanager
def running(
    folder: Path,
    router: Path,
    options: Sequence[str] = (),
    environment: Mapping[str, str] | None = None,
) -> Iterator[World]:
    """The proxy with the configuration that ``depo route litellm`` prints, until the block ends."""
    folder.mkdir(parents=True, exist_ok=True)
    with ExitStack() as stack:
        models = []
        for name in ("small", "large"):
            port = free_port()
            stack.enter_context(
                _process([str(HERE / "backend.py"), str(port), str(folder / f"{name}.jsonl"), name])
            )
            models.append(_model(name, port))
        plain = {
            "model_list": models,
            "litellm_settings": {"num_retries": 0, "request_timeout": 3},
            "router_settings": {"num_retries": 0, "disable_cooldowns": True},
        }
        (folder / "plain.yaml").write_text(yaml.safe_dump(plain))
        printed = depo("route", "litellm", str(router), str(folder / "plain.yaml"), *options)
        (folder / "routed.yaml").write_text(printed)
        yield stack.enter_context(proxy(folder, folder / "routed.yaml", environment))


@contextmanager
def proxy(
    folder: Path, config: Path, environment: Mapping[str, str] | None = None
) -> Iterator[World]:
    port = free_port()
    command = shutil.which("litellm", path=str(Path(sys.executable).parent))
    assert command, "litellm is not installed beside this python"
    arguments = [command, "--config", str(config), "--host", "127.0.0.1", "--port", str(port)]
    with _process(arguments, folder / "proxy.log", environment) as process:
        url = f"http://127.0.0.1:{port}"
        await_answer(f"{url}/health/liveliness", process, folder / "proxy.log")
        yield World(folder, url, process)


def depo(*arguments: str) -> str:
    done = subprocess.run(
        [sys.executable, "-m", "depo_rl.cli", *arguments],
        env=_environment(),
        capture_output=True,
        text=True,
        timeout=START_S,
    )
    assert done.returncode == 0, done.stderr
    return done.stdout


def free_port() -> int:
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        return int(free.getsockname()[1])


def await_answer(url: str, process: subprocess.Popen[bytes], log: Path) -> None:
    end = time.monotonic() + START_S
    while time.monotonic() < end:
        assert process.poll() is None, log.read_text()[-3000:]
        try:
            urllib.request.urlopen(url, timeout=2).read()
            return
        except (urllib.error.URLError, OSError):
            time.sleep(0.3)
    raise AssertionError(f"no answer from {url}: {log.read_text()[-3000:]}")


def _model(name: str, port: int) -> dict[str, Any]:
    where = {"api_base": f"http://127.0.0.1:{port}/v1", "api_key": "sk-backend"}
    return {"model_name": name, "litellm_params": {"model": f"openai/{name}", **where}}


def _environment(more: Mapping[str, str] | None = None) -> dict[str, str]:
    return {**os.environ, "PYTHONPATH": SOURCE, "LITELLM_MASTER_KEY": KEY, **(more or {})}


@contextmanager
def _process(
    arguments: Sequence[str], log: Path | None = None, environment: Mapping[str, str] | None = None
) -> Iterator[subprocess.Popen[bytes]]:
    command = [sys.executable, *arguments] if arguments[0].endswith(".py") else list(arguments)
    with open(log or os.devnull, "wb") as out:
        process = subprocess.Popen(
            command, env=_environment(environment), stdout=out, stderr=subprocess.STDOUT
        )
        try:
            yield process
        finally:
            process.terminate()
            try:
                process.wait(30)
            except subprocess.TimeoutExpired:
                process.kill()
                process.wait()
