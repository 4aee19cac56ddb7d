"""`depo train` end to end on a tiny random model: dry run, two steps, resume, and what is
written."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest
import yaml

os.environ.setdefault("HF_HUB_OFFLINE", "1")

from depo_rl.checkpoint import load_state
from depo_rl.cli import main

# torch, transformers and TRL warn about each other
pytestmark = pytest.mark.filterwarnings("ignore")

VOCABULARY = ["<pad>", "<bos>", "<eos>", "<unk>", *"0123456789+-*= ?"]
REWARDS = '''
def even(prompts, completions, **columns):
    """Shaped on purpose: 1 or -1."""
    return [1.0 if len(c) % 2 == 0 else -1.0 for c in completions]


def scaled(weight):
    def by_weight(prompts, completions, **columns):
        return [weight * len(c) for c in completions]

    return by_weight


def equal(completion, answer, row=None):
    return float(completion == str(answer))


LIMIT = 3
'''


def build_tiny_model(folder: Path, vocab_size: int = len(VOCABULARY)) -> None:
    """A random Qwen2 of 2,976 parameters and a tokenizer of single characters without a chat
    template."""
    pytest.importorskip("trl")
    import torch
    from tokenizers import Regex, Tokenizer, decoders, models, pre_tokenizers
    from transformers import PreTrainedTokenizerFast, Qwen2Config, Qwen2ForCausalLM

    torch.set_num_threads(1)
    tokenizer = Tokenizer(
        models.WordLevel({c: i for i, c in enumerate(VOCABULARY)}, unk_token="<unk>")
    )
    tokenizer.pre_tokenizer = pre_tokenizers.Split(Regex("."), "isolated")
    tokenizer.decoder = decoders.Fuse()
    special = {
        "pad_token": "<pad>",
        "bos_token": "<bos>",
        "eos_token": "<eos>",
        "unk_token": "<unk>",
    }
    PreTrainedTokenizerFast(tokenizer_object=tokenizer, **special).save_pretrained(folder)
    torch.manual_seed(0)
    config = Qwen2Config(
        vocab_size=vocab_size, hidden_size=16, intermediate_size=32, num_hidden_layers=1, num_attention_heads=2,
        num_key_value_heads=2, max_position_embeddings=64, tie_word_embeddings=True,
        pad_token_id=0, bos_token_id=1, eos_token_id=2,
    )  # fmt: skip
    Qwen2ForCausalLM(config).save_pretrained(folder)


def rows(n: int = 12) -> list[dict[str, Any]]:
    return [
        {"question": f"{a}+{a}=", "gold": 2 * a, "info": {"level": {"of": a % 3}}} for a in range(n)
    ]


def settings(model: str = "tiny") -> dict[str, Any]:
    """A configuration that trains: 2 prompts x 2 completions a step."""
    return {
        "model": {"path": model},
        "data": {"path": "train.jsonl", "columns": {"prompt": "question", "answer": "gold"}, "chat": False},
        "reward": [{"kind": "python", "function": "rewards.py:even"}, {"kind": "boxed", "weight": 0.5, "n_workers": 1}],
        "method": "depo",
        "curriculum": {"warmup_steps": 1},
        "prompts_per_step": 2,
        "trl": {
            "num_generations": 2, "per_device_train_batch_size": 2, "max_completion_length": 4, "max_steps": 2,
            "save_steps": 1, "logging_steps": 1, "learning_rate": "1e-3", "bf16": False, "use_cpu": True,
            "report_to": "none", "seed": 3,
        },
        "output": "out",
    }  # fmt: skip


def write_run(
    folder: Path, config: dict[str, Any], data: list[dict[str, Any]] | None = None
) -> Path:
    (folder / "train.jsonl").write_text(
        "".join(json.dumps(row) + "\n" for row in (rows() if data is None else data))
    )
    (folder / "rewards.py").write_text(REWARDS)
    (folder / "run.yaml").write_text(yaml.safe_dump(config))
    return folder / "run.yaml"


@pytest.fixture(scope="session")
def tiny_model(tmp_path_factory: pytest.TempPathFactory) -> str:
    folder = tmp_path_factory.mktemp("tiny")
    build_tiny_model(folder)
    return str(folder)


@pytest.fixture(scope="module")
def finished(tiny_model: str, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The configuration file of a run of two steps that has ended."""
    run = write_run(tmp_path_factory.mktemp("run"), settings(tiny_model))
    assert main(["train", str(run)]) == 0
    return run


def test_a_function_of_ones_own_judges_in_worker_processes(tiny_model: str, tmp_path: Path) -> None:
    reward = {"kind": "python", "function": "rewards.py:equal", "in_workers": True, "n_workers": 1}
    run = write_run(tmp_path, settings(tiny_model) | {"reward": [reward]})
    assert main(["train", str(run)]) == 0
    log = [json.loads(line) for line in (tmp_path / "out" / "outcomes.jsonl").open()]
    groups = [row for row in log if "n_scored" in row]
    assert groups and all(row["n_scored"] == 2 for row in groups)


def test_dry_run_says_the_plan_and_writes_nothing(
    tiny_model: str, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    run = write_run(tmp_path, settings(tiny_model))
    before = sorted(tmp_path.rglob("*"))
    assert main(["train", str(run), "--dry-run", "--json"]) == 0
    plan = json.loads(capsys.readouterr().out)
    assert sorted(tmp_path.rglob("*")) == before
    assert plan["data"]["prompts"] == 12 and plan["data"]["longest_prompt_tokens"] == 6
    expected = {
        "prompts_per_step": 2.0,
        "prompts_per_generation": 2,
        "group_size": 2,
        "steps": 2,
        "rollouts": 8,
    }
    assert expected.items() <= plan["batch"].items()
    assert (
        plan["method"]["name"] == "depo"
        and plan["method"]["candidates_per_generation_at_most"] == 16
    )
    assert plan["reward"]["correct"] == "even >= 0.5"
    assert plan["reward"]["functions"] == {"even": 1.0, "boxed_reward": 0.5}
    assert plan["reward"]["own_answers"]["boxed_reward"] == {
        "answers": 12,
        "judged": 12,
        "correct": 12,
    }
    assert plan["model"]["parameters"] == 2976
    assert plan["output"] == str(tmp_path / "out") and plan["resume"] == "never"


@pytest.mark.parametrize(
    ("given", "words"),
    [
        (
            ["method=depo+", "curriculum.temperature=0", "curriculum.importance=1"],
            ["'depo+', importance = 1.0", "set temperature above 0"],
        ),
        (
            ["method=grpo", "curriculum={gate: dynamic}"],
            ["gate = 'dynamic'", "'grpo' keeps TRL's own order", "'dapo'"],
        ),
        (
            ["method=vcrl", "curriculum={importance: 1}"],
            ["'vcrl', importance = 1.0", "set temperature above 0"],
        ),
        (
            ["method=grpo"],
            [
                "'grpo', curriculum: setting 'warmup_steps' is read by depo, depo+, ",
                ": leave it out",
            ],
        ),
    ],
)
def test_what_a_method_would_not_heed_is_refused_in_the_dry_run(
    tiny_model: str,
    tmp_path: Path,
    capsys: pytest.CaptureFixture[str],
    given: list[str],
    words: list[str],
) -> None:
    run = write_run(tmp_path, settings(tiny_model))
    assert main(["train", str(run), *given, "--dry-run"]) == 2
    error = capsys.readouterr().err.strip()
    assert "\n" not in error and all(word in error for word in words), error


def test_plan_as_text_and_published_pass_rates(
    tiny_model: str, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    config = settings(tiny_model)
    config["data"]["columns"]["pass_rate"] = "rate"
    run = write_run(tmp_path, config, [row | {"rate": 0.5} for row in rows()])
    assert (
        main(
            [
                "train",
                str(run),
                "--dry-run",
                "trl.steps_per_generation=2",
                "reward=[rewards.py:even]",
            ]
        )
        == 2
    )
    assert (
        main(
            ["train", str(run), "--dry-run", "prompts_per_step=null", "trl.steps_per_generation=2"]
        )
        == 0
    )
    out = capsys.readouterr().out
    assert (
        "prompts_per_generation       2" in out and "expected_dead_share_uniform        0.5" in out
    )


def test_training_writes_model_log_and_results(finished: Path) -> None:
    output = finished.parent / "out"
    (record,) = json.loads((output / "results.json").read_text())
    assert record["method"] == "depo" and record["seed"] == 3 and record["steps"] == 2
    assert record["groups"] == 4 and record["rollouts"] == 8
    logged = [json.loads(line) for line in (output / "outcomes.jsonl").read_text().splitlines()]
    assert len(logged) == 4 and record["tokens"] == sum(row["tokens"] for row in logged)
    mixed = [0 < row["n_correct"] < row["n_scored"] for row in logged]
    assert record["mixed_share"] == sum(mixed) / 4
    assert record["rollouts_to_target"] is None and record["accuracy"] is None
    assert (output / "model" / "model.safetensors").is_file() and (output / "checkpoint-2").is_dir()
    saved = json.loads((output / "run.json").read_text())
    assert saved["config"]["trl"]["seed"] == 3 and saved["method"] == "depo"
    assert not [path for path in output.rglob("*") if path.name.endswith((".tmp", ".new", ".old"))]


def test_depo_plus_with_the_policys_state(tiny_model: str, tmp_path: Path) -> None:
    run = write_run(tmp_path, settings(tiny_model))
    estimator = "curriculum.estimator={type: fused, n_buckets: 1024, policy_features: 4}"
    assert main(["train", str(run), "method=depo+", estimator]) == 0
    (record,) = json.loads((tmp_path / "out" / "results.json").read_text())
    assert record["method"] == "depo+" and record["groups"] == 4 and record["guarded_share"] == 0.0
    state = load_state(tmp_path / "out" / "checkpoint-2" / "depo_state.safetensors")
    policy = state["own"]["driver"]["curriculum"]["estimator"]["policy"]
    assert policy["told"].shape[1] == 4 and policy["told"].any() and policy["hidden"] == 16


def test_resume_goes_on_and_evaluates(finished: Path, capsys: pytest.CaptureFixture[str]) -> None:
    capsys.readouterr()
    held_out = finished.parent / "held_out.csv"
    held_out.write_text("question,gold\n1+2=,3\n0+0=,0\n")
    more = ["resume=auto", "trl.max_steps=3", "trl.eval_strategy=steps", "trl.eval_steps=3"]
    more += [
        f"data.eval.path={held_out}",
        "trl.per_device_eval_batch_size=2",
        "correct.reward=boxed_reward",
    ]
    assert main(["train", str(finished), *more, "--dry-run", "--json"]) == 0
    plan = json.loads(capsys.readouterr().out)
    assert plan["resume"] == "auto: checkpoint-2"
    assert plan["data"]["eval_prompts"] == 2 and plan["data"]["eval_prompts_also_trained_on"] == 1
    assert main(["train", str(finished), *more, "--json"]) == 0
    summary = json.loads(capsys.readouterr().out)
    record = summary["results"]
    assert record["steps"] == 3 and record["groups"] == 6 and record["rollouts"] == 12
    (point,) = record["accuracy"]
    assert (point["step"], point["rollouts"], point["tokens"]) == (3, 12, record["tokens"])
    assert point["accuracy"] == 0.0  # nothing in a box
    (written,) = json.loads((finished.parent / "out" / "results.json").read_text())
    assert record.items() <= written.items() and [row["step"] for row in written["history"]] == [
        1,
        2,
        3,
    ]


@pytest.mark.parametrize("change, name", [("method=pcl", "method"), ("data.limit=11", "data")])
def test_a_checkpoint_of_another_run_is_refused(
    finished: Path, change: str, name: str, capsys: pytest.CaptureFixture[str]
) -> None:
    capsys.readouterr()
    assert main(["train", str(finished), "resume=auto", change]) == 2
    (line,) = capsys.readouterr().err.splitlines()
    assert f"was started with {name}" in line and "choose another output" in line


def test_an_earlier_run_is_not_overwritten(
    finished: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    capsys.readouterr()
    assert main(["train", str(finished)]) == 2
    assert "already holds a run (checkpoint-1): set resume=auto" in capsys.readouterr().err
    assert main(["train", str(finished), "resume=out/checkpoint-9"]) == 2
    assert "not a complete checkpoint" in capsys.readouterr().err


def test_full_disk_at_the_end_leaves_no_half_model(
    tiny_model: str,
    tmp_path: Path,
    capsys: pytest.CaptureFixture[str],
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    from depo_rl.engines.trl import DEPOTrainer

    def full(self: Any, output_dir: str, *args: Any, **kwargs: Any) -> None:
        Path(output_dir).mkdir()
        (Path(output_dir) / "model.safetensors").write_bytes(b"half")
        raise OSError(28, "No space left on device")

    run = write_run(tmp_path, settings(tiny_model))
    monkeypatch.setattr(DEPOTrainer, "save_model", full)
    assert (
        main(
            ["train", str(run), "trl.save_strategy=no", "trl.max_steps=1", "reward=[{kind: boxed}]"]
        )
        == 1
    )
    assert "cannot save the model" in capsys.readouterr().err
    assert (
        not list((tmp_path / "out").glob("*model*"))
        and not (tmp_path / "out" / "results.json").exists()
    )


def test_help_imports_nothing_heavy() -> None:
    code = (
        "import sys\n"
        "from depo_rl.cli import main\n"
        "assert main(['train', '--help']) == 0\n"
        "heavy = {'torch', 'transformers', 'trl', 'datasets', 'numpy', 'pyarrow'} & set(sys.modules)\n"
        "print(sorted(heavy), file=sys.stderr)"
    )
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert done.stderr.splitlines()[-1] == "[]"
    assert "--dry-run" in done.stdout and "--json" in done.stdout


def test_version_and_usage(capsys: pytest.CaptureFixture[str]) -> None:
    from depo_rl import __version__

    assert main(["--version"]) == 0
    assert capsys.readouterr().out.strip() == f"depo-rl {__version__}"
    assert main([]) == 0 and "train" in capsys.readouterr().out
    assert main(["trian"]) == 2
    assert capsys.readouterr().err == "depo: No such command 'trian'. Did you mean 'train'?\n"
