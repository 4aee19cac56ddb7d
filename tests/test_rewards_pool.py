"""The verifier pool: whatever a reward function does, the limit holds, the rest is unaffected,
nothing is left over."""

import functools
import gc
import importlib.util
import os
import pickle
import signal
import subprocess
import sys
import threading
import time
import warnings
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import pytest

from depo_rl.errors import ConfigError, DataError, RewardError
from depo_rl.rewards import VerifierPool
from limits import AT_ONCE_S, HANG_S
from test_rewards_functions import (
    HANG,
    ExplodesWhenLoaded,
    behave,
    eat_memory,
    failing_setup,
    slow_echo,
    start_child_and_hang,
)

LIMIT_S = 1.0  # a healthy item takes a millisecond; the rest is for a busy machine
SRC = str(Path(__file__).parents[1] / "src")
needs_proc = pytest.mark.skipif(not Path("/proc/self/stat").exists(), reason="reads /proc")


@pytest.fixture(scope="module")
def pool() -> Iterator[VerifierPool]:
    with VerifierPool(behave, n_workers=2, timeout_s=LIMIT_S) as shared:
        yield shared


def wait_until(condition: Callable[[], bool], seconds: float = AT_ONCE_S) -> bool:
    deadline = time.monotonic() + seconds
    while not condition() and time.monotonic() < deadline:
        time.sleep(0.02)
    return condition()


def children() -> set[int]:
    """Processes whose parent is this one, zombies included."""
    found = set()
    for stat in Path("/proc").glob("[0-9]*/stat"):
        try:
            parent = int(stat.read_text().rpartition(")")[2].split()[1])
        except OSError:
            continue
        if parent == os.getpid():
            found.add(int(stat.parent.name))
    return found


def is_running(pid: int) -> bool:
    """True unless the process is gone or a zombie (an orphan's new parent may be slow to reap
    it)."""
    try:
        return Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()[0] != "Z"
    except OSError:
        return False


def run_script(code: str) -> subprocess.CompletedProcess[str]:
    path = os.pathsep.join([SRC, str(Path(__file__).parent)])
    environment = {**os.environ, "PYTHONPATH": path}
    return subprocess.run(
        [sys.executable, "-W", "error", "-c", code],
        env=environment,
        capture_output=True,
        text=True,
        timeout=HANG_S,
    )


def counted(pool: VerifierPool, completion: str) -> tuple[list[float | None], dict[str, int]]:
    """Results of one item followed by a right one, and the counters that moved."""
    before = pool.metrics()
    results = pool.score([completion, "x"], ["y", "x"])
    after = pool.metrics()
    return results, {
        kind: after[kind] - before[kind] for kind in after if after[kind] != before[kind]
    }


@pytest.mark.parametrize(
    ("completion", "kind", "replaced"),
    [
        (HANG, "timed_out", True),
        ("exit", "crashed", True),
        ("sigkill", "crashed", True),
        ("segfault", "crashed", True),
        ("memory error", "out_of_memory", True),
        ("raise", "raised", False),
        ("sys.exit", "raised", False),
        ("text", "raised", False),
        ("dict", "raised", False),
        ("nan", "nonfinite", False),
        ("inf", "nonfinite", False),
        ("none", "abstained", False),
    ],
)
def test_what_cannot_be_judged_is_none_and_counted_by_kind(pool, completion, kind, replaced):
    results, moved = counted(pool, completion)
    assert results == [None, 1.0]
    assert moved == {"scored": 1, kind: 1, **({"workers_replaced": 1} if replaced else {})}


def test_wrong_is_zero_and_right_is_one(pool):
    results = pool.score(["a", "b"], ["a", "c"])
    assert results == [1.0, 0.0]
    assert all(type(result) is float for result in results)


def test_order_is_kept_when_items_fail_in_between(pool):
    completions = [("exit" if i % 40 == 7 else HANG if i == 60 else str(i)) for i in range(120)]
    answers = [str(i) if i % 3 else "other" for i in range(120)]
    expected = [
        None if c in ("exit", HANG) else float(i % 3 > 0) for i, c in enumerate(completions)
    ]
    assert pool.score(completions, answers) == expected


def test_hang_costs_its_own_limit_and_not_one_per_neighbour():
    with VerifierPool(behave, n_workers=2, timeout_s=1.0) as own:
        own.start(AT_ONCE_S)
        start = time.monotonic()
        assert own.score([HANG, *"abcdefgh"], ["?", *"abcdefgh"]) == [None] + [1.0] * 8
        assert time.monotonic() - start < 5.0  # one limit each would be nine


def test_many_threads_at_once_get_their_own_results(pool):
    def call(thread: int) -> list[float | None]:
        completions = [f"{thread}-{i}" for i in range(30)]
        completions[thread] = HANG if thread == 0 else "exit"
        return pool.score(completions, [f"{thread}-{i}" for i in range(30)])

    with ThreadPoolExecutor(4) as threads:
        results = list(threads.map(call, range(4)))
    assert results == [[None if i == thread else 1.0 for i in range(30)] for thread in range(4)]


def test_after_failures_all_workers_are_back_and_the_next_100_calls_succeed(pool):
    pool.score([HANG, "exit", HANG, "raise"], [""] * 4)
    assert wait_until(lambda: len(pool.worker_pids()) == 2)
    before = pool.metrics()
    assert all(pool.score([str(i)], [str(i)]) == [1.0] for i in range(100))
    assert pool.metrics() == {**before, "scored": before["scored"] + 100}


def test_a_worker_killed_while_idle_costs_no_result():
    with VerifierPool(behave, n_workers=1) as own:
        own.start(AT_ONCE_S)
        os.kill(own.worker_pids()[0], signal.SIGKILL)
        time.sleep(0.1)
        assert own.score(["x"], ["x"]) == [1.0]
        assert own.metrics()["workers_replaced"] == 1


def test_extras_reach_the_function_and_large_items_pass(pool):
    assert pool.score(["extras", "extras"], ["", ""], [{"level": 2}, {"level": 5}]) == [2.0, 5.0]
    text = "7" * 3_000_000
    assert pool.score([text], [text]) == [1.0]
    assert pool.score([], []) == []


def test_workers_import_no_torch_and_do_not_write_to_our_stdout(pool, capfd):
    assert pool.score(["modules", "print"], ["", ""]) == [0.0, 1.0]
    assert capfd.readouterr().out == ""


@needs_proc
def test_memory_limit_is_enforced_from_outside():
    with VerifierPool(eat_memory, n_workers=1, timeout_s=20.0, memory_limit_mb=200) as own:
        assert own.score(["x"], ["y"]) == [None]
        assert own.metrics()["out_of_memory"] == 1


@needs_proc
def test_what_a_timed_out_function_started_is_killed_too(tmp_path):
    with VerifierPool(start_child_and_hang, n_workers=1, timeout_s=1.0) as own:
        assert own.score(["x"], [str(tmp_path / "pid")]) == [None]
        child = int((tmp_path / "pid").read_text())
        assert wait_until(lambda: not is_running(child))


@needs_proc
def test_close_leaves_no_process_and_no_thread_behind():
    gc.collect()
    processes, threads = children(), threading.active_count()
    own = VerifierPool(behave, n_workers=3, timeout_s=LIMIT_S)
    assert (children(), threading.active_count()) == (processes, threads), (
        "must not start before first use"
    )
    own.score([HANG, "exit", "x"], ["", "", "x"])
    own.close()
    own.close()
    assert (children(), threading.active_count()) == (processes, threads)
    with pytest.raises(RewardError, match="closed"):
        own.score(["x"], ["x"])


@needs_proc
def test_losing_the_last_reference_ends_the_workers():
    own = VerifierPool(behave, n_workers=1)
    own.score(["x"], ["x"])
    [pid] = own.worker_pids()
    del own
    assert wait_until(lambda: pid not in children())


def test_close_releases_a_call_that_is_waiting():
    own = VerifierPool(behave, n_workers=1, timeout_s=HANG_S)
    own.start(AT_ONCE_S)
    with ThreadPoolExecutor(1) as thread:
        call = thread.submit(own.score, [HANG], [""])
        time.sleep(0.2)
        own.close()
        with pytest.raises(RewardError, match="closed"):
            call.result(AT_ONCE_S)


def test_setup_that_fails_is_one_typed_error_at_once():
    own = VerifierPool(behave, setup=failing_setup)
    for _ in range(2):  # stays broken, does not try again
        with pytest.raises(
            RewardError, match="cannot be loaded: ImportError: no module named math_verify"
        ) as caught:
            own.score(["x"], ["x"])
        assert "\n" not in str(caught.value)


def test_workers_that_die_while_starting_are_tried_a_bounded_number_of_times():
    with pytest.raises(RewardError, match=r"cannot start.*exit status 7"):
        VerifierPool(ExplodesWhenLoaded()).score(["x"], ["x"])


def test_start_that_takes_too_long_is_bounded():
    with pytest.raises(RewardError, match=r"not ready within 0\.001 s"):
        VerifierPool(behave, n_workers=1, start_timeout_s=0.001).score(["x"], ["x"])


def test_functions_of_a_closure_are_sent_by_value():
    bonus = 2.0
    with VerifierPool(
        lambda completion, answer: bonus * (completion == answer), n_workers=1
    ) as own:
        assert own.score(["a", "b"], ["a", "c"]) == [2.0, 0.0]


def test_functions_of_a_file_that_was_loaded_by_its_path_are_sent_by_value(tmp_path):
    file = tmp_path / "rewards.py"
    file.write_text(
        "bonus = 2.0\n"
        "def twice(x): return bonus * x\n"
        "def mine(completion, answer): return twice(completion == answer)\n"
    )
    spec = importlib.util.spec_from_file_location("loaded_by_path", file)
    module = importlib.util.module_from_spec(spec)
    sys.modules[spec.name] = module
    try:
        spec.loader.exec_module(module)
        for function in (module.mine, functools.partial(module.mine)):
            with VerifierPool(function, n_workers=1) as own:
                assert own.score(["a", "b"], ["a", "c"]) == [2.0, 0.0]
    finally:
        del sys.modules[spec.name]


def test_script_without_main_guard_is_not_run_again_by_the_workers(tmp_path):
    script = tmp_path / "train.py"
    script.write_text(
        "print('loading the model')\n"
        "from depo_rl.rewards import VerifierPool\n"
        "def mine(completion, answer): return completion == answer\n"
        "print(VerifierPool(mine, n_workers=2).score(['a', 'b'], ['a', 'c']))\n"
    )
    code = f"import runpy; runpy.run_path({str(script)!r}, run_name='__main__')"
    done = run_script(code)
    assert (done.stdout, done.stderr, done.returncode) == ("loading the model\n[1.0, 0.0]\n", "", 0)


def test_exit_without_close_is_quiet_and_leaves_nothing():
    code = (
        "from test_rewards_functions import behave\n"
        "from depo_rl.rewards import VerifierPool\n"
        "pool = VerifierPool(behave, n_workers=2)\n"
        "pool.score(['x'], ['x']); pool.start(); print(*pool.worker_pids())\n"
    )
    done = run_script(code)
    assert (done.returncode, done.stderr) == (0, "")
    assert not any(is_running(int(pid)) for pid in done.stdout.split())


@needs_proc
def test_busy_worker_ends_by_itself_when_the_parent_is_killed():
    code = (
        "import os, threading, time\n"
        "from test_rewards_functions import behave\n"
        "from depo_rl.rewards import VerifierPool, pool as pool_module\n"
        "pool_module.ALARM_GRACE_S = 0.2\n"
        "pool = VerifierPool(behave, n_workers=2, timeout_s=1.0); pool.start()\n"
        "print(*pool.worker_pids(), flush=True)\n"
        "threading.Thread(target=pool.score, args=(['hang'], ['']), daemon=True).start()\n"
        "time.sleep(0.3); os.kill(os.getpid(), 9)\n"
    )
    pids = [int(pid) for pid in run_script(code).stdout.split()]
    assert len(pids) == 2
    assert wait_until(lambda: not any(is_running(pid) for pid in pids))


def test_forked_child_gets_workers_of_its_own_and_the_parent_keeps_its_own(pool):
    pool.score(["x"], ["x"])
    pool.start(AT_ONCE_S)
    ours = pool.worker_pids()
    with warnings.catch_warnings():
        # newer Pythons warn about any fork beside threads
        warnings.simplefilter("ignore", DeprecationWarning)
        pid = os.fork()
    if pid == 0:  # in the child: report by the exit status alone
        try:
            ok = pool.score(["x", "exit"], ["x", ""]) == [1.0, None] and not set(ours) & set(
                pool.worker_pids()
            )
            pool.close()
        except BaseException:
            ok = False
        os._exit(0 if ok else 1)
    assert os.waitstatus_to_exitcode(os.waitpid(pid, 0)[1]) == 0
    assert pool.worker_pids() == ours
    assert pool.score(["x"], ["x"]) == [1.0]


def test_pickled_copy_is_a_pool_with_the_same_settings():
    with pickle.loads(pickle.dumps(VerifierPool(slow_echo, n_workers=1, timeout_s=0.5))) as copy:
        assert copy.score(["3", "4"], [0.0, 30.0]) == [3.0, None]


@pytest.mark.parametrize(
    ("setting", "message"),
    [
        ({"n_workers": 0}, "n_workers=0"),
        ({"n_workers": 1.5}, "n_workers=1.5"),
        ({"timeout_s": 0}, "timeout_s=0"),
        ({"timeout_s": float("nan")}, "timeout_s=nan"),
        ({"start_timeout_s": -1}, "start_timeout_s=-1"),
        ({"memory_limit_mb": 0}, "memory_limit_mb=0"),
    ],
)
def test_settings_out_of_range_are_named(setting, message):
    with pytest.raises(ConfigError, match=message):
        VerifierPool(behave, **setting)


def test_what_cannot_be_sent_is_refused_by_name(pool):
    lock = threading.Lock()
    with pytest.raises(ConfigError, match="cannot be sent to a worker process"):
        VerifierPool(lambda completion, answer: lock.locked())
    with pytest.raises(DataError, match="item 1 cannot be sent"):
        pool.score(["x", "x"], ["x", lock])
    with pytest.raises(DataError, match="2 completions, 1 answers"):
        pool.score(["x", "x"], ["x"])


def test_import_starts_nothing_and_imports_nothing_heavy():
    code = (
        "import sys, threading, depo_rl.rewards\n"
        "heavy = {'torch', 'trl', 'transformers', 'math_verify', 'sympy', 'numpy'} & set(sys.modules)\n"
        "assert not heavy, heavy\n"
        "assert threading.active_count() == 1\n"
    )
    done = run_script(code)
    assert done.returncode == 0, done.stderr
