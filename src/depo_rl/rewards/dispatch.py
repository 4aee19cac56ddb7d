"""The queue between callers and workers, and the threads that serve it, one per worker."""

from __future__ import annotations

import logging
import os
import threading
from collections import Counter, deque
from collections.abc import Sequence
from dataclasses import dataclass, field

from ..errors import RewardError
from .process import WorkerProcess, WorkerStartError
from .worker import KINDS, Job, Reply

logger = logging.getLogger("depo_rl.rewards")

ENDS_WORKER = frozenset({"timed_out", "crashed", "out_of_memory"})
# items per message: enough to hide the round trip, few enough to keep all workers busy
MAX_CHUNK = 16
MAX_FAILED_STARTS = 3  # in a row, over all workers, before the pool gives up
WARNINGS_PER_KIND = 3


@dataclass(frozen=True)
class Limits:
    """What one worker may use."""

    timeout_s: float
    """Wall clock for one item."""
    start_timeout_s: float
    """Wall clock for the start."""
    memory_bytes: int | None
    """Resident memory; None for no limit."""


@dataclass(eq=False)
class _Batch:
    """The items of one call; the caller waits for ``done``."""

    results: list[float | None]
    n_left: int
    done: threading.Event = field(default_factory=threading.Event)
    error: RewardError | None = None


@dataclass(frozen=True, eq=False)
class _Item:
    batch: _Batch
    index: int
    payload: bytes


class Dispatcher:
    """Shares queued items among worker processes. Everything below the lock is guarded by it."""

    def __init__(self, job: Job, limits: Limits, n_workers: int, name: str) -> None:
        self._job = job
        self._limits = limits
        self._n_workers = n_workers
        self._name = name
        self._changed = threading.Condition()
        self._queue: deque[_Item] = deque()
        self._batches: set[_Batch] = set()
        self._threads: list[threading.Thread] = []
        self._workers: list[WorkerProcess] = []  # those whose process exists
        self._ready: set[WorkerProcess] = set()
        self._counts: Counter[str] = Counter()
        self._failed_starts = 0
        self._stopped_by: RewardError | None = None
        self._pid = os.getpid()

    def start(self) -> None:
        """Start the threads, which start the workers. Does nothing the second time."""
        with self._changed:
            if self._threads or self._stopped_by:
                return
            self._threads = [
                threading.Thread(
                    target=self._serve, name=f"depo-reward-{self._name}-{index}", daemon=True
                )
                for index in range(self._n_workers)
            ]
            for thread in self._threads:
                thread.start()

    def wait_all_ready(self, timeout_s: float | None) -> None:
        """Wait until every worker is ready. Raises RewardError if that cannot be or takes too
        long."""
        with self._changed:
            done = self._changed.wait_for(
                lambda: self._stopped_by is not None or len(self._ready) == self._n_workers,
                timeout_s,
            )
            self._refuse_if_stopped()
            if not done:
                raise RewardError(
                    f"reward {self._name}: the workers were not ready within {timeout_s:g} s"
                )

    def run(self, payloads: Sequence[bytes]) -> list[float | None]:
        """Queue the items and wait for their results, in order."""
        batch = _Batch(results=[None] * len(payloads), n_left=len(payloads))
        with self._changed:
            self._refuse_if_stopped()
            self._batches.add(batch)
            self._queue.extend(
                _Item(batch, index, payload) for index, payload in enumerate(payloads)
            )
            self._changed.notify_all()
        try:
            batch.done.wait()
        finally:  # also when Ctrl-C ends the wait: nobody wants the rest any more
            with self._changed:
                self._batches.discard(batch)
                if batch.n_left:
                    self._queue = deque(item for item in self._queue if item.batch is not batch)
        if batch.error is not None:
            raise RewardError(*batch.error.args) from batch.error
        return batch.results

    def metrics(self) -> dict[str, int]:
        """Items per kind, and workers_replaced."""
        with self._changed:
            return {kind: self._counts[kind] for kind in (*KINDS, "workers_replaced")}

    def worker_pids(self) -> list[int]:
        """Process ids of the workers that are ready or busy."""
        with self._changed:
            return sorted(worker.pid for worker in self._ready)

    def close(self) -> None:
        """Fail what is open, kill the workers, wait for the threads."""
        self.stop()
        for thread in self._threads:
            if thread is not threading.current_thread():
                thread.join()

    def stop(self) -> None:
        """Fail what is open and kill the workers; the threads end by themselves."""
        if os.getpid() == self._pid:  # a forked child must not kill its parent's workers
            self._stop(RewardError(f"reward {self._name}: the pool is closed"))

    def disown(self) -> None:
        """In a forked child, where the threads do not exist: let go of the parent's workers."""
        for worker in self._workers:
            worker.disown()

    def _stop(self, reason: RewardError) -> None:
        with self._changed:
            self._stopped_by = self._stopped_by or reason
            for batch in self._batches:
                if batch.n_left:
                    batch.error = self._stopped_by
                    batch.done.set()
            self._batches.clear()
            self._queue.clear()
            workers = list(self._workers)
            self._changed.notify_all()
        for worker in workers:
            worker.stop()

    def _refuse_if_stopped(self) -> None:
        if self._stopped_by is not None:
            raise RewardError(*self._stopped_by.args)

    # ---- the threads, one per worker ----

    def _serve(self) -> None:
        """One thread: a bug in it must fail the callers, not leave them waiting."""
        try:
            self._keep_fed()
        except BaseException as error:
            self._stop(RewardError(f"reward {self._name}: internal error: {error!r}"))
            raise

    def _keep_fed(self) -> None:
        """Keep one worker alive and hand it items until the dispatcher stops."""
        worker: WorkerProcess | None = None
        while self._stopped_by is None:
            if worker is None:
                worker = self._launch()
                continue
            chunk = self._take()
            if chunk and not self._run_chunk(worker, chunk):
                self._retire(worker)
                worker = None
        if worker is not None:
            self._retire(worker)

    def _launch(self) -> WorkerProcess | None:
        """Start one worker and wait until it is ready. None if that failed; the last allowed
        failure stops the pool."""
        worker: WorkerProcess | None = None
        try:
            with self._changed:  # so that a stop either sees this worker or comes first
                if self._stopped_by is not None:
                    return None
                worker = WorkerProcess()
                self._workers.append(worker)
            worker.wait_ready(self._job, self._limits.start_timeout_s)
        except (WorkerStartError, OSError) as error:
            if worker is not None:
                self._retire(worker)
            self._start_failed(error, final=isinstance(error, WorkerStartError) and error.final)
            return None
        with self._changed:
            self._ready.add(worker)
            self._changed.notify_all()
        return worker

    def _start_failed(self, error: Exception, *, final: bool) -> None:
        with self._changed:
            if self._stopped_by is not None:
                return  # that "failure" was our own kill
            self._failed_starts += 1
            n_failed = self._failed_starts
        if final or n_failed >= MAX_FAILED_STARTS:
            self._stop(
                RewardError(f"reward {self._name}: its worker processes cannot start: {error}")
            )
        else:
            logger.warning(
                "reward %s: a worker failed to start (%d in a row): %s", self._name, n_failed, error
            )

    def _take(self) -> list[_Item]:
        """Wait for items and take a share of them; empty when the dispatcher stops."""
        with self._changed:
            self._changed.wait_for(lambda: self._queue or self._stopped_by is not None)
            size = min(MAX_CHUNK, -(-len(self._queue) // (2 * self._n_workers)))
            return [self._queue.popleft() for _ in range(size)]

    def _run_chunk(self, worker: WorkerProcess, chunk: list[_Item]) -> bool:
        """Have the items judged. False if the worker is spent; the items it did not get to are
        queued again."""
        try:
            worker.send([item.payload for item in chunk])
        except OSError as error:  # it ended while idle: not the fault of these items
            with self._changed:
                self._counts["workers_replaced"] += 1
            self._requeue(chunk)
            self._start_failed(error, final=False)
            return False
        for position, item in enumerate(chunk):
            reply = worker.receive(self._limits.timeout_s, self._limits.memory_bytes)
            spent = reply[0] in ENDS_WORKER
            if spent:
                # The rest goes back before the caller hears of this item, and to whichever worker
                # is free first.
                self._requeue(chunk[position + 1 :])
            self._finish(item, reply, worker if spent else None)
            if spent:
                return False
        return True

    def _requeue(self, items: list[_Item]) -> None:
        with self._changed:
            if self._stopped_by is None:
                self._queue.extendleft(
                    item for item in reversed(items) if item.batch in self._batches
                )
                self._changed.notify_all()

    def _finish(self, item: _Item, reply: Reply, spent: WorkerProcess | None) -> None:
        """Count one reply, hand it to the waiting caller, and strike off a worker that is to be
        replaced."""
        kind, value, message = reply
        with self._changed:
            if self._stopped_by is not None:
                return  # that "crash" was our own kill
            self._failed_starts = 0  # a worker got as far as an item
            self._counts[kind] += 1
            if spent is not None:
                self._ready.discard(spent)
                self._counts["workers_replaced"] += 1
            n_seen = self._counts[kind]
            item.batch.results[item.index] = value
            item.batch.n_left -= 1
            if item.batch.n_left == 0:
                item.batch.done.set()
        if message and n_seen <= WARNINGS_PER_KIND:
            last = "; further ones are only counted" if n_seen == WARNINGS_PER_KIND else ""
            logger.warning("reward %s: unscorable (%s): %s%s", self._name, kind, message, last)

    def _retire(self, worker: WorkerProcess) -> None:
        with self._changed:
            self._ready.discard(worker)
            self._workers.remove(worker)
        worker.close()
