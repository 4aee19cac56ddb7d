"""The documentation as a site: every page, no dead link, and nothing fetched from elsewhere by who
reads it."""

from __future__ import annotations

import os
import re
import shutil
import subprocess
import sys
from pathlib import Path

import pytest
import yaml

import depo_rl
from browser import CHROMIUM, chromium

pytest.importorskip("mkdocs", reason="needs the extra docs")

ROOT = Path(__file__).resolve().parents[1]
PAGES = [path.stem for path in sorted((ROOT / "docs").glob("*.md"))]
BESIDE = ["index", "CONTRIBUTING", "SECURITY", "CHANGELOG"]
OVERFLOW = "document.documentElement.scrollWidth - document.documentElement.clientWidth"
BACKGROUND = "getComputedStyle(document.body).backgroundColor"
BROKEN = "[...document.images].filter(i => i.complete && !i.naturalWidth).map(i => i.src)"


def build(root: Path, site: Path) -> subprocess.CompletedProcess[str]:
    command = [sys.executable, "-m", "mkdocs", "build", "--strict", "--site-dir", str(site)]
    environment = os.environ | {"NO_MKDOCS_2_WARNING": "1"}
    return subprocess.run(
        command, cwd=root, env=environment, capture_output=True, text=True, timeout=300
    )


@pytest.fixture(scope="module")
def site(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("built") / "site"
    done = build(ROOT, folder)
    assert done.returncode == 0, done.stderr
    return folder


def test_every_page_is_there_and_in_the_navigation(site: Path) -> None:
    home = (site / "index.html").read_text()
    for page in [*PAGES, *BESIDE]:
        assert (site / f"{page}.html").exists(), page
        assert f'href="{page}.html" class="md-nav__link' in home, page


@pytest.mark.parametrize(
    "fault", ["[gone](gone.md)", "[gone](methods.md#no-such-heading)", "[gone](../README)"]
)
def test_a_dead_link_fails_the_build(tmp_path: Path, fault: str) -> None:
    for name in ("mkdocs.yml", "README.md", "CONTRIBUTING.md", "SECURITY.md", "CHANGELOG.md"):
        shutil.copy(ROOT / name, tmp_path)
    for name in ("docs", "scripts", "examples"):
        shutil.copytree(ROOT / name, tmp_path / name)
    config = yaml.safe_load((tmp_path / "mkdocs.yml").read_text())
    config["plugins"] = []  # nothing about the reference to the API here
    config["nav"] = [{"Home": "index.md"}]
    config["validation"]["nav"] = {"omitted_files": "ignore"}
    (tmp_path / "mkdocs.yml").write_text(yaml.safe_dump(config))
    assert (done := build(tmp_path, tmp_path / "site")).returncode == 0, done.stderr
    with (tmp_path / "docs" / "quickstart.md").open("a") as page:
        page.write(f"\n{fault}\n")
    done = build(tmp_path, tmp_path / "site")
    assert done.returncode == 1 and "quickstart.md" in done.stderr


def test_the_api_page_has_every_public_name(site: Path) -> None:
    trl = re.findall(
        r'^__all__ = \["(.*)"\]', (ROOT / "src/depo_rl/trl.py").read_text(), flags=re.MULTILINE
    )
    names = [*depo_rl.__all__, *trl[0].split('", "')]
    page = (site / "api.html").read_text()
    headings = re.findall(r'<h3 id="depo_rl[\w.]*\.(\w+)"', page)
    assert sorted(headings) == sorted(name for name in names if name != "__version__")
    assert "DEPOTrainer" in names and "make_curriculum" in names


@pytest.mark.slow
@pytest.mark.skipif(CHROMIUM is None, reason="needs chromium (apt-get install chromium)")
@pytest.mark.timeout(300)
def test_the_site_in_a_real_browser(site: Path, tmp_path: Path) -> None:
    """Opened as files, on a desk and in a hand, by day and by night."""
    with chromium(tmp_path / "profile") as browser:
        for width, colours in ((1300, "light"), (390, "dark")):
            browser.call(
                "Emulation.setDeviceMetricsOverride",
                width=width,
                height=900,
                deviceScaleFactor=1,
                mobile=width < 600,
            )
            features = [{"name": "prefers-color-scheme", "value": colours}]
            browser.call("Emulation.setEmulatedMedia", features=features)
            for page in [*BESIDE, *PAGES]:
                browser.open(site / f"{page}.html")
                assert browser.evaluate(OVERFLOW) <= 0, (page, width)
                assert browser.evaluate(BROKEN) == [], page
                assert (browser.evaluate(BACKGROUND) == "rgb(255, 255, 255)") == (
                    colours == "light"
                ), page
        assert browser.problems == []
        assert [
            url for url in browser.requests if not url.startswith((site.as_uri(), "data:"))
        ] == []
