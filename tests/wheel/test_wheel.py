"""The package as somebody else gets it: built, checked, installed into a fresh environment, and run
from there.

``make test-wheel``. The environment shares the heavy dependencies with the one that the tests run
in, by a .pth file, to save minutes; depo_rl itself comes from the wheel, which is asserted.
"""

from __future__ import annotations

import json
import os
import subprocess
import sys
import tarfile
import venv
import zipfile
from pathlib import Path

import pytest

ROOT = Path(__file__).resolve().parents[2]
SOURCE = ROOT / "src" / "depo_rl"


def run(*command: object, cwd: Path) -> str:
    """Standard output; what is not of the environment (PYTHONPATH, and with it the checkout) is
    left behind."""
    environment = {
        name: value for name, value in os.environ.items() if not name.startswith("PYTHON")
    }
    words = [str(word) for word in command]
    done = subprocess.run(
        words, cwd=cwd, env=environment, capture_output=True, text=True, timeout=600
    )
    assert done.returncode == 0, f"{' '.join(words)}\n{done.stdout[-3000:]}\n{done.stderr[-3000:]}"
    return done.stdout


@pytest.fixture(scope="module")
def dist(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A folder with the sdist, and the wheel that was built from it."""
    folder = tmp_path_factory.mktemp("dist")
    run(sys.executable, "-m", "build", "--outdir", folder, ROOT, cwd=folder)
    return folder


@pytest.fixture(scope="module")
def wheel(dist: Path) -> Path:
    (path,) = dist.glob("*.whl")
    return path


@pytest.fixture(scope="module")
def fresh(wheel: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A new environment with nothing of its own but the wheel."""
    folder = tmp_path_factory.mktemp("fresh") / "env"
    venv.create(folder, with_pip=False)
    run(
        sys.executable,
        "-m",
        "pip",
        "--python",
        folder / "bin" / "python",
        "install",
        "--no-deps",
        wheel,
        cwd=folder,
    )
    (site_packages,) = folder.glob("lib/python*/site-packages")
    shared = [path for path in sys.path if Path(path).name == "site-packages"]
    (site_packages / "shared.pth").write_text("\n".join(shared) + "\n")
    return folder


def test_both_files_have_metadata_that_a_registry_takes(dist: Path) -> None:
    said = run(sys.executable, "-m", "twine", "check", "--strict", *dist.iterdir(), cwd=dist)
    assert said.count("PASSED") == 2


def test_the_wheel_holds_the_package_and_nothing_else(wheel: Path) -> None:
    """Code, types, assets of the demo, ready configurations, the page's template."""
    ours = {f"depo_rl/{path.relative_to(SOURCE)}" for path in SOURCE.rglob("*") if path.is_file()}
    ours = {name for name in ours if "__pycache__" not in name}
    with zipfile.ZipFile(wheel) as archive:
        names = {name for name in archive.namelist() if ".dist-info/" not in name}
    assert names == ours
    for kind in ("py.typed", "demo/assets/model.safetensors", "page.html.j2"):
        assert any(name.endswith(kind) for name in names), kind
    for folder in ("commands/train/configs", "commands/verl_configs"):
        assert sum(name.startswith(f"depo_rl/{folder}/") for name in names) == len(
            list((SOURCE / folder).iterdir())
        )


def test_the_sdist_holds_what_builds_and_explains_it(dist: Path) -> None:
    (path,) = dist.glob("*.tar.gz")
    with tarfile.open(path) as archive:
        names = {name.partition("/")[2] for name in archive.getnames()}
    assert {
        "pyproject.toml",
        "README.md",
        "LICENSE",
        "docs/quickstart.md",
        "examples/train.yaml",
    } <= names
    assert not [
        name
        for name in names
        if name.startswith((".venv", "site/", "runs/", "demo/")) or ".git/" in name
    ]


def test_it_is_the_wheel_that_is_imported(fresh: Path, tmp_path: Path) -> None:
    where = run(
        fresh / "bin" / "python", "-c", "import depo_rl; print(depo_rl.__file__)", cwd=tmp_path
    )
    assert Path(where.strip()).is_relative_to(fresh) and not Path(where.strip()).is_relative_to(
        ROOT
    )


def test_the_readme_s_import_works(fresh: Path, tmp_path: Path) -> None:
    pytest.importorskip("trl")
    code = "from depo_rl.trl import DEPOConfig, DEPOTrainer; print(DEPOTrainer.__name__, DEPOConfig.__name__)"
    assert run(fresh / "bin" / "python", "-c", code, cwd=tmp_path) == "DEPOTrainer DEPOConfig\n"


def test_the_ready_configurations_are_found(fresh: Path, tmp_path: Path) -> None:
    for command, folder in (
        ("configs", "commands/train/configs"),
        ("verl-config", "commands/verl_configs"),
    ):
        found = json.loads(run(fresh / "bin" / "depo", command, "--json", cwd=tmp_path))
        assert set(found) == {path.stem for path in (SOURCE / folder).iterdir()}
        assert all(
            Path(path).is_relative_to(fresh) and Path(path).exists() for path in found.values()
        )


def test_the_demo_runs(fresh: Path, tmp_path: Path) -> None:
    pytest.importorskip("trl")
    demo = (
        "demo",
        "--methods",
        "grpo,depo+",
        "--budget-tokens",
        "1500",
        "--jobs",
        "1",
        "--out",
        "demo",
    )
    run(fresh / "bin" / "depo", *demo, cwd=tmp_path)
    runs = json.loads((tmp_path / "demo" / "results.json").read_text())
    assert [run["method"] for run in runs] == ["grpo", "depo+"] and all(
        run["steps"] for run in runs
    )
    assert (tmp_path / "demo" / "report.html").stat().st_size > 100_000
