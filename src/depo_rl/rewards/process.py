"""The parent's handle on one worker process: start it, hand it items, wait with a limit, kill
it."""

from __future__ import annotations

import os
import signal
import subprocess
import sys
import threading
import time
from collections.abc import Sequence
from contextlib import suppress
from multiprocessing import Pipe

from .worker import READY, Job, Reply, receive_reply

MEMORY_CHECK_S = 0.1  # how often the memory of a worker that is still busy is looked at
HANGUP_GRACE_S = 0.2  # a worker that crashed closes its socket a moment before it can be reaped

_BOOT = "import sys; sys.path[:] = {path!r}; from depo_rl.rewards.worker import main; main({descriptor})"


class WorkerStartError(Exception):
    """A worker ended, failed or hung before it was ready. ``final`` if trying again cannot help."""

    def __init__(self, message: str, *, final: bool) -> None:
        super().__init__(message)
        self.final = final


class WorkerProcess:
    """One worker. All but :meth:`stop` belongs to the single thread that created it.

    A new interpreter is executed rather than forked: safe with torch's threads in the parent, and
    nothing of the parent's memory, GPU handles or sockets is carried over.
    """

    def __init__(self) -> None:
        self._connection, theirs = Pipe(duplex=True)
        try:
            self._process = subprocess.Popen(
                [sys.executable, "-c", _boot_code(theirs.fileno())],
                stdin=subprocess.DEVNULL,
                stdout=2,  # what a reward function prints must not end up in the parent's output
                pass_fds=(theirs.fileno(),),
                env=_worker_environment(),
                start_new_session=True,  # its own group, so that whatever it starts is killed with it
            )
        except BaseException:
            self._connection.close()
            raise
        finally:
            theirs.close()
        self._stop_lock = threading.Lock()
        self._stopped = False

    @property
    def pid(self) -> int:
        """Process id, which is also the id of the worker's process group."""
        return self._process.pid

    def wait_ready(self, job: Job, timeout_s: float) -> None:
        """Send the job and wait until the function is loaded, at most ``timeout_s`` seconds.

        Raises WorkerStartError if it did not get there; ``final`` if the function could not be
        loaded or set up.
        """
        try:
            self._connection.send(job)
            if not self._connection.poll(timeout_s):
                raise WorkerStartError(f"it was not ready within {timeout_s:g} s", final=False)
            kind, _, message = receive_reply(self._connection)
        except (EOFError, OSError, ValueError) as error:
            code = self.stop(grace_s=HANGUP_GRACE_S)
            raise WorkerStartError(
                f"it ended with exit status {code} before it was ready", final=False
            ) from error
        if kind != READY:
            raise WorkerStartError(f"the reward function cannot be loaded: {message}", final=True)

    def send(self, payloads: Sequence[bytes]) -> None:
        """Hand over pickled items. Raises OSError if the worker is gone."""
        self._connection.send(list(payloads))

    def receive(self, timeout_s: float, memory_limit_bytes: int | None) -> Reply:
        """Wait for the reply to the next item, at most ``timeout_s`` seconds of wall clock.

        Returns the worker's reply, or one of kind timed_out, out_of_memory or crashed, after which
        the worker is of no more use and has to be stopped.
        """
        deadline = time.monotonic() + timeout_s
        while True:
            left = deadline - time.monotonic()
            try:
                if self._connection.poll(max(0.0, min(left, MEMORY_CHECK_S))):
                    return receive_reply(self._connection)
            except (EOFError, OSError, ValueError):  # gone, or no longer makes sense
                return (
                    "crashed",
                    None,
                    f"the worker ended with exit status {self.stop(grace_s=HANGUP_GRACE_S)}",
                )
            if left <= 0:
                return ("timed_out", None, f"no result within {timeout_s:g} s")
            # Watched from outside because SymPy swallows the MemoryError that a limit set inside
            # would raise, and math-verify then answers "wrong".
            if memory_limit_bytes is not None and resident_bytes(self.pid) > memory_limit_bytes:
                return ("out_of_memory", None, f"more than {memory_limit_bytes >> 20} MiB in use")

    def stop(self, grace_s: float = 0.0) -> int:
        """Kill the worker with everything in its process group and reap it. From any thread; twice
        does no harm.

        grace_s: seconds left to a worker that hung up and is about to end by itself, to learn its
        real status.

        Returns the exit status; negative is the signal that ended it.
        """
        with self._stop_lock:
            if not self._stopped:
                with suppress(subprocess.TimeoutExpired):
                    self._process.wait(grace_s)
                with suppress(ProcessLookupError, PermissionError):  # nothing of the group is left
                    os.killpg(self.pid, signal.SIGKILL)
                self._process.wait()
                self._stopped = True
        return int(self._process.returncode)

    def close(self) -> None:
        """Stop the worker and give the socket back. Only from the owning thread."""
        self.stop()
        self._connection.close()

    def disown(self) -> None:
        """In a forked child: let go of the parent's worker without touching it."""
        self._connection.close()
        self._process.returncode = 0  # or its destructor warns about a process that is not ours
        self._stopped = True


def resident_bytes(pid: int) -> int:
    """Resident memory of a process in bytes; 0 where the system does not tell (no Linux, or it just
    ended)."""
    try:
        with open(f"/proc/{pid}/statm", encoding="ascii") as statm:
            return int(statm.read().split()[1]) * os.sysconf("SC_PAGE_SIZE")
    except (OSError, ValueError, IndexError):
        return 0


def _boot_code(descriptor: int) -> str:
    # What the parent can import, the worker can: also a reward module beside a script or added to
    # sys.path by hand.
    path = [os.path.abspath(entry) for entry in sys.path]
    return _BOOT.format(path=path, descriptor=descriptor)


def _worker_environment() -> dict[str, str]:
    # Workers are the parallelism; a BLAS thread pool in each would only compete with the trainer's
    # threads.
    return {
        **os.environ,
        "OMP_NUM_THREADS": "1",
        "OPENBLAS_NUM_THREADS": "1",
        "MKL_NUM_THREADS": "1",
    }
