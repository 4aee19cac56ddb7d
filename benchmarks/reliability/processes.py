"""Child processes that train, one for each rank, forked after the libraries are imported."""

from __future__ import annotations

import os
import signal
import socket
import sys
import time
import traceback
import warnings
from collections.abc import Callable
from tempfile import TemporaryFile
from typing import IO

from limits import HANG_S

Work = Callable[[], None]


class Ranks:
    """``world`` processes that each do ``work``."""

    def __init__(self, work: Work, world: int = 1) -> None:
        port = _free_port()
        self._said = [TemporaryFile() for _ in range(world)]  # noqa: SIM115
        self._children = [
            _fork(work, rank, world, port, said) for rank, said in enumerate(self._said)
        ]

    def kill(self, first: int) -> bool:
        """SIGKILL to rank ``first``, then to the others; whether any was still at work."""
        others = [child for rank, child in enumerate(self._children) if rank != first]
        for child in (self._children[first], *others):
            os.kill(child, signal.SIGKILL)
        return any(os.WIFSIGNALED(os.waitpid(child, 0)[1]) for child in self._children)

    def wait(self) -> list[str]:
        """What each has said, after all have ended well. Raises RuntimeError if one has not."""
        ever = time.monotonic() + HANG_S
        failed = [not _ends_well(child, ever) for child in self._children]
        texts = []
        for said in self._said:
            said.seek(0)
            texts.append(said.read().decode(errors="replace"))
        if any(failed):
            raise RuntimeError("a rank failed: " + " | ".join(text[-500:] for text in texts))
        return texts


def _ends_well(child: int, ever: float) -> bool:
    while time.monotonic() < ever:
        done, status = os.waitpid(child, os.WNOHANG)
        if done:
            return status == 0
        time.sleep(0.01)
    os.kill(child, signal.SIGKILL)
    os.waitpid(child, 0)
    return False


def _fork(work: Work, rank: int, world: int, port: int, said: IO[bytes]) -> int:
    child = os.fork()
    if child:
        return child
    code = 1
    try:
        os.dup2(said.fileno(), 1)
        os.dup2(said.fileno(), 2)
        sys.stdout = os.fdopen(1, "w", buffering=1, closefd=False)
        sys.stderr = os.fdopen(2, "w", buffering=1, closefd=False)
        warnings.simplefilter("ignore")
        if world > 1:
            names = {
                "RANK": rank,
                "LOCAL_RANK": rank,
                "WORLD_SIZE": world,
                "LOCAL_WORLD_SIZE": world,
            }
            os.environ.update({name: str(value) for name, value in names.items()})
            os.environ.update(
                MASTER_ADDR="127.0.0.1", MASTER_PORT=str(port), ACCELERATE_USE_CPU="1"
            )
        work()
        code = 0
    except BaseException:
        traceback.print_exc()
    finally:
        os._exit(code)


def _free_port() -> int:
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        return int(probe.getsockname()[1])
