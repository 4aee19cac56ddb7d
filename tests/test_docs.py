"""What the documents say can be run runs."""

from __future__ import annotations

import ast
import json
import re
import shlex
from pathlib import Path

import pytest
import yaml

from depo_rl import Prompt, make_curriculum, methods
from depo_rl.commands.train.config import CorrectSettings, DataSettings, ModelSettings, TrainConfig
from depo_rl.commands.train.file import load_train_config
from depo_rl.config import CurriculumConfig

ROOT = Path(__file__).resolve().parents[1]
PAGES = [
    "README.md",
    "CONTRIBUTING.md",
    *(f"docs/{path.name}" for path in sorted((ROOT / "docs").glob("*.md"))),
]


def python_blocks(name: str) -> list[str]:
    return re.findall(r"```python\n(.*?)```", (ROOT / name).read_text(), flags=re.DOTALL)


def test_contributing_adds_a_method_in_one_file(monkeypatch):
    monkeypatch.setattr(methods, "METHODS", dict(methods.METHODS))
    (block,) = python_blocks("CONTRIBUTING.md")
    exec(block, {"__name__": "my_method"})
    prompts = [Prompt(str(i), f"{i}+{i}=") for i in range(100)]
    curriculum = make_curriculum("nearest-half", prompts, {"explore": 0.0, "warmup_steps": 0})
    assert len({p.key for p in curriculum.propose(8)}) == 8


def test_readme_without_an_engine():
    trl, block = python_blocks("README.md")
    assert "DEPOTrainer" in trl
    steps = iter([True, True, False])
    block = block.replace("while training:", "while next(steps):")
    names = {
        "problems": {str(i): f"{i}+{i}=" for i in range(200)},
        "verify": lambda p: 3,
        "steps": steps,
    }
    exec(block, names)
    assert names["curriculum"].metrics()["admitted"] == 256


def test_readme_trl_settings_are_real():
    trl_block, _ = python_blocks("README.md")
    pytest.importorskip("trl")
    from depo_rl.rewards import math_reward
    from depo_rl.trl import DEPOConfig

    call = re.search(r"args=(DEPOConfig\(.*\)),", trl_block).group(1)
    config = eval(call.replace(")", ", use_cpu=True, bf16=False)"), {"DEPOConfig": DEPOConfig})
    assert config.method == "depo+" and config.curriculum_config().band == "auto"
    assert config.generation_batch_size // config.num_generations == 128
    assert (
        eval(re.search(r"reward_funcs=(.*),\n", trl_block).group(1), {"math_reward": math_reward})
        is not None
    )


def test_readme_is_short_and_says_what_depo_plus_has():
    text = (ROOT / "README.md").read_text()
    assert len(text.split()) < 900
    assert "make demo" in text and "make test" in text
    said = dict(re.findall(r"^\| `(\w+)` \| (\S+) \|", text, flags=re.MULTILINE))
    config = make_curriculum("depo+", [Prompt("a", "1+1=")]).config
    assert set(said) == {"temperature", "candidate_factor", "gate", "importance"}
    for name, value in said.items():
        assert json.loads(value.strip("`")) == getattr(config, name), name


def test_the_methods_page_lists_every_method_and_setting_it_names():
    text = (ROOT / "docs" / "methods.md").read_text()
    for name in methods.METHODS:
        assert f"| `{name}` |" in text, name
    for name in (
        "window",
        "keep",
        "max_rounds",
        "band",
        "gate",
        "guard",
        "temperature",
        "importance",
    ):
        assert f"`{name}" in text and name in CurriculumConfig.model_fields


def test_the_page_of_depo_train_names_every_setting_and_its_files_are_read(tmp_path):
    text = (ROOT / "docs" / "train.md").read_text()
    for model in (TrainConfig, DataSettings, ModelSettings, CorrectSettings):
        for name in model.model_fields:
            assert re.search(rf"`(\w+\.)?{name}`", text), name
    whole, part = (
        yaml.safe_load(block) for block in re.findall(r"```yaml\n(.*?)```", text, flags=re.DOTALL)
    )
    for given in (whole, whole | part):
        (tmp_path / "run.yaml").write_text(yaml.safe_dump(given))
        assert load_train_config(tmp_path / "run.yaml").group_size == 4


@pytest.mark.parametrize("page", PAGES)
def test_links_between_files_lead_somewhere(page):
    text = re.sub(r"```.*?```", "", (ROOT / page).read_text(), flags=re.DOTALL)
    for target in re.findall(r"""(?:\]\(|src=")([^)#\s"]+)""", text):
        if not re.match(r"https?:", target):
            assert ((ROOT / page).parent / target).exists(), target


def test_the_verl_page_s_file_and_commands_are_real(tmp_path):
    from depo_rl.commands.verl_config import verl_command

    text = (ROOT / "docs" / "verl.md").read_text()
    (block,) = re.findall(r"```yaml\n(.*?)```", text, flags=re.DOTALL)
    (tmp_path / "mine.yaml").write_text(block)
    drawn = ["curriculum.temperature=1", "curriculum.importance=1", "curriculum.gate=dynamic"]
    printed = [
        a for more in ([], drawn) for a in verl_command(tmp_path / "mine.yaml", more).arguments
    ]
    (added,) = [
        sh for sh in re.findall(r"```sh\n(.*?)```", text, flags=re.DOTALL) if "custom_cls" in sh
    ]
    for override in shlex.split(added, comments=True):
        assert override in printed, override
    ready, *overrides = re.search(r"depo verl-config (qwen\S+) (\S+) >", text).groups()
    assert "trainer.nnodes=4" in verl_command(ready, overrides).arguments


def test_the_axes_of_arrays_are_one_grammar_and_each_letter_stands_in_contributing():
    table = (ROOT / "CONTRIBUTING.md").read_text()
    known = set(re.findall(r"\| ([A-Z]) (?=\|)", table))
    ending = re.compile(r"_?[a-z][a-z0-9_]*_((?:[A-Z]|\d)[A-Z0-9_]*)")
    for path in (ROOT / "src").rglob("*.py"):
        for node in ast.walk(ast.parse(path.read_text())):
            name = getattr(node, "id", None) or getattr(node, "arg", None)
            found = ending.fullmatch(name) if isinstance(name, str) else None
            if found:
                assert "_" not in found[1], f"{path.name}: {name}"
                letters = set(re.sub(r"\d", "", found[1]))
                assert letters <= known, f"{path.name}: {name}"


def test_docstrings_are_of_one_dialect():
    section = re.compile(
        r"^\s*(Args|Arguments|Parameters|Returns|Raises|Yields):\s*$", re.MULTILINE
    )
    for path in (ROOT / "src").rglob("*.py"):
        for node in ast.walk(ast.parse(path.read_text())):
            if isinstance(node, (ast.Module, ast.ClassDef, ast.FunctionDef, ast.AsyncFunctionDef)):
                assert not section.search(ast.get_docstring(node) or ""), path.name
