"""What the package says of itself: one version, and the Pythons it promises."""

from __future__ import annotations

import re
from importlib import metadata
from pathlib import Path

import pytest
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
    promised = [
        int(minor)
        for minor in re.findall(r'"Programming Language :: Python :: 3\.(\d+)"', PYPROJECT)
    ]
    assert promised == list(range(int(oldest), promised[-1] + 1))


def test_the_readme_s_python_is_the_one_that_trl_needs():
    pytest.importorskip("trl")
    (least,) = re.findall(r">=\s*(3\.\d+)", metadata.metadata("trl")["Requires-Python"])
    for page in ("README.md", "docs/quickstart.md"):
        assert f"Python {least} or newer" in (ROOT / page).read_text(), page


def test_no_message_names_a_package_that_a_registry_would_answer_with_somebody_else_s():
    """depo-rl is not published: what is installed is a checkout."""
    pages = [ROOT / "README.md", *(ROOT / "docs").glob("*.md"), *(ROOT / "src").rglob("*.py")]
    for path in pages:
        assert not re.search(r"""pip install [^\n]*?(?<!/)\bdepo-rl\b""", path.read_text()), path


def test_the_hosted_workflow_runs_every_promised_python_by_targets_that_exist():
    workflow = yaml.safe_load((ROOT / ".github" / "workflows" / "ci.yml").read_text())
    jobs = workflow["jobs"]
    pythons = list(jobs["test"]["strategy"]["matrix"]["python"])
    steps = [step for job in jobs.values() for step in job["steps"]]
    pythons += [str(step["with"]["python-version"]) for step in steps if "with" in step]
    promised = re.findall(r'"Programming Language :: Python :: (3\.\d+)"', PYPROJECT)
    assert set(promised) == {python for python in pythons if "matrix" not in python}
    targets = set(re.findall(r"^([\w-]+):", (ROOT / "Makefile").read_text(), flags=re.MULTILINE))
    called = {
        word
        for step in steps
        if step.get("run", "").startswith("make ")
        for word in step["run"].split()[1:]
    }
    called = {word for word in called if "=" not in word}
    assert called <= targets and called == {
        "lint",
        "docs",
        "test-trl",
        "test-trl-versions",
        "test-descendants",
        "test-wheel",
        "test-lowest",
        "test-verl",
    }


def test_pre_commit_runs_what_make_lint_runs():
    (local,) = yaml.safe_load((ROOT / ".pre-commit-config.yaml").read_text())["repos"]
    tools = {
        " ".join(hook["entry"].removeprefix(".venv/bin/").split()[:2]) for hook in local["hooks"]
    }
    assert {tool.removesuffix(" --force-exclude") for tool in tools} == {
        "ruff check",
        "ruff format",
        "mypy",
    }
