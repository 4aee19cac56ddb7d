"""The page: complete, self-contained, escaped, and checked in a real browser in both themes and on
a small screen."""

from __future__ import annotations

import re
import sys
from html.parser import HTMLParser
from pathlib import Path
from typing import Any

import pytest

from browser import CHROMIUM, chromium
from depo_rl.errors import ConfigError, DataError
from depo_rl.report import RunResult, summarise, write_page
from depo_rl.report import page as page_module
from depo_rl.report.page import cautions, forgetting, render_page, takeaways, unmeasured


def make_run(method: str, seed: int, reached: int | None = 500, **changes: Any) -> RunResult:
    history = [{"step": s, "rollouts": 100 * s, "mixed_share": 0.5, "all_pass_share": 0.2, "all_fail_share": 0.3}
               for s in range(1, 11)]  # fmt: skip
    accuracy = [
        {"rollouts": 100 * s, "tokens": 5000 * s, "seconds": 3.0 * s, "accuracy": s / 20}
        for s in range(11)
    ]
    values = {"rollouts": 1000, "tokens": 50_000, "mixed_share": 0.5, "history": history, "accuracy": accuracy,
              "target": 0.45, "rollouts_to_target": reached}  # fmt: skip
    return RunResult.model_validate({"method": method, "seed": seed} | values | changes)


RESULTS = [
    *(make_run("grpo", s, None) for s in range(3)),
    *(make_run("depo", s, 400 + s) for s in range(3)),
]
EVIL = "<script>document.title = 'gone'</script><img src=x onerror=alert(1)>"


@pytest.fixture
def tiny_images(monkeypatch: pytest.MonkeyPatch) -> None:
    """Figures are drawn in other tests: here one pixel stands for each."""
    pixel = bytes.fromhex(
        "89504e470d0a1a0a0000000d49484452000000010000000108000000003a7e9b550000000a49444154789c636000000002000148afa471"
        "0000000049454e44ae426082"
    )
    monkeypatch.setattr(page_module, "to_png", lambda figure: pixel)


class Outline(HTMLParser):
    """Tags with their attributes, in order, and whether every tag was closed."""

    VOID = frozenset({"meta", "img", "source", "br"})

    def __init__(self, text: str) -> None:
        super().__init__()
        self.tags: list[tuple[str, dict[str, str | None]]] = []
        self.open: list[str] = []
        self.feed(text)

    def handle_starttag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        self.tags.append((tag, dict(attrs)))
        if tag not in self.VOID:
            self.open.append(tag)

    def handle_endtag(self, tag: str) -> None:
        assert self.open.pop() == tag


@pytest.mark.usefixtures("tiny_images")
def test_the_page_is_well_formed_and_loads_nothing() -> None:
    html = render_page(
        RESULTS,
        "T",
        ["one", "two"],
        {"group_size": 8, "estimator": {"type": "fused"}, "resume": None},
    )
    outline = Outline(html)
    assert not outline.open
    assert not {"script", "link", "iframe"} & {tag for tag, _ in outline.tags}
    urls = [
        v
        for _, attrs in outline.tags
        for name, v in attrs.items()
        if name in ("src", "href", "srcset") and v
    ]
    assert urls and all(url.startswith("data:image/png;base64,") for url in urls)
    assert not re.search(r"@import|url\(|https?:", html)
    assert "estimator.type" in html and "not set" in html and "one" in html


@pytest.mark.usefixtures("tiny_images")
def test_names_titles_notes_and_settings_are_text() -> None:
    run = make_run(EVIL, 0)
    html = render_page([run], EVIL, EVIL, {EVIL: EVIL})
    assert "<script>" not in html and "<img src=x" not in html
    assert html.count("&lt;script&gt;") >= 5


@pytest.mark.usefixtures("tiny_images")
@pytest.mark.parametrize(
    "results",
    [
        [RunResult(method="depo", seed=0)],
        [make_run("depo", 0, accuracy=None, target=None, rollouts_to_target=None)],
        [make_run(f"method-{i}", s) for i in range(20) for s in range(2)],
        [make_run("grpo", 0, None), make_run("\u202e方法 &amp;", 1)],
    ],
)
def test_little_much_and_strange_runs_make_a_page(tmp_path: Path, results: list[RunResult]) -> None:
    path = write_page(results, tmp_path / "new" / "report.html")
    assert not Outline(path.read_text("utf-8")).open
    assert [p.name for p in path.parent.iterdir()] == ["report.html"]


def test_without_runs_there_is_no_page(tmp_path: Path) -> None:
    with pytest.raises(DataError, match="no runs to report on"):
        write_page([], tmp_path / "report.html")
    assert not list(tmp_path.iterdir())


def test_without_jinja_the_mend_is_named(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    monkeypatch.setitem(sys.modules, "jinja2", None)
    with pytest.raises(ConfigError, match=r"pip install './depo-rl\[report\]'"):
        write_page([RunResult(method="depo", seed=0)], tmp_path / "report.html")


def test_takeaways_claim_no_more_than_is_known() -> None:
    said = takeaways(summarise(RESULTS))
    assert said == [
        "depo reached the target with less than 0.40 times the rollouts of grpo (401 against more than 1,000)."
    ]
    swapped = [make_run("grpo", 0, 300), make_run("depo", 0, None)]
    assert takeaways(summarise(swapped)) == [
        "depo needs more than 3.33 times the rollouts of grpo for the target (more than 1,000 against 300): "
        "1 of 1 runs did not reach it."
    ]
    both = [make_run("grpo", 0, None), make_run("depo", 0, None), make_run("dapo", 0, 700)]
    assert (
        "depo and grpo cannot be compared: too few runs of either reached the target."
        in takeaways(summarise(both))
    )
    replayed = [
        RunResult(method=m, seed=0, mixed_share=share)
        for m, share in (("grpo", 0.2), ("depo", 0.6))
    ]
    assert takeaways(summarise(replayed)) == ["depo: mixed groups 60.0 % against 20.0 % for grpo."]
    assert takeaways(summarise([RunResult(method="depo", seed=0)])) == []
    many = [make_run(f"m{i}", 0) for i in range(20)] + [make_run("grpo", 0), make_run("depo", 0)]
    said = takeaways(summarise(many))
    assert len(said) == 8 and said[0].startswith("depo ")


FELL = {"add2": {"start": 0.95, "end": 0.86}, "add3": {"start": 0.5, "end": 0.625}}
HELD = {"add2": {"start": 0.95, "end": 0.945}, "add3": {"start": 0.5, "end": 0.525}}


def judged(
    method: str, whole: float, sources: dict[str, Any], reached: int | None = None
) -> list[RunResult]:
    return [
        make_run(method, s, reached, accuracy_whole=whole, accuracy_by_source=sources)
        for s in range(3)
    ]


def test_the_whole_is_said_first_and_what_was_forgotten_of_every_method() -> None:
    summary = summarise([*judged("grpo", 0.475, HELD), *judged("depo", 0.461, FELL, 400)])
    assert takeaways(summary) == [
        "depo: 46.1 % accuracy on the whole pool against 47.5 % for grpo, -1.4 points.",
        "depo reached the target with less than 0.40 times the rollouts of grpo (400 against more than 1,000).",
    ]
    assert forgetting(summary) == [
        ("grpo forgot nothing: no source fell by more than a point.", False),
        ("depo forgot add2 (95.0 % → 86.0 %, by more than a point in 3 of 3 runs).", True),
    ]
    assert forgetting(summarise(RESULTS)) == []


@pytest.mark.usefixtures("tiny_images")
def test_the_table_begins_with_the_whole_and_its_sources() -> None:
    html = render_page(
        [*judged("grpo", 0.475, HELD), *judged("depo", 0.461, FELL), make_run("mopps", 0)]
    )
    table = html[html.index('id="results-table"') :]
    labels = re.findall(r'<th scope="row">([^<]+)', table)
    assert labels[:3] == ["accuracy, whole pool", "accuracy on add2", "accuracy on add3"]
    assert "95.0 % → 86.0 %" in table and "forgotten in 3 of 3" in table and "-1.4 grpo" in table
    assert '<li class="warn">depo forgot add2' in html and "<li>grpo forgot nothing" in html
    assert table.index("accuracy on add2") < table.index("mixed groups")


def test_cautions() -> None:
    assert cautions(summarise(RESULTS)) == [
        "3 of 6 runs did not reach the target: they count as “more than” what they spent."
    ]
    text = " ".join(cautions(summarise([make_run("grpo", 0), make_run("depo", 1, rollouts=2000)])))
    assert "ran once" in text and "same seeds" in text and "equal cost" in text
    assert (
        "fewer than three seeds" in cautions(summarise([make_run("depo", s) for s in range(2)]))[0]
    )


def test_what_was_not_measured_is_listed() -> None:
    lines = unmeasured(
        summarise([make_run("grpo", 0, ece=0.1), make_run("depo", 0), make_run("depo", 1, ece=0.2)])
    )
    assert "ECE: not for depo (1 of 2 seeds)." in lines
    assert any(line.startswith("AUC (") and line.endswith("in no run.") for line in lines)
    assert not any(line.startswith("mixed groups") for line in lines)


IMAGES = """Promise.all([...document.images].map(i => i.decode().then(() =>
    [i.naturalWidth, i.naturalHeight, +i.getAttribute('width'), +i.getAttribute('height'),
     i.currentSrc === i.getAttribute('src')])))"""
NO_LIGHT_IMAGE = """new Promise(done => { const look = () =>
    [...document.images].some(i => i.currentSrc === i.getAttribute('src')) ? setTimeout(look, 20) : done(true);
    look(); })"""
ROWS = (
    "[...document.querySelectorAll('#results-table tr')]"
    ".map(r => [...r.cells].map(c => c.innerText.split('\\n')[0]))"
)


@pytest.mark.slow
@pytest.mark.skipif(CHROMIUM is None, reason="needs chromium (apt-get install chromium)")
def test_the_page_in_a_real_browser(tmp_path: Path) -> None:
    title = "Demo <b>& friends</b>"
    judged_too = {"accuracy_whole": 0.475, "accuracy_by_source": FELL, "most_visits": 7}
    results = [RunResult.model_validate(run.model_dump() | judged_too) for run in RESULTS]
    path = write_page(results, tmp_path / "report.html", title, EVIL, {"group_size": 8})
    with chromium(tmp_path / "profile") as browser:
        browser.open(path)
        assert browser.evaluate("document.title") == title
        rows = browser.evaluate(ROWS)
        assert rows[0] == ["measure", "grpo", "depo"]
        assert [row[0] for row in rows[1:4]] == [
            "accuracy, whole pool",
            "accuracy on add2",
            "accuracy on add3",
        ]
        assert ["most visits", "7", "7"] in rows
        assert ["rollouts to target", "> 1,000", "401"] in rows and ["tokens", "50k", "50k"] in rows
        images = browser.evaluate(IMAGES)
        assert len(images) == 6
        assert all(size[:2] == size[2:4] and min(size[:2]) > 300 for size in images)
        assert all(light for *_, light in images)
        for width in (1200, 600, 340):
            browser.call(
                "Emulation.setDeviceMetricsOverride",
                width=width,
                height=900,
                deviceScaleFactor=1,
                mobile=False,
            )
            assert browser.evaluate("document.documentElement.scrollWidth") <= width
        features = [{"name": "prefers-color-scheme", "value": "dark"}]
        browser.call("Emulation.setEmulatedMedia", features=features)
        assert (
            browser.evaluate("getComputedStyle(document.body).backgroundColor") == "rgb(23, 27, 34)"
        )
        # The browser picks the other source of a <picture> some time after the colours have
        # changed.
        browser.evaluate(NO_LIGHT_IMAGE)
        assert not any(light for *_, light in browser.evaluate(IMAGES))
        assert browser.problems == []
        assert [url for url in browser.requests if not url.startswith("data:")] == [path.as_uri()]
