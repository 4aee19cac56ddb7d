"""Reward functions that misbehave, for the tests of the pool. A module of its own, so that workers
can import it."""

import itertools
import os
import signal
import subprocess
import sys
import time
from pathlib import Path
from typing import Any

HANG = "hang"


def behave(completion: str, answer: Any, **extras: Any) -> Any:
    """Do what the completion says; any other text is right if it equals the answer."""
    actions = {
        HANG: _hang_in_c,
        "exit": lambda: os._exit(3),
        "sigkill": lambda: os.kill(os.getpid(), signal.SIGKILL),
        "segfault": lambda: os.kill(os.getpid(), signal.SIGSEGV),
        "sys.exit": lambda: sys.exit(4),
        "raise": lambda: 1 / 0,
        "memory error": _raise_memory_error,
        "nan": lambda: float("nan"),
        "inf": lambda: float("-inf"),
        "none": lambda: None,
        "text": lambda: "1.0",
        "dict": lambda: {"score": 1.0},
        "extras": lambda: float(extras["level"]),
        "print": lambda: print("from the worker") or 1.0,
        "modules": lambda: float(bool({"torch", "trl", "math_verify"} & set(sys.modules))),
    }
    return actions[completion]() if completion in actions else completion == answer


def _hang_in_c() -> None:
    """Hang where no Python signal handler runs and the interpreter lock is never given back."""
    for number in (signal.SIGTERM, signal.SIGINT):
        signal.signal(number, signal.SIG_IGN)
    sum(itertools.repeat(0))


def _raise_memory_error() -> None:
    raise MemoryError("pretended")


def eat_memory(completion: str, answer: Any) -> float:
    """Swallow memory slowly, and any MemoryError, as SymPy does."""
    hoard = []
    while True:
        hoard.append(bytearray(os.urandom(1 << 20) * 16))
        time.sleep(0.01)


def start_child_and_hang(completion: str, answer: str) -> None:
    """Leave the id of a child process in the file named by ``answer``, then hang."""
    child = subprocess.Popen(["sleep", "300"])
    Path(answer).write_text(str(child.pid), encoding="ascii")
    time.sleep(300)


def slow_echo(completion: str, answer: float) -> float:
    """Return the completion as a number after ``answer`` seconds."""
    time.sleep(answer)
    return float(completion)


def failing_setup() -> None:
    raise ImportError("no module named math_verify")


class ExplodesWhenLoaded:
    """Pickles here, ends the worker when it is unpickled there."""

    def __call__(self, completion: str, answer: str) -> float:
        return 1.0

    def __reduce__(self) -> Any:
        return (os._exit, (7,))
