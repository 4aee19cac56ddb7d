"""What ``import depo_rl`` gives, and what it must not cost."""

from __future__ import annotations

import ast
import importlib
import os
import pickle
import subprocess
import sys
from pathlib import Path

import pytest

import depo_rl
from depo_rl import errors
from limits import HANG_S

ENV = {**os.environ, "PYTHONPATH": str(Path(depo_rl.__file__).parents[1])}


def _python(program: str) -> str:
    done = subprocess.run(
        [sys.executable, "-c", program], env=ENV, capture_output=True, text=True, timeout=HANG_S
    )
    assert done.returncode == 0, done.stderr
    return done.stdout.strip()


def test_all_is_sorted_complete_and_importable():
    assert sorted(set(depo_rl.__all__)) == depo_rl.__all__ == dir(depo_rl)
    for name in depo_rl.__all__:
        assert getattr(depo_rl, name) is not None
    promised = {"Curriculum", "GroupOutcome", "Prediction", "Prompt", "make_curriculum"}
    assert promised <= set(depo_rl.__all__)


def test_type_checkers_see_the_same_names():
    tree = ast.parse(Path(depo_rl.__file__).read_text())
    seen = {
        alias.name
        for node in ast.walk(tree)
        if isinstance(node, ast.ImportFrom)
        for alias in node.names
    }
    assert seen >= set(depo_rl.__all__) - {"__version__"}


def test_a_name_that_is_not_there_is_an_attribute_error():
    with pytest.raises(AttributeError, match="module 'depo_rl' has no attribute 'curiculum_maker'"):
        _ = depo_rl.curiculum_maker


@pytest.mark.parametrize("name", [n for n in depo_rl.__all__ if n[0].isalpha()])
def test_every_public_object_is_documented(name):
    thing = getattr(depo_rl, name)
    if callable(thing):
        assert thing.__doc__ and len(thing.__doc__) > 10


IMPORT_UNDER_WATCH = """
import sys, threading
opened = []
def watch(event, args):
    if event == "open" and isinstance(args[0], str) and not args[0].endswith((".py", ".pyc")):
        opened.append(args[0])
sys.addaudithook(watch)
import depo_rl
heavy = [m for m in ("torch", "transformers", "trl", "numpy", "scipy", "sklearn", "pydantic") if m in sys.modules]
print(opened, heavy, threading.active_count())
"""


def test_importing_opens_no_file_starts_no_thread_and_loads_nothing_heavy():
    assert _python(IMPORT_UNDER_WATCH) == "[] [] 1"


def test_using_the_core_loads_no_torch():
    program = (
        "import sys\n"
        "from depo_rl import *\n"
        "prompts = [Prompt(str(i), f'{i} + {i}') for i in range(40)]\n"
        "c = make_curriculum('depo', prompts, {'warmup_steps': 0})\n"
        "c.settle([GroupOutcome(p.key, 1, 8) for p in c.propose(8)])\n"
        "c.metrics(), c.state_dict()\n"
        "print([m for m in ('torch', 'transformers', 'trl', 'datasets', 'matplotlib') if m in sys.modules])\n"
    )
    assert _python(program) == "[]"


def test_the_short_way_to_trl_gives_the_same_names():
    pytest.importorskip("trl")
    short, long = (
        importlib.import_module("depo_rl.trl"),
        importlib.import_module("depo_rl.engines.trl"),
    )
    assert short.__all__ == long.__all__
    assert all(getattr(short, name) is getattr(long, name) for name in short.__all__)


ERRORS = [
    error
    for error in vars(errors).values()
    if isinstance(error, type) and issubclass(error, errors.DepoError)
]


@pytest.mark.parametrize("error", ERRORS)
def test_errors_are_standard_errors_too_pickle_and_print_plainly(error):
    message = "setting 'x' = 3: must be below 2: lower it"
    again = pickle.loads(pickle.dumps(error(message)))
    assert type(again) is error
    assert str(again) == message
    if error is not errors.DepoError:
        standard = error.__mro__[error.__mro__.index(errors.DepoError) + 1 :]
        assert any(
            base.__module__ == "builtins" and base not in (Exception, BaseException, object)
            for base in standard
        )
        assert error.__name__ in (errors.__doc__ or "")
    assert error.__doc__


def test_every_module_of_the_core_imports_by_itself():
    modules = [
        "types",
        "errors",
        "config",
        "pool",
        "selectors",
        "gates",
        "metrics",
        "curriculum",
        "methods",
        "checkpoint",
    ]
    for name in modules:
        assert importlib.import_module(f"depo_rl.{name}").__doc__
