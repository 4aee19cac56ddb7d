"""What the package says of itself: one version, and the Pythons it promises."""

from __future__ import annotations

import re
from pathlib import Path

import yaml

import depo_rl

ROOT = Path(__file__).resolve().parents[1]
PYPROJECT = (ROOT / "pyproject.toml").read_text()


def test_there_is_one_version():
    assert re.search(r'^dynamic = \["version"\]', PYPROJECT, flags=re.MULTILINE)
    assert not re.search(r"^version = ", PYPROJECT, flags=re.MULTILINE)
    assert yaml.safe_load((ROOT / "CITATION.cff").read_text())["version"] == depo_rl.__version__
    assert f"## {depo_rl.__version__}\n" in (ROOT / "CHANGELOG.md").read_text()


def test_the_promised_pythons_begin_with_the_oldest_that_installs():
    (oldest,) = re.findall(r'requires-python = ">=3\.(\d+)"', PYPROJECT)
    promised = [int(minor) for minor in re.findall(r'"Programming Language :: Python :: 3\.(\d+)"', PYPROJECT)]
    assert promised == list(range(int(oldest), promised[-1] + 1))
    assert f"Python 3.{oldest} or newer" in (ROOT / "README.md").read_text()
