"""The worker's side: one fresh interpreter that runs a reward function on one item at a time.

Started by :mod:`depo_rl.rewards.process` as ``python -c``, so unlike a ``multiprocessing`` child it
does not run the training script again (which would load the model once more when the script has no
``if __name__ == "__main__"`` guard) and imports only what the reward function itself needs.

Over the connection, parent to worker: first one :class:`Job`, then lists of pickled items. Worker
to parent: one ``(kind, value, message)`` for the start, then one for each item, in order. Replies
are JSON: what a worker may have been talked into by a completion must not be unpickled in the
trainer.
"""

from __future__ import annotations

import json
import math
import pickle
import signal
from dataclasses import dataclass
from multiprocessing.connection import Connection
from typing import Any, Literal, get_args

Kind = Literal[
    "scored", "abstained", "timed_out", "crashed", "out_of_memory", "raised", "nonfinite"
]
Reply = tuple[str, float | None, str]

READY = "ready"
KINDS: tuple[str, ...] = get_args(Kind)
MAX_MESSAGE = 300  # characters of an exception that travel home; a SymPy error can print megabytes
MAX_REPLY_BYTES = 1 << 16


@dataclass(frozen=True)
class Job:
    """What a worker does for all its life."""

    function: bytes
    """Pickle of ``(function, setup)``; bytes, so that a failing import is caught here and reported
    by name."""
    backstop_s: float
    """Seconds after which the kernel ends a worker that is still on one item, in case the parent
    was killed."""


def main(descriptor: int) -> None:
    """Serve the parent at the other end of the socket ``descriptor`` until it goes away."""
    # Ctrl-C in a terminal reaches the whole process group; the parent decides when workers end.
    signal.signal(signal.SIGINT, signal.SIG_IGN)
    try:
        _serve(Connection(descriptor))
    except (EOFError, OSError):
        return  # the parent closed its end or died: nobody is left to tell


def _serve(connection: Connection) -> None:
    job: Job = connection.recv()
    try:
        function, setup = pickle.loads(job.function)
        if setup is not None:
            setup()
    except BaseException as error:
        send_reply(connection, ("raised", None, describe(error)))
        return
    send_reply(connection, (READY, None, ""))
    while True:
        for payload in connection.recv():
            send_reply(connection, _score(function, payload, job.backstop_s))


def _score(function: Any, payload: bytes, backstop_s: float) -> Reply:
    """Run the function on one item. Never raises: a failure is a reply."""
    # SIGALRM with its default action ends the process inside the kernel, so it also works while C
    # code holds the GIL.
    signal.signal(signal.SIGALRM, signal.SIG_DFL)
    signal.setitimer(signal.ITIMER_REAL, backstop_s)
    try:
        completion, answer, extras = pickle.loads(payload)
        return judge(function(completion, answer, **extras))
    except MemoryError as error:
        return ("out_of_memory", None, describe(error))
    except (
        BaseException
    ) as error:  # also SystemExit: a reward function must not be able to end its worker quietly
        return ("raised", None, describe(error))
    finally:
        signal.setitimer(signal.ITIMER_REAL, 0.0)


def send_reply(connection: Connection, reply: Reply) -> None:
    """Worker's side: send one reply."""
    connection.send_bytes(json.dumps(reply).encode())


def receive_reply(connection: Connection) -> Reply:
    """Parent's side: take one reply. Raises EOFError, OSError or ValueError if there is none or it
    is garbled."""
    kind, value, message = json.loads(connection.recv_bytes(MAX_REPLY_BYTES))
    if kind not in (READY, *KINDS):
        raise ValueError(f"a worker sent the unknown kind {kind!r}")
    return (kind, float(value) if kind == "scored" else None, str(message))


def judge(value: Any) -> Reply:
    """Sort what a reward function returned into scored (finite number or bool), abstained (None) or
    nonfinite.

    Raises TypeError if ``value`` is no number. Text is refused even where ``float()`` would read
    it.
    """
    if value is None:
        return ("abstained", None, "")
    if isinstance(value, (str, bytes)) or not hasattr(value, "__float__"):
        raise TypeError(
            f"the reward function returned a {type(value).__name__}, expected a number, a bool or None"
        )
    number = float(value)
    if not math.isfinite(number):
        return ("nonfinite", None, f"the reward function returned {number}")
    return ("scored", number, "")


def describe(error: BaseException) -> str:
    """One short line: the error's type and text."""
    text = " ".join(str(error)[: 4 * MAX_MESSAGE].split())
    return f"{type(error).__name__}: {text}"[:MAX_MESSAGE].rstrip(": ")
