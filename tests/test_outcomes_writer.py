"""The writer cannot hurt training: a disk that fails, hangs or fills, a full queue, a kill in
mid-line, a resume."""

from __future__ import annotations

import errno
import logging
import os
import shutil
import signal
import subprocess
import sys
import threading
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from depo_rl.outcomes import LogRow, OutcomeLogWriter, read_log
from limits import AT_ONCE_S, HANG_S


def row(step: int, key: str = "k", **fields: Any) -> LogRow:
    return LogRow(
        key, f"question {step}", "arith", step, 8, step % 9, 8, 0, tokens=step, fields=fields
    )


def steps(path: Path) -> list[int | None]:
    return [r.step for r in read_log(path)]


def counts(writer: OutcomeLogWriter) -> tuple[float, float, float]:
    metrics = writer.metrics()
    return metrics["rows_written"], metrics["rows_dropped"], metrics["write_errors"]


def seconds(action: Callable[[], object]) -> float:
    started = time.perf_counter()
    action()
    return time.perf_counter() - started


class Disk:
    """Stands in for ``os.write`` on the log: fails with ``error``, waits on ``gate``, writes only
    ``short`` bytes."""

    def __init__(self, monkeypatch: pytest.MonkeyPatch) -> None:
        self.error: Exception | None = None
        self.gate: threading.Event | None = None
        self.short: int | None = None
        self.reached = threading.Event()
        self.calls = 0
        self._write = os.write
        monkeypatch.setattr("depo_rl.outcomes.writer.os.write", self)

    def __call__(self, fd: int, data: bytes) -> int:
        if not threading.current_thread().name.startswith("outcome log"):
            return self._write(fd, data)
        self.calls += 1
        self.reached.set()
        if self.gate is not None:
            assert self.gate.wait(HANG_S)
        if self.error is not None:
            raise self.error
        return self._write(fd, data[: self.short])


@pytest.fixture
def disk(monkeypatch: pytest.MonkeyPatch) -> Disk:
    return Disk(monkeypatch)


def test_rows_arrive_in_order_each_in_one_write(tmp_path: Path, disk: Disk) -> None:
    path = tmp_path / "new" / "folder" / "log.jsonl"
    with OutcomeLogWriter(path) as log:
        log.write(row(i, level=i) for i in range(50))
        assert log.flush()
    assert [r.to_dict() for r in read_log(path)] == [row(i, level=i).to_dict() for i in range(50)]
    assert disk.calls == 50
    assert counts(log) == (50, 0, 0)


def test_making_a_writer_touches_nothing(tmp_path: Path) -> None:
    before = threading.active_count()
    log = OutcomeLogWriter(tmp_path / "log.jsonl")
    assert threading.active_count() == before and not list(tmp_path.iterdir())
    assert log.close() and log.close() and log.flush()
    log.write([row(1)])
    assert counts(log) == (0, 1, 0) and not list(tmp_path.iterdir())


@pytest.mark.parametrize(
    "error", [OSError(errno.ENOSPC, "No space left"), ValueError("closed"), MemoryError()]
)
def test_a_disk_that_fails_loses_nothing_once_it_is_back(
    tmp_path: Path, disk: Disk, error: Exception
) -> None:
    path = tmp_path / "log.jsonl"
    with OutcomeLogWriter(path) as log:
        log.write([row(1)])
        assert log.flush()
        disk.error = error
        log.write([row(2)])
        log.write([row(3)])
        assert not log.flush(5)
        written, dropped, errors = counts(log)
        assert (written, dropped) == (1, 0) and errors >= 1
        assert log.last_error is not None and type(error).__name__ in log.last_error
        disk.error = None
        log.write([row(4)])
        assert log.flush()
    assert steps(path) == [1, 2, 3, 4]
    assert counts(log)[:2] == (4, 0)


def test_a_disk_that_never_comes_back_costs_rows_only(
    tmp_path: Path, disk: Disk, caplog: Any
) -> None:
    disk.error = OSError(errno.ENOSPC, "No space left on device")
    log = OutcomeLogWriter(tmp_path / "log.jsonl", queue_size=10)
    with caplog.at_level(logging.WARNING):
        for i in range(100):
            log.write([row(i)])
        assert not log.close(5)
    written, dropped, errors = counts(log)
    assert (written, dropped) == (0, 100) and errors >= 1
    assert len([r for r in caplog.records if "No space left" in r.getMessage()]) == 1


def test_half_a_row_on_a_full_disk_is_healed(tmp_path: Path, disk: Disk) -> None:
    path = tmp_path / "log.jsonl"
    with OutcomeLogWriter(path) as log:
        log.write([row(1)])
        assert log.flush()
        disk.short = 20
        log.write([row(2)])
        assert not log.flush(5)
        disk.short = None
        assert log.flush()
        assert "20 of" in str(log.last_error)
    assert steps(path) == [1, 2]


def test_a_disk_that_hangs_never_holds_up_training(tmp_path: Path, disk: Disk) -> None:
    disk.gate = threading.Event()
    path = tmp_path / "log.jsonl"
    log = OutcomeLogWriter(path, queue_size=30)
    log.write([row(0)])
    assert disk.reached.wait(10)
    for i in range(1, 100):
        assert seconds(lambda i=i: log.write([row(i)])) < AT_ONCE_S  # type: ignore[misc]
    assert seconds(log.metrics) < AT_ONCE_S
    assert counts(log) == (0, 70, 0)
    assert seconds(lambda: log.flush(0.05)) < AT_ONCE_S
    assert seconds(lambda: log.close(0.05)) < AT_ONCE_S
    assert counts(log)[1] == 100
    disk.gate.set()
    assert log._thread is not None
    log._thread.join(10)
    assert not log._thread.is_alive()
    assert counts(log) == (1, 99, 0)  # the row that hung was written after all
    assert steps(path) == [0]


def test_an_overflowing_queue_drops_the_newest_and_counts(tmp_path: Path, disk: Disk) -> None:
    disk.gate = threading.Event()
    log = OutcomeLogWriter(tmp_path / "log.jsonl", queue_size=5)
    log.write([row(0)])
    assert disk.reached.wait(10)
    log.write([row(i) for i in range(1, 20)])
    assert counts(log)[1] == 15
    disk.gate.set()
    assert log.close()
    assert steps(tmp_path / "log.jsonl") == [0, 1, 2, 3, 4]


def test_a_removed_folder_is_made_again(tmp_path: Path) -> None:
    folder = tmp_path / "run"
    with OutcomeLogWriter(folder / "log.jsonl") as log:
        log.write([row(1)])
        assert log.flush()
        shutil.rmtree(folder)
        log.write([row(2)])
        assert log.flush()
        assert counts(log) == (2, 0, 1) and "removed" in str(log.last_error)
    assert steps(folder / "log.jsonl") == [2]


def test_a_folder_that_cannot_be_made(tmp_path: Path) -> None:
    (tmp_path / "run").write_text("a file where the folder should be")
    log = OutcomeLogWriter(tmp_path / "run" / "log.jsonl")
    log.write([row(1)])
    assert not log.flush(5)
    (tmp_path / "run").unlink()
    log.write([row(2)])
    assert log.close()
    assert steps(tmp_path / "run" / "log.jsonl") == [1, 2]


def test_what_is_not_a_row_is_dropped_and_the_rest_written(tmp_path: Path) -> None:
    circular: dict[str, Any] = {}
    circular["self"] = circular

    class Unprintable:
        def __str__(self) -> str:
            raise RuntimeError("no")

    def broken() -> Any:
        yield row(9)
        raise RuntimeError("the caller's generator failed")

    with OutcomeLogWriter(tmp_path / "log.jsonl") as log:
        log.write([row(1), "no row", row(2, loop=circular), row(3, odd=Unprintable()), row(4)])  # type: ignore[list-item]
        log.write(broken())
        log.write(None)  # type: ignore[arg-type]
        assert log.flush()
        assert counts(log) == (2, 3, 5)
    assert steps(tmp_path / "log.jsonl") == [1, 4]


def test_odd_values_become_json(tmp_path: Path) -> None:
    import numpy as np

    with OutcomeLogWriter(tmp_path / "log.jsonl") as log:
        log.write(
            [
                row(
                    1,
                    nan=float("nan"),
                    count=np.int64(3),
                    array=np.arange(2),
                    when=Path("a"),
                    pair=(1, 2),
                )
            ]
        )
    fields = read_log(tmp_path / "log.jsonl")[0].fields
    assert fields == {"nan": None, "count": 3, "array": [0, 1], "when": "a", "pair": [1, 2]}


def test_a_raising_log_handler_or_thread_limit_stays_inside(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    class Raising(logging.Handler):
        def emit(self, record: logging.LogRecord) -> None:
            raise RuntimeError("handler")

    handler = Raising()
    logging.getLogger("depo_rl.outcomes.writer").addHandler(handler)
    try:
        log = OutcomeLogWriter(tmp_path / "log.jsonl")
        start = threading.Thread.start
        monkeypatch.setattr(
            threading.Thread,
            "start",
            lambda _: (_ for _ in ()).throw(RuntimeError("no threads left")),
        )
        log.write([row(1)])
        monkeypatch.setattr(threading.Thread, "start", start)
        log._thread = None
        log.write([row(2)])
        assert log.close()
    finally:
        logging.getLogger("depo_rl.outcomes.writer").removeHandler(handler)
    assert steps(tmp_path / "log.jsonl") == [1, 2] and counts(log)[2] == 1


CHILD = """
import os, sys
from depo_rl.outcomes import LogRow, OutcomeLogWriter
real = os.write
def torn(fd, data):
    if b'"step": 3' not in data:
        return real(fd, data)
    real(fd, data[:40])
    os.kill(os.getpid(), 9)
os.write = torn
log = OutcomeLogWriter(sys.argv[1])
log.write([LogRow("k", f"question {i}", "arith", i, 8, i, 8, 0) for i in range(1, 6)])
log.flush(30)
"""


def test_kill_in_mid_line(tmp_path: Path) -> None:
    path = tmp_path / "log.jsonl"
    done = subprocess.run([sys.executable, "-c", CHILD, str(path)], timeout=HANG_S, check=False)
    assert done.returncode == -signal.SIGKILL
    log = read_log(path)
    assert ([r.step for r in log], log.torn_lines, log.torn_bytes) == ([1, 2], 1, 40)
    with OutcomeLogWriter(path) as writer:
        assert writer.resume(after_step=2) == 0
        writer.write([row(3)])
    log = read_log(path)
    assert ([r.step for r in log], log.torn_lines) == ([1, 2, 3], 0)


def test_rows_survive_a_program_that_forgets_to_close(tmp_path: Path) -> None:
    code = (
        "import sys; from depo_rl.outcomes import *; log = OutcomeLogWriter(sys.argv[1]);"
        "log.write([LogRow('k', 'q', 's', i, 8, 1, 8, 0) for i in range(500)])"
    )
    subprocess.run(
        [sys.executable, "-c", code, str(tmp_path / "log.jsonl")], timeout=HANG_S, check=True
    )
    assert len(read_log(tmp_path / "log.jsonl")) == 500


def test_a_resumed_log_equals_an_uninterrupted_one(tmp_path: Path) -> None:
    def run(path: Path, first: int, last: int) -> None:
        with OutcomeLogWriter(path) as log:
            log.resume(after_step=first - 1)
            for step in range(first, last + 1):
                log.write([row(step, key=f"{step}-{i}") for i in range(3)])

    run(tmp_path / "whole.jsonl", 1, 10)
    run(tmp_path / "halves.jsonl", 1, 7)  # died at step 7, its last checkpoint being that of step 5
    run(tmp_path / "halves.jsonl", 6, 10)
    assert (tmp_path / "halves.jsonl").read_bytes() == (tmp_path / "whole.jsonl").read_bytes()
    assert len(list(tmp_path.iterdir())) == 2


def test_resume_removes_later_rows_alone(tmp_path: Path, disk: Disk) -> None:
    path = tmp_path / "log.jsonl"
    path.write_bytes(
        b'{"step": 1}\nnot a row\n{"step": null}\n{"step": 7.0}\n[7]\n{"step": 2, "a"  : 0}\n{"st'
    )
    log = OutcomeLogWriter(path)
    assert log.resume(after_step=2) == 1
    assert (
        path.read_bytes() == b'{"step": 1}\nnot a row\n{"step": null}\n[7]\n{"step": 2, "a"  : 0}\n'
    )
    assert log.resume(after_step=2) == 0
    assert OutcomeLogWriter(tmp_path / "nowhere" / "log.jsonl").resume(after_step=0) == 0
    disk.error = OSError("disk")
    log.write([row(i) for i in range(10)])
    assert not log.flush(5)
    assert log.resume(after_step=4) == 5  # those that still waited
    disk.error = None
    assert log.close()
    assert [b'"step": 4,' in line for line in path.read_bytes().splitlines()][-2:] == [False, True]


def test_nothing_is_appended_before_a_failed_trim_has_worked(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    path = tmp_path / "log.jsonl"
    with OutcomeLogWriter(path) as log:
        log.write([row(i) for i in range(1, 8)])
    replace = os.replace
    monkeypatch.setattr(
        "os.replace", lambda *_: (_ for _ in ()).throw(OSError(errno.ENOSPC, "No space"))
    )
    log = OutcomeLogWriter(path)
    assert log.resume(after_step=5) == 0
    log.write([row(6, again=True)])
    assert not log.flush(5)
    assert steps(path) == [1, 2, 3, 4, 5, 6, 7]
    monkeypatch.setattr("os.replace", replace)
    assert log.close()
    assert steps(path) == [1, 2, 3, 4, 5, 6]
    assert read_log(path)[-1].fields == {"again": True}
    assert [p.name for p in tmp_path.iterdir()] == ["log.jsonl"]


def test_resume_does_not_wait_for_a_disk_that_hangs(tmp_path: Path, disk: Disk) -> None:
    disk.gate = threading.Event()
    path = tmp_path / "log.jsonl"
    log = OutcomeLogWriter(path)
    log.write([row(8)])
    assert disk.reached.wait(10)
    log.write([row(1), row(9)])
    assert seconds(lambda: log.resume(after_step=3, timeout=0.05)) < AT_ONCE_S
    disk.gate.set()
    log.write([row(4)])
    assert log.close()
    assert steps(path) == [1, 4]


@pytest.mark.skipif(not hasattr(os, "fork"), reason="forking is POSIX")
@pytest.mark.filterwarnings("ignore:.*multi-threaded.*:DeprecationWarning")
def test_a_forked_worker_leaves_the_log_alone(tmp_path: Path) -> None:
    path = tmp_path / "log.jsonl"
    log = OutcomeLogWriter(path)
    log.write([row(1)])
    assert log.flush()
    held, done = threading.Event(), threading.Event()

    def hold() -> None:
        with (
            log._changed
        ):  # another thread is inside at the very moment of the fork: in the child nobody lets go
            held.set()
            done.wait(60)

    holder = threading.Thread(target=hold)
    holder.start()
    assert held.wait(10)
    child = os.fork()
    if child == 0:
        signal.alarm(20)
        log.write([row(2)])
        os._exit(0 if not log.flush() and not log.close() else 1)
    done.set()
    holder.join(10)
    assert os.waitpid(child, 0)[1] == 0
    assert log.close()
    assert steps(path) == [1]
