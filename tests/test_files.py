"""Files appear all at once or not at all, whoever else writes; values are put in JSON's words."""

from __future__ import annotations

import json

import numpy as np
import pytest

from depo_rl.files import plain, replacing


def test_a_block_that_raises_leaves_the_old_file_and_nothing_beside_it(tmp_path):
    path = tmp_path / "log"
    path.write_bytes(b"old")
    with pytest.raises(KeyError), replacing(path) as file:
        file.write(b"half of the ne")
        raise KeyError
    assert path.read_bytes() == b"old" and list(tmp_path.iterdir()) == [path]


def test_two_that_write_at_once_do_not_disturb_each_other(tmp_path):
    path = tmp_path / "log"
    with replacing(path) as one, replacing(path) as other:
        one.write(b"one")
        other.write(b"other, which is longer")
    assert path.read_bytes() == b"one"  # the last to end
    assert list(tmp_path.iterdir()) == [path]


def test_a_file_may_be_read_by_whom_the_folder_lets(tmp_path):
    """As any file that a program opens for writing: not for its owner alone."""
    (tmp_path / "usual").write_bytes(b"")
    with replacing(tmp_path / "ours"):
        pass
    assert (tmp_path / "ours").stat().st_mode == (tmp_path / "usual").stat().st_mode


def test_values_are_put_in_the_words_of_json():
    class Unknown:
        pass

    thing = Unknown()
    value = {
        "a": np.float64("nan"),
        "b": [np.int64(3), (-np.inf, True)],
        3: np.array([[1.5, np.nan]]),
        "c": None,
    }
    assert plain(value) == {"a": None, "b": [3, [None, True]], "3": [[1.5, None]], "c": None}
    assert json.loads(json.dumps(plain(value), allow_nan=False)) == plain(value)
    assert plain([thing]) == [thing], "whoever writes it decides"
