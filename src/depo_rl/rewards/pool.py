"""Reward functions behind worker processes that are killed at a wall-clock limit and replaced.

A SymPy expression can hang for ever, in C code that no Python time-out interrupts, and
``signal.alarm`` works in the main thread alone. Only killing a process always works. One thread per
worker hands it items and enforces the limit:

    any thread: score(batch) --> queue --> thread 1 <-> worker process 1
                                       `-> thread 2 <-> worker process 2

What cannot be judged (time-out, crash, exception, too much memory, NaN) is *unscorable*: ``None``,
counted by kind and never 0, because a 0 teaches the policy that the answer was wrong.
"""

from __future__ import annotations

import os
import pickle
import sys
import threading
import weakref
from collections.abc import Callable, Mapping, Sequence
from functools import partial
from importlib import import_module
from types import ModuleType, TracebackType
from typing import Any

from ..errors import ConfigError, DataError
from .dispatch import Dispatcher, Limits
from .worker import Job

RewardFunction = Callable[..., float | bool | None]
"""``f(completion: str, answer, **extras)``: a finite number, or None when the item cannot be
judged."""

# the kernel's alarm in a worker is only for when the parent is no longer there to kill it
ALARM_GRACE_S = 5.0
_pools: weakref.WeakSet[VerifierPool] = weakref.WeakSet()


class VerifierPool:
    """Scores completions in worker processes, with one wall-clock limit per item. Usable from any
    thread.

    Workers start on first use (:meth:`start` does it earlier) and end with :meth:`close`, the
    ``with`` block, the last reference to the pool, or the interpreter. They run in new
    interpreters: the function's module is imported there, a function that only exists in a script
    or notebook is sent by value. After a fork the child gets workers of its own. A pickled copy of
    a pool is a new pool with the same settings. POSIX only.
    """

    def __init__(
        self,
        function: RewardFunction,
        *,
        n_workers: int = 2,
        timeout_s: float = 5.0,
        memory_limit_mb: int | None = 4096,
        start_timeout_s: float = 60.0,
        setup: Callable[[], None] | None = None,
    ) -> None:
        """Store the settings; starts nothing.

        function: ``f(completion, answer, **extras)``, see :data:`RewardFunction`. n_workers: worker
        processes, at least 1. A hanging item occupies one of them for ``timeout_s``. timeout_s:
        wall-clock limit for one item, in seconds; starting a worker does not count.
        memory_limit_mb: resident memory in MiB at which a worker is killed (Linux only); None for
        no limit. start_timeout_s: limit for starting one worker, the function's imports included,
        in seconds. setup: called once in every worker before its first item, for slow imports.

        Raises ConfigError if a setting is out of range, or the function cannot be sent to another
        process.
        """
        if not isinstance(n_workers, int):
            raise ConfigError(f"n_workers={n_workers!r}: must be a whole number")
        _check_positive("n_workers", n_workers)
        _check_positive("timeout_s", timeout_s)
        _check_positive("start_timeout_s", start_timeout_s)
        if memory_limit_mb is not None:
            _check_positive("memory_limit_mb", memory_limit_mb)
        self._settings: dict[str, Any] = {
            "function": function,
            "n_workers": n_workers,
            "timeout_s": timeout_s,
            "memory_limit_mb": memory_limit_mb,
            "start_timeout_s": start_timeout_s,
            "setup": setup,
        }
        self._limits = Limits(
            timeout_s, start_timeout_s, None if memory_limit_mb is None else memory_limit_mb << 20
        )
        self._job = Job(pickle_function(function, setup), backstop_s=timeout_s + ALARM_GRACE_S)
        self._name = callable_name(function)
        self._n_workers = n_workers
        self._reset()
        _pools.add(self)

    def start(self, timeout_s: float | None = None) -> None:
        """Start the workers and wait until all are ready, at most ``timeout_s`` seconds (default:
        no limit).

        Raises RewardError if the workers cannot start, or the pool is closed.
        """
        self._started().wait_all_ready(timeout_s)

    def score(
        self,
        completions: Sequence[str],
        answers: Sequence[Any],
        extras: Sequence[Mapping[str, Any]] | None = None,
    ) -> list[float | None]:
        """Score n completions against n answers; blocks until every item has a result.

        completions: the n texts to judge. answers: the n gold answers; anything that pickles.
        extras: per item, keyword arguments for the function.

        Returns n rewards in the order given; None where unscorable.

        Raises DataError if the lengths differ, or an item does not pickle, RewardError if the
        workers cannot start, or the pool is (being) closed.
        """
        n_items = len(completions)
        extras = [{}] * n_items if extras is None else extras
        if not len(answers) == len(extras) == n_items:
            raise DataError(
                f"{n_items} completions, {len(answers)} answers and {len(extras)} extras: must be as many"
            )
        items = zip(completions, answers, extras, strict=True)
        payloads = [_pickle_item(index, item) for index, item in enumerate(items)]
        return self._started().run(payloads) if payloads else []

    def metrics(self) -> dict[str, int]:
        """Counts since the start: items per kind (scored, abstained, timed_out, crashed,
        out_of_memory, raised, nonfinite; they add up to the items judged), and workers_replaced.
        "abstained" is the function's own None."""
        return self._dispatcher.metrics()

    def worker_pids(self) -> list[int]:
        """Process ids of the workers that are ready or busy now; empty before the first use."""
        return self._dispatcher.worker_pids()

    def close(self) -> None:
        """Kill the workers and end the threads; calls in progress raise RewardError. A second close
        does nothing."""
        self._dispatcher.close()

    def __enter__(self) -> VerifierPool:
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        traceback: TracebackType | None,
    ) -> None:
        self.close()

    def __reduce__(self) -> tuple[Callable[[], VerifierPool], tuple[()]]:
        return (partial(type(self), **self._settings), ())

    def _started(self) -> Dispatcher:
        with self._start_lock:
            self._dispatcher.start()
            return self._dispatcher

    def _reset(self) -> None:
        self._start_lock = threading.Lock()
        self._dispatcher = Dispatcher(self._job, self._limits, self._n_workers, self._name)
        # Its threads keep the dispatcher alive, so the end of the pool has to stop it. Without
        # joining them: a garbage collection may run this in one of them.
        self._finalizer = weakref.finalize(self, self._dispatcher.stop)

    def _after_fork(self) -> None:
        """In a forked child: leave the parent's workers alone; own ones start on first use."""
        self._finalizer.detach()
        self._dispatcher.disown()
        self._reset()


def pickle_function(function: RewardFunction, setup: Callable[[], None] | None) -> bytes:
    """Pickle by name what a worker can import, and by value what lives in a script, a notebook, a
    file that was loaded by its path, or another function.

    Raises ConfigError if neither works.
    """
    module = _only_here(function)
    try:
        payload = pickle.dumps((function, setup))
        if b"__main__" not in payload and module is None:
            return payload
    except (pickle.PicklingError, AttributeError, TypeError):
        pass
    try:
        return _by_value((function, setup), module)
    except Exception as error:
        raise ConfigError(
            f"reward function {callable_name(function)} cannot be sent to a worker process ({error}): "
            "define it at the top level of a module of its own"
        ) from error


def _only_here(function: Callable[..., Any]) -> ModuleType | None:
    """The function's module if no other interpreter could import it by its name."""
    while isinstance(function, partial):
        function = function.func
    name = str(getattr(function, "__module__", None) or type(function).__module__)
    top = name.partition(".")[0]
    # not importlib.util.find_spec, which believes sys.modules
    found = any(finder.find_spec(top, None) for finder in sys.meta_path)
    return None if found or top == "__main__" else sys.modules.get(name)


def _by_value(what: Any, module: ModuleType | None) -> bytes:
    cloudpickle = _cloudpickle()
    if module is not None:
        cloudpickle.register_pickle_by_value(module)
    try:
        payload: bytes = cloudpickle.dumps(what)
    finally:
        if module is not None:
            cloudpickle.unregister_pickle_by_value(module)
    return payload


def _cloudpickle() -> Any:
    try:
        return import_module("cloudpickle")
    except ImportError:  # joblib, which scikit-learn brings, carried its own copy before 1.6
        return import_module("joblib.externals.cloudpickle")


def callable_name(function: Callable[..., Any]) -> str:
    """The name of a function, of what a ``functools.partial`` wraps, or of a callable object's
    class."""
    while isinstance(function, partial):
        function = function.func
    return str(getattr(function, "__name__", type(function).__name__))


def _pickle_item(index: int, item: tuple[str, Any, Mapping[str, Any]]) -> bytes:
    completion, answer, extras = item
    try:
        return pickle.dumps((completion, answer, dict(extras)))
    except (pickle.PicklingError, AttributeError, TypeError) as error:
        raise DataError(f"item {index} cannot be sent to a worker process: {error}") from error


def _check_positive(name: str, value: float) -> None:
    if isinstance(value, bool) or not value > 0:
        raise ConfigError(f"{name}={value!r}: must be above 0")


def _forget_parents_workers() -> None:
    for pool in list(_pools):
        pool._after_fork()


os.register_at_fork(after_in_child=_forget_parents_workers)
