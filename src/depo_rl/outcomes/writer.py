"""The log's writer, which cannot hurt training: a bounded queue, a daemon thread, and no error that
gets out.

What may go wrong is counted instead: rows that found the queue full are dropped; a disk that fails
is tried again when the next row comes, and the row that failed is still first in line, so that a
short outage loses nothing.
"""

from __future__ import annotations

import atexit
import logging
import os
import threading
import time
from collections import deque
from collections.abc import Iterable
from contextlib import suppress
from pathlib import Path
from types import TracebackType

from .files import encode_line, heal, trim
from .schema import LogRow

_log = logging.getLogger(__name__)


class OutcomeLogWriter:
    """Appends rows to a JSONL file from a thread of its own; one writer per file.

    path: created with its folders at the first row; an existing file is healed (a last line torn by
    a crash is cut off) and appended to. queue_size: rows that may wait for the disk. No method
    raises because of the disk.

        with OutcomeLogWriter(folder / "outcomes.jsonl") as log:
            log.write(rows)           # returns at once
            log.flush()               # before saving a checkpoint, so that a resumed log has every row up to it
    """

    def __init__(self, path: str | os.PathLike[str], queue_size: int = 8192) -> None:
        self.path = Path(path)
        self.last_error: str | None = None
        self._queue_size = queue_size
        self._queue: deque[LogRow] = deque()
        # guards the queue and the counts; never held during input or output
        self._changed = threading.Condition()
        self._disk = threading.Lock()  # held during input and output
        self._attempt_due = False
        self._closing = False
        self._count = {"rows_written": 0, "rows_dropped": 0, "write_errors": 0}
        self._thread: threading.Thread | None = None
        self._fd: int | None = None
        self._trim_after: int | None = None
        self._pid = os.getpid()

    def write(self, rows: Iterable[LogRow]) -> None:
        """Queues the rows and returns at once. Rows that find the queue full, or the writer closed,
        are dropped."""
        if (
            os.getpid() != self._pid
        ):  # a forked worker has neither the thread nor, perhaps, an unlocked lock
            return
        try:
            rows = list(rows)
        except Exception as error:
            self._note(error)
            return
        with self._changed:
            room = 0 if self._closing else max(self._queue_size - len(self._queue), 0)
            self._queue.extend(rows[:room])
            self._count["rows_dropped"] += len(rows) - min(room, len(rows))
            self._attempt_due = bool(self._queue)
            try:
                self._start()
            except RuntimeError as error:  # no more threads: the next write tries again
                self._note(error)
            self._changed.notify_all()

    def flush(self, timeout: float = 10.0) -> bool:
        """Waits, at most ``timeout`` seconds, until every queued row is in the file; whether that
        is so."""
        if os.getpid() != self._pid:
            return False
        with self._changed:
            self._attempt_due = bool(self._queue)
            self._changed.notify_all()
            self._changed.wait_for(lambda: not self._queue or not self._attempt_due, timeout)
            return not self._queue

    def close(self, timeout: float = 10.0) -> bool:
        """Flushes and stops, within ``timeout`` seconds; rows that did not make it are dropped and
        counted.

        Returns whether all rows were written. Closing twice is allowed.
        """
        if os.getpid() != self._pid:
            return False
        deadline = time.monotonic() + timeout
        with self._changed:
            self._closing = True
        done = self.flush(timeout)
        with self._changed:
            self._count["rows_dropped"] += len(self._queue)
            self._queue.clear()
            self._attempt_due = False
            self._changed.notify_all()
        if self._thread is not None:
            self._thread.join(max(deadline - time.monotonic(), 0.0))
            atexit.unregister(self.close)
        return done

    def resume(self, after_step: int, timeout: float = 60.0) -> int:
        """Training goes on from step ``after_step``: removes the rows of later steps, waiting ones
        too; how many.

        So a resumed run's log equals an uninterrupted one. The file is replaced all at once. If the
        disk fails, that is counted and tried again before the next row is written; nothing is
        appended until it has worked.
        """
        idle = self._disk.acquire(timeout=timeout)
        with self._changed:
            self._trim_after = after_step
            # a row being written right now stays first in line; the file is trimmed after it
            keep = 0 if idle else 1
            rows = list(self._queue)
            self._queue = deque(
                row
                for i, row in enumerate(rows)
                if i < keep or row.step is None or row.step <= after_step
            )
            removed = len(rows) - len(self._queue)
        if not idle:
            self._note(TimeoutError(f"resume: the disk did not answer within {timeout} s"))
            return removed
        try:
            self._release_file()
            return removed + self._repair()
        except Exception as error:
            self._note(error)
            return removed
        finally:
            self._disk.release()

    def metrics(self) -> dict[str, float]:
        """Counts since this writer was made: rows_written, rows_dropped, write_errors."""
        with self._changed:
            return {name: float(count) for name, count in self._count.items()}

    def __enter__(self) -> OutcomeLogWriter:
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        trace: TracebackType | None,
    ) -> None:
        self.close()

    def _start(self) -> None:
        if self._thread is None and self._queue:
            self._thread = threading.Thread(
                target=self._run, name=f"outcome log {self.path.name}", daemon=True
            )
            self._thread.start()
            atexit.register(self.close)

    def _run(self) -> None:
        while True:
            with self._changed:
                self._changed.wait_for(
                    lambda: self._attempt_due or (self._closing and not self._queue)
                )
                if not self._queue:
                    self._attempt_due = False
                    self._changed.notify_all()
                    if self._closing:
                        break
                    continue
            with self._disk:
                self._write_next()
        with self._disk:
            self._release_file()

    def _write_next(self) -> None:
        """Writes the first waiting row. It leaves the queue if it was written, or if it can never
        be."""
        with self._changed:
            if not self._queue:
                return
            row = self._queue[0]
        try:
            line = encode_line(row)
        except Exception as error:  # not a row, or a value that cannot be turned into text
            self._note(error)
            self._settle(row, "rows_dropped")
            return
        try:
            self._append(line)
        except Exception as error:
            self._release_file()  # opening it again heals what half a write may have left
            self._note(error)
            with self._changed:
                self._attempt_due = False
                self._changed.notify_all()
            return
        self._settle(row, "rows_written")

    def _settle(self, row: LogRow, outcome: str) -> None:
        with self._changed:
            if (
                self._queue and self._queue[0] is row
            ):  # else close() gave up on it meanwhile, and has counted it
                self._queue.popleft()
                self._count[outcome] += 1
            elif outcome == "rows_written":
                self._count["rows_written"] += 1
                self._count["rows_dropped"] -= 1
            self._changed.notify_all()

    def _append(self, line: bytes) -> None:
        if self._fd is not None and not self._is_still_there():
            self._release_file()
            self._note(
                OSError(
                    f"{self.path} was removed or replaced while it was being written; starting it anew"
                )
            )
        if self._trim_after is not None:
            self._release_file()
        if self._fd is None:
            self.path.parent.mkdir(parents=True, exist_ok=True)
            self._repair()
            self._fd = os.open(
                self.path,
                os.O_WRONLY | os.O_APPEND | os.O_CREAT | getattr(os, "O_BINARY", 0),
                0o644,
            )
        written = os.write(self._fd, line)
        if written != len(line):
            raise OSError(f"only {written} of {len(line)} bytes of a row fitted on the disk")

    def _repair(self) -> int:
        """Heals the file and removes what ``resume`` asked for; returns the rows removed."""
        removed = 0
        with suppress(FileNotFoundError):
            heal(self.path)
            removed = trim(self.path, self._trim_after) if self._trim_after is not None else 0
        self._trim_after = None
        return removed

    def _is_still_there(self) -> bool:
        """A removed file goes on taking writes that nobody will ever read."""
        try:
            return self._fd is not None and os.path.samestat(os.fstat(self._fd), os.stat(self.path))
        except FileNotFoundError:
            return False

    def _release_file(self) -> None:
        if self._fd is not None:
            fd = self._fd
            self._fd = None
            try:
                os.close(fd)
            except OSError as error:
                self._note(error)

    def _note(self, error: Exception) -> None:
        with self._changed:
            first = self.last_error is None
            self._count["write_errors"] += 1
            self.last_error = f"{type(error).__name__}: {error}"
        if first:  # once: a full disk must not also fill the console
            with suppress(Exception):  # a log handler of the user's may raise
                _log.warning(
                    "outcome log %s: %s; training goes on, failures are counted",
                    self.path,
                    self.last_error,
                )
