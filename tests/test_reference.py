"""The pages made from the code are what the code says now, and nothing is missing in them."""

from __future__ import annotations

import importlib.util
import re
from collections.abc import Iterator
from pathlib import Path
from types import ModuleType, SimpleNamespace
from typing import Any

import pytest
from pydantic import BaseModel

from core_world import METHOD_IDS, METHODS, build
from depo_rl import GroupOutcome, Prompt
from depo_rl.config import CurriculumConfig

ROOT = Path(__file__).resolve().parents[1]
PROMPTS = [
    Prompt(
        str(i), f"{i} + {i} =", fields={"answer": str(2 * i), "pass_rate": i / 40, "strong": i / 40}
    )
    for i in range(41)
]


@pytest.fixture(scope="module")
def reference() -> ModuleType:
    pytest.importorskip("trl")
    spec = importlib.util.spec_from_file_location(
        "make_reference", ROOT / "scripts" / "make_reference.py"
    )
    assert spec is not None and spec.loader is not None
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


@pytest.mark.parametrize("page", ["settings.md", "metrics.md"])
def test_a_page_is_what_the_code_says(reference, page):
    made = reference.PAGES[page]()
    assert (ROOT / "docs" / page).read_text() == made, "stale: python scripts/make_reference.py"


def _settings(
    model: type[BaseModel], seen: set[type[BaseModel]]
) -> Iterator[tuple[type[BaseModel], str, Any]]:
    """Every field of settings and of the settings within, each class once."""
    if model in seen:
        return
    seen.add(model)
    for name, field in model.model_fields.items():
        yield model, name, field
        parts: list[Any] = [field.annotation]
        while parts:
            part = parts.pop()
            parts += getattr(part, "__args__", ())
            if isinstance(part, type) and issubclass(part, BaseModel):
                yield from _settings(part, seen)


def test_every_setting_is_described_and_on_the_page(reference):
    page = (ROOT / "docs" / "settings.md").read_text()
    named = {
        name.rpartition(".")[2]
        for name in re.findall(r"^\| `([\w.]+)` \|", page, flags=re.MULTILINE)
    }
    seen: set[type[BaseModel]] = set()
    for root in (CurriculumConfig, reference.VerlSettings):
        for model, name, field in _settings(root, seen):
            if name != "type":
                assert field.description, f"{model.__name__}.{name} has no description"
                assert name in named, f"{model.__name__}.{name}"
    assert {*reference.ESTIMATORS, *reference.OF_A_METHOD.values()} <= seen
    shown = sum(name != "type" for model in seen for name in model.model_fields)
    own = sum(1 for _ in reference._dataclass_rows(reference.DEPOSettings))
    assert len(re.findall(r"^\| `", page, flags=re.MULTILINE)) == shown + own


def _after_a_batch(method: str, config: dict[str, Any]) -> dict[str, float]:
    curriculum = build(method, PROMPTS, config, shared={"warmup_steps": 0})
    for _ in range(2):
        curriculum.settle(
            [
                GroupOutcome(p.key, int(p.key) % 9, 8, mean_logprob=-1.0)
                for p in curriculum.propose(8)
            ]
        )
    return curriculum.metrics()


def _documented(reference: ModuleType, estimator: str, method: str) -> set[str]:
    names = set(reference.CORE)
    names |= {f"estimator/{name}" for name in reference.ESTIMATOR_FIGURES.get(estimator, ())}
    return names | {f"selector/{name}" for name in reference.SELECTOR_FIGURES.get(method, ())}


@pytest.mark.parametrize(("method", "config"), METHODS, ids=METHOD_IDS)
def test_every_figure_of_every_method_is_described_and_no_other(reference, method, config):
    estimator = reference.METHODS_CONFIG[method].estimator.type
    assert set(_after_a_batch(method, config)) == _documented(reference, estimator, method)


def test_the_encoder_s_figures_are_described(reference):
    config = {"estimator": {"type": "encoder", "backbone": "tiny-random"}}
    assert set(_after_a_batch("depo", config)) == _documented(reference, "encoder", "depo")


def _on_the_page(reference: ModuleType, besides: dict[str, str]) -> set[str]:
    """What an engine logs by the page. besides: it alone."""
    names = {
        *reference.LIVE,
        *besides,
        *(f"estimator/{name}" for name in reference.ESTIMATOR_FIGURES["fused"]),
    }
    return names | {name for name in reference.CORE if reference._logged(name) != "-"}


def test_what_trl_logs_is_described(reference, tmp_path):
    from depo_rl.trl import DEPOConfig

    args = DEPOConfig(str(tmp_path), method="depo+", use_cpu=True, bf16=False)
    rows = [{"prompt": prompt.text, "answer": prompt.fields["answer"]} for prompt in PROMPTS]
    main = SimpleNamespace(is_main_process=True, num_processes=1)
    driver = reference.trl.TrlDriver(main, rows, args, args.curriculum_config())
    driver.open_log(tmp_path / "outcomes.jsonl", resume_after=None)
    for step in range(3):  # after which nothing is unknown, for that would not be logged
        keys = driver.propose(8).keys
        driver.settle(
            lambda keys=keys: [GroupOutcome(key, int(key, 16) % 9, 8, n_tokens=80) for key in keys],
            step,
        )
        generation, so_far = driver.figures()
    driver.close_log()
    by_the_trainer = {
        "completion_tokens",
        "rounds",
        "unfilled",
        "surplus",
        "importance_max",
        "effective_share",
    }
    assert {*generation, *so_far} | by_the_trainer == _on_the_page(reference, reference.TRL_ONLY)


def test_what_verl_logs_is_described(reference, tmp_path):
    from depo_rl.engines.verl.outcomes import Completion
    from depo_rl.engines.verl.rows import prompt_table
    from depo_rl.engines.verl.settings import VerlSettings

    table = prompt_table(
        [{"prompt": prompt.text} for prompt in PROMPTS], "prompt", "data_source", True
    )
    settings = VerlSettings.model_validate(
        {"method": "depo+", "curriculum": {"importance": 1.0, "temperature": 1.0}}
    )
    driver = reference.verl.VerlDriver(
        table, settings, settings.curriculum_config(8, 0), 8, tmp_path / "outcomes.jsonl"
    )
    for step in (1, 2, 3):  # after which nothing is unknown, for that would not be logged
        rows = driver.choose(list(range(8)))
        driver.importance(rows)
        groups = {
            row: [Completion(1.0, {"acc": n < row % 3}, 10, -5.0, step) for n in range(8)]
            for row in rows
        }
        told = driver.finish(groups, step)
    driver.close()
    in_an_actor = {"depo/estimator/hosted", "depo/estimator/restarts"}
    documented = {f"depo/{name}" for name in _on_the_page(reference, reference.VERL_ONLY)}
    assert set(told) | in_an_actor == documented
