"""The examples load, and what they would do is what they say. Training itself is tested
elsewhere."""

from __future__ import annotations

import argparse
import importlib.util
import json
import re
import subprocess
import sys
from pathlib import Path
from types import ModuleType

import pytest

from depo_rl import GroupOutcome, Prompt, make_curriculum
from depo_rl.commands.train.file import load_train_config
from depo_rl.rewards import gsm8k_reward

EXAMPLES = Path(__file__).resolve().parents[1] / "examples"
ROWS = [json.loads(line) for line in (EXAMPLES / "problems.jsonl").read_text().splitlines()]


def load(name: str) -> ModuleType:
    pytest.importorskip("trl")
    spec = importlib.util.spec_from_file_location(name, EXAMPLES / f"{name}.py")
    assert spec is not None and spec.loader is not None
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


@pytest.fixture(scope="module")
def script() -> ModuleType:
    return load("trl_local")


def test_the_problems_are_distinct_and_their_answers_can_be_judged():
    assert len({row["prompt"] for row in ROWS}) == len(ROWS) == 240
    assert all(gsm8k_reward(row["answer"], row["answer"]) == 1.0 for row in ROWS)
    assert all(gsm8k_reward("I give up", row["answer"]) == 0.0 for row in ROWS)


def test_the_problems_make_a_pool():
    prompts = [
        Prompt(str(i), row["prompt"], row["source"], {"answer": row["answer"]})
        for i, row in enumerate(ROWS)
    ]
    curriculum = make_curriculum("depo+", prompts, {"group_size": 4})
    for _ in range(3):
        curriculum.settle([GroupOutcome(p.key, 2, 4) for p in curriculum.propose(32)])
    assert curriculum.metrics()["admitted"] == 96


@pytest.mark.parametrize(("tiny", "prompts"), [(False, 32), (True, 2)])
def test_the_script_s_settings(script, tmp_path, tiny, prompts):
    args = script.settings(tmp_path / "run", tiny)
    assert args.method == "depo+" and args.curriculum_config().group_size == 4
    assert args.generation_batch_size // args.num_generations == prompts
    assert not (tmp_path / "run").exists()


@pytest.mark.filterwarnings("ignore")  # of datasets, about its own files
def test_the_script_s_rows(script, tmp_path, monkeypatch):
    data = script.load_dataset
    monkeypatch.setattr(
        script, "load_dataset", lambda *a, **k: data(*a, cache_dir=str(tmp_path), **k)
    )
    rows = script.problems(EXAMPLES / "problems.jsonl")
    assert set(rows.column_names) == {"prompt", "answer", "source"} and len(rows) == 240
    (message,) = rows[0]["prompt"]
    assert message["role"] == "user" and message["content"].startswith(
        ROWS[0]["prompt"] + "\nThink"
    )


def test_the_file_s_settings():
    config = load_train_config(EXAMPLES / "train.yaml")
    assert config.method == "depo+" and config.group_size == 4 and config.prompts_per_step == 32
    assert Path(str(config.data.path)) == EXAMPLES / "problems.jsonl"


def test_the_file_in_a_dry_run(tmp_path, capsys):
    """Data, rewards, answers and settings are all checked; with a tiny model, for nothing is
    downloaded here."""
    pytest.importorskip("trl")
    import trl_toys as toys
    from depo_rl.cli import main

    model = toys.saved_policy(tmp_path / "model")
    given = ["model.name=null", f"model.path={model}", "trl.max_completion_length=8"]
    given += ["trl.bf16=false", "trl.use_cpu=true", f"output={tmp_path / 'out'}"]
    assert main(["train", str(EXAMPLES / "train.yaml"), *given, "--dry-run", "--json"]) == 0
    plan = json.loads(capsys.readouterr().out)
    assert plan["data"]["prompts"] == 240 and plan["method"]["name"] == "depo+"
    (own,) = plan["reward"]["own_answers"].values()
    assert own["judged"] == own["correct"] == own["answers"]
    assert not (tmp_path / "out").exists()


def test_the_file_trains_without_the_libraries_chatter(tmp_path: Path) -> None:
    """As from a shell, at toy size: whatever TRL and transformers think of each other's names is
    not the user's."""
    pytest.importorskip("trl")
    import trl_toys as toys

    model = toys.saved_policy(tmp_path / "model")
    given = [
        "model.name=null",
        f"model.path={model}",
        "trl.max_completion_length=8",
        "trl.max_steps=2",
    ]
    given += [
        "trl.bf16=false",
        "trl.use_cpu=true",
        "prompts_per_step=2",
        f"output={tmp_path / 'out'}",
    ]
    command = [sys.executable, "-m", "depo_rl.cli", "train", str(EXAMPLES / "train.yaml"), *given]
    done = subprocess.run(
        command, stdout=subprocess.PIPE, stderr=subprocess.STDOUT, text=True, timeout=300
    )
    assert done.returncode == 0, done.stdout
    assert "outcomes.jsonl" in done.stdout
    assert not [
        line
        for line in done.stdout.splitlines()
        if re.search("deprecat|will be removed|FutureWarning", line)
    ]
    assert len((tmp_path / "out" / "outcomes.jsonl").read_text().splitlines()) == 4


@pytest.mark.filterwarnings("ignore::FutureWarning")  # of transformers about what TRL sets
def test_the_script_trains(script: ModuleType, tmp_path: Path) -> None:
    """Two small steps of a toy policy, from the command line's own words."""
    import trl_toys as toys

    toys.policy().save_pretrained(tmp_path / "model")
    toys.tokenizer().save_pretrained(tmp_path / "model")
    script.main(["--tiny", "--model", str(tmp_path / "model"), "--out", str(tmp_path / "out")])
    log = [
        json.loads(line) for line in (tmp_path / "out" / "outcomes.jsonl").read_text().splitlines()
    ]
    assert [row["step"] for row in log] == [1, 1, 2, 2] and all(
        row["group_size"] == 4 for row in log
    )
    assert (tmp_path / "out" / "model" / "model.safetensors").exists()


# of datasets about its own files, of transformers about what TRL sets
@pytest.mark.filterwarnings("ignore")
def test_gsm8k_trains_without_a_network(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    """Two small steps of a toy policy on rows as GSM8K has them; the accuracy on the held-out ones
    is printed."""
    gsm8k = load("trl_gsm8k")
    import trl_toys as toys

    rows = [{"question": row["prompt"], "answer": row["answer"]} for row in ROWS[:24]]
    for name, part in {"train": rows[:16], "test": rows[16:]}.items():
        (tmp_path / f"{name}.jsonl").write_text("".join(json.dumps(row) + "\n" for row in part))
    given = [
        "--data",
        tmp_path / "train.jsonl",
        "--test",
        tmp_path / "test.jsonl",
        "--out",
        tmp_path / "out",
    ]
    given += ["--model", toys.saved_policy(tmp_path / "model")]
    given += ["--max-steps", 2, "--prompts-per-step", 2, "--max-completion-length", 8]
    gsm8k.main([str(word) for word in given])
    assert "Accuracy on 8 held-out problems: 0." in capsys.readouterr().out
    log = [
        json.loads(line) for line in (tmp_path / "out" / "outcomes.jsonl").read_text().splitlines()
    ]
    assert [row["step"] for row in log] == [1, 1, 2, 2] and all(
        row["group_size"] == 4 for row in log
    )
    assert {row["prompt"].split("\n")[0] for row in log} <= {row["question"] for row in rows[:16]}


def test_gsm8k_s_own_settings(tmp_path: Path) -> None:
    gsm8k = load("trl_gsm8k")
    words = argparse.Namespace(
        out=tmp_path / "run",
        method="depo+",
        prompts_per_step=64,
        max_completion_length=512,
        max_steps=200,
    )
    args = gsm8k.settings(words)
    assert args.generation_batch_size // args.num_generations == 64
    assert args.curriculum_config().group_size == 4


@pytest.mark.filterwarnings("ignore")  # of what runs kernels
def test_the_notebook_replays_and_draws(tmp_path: Path) -> None:
    nbformat = pytest.importorskip("nbformat")
    client = pytest.importorskip("nbclient")
    pytest.importorskip("matplotlib")
    notebook = nbformat.read(EXAMPLES / "replay_a_log.ipynb", as_version=4)
    assert not any(cell.get("outputs") for cell in notebook.cells), (
        "committed as it is before it runs"
    )
    where = {"metadata": {"path": str(tmp_path)}}
    client.NotebookClient(notebook, timeout=300, kernel_name="python3", resources=where).execute()
    outputs = [output for cell in notebook.cells for output in cell.get("outputs", [])]
    assert sum("image/png" in output.get("data", {}) for output in outputs) == 2
    said = "".join(output.get("text", "") for output in outputs)
    assert re.search(r"960 groups of 400 prompts in 30 steps", said)
    mixed = {
        method: int(share)
        for method, share in re.findall(r"^(\S+) +seed 0: (\d+)% mixed", said, re.MULTILINE)
    }
    assert set(mixed) == {"grpo", "depo", "depo+"} and mixed["grpo"] < mixed["depo+"]
    assert {
        row["method"]
        for row in json.loads((tmp_path / "runs/replay_a_log/results.json").read_text())
    } == set(mixed)
