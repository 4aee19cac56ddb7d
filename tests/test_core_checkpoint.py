"""State files: atomic, exact, the same bytes for the same state, and clear when damaged."""

from __future__ import annotations

import builtins
import errno
import json
import os
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from hypothesis.extra import numpy as hnp

from depo_rl.checkpoint import load_state, save_state
from depo_rl.errors import CheckpointError, DepoError
from depo_rl.files import write_atomically
from limits import HANG_S

arrays = hnp.arrays(
    st.sampled_from([np.float64, np.float32, np.int64, np.uint8, np.bool_]),
    hnp.array_shapes(min_dims=0, max_dims=3, min_side=0, max_side=3),
)
leaves = st.none() | st.booleans() | st.integers() | st.floats() | st.text() | arrays
keys = st.text(st.characters(codec="utf-8"), max_size=4)
states = st.dictionaries(
    keys,
    st.recursive(
        leaves, lambda inner: st.lists(inner, max_size=3) | st.dictionaries(keys, inner, max_size=3)
    ),
)


def _same(a, b) -> bool:
    if isinstance(a, np.ndarray):
        return (
            isinstance(b, np.ndarray)
            and a.dtype == b.dtype
            and a.shape == b.shape
            and a.tobytes() == b.tobytes()
        )
    if isinstance(a, dict):
        return isinstance(b, dict) and list(a) == list(b) and all(_same(a[k], b[k]) for k in a)
    if isinstance(a, list):
        return isinstance(b, list) and len(a) == len(b) and all(map(_same, a, b))
    return type(a) is type(b) and (a == b or (a != a and b != b))


@given(states)
def test_what_is_saved_is_what_is_loaded_and_saves_to_the_same_bytes(tmp_path_factory, state):
    folder = tmp_path_factory.mktemp("state")
    save_state(folder / "a", state)
    loaded = load_state(folder / "a")
    assert _same(loaded, state)
    save_state(folder / "b", loaded)
    assert (folder / "a").read_bytes() == (folder / "b").read_bytes()


def test_nan_infinity_none_and_large_numbers_survive(tmp_path):
    state = {
        "nan": float("nan"),
        "inf": -float("inf"),
        "none": None,
        "big": 2**200,
        "tiny": 5e-324,
        "numpy": np.float32(2),
    }
    save_state(tmp_path / "s", state)
    assert _same(load_state(tmp_path / "s"), {**state, "numpy": 2.0})


def test_keys_with_slashes_do_not_collide(tmp_path):
    save_state(tmp_path / "s", {"a/b": np.zeros(1), "a": {"b": np.ones(1)}})
    loaded = load_state(tmp_path / "s")
    assert loaded["a/b"].tolist() == [0.0]
    assert loaded["a"]["b"].tolist() == [1.0]


@pytest.mark.parametrize(
    "state", [{1: "a"}, {"a": {(1, 2): 3}}, {"a": {"$array": "b"}}, {"a": object()}]
)
def test_what_could_not_come_back_as_it_was_is_refused(state, tmp_path):
    with pytest.raises(TypeError):
        save_state(tmp_path / "s", state)
    assert list(tmp_path.iterdir()) == []


def _raise_enospc(*args, **kwargs):
    raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))


@pytest.mark.parametrize("broken", ["fsync", "replace"])
def test_a_full_disk_leaves_the_old_file_and_no_litter(broken, tmp_path, monkeypatch):
    path = tmp_path / "state"
    save_state(path, {"step": 1})
    old = path.read_bytes()
    with monkeypatch.context() as patch:
        patch.setattr(os, broken, _raise_enospc)
        with pytest.raises(
            CheckpointError,
            match=r"cannot write .*state: No space left on device; the previous file",
        ):
            save_state(path, {"step": 2})
    assert path.read_bytes() == old
    assert list(tmp_path.iterdir()) == [path]


def test_a_write_that_fails_in_the_middle_leaves_the_old_file(tmp_path, monkeypatch):
    path = tmp_path / "state"
    save_state(path, {"step": 1})
    real_open = builtins.open

    def full_disk(file, mode="r", *args, **kwargs):
        opened = real_open(file, mode, *args, **kwargs)
        return _Full(opened) if "w" in mode else opened

    with monkeypatch.context() as patch:
        patch.setattr(builtins, "open", full_disk)
        with pytest.raises(CheckpointError, match="No space left"):
            save_state(path, {"step": 2})
    assert load_state(path) == {"step": 1}
    assert list(tmp_path.iterdir()) == [path]


class _Full:
    """A file that takes half of what is written and then has no room."""

    def __init__(self, file):
        self._file = file

    def __enter__(self):
        return self

    def __exit__(self, *error):
        self._file.close()

    def write(self, data):
        self._file.write(data[: len(data) // 2])
        _raise_enospc()


def test_killed_between_the_write_and_the_rename_the_old_file_stands(tmp_path):
    path = tmp_path / "state"
    save_state(path, {"step": 1})
    program = (
        "import os, signal, sys\n"
        "from depo_rl.checkpoint import save_state\n"
        "os.replace = lambda *a: os.kill(os.getpid(), signal.SIGKILL)\n"
        f"save_state({str(path)!r}, {{'step': 2}})\n"
    )
    killed = subprocess.run(
        [sys.executable, "-c", program], env={**os.environ, "PYTHONPATH": _src()}, timeout=HANG_S
    )
    assert killed.returncode == -9
    assert load_state(path) == {"step": 1}
    save_state(path, {"step": 3})
    assert load_state(path) == {"step": 3}


def _src() -> str:
    import depo_rl

    return str(Path(depo_rl.__file__).parents[1])


def test_no_byte_of_a_file_can_change_unnoticed(tmp_path):
    path = tmp_path / "state"
    save_state(path, {"weights": np.arange(20.0), "step": 1, "name": "a b"})
    data = path.read_bytes()
    for at in range(len(data)):
        for flip in (1, 0x29, 0x80):  # 0x29 makes a tab of a space, which JSON takes for the same
            path.write_bytes(data[:at] + bytes([data[at] ^ flip]) + data[at + 1 :])
            with pytest.raises(CheckpointError) as error:
                load_state(path)
            assert "\n" not in str(error.value)


@pytest.mark.parametrize("keep", [0, 4, 20, 0.5, 0.99, -1])
def test_a_torn_file_is_a_clear_error(keep, tmp_path):
    path = tmp_path / "state"
    save_state(path, {"weights": np.arange(1000.0), "step": 1})
    data = path.read_bytes()
    path.write_bytes(data[: int(len(data) * keep) if isinstance(keep, float) else keep])
    with pytest.raises(CheckpointError, match="damaged") as error:
        load_state(path)
    assert isinstance(error.value, OSError)
    assert "\n" not in str(error.value)


def test_other_files_are_refused(tmp_path):
    from safetensors.numpy import save_file

    with pytest.raises(CheckpointError, match="no state file at"):
        load_state(tmp_path / "absent")
    save_file({"w": np.zeros(3)}, tmp_path / "model.safetensors", metadata={"format": "pt"})
    with pytest.raises(CheckpointError, match="is not a depo_rl state"):
        load_state(tmp_path / "model.safetensors")
    save_file(
        {"w": np.zeros(3)},
        tmp_path / "bad",
        metadata={"depo-state-1": json.dumps({"w": {"$array": "w"}})},
    )
    with pytest.raises(CheckpointError, match=r"holds \['depo-state-1'\], expected 'depo-state-2'"):
        load_state(tmp_path / "bad")
    (tmp_path / "text").write_text("hello, this is no safetensors file at all")
    with pytest.raises(CheckpointError, match="damaged"):
        load_state(tmp_path / "text")
    with pytest.raises(DepoError):
        load_state(tmp_path)


def test_missing_folders_are_made_and_a_file_in_the_way_is_named(tmp_path):
    write_atomically(tmp_path / "a" / "b" / "c", b"x")
    assert (tmp_path / "a" / "b" / "c").read_bytes() == b"x"
    with pytest.raises(CheckpointError, match="cannot write"):
        write_atomically(tmp_path / "a" / "b" / "c" / "d", b"x")
