"""Bad input to `depo train`: exit code 2, one line that says what, where and the mend, and nothing
written."""

from __future__ import annotations

import copy
import json
import math
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pyarrow
import pyarrow.parquet as parquet
import pytest

from depo_rl import cli, errors
from depo_rl.cli import main
from test_train_cli import build_tiny_model, rows, settings, write_run
from test_train_cli import tiny_model as _tiny_model

tiny_model = _tiny_model  # the fixture
# torch, transformers and TRL warn about each other
pytestmark = pytest.mark.filterwarnings("ignore")

Change = dict[str, Any]


def at(path: str, value: Any) -> Callable[[Change], None]:
    """Sets one setting of the configuration; ``...`` deletes it."""

    def change(config: Change) -> None:
        *sections, name = path.split(".")
        for section in sections:
            config = config.setdefault(section, {})
        config.pop(name) if value is ... else config.update({name: value})

    return change


def named_column(name: str) -> Callable[[Change], None]:
    estimator = {"type": "fused", "columns": [name]}
    return lambda config: config.update(method="depo+", curriculum={"estimator": estimator})


MATH = [{"kind": "boxed"}]
SETTINGS: list[tuple[str, Callable[[Change], None], list[str]]] = [
    ("unknown section", at("modle", {}), ["run.yaml: unknown setting 'modle'", "'model'"]),
    ("missing section", at("output", ...), ["output: missing"]),
    ("unknown name in a section", at("data.colums", {}), ["'data.colums'", "'columns'"]),
    ("unknown name two deep", at("data.columns.promt", "q"), ["'data.columns.promt'", "'prompt'"]),
    ("unknown method", at("method", "dapoo"), ["'dapoo'", "'dapo'"]),
    (
        "unknown curriculum setting",
        at("curriculum.windwo", [0, 1]),
        ["curriculum", "'windwo'", "'window'"],
    ),
    ("window upside down", at("curriculum.window", [0.9, 0.1]), ["curriculum", "low < high"]),
    (
        "unknown estimator setting",
        at("curriculum.estimator", {"type": "encoder", "widht": 2}),
        ["'width'"],
    ),
    ("unknown TRL setting", at("trl.lerning_rate", 1), ["'trl.lerning_rate'", "'learning_rate'"]),
    (
        "TRL setting of a wrong type",
        at("trl.max_steps", "ten"),
        ["trl.max_steps = 'ten'", "integer"],
    ),
    ("TRL refuses the value", at("trl.lr_scheduler_type", "constnt"), ["constnt", "constant"]),
    (
        "TRL setting with a home of its own",
        at("trl.output_dir", "x"),
        ["trl.output_dir", "'output'"],
    ),
    (
        "method that TRL cannot run",
        lambda config: config.update(method="speed", curriculum={}),
        ["method 'speed' extends a group", "'depo replay'"],
    ),
    (
        "column that is not there",
        named_column("levle"),
        ["column 'levle'", "none of the 12 prompts"],
    ),
    (
        "labels that are not there",
        at("method", "oracle"),
        ["column 'pass_rate'", "estimator.field"],
    ),
    (
        "one completion per prompt",
        at("trl.num_generations", 1),
        ["trl.num_generations = 1", "at least 2"],
    ),
    ("group size twice", at("curriculum.group_size", 4), ["contradicts trl.num_generations = 2"]),
    ("groups do not fit", at("trl.per_device_train_batch_size", 3), ["prompts_per_step = 2", "3"]),
    (
        "batch set twice",
        at("trl.gradient_accumulation_steps", 2),
        ["follows from prompts_per_step"],
    ),
    ("pool smaller than a batch", at("prompts_per_step", 64), ["12 prompts", "64 distinct"]),
    ("reward of no kind", at("reward", [{"weight": 1}]), ["reward.0", "kind"]),
    ("reward missing", at("reward", ...), ["reward: missing"]),
    *(
        (f"value that TRL fails on later: {name}", at(f"trl.{name}", value), [f"trl.{name} = "])
        for name, value in [
            ("learning_rate", -1),
            ("learning_rate", math.nan),
            ("temperature", 0),
            ("max_completion_length", 0),
            ("beta", math.inf),
            ("top_k", -1),
            ("adam_beta2", 1.5),
            ("scale_rewards", "word"),
            ("save_steps", math.nan),
        ]
    ),
    ("infinite whole number", at("trl.save_steps", math.inf), ["infinity"]),
    ("unknown reporter", at("trl.report_to", "wandbb"), ["wandbb is not supported", "wandb"]),
    ("reward whose kind is a list", at("reward", [{"kind": ["boxed"]}]), ["reward.0.kind = ["]),
    ("reward of unknown kind", at("reward", "boxd"), ["'boxd'", "'boxed'"]),
    (
        "unknown reward setting",
        at("reward", [{"kind": "boxed", "timeot_s": 1}]),
        ["'timeot_s'", "'timeout_s'"],
    ),
    (
        "reward time-out",
        at("reward", [{"kind": "boxed", "timeout_s": 0}]),
        ["timeout_s = 0", "greater than 0"],
    ),
    (
        "reward file missing",
        at("reward", {"kind": "python", "function": "reward.py:even"}),
        ["no such file"],
    ),
    (
        "reward function missing",
        at("reward", {"kind": "python", "function": "rewards.py:evn"}),
        ["'even'"],
    ),
    (
        "reward is no function",
        at("reward", {"kind": "python", "function": "rewards.py:LIMIT"}),
        ["is a int"],
    ),
    (
        "reward module missing",
        at("reward", {"kind": "python", "function": "no_such:f"}),
        ["cannot be imported"],
    ),
    (
        "reward factory's settings",
        at("reward", {"kind": "python", "function": "rewards.py:scaled", "settings": {"wait": 1}}),
        ["reward.0.settings", "'wait'"],
    ),
    (
        "reward setting of an earlier version",
        at("reward", {"kind": "python", "function": "rewards.py:even", "sandbox": True}),
        ["reward: unknown setting 'sandbox'", "'in_workers' took its place"],
    ),
    ("rewards of one name", at("reward", MATH * 2), ["2 functions are called 'boxed_reward'"]),
    ("only a length punishment", at("reward", {"kind": "soft_overlong", "cache": 2}), ["verifier"]),
    (
        "punishment longer than the answer",
        at("reward", [*MATH, {"kind": "soft_overlong", "cache": 9}]),
        ["at most"],
    ),
    ("unknown judge", at("correct.reward", "evn"), ["correct.reward = 'evn'", "'even'"]),
    (
        "verifier without answers",
        at("data.columns.answer", None),
        ["data.columns.answer", "'boxed'"],
    ),
    ("model nowhere", at("model", {}), ["model needs either name", "neither"]),
    ("model in two places", at("model.name", "a/b"), ["model needs either name", "both"]),
    ("model folder missing", at("model.path", "tinny"), ["model.path", "tinny", "no such folder"]),
    (
        "model not on the hub",
        at("model", {"name": "no-such/model"}),
        ["model.name = 'no-such/model'"],
    ),
    ("chat without a template", at("data.chat", True), ["chat template", "data.chat=false"]),
    (
        "template without a place",
        at("data.prompt_template", "Solve:"),
        ["data.prompt_template", "{prompt}"],
    ),
    ("system prompt without chat", at("data.system_prompt", "x"), ["data.chat"]),
    ("completions too long", at("trl.max_completion_length", 60), ["66", "context of 64"][1:]),
    ("prompts too long", at("data.max_prompt_tokens", 2), ["data.max_prompt_tokens = 2"]),
    ("encoder not on the hub", at("curriculum.estimator", "encoder"), ["backbone", "fused"]),
    ("unknown adapter setting", at("peft", {"lora_alpa": 4}), ["'peft.lora_alpa'", "'lora_alpha'"]),
    (
        "data file missing",
        at("data.path", "trian.jsonl"),
        ["data.path", "trian.jsonl", "no such file"],
    ),
    ("data of unknown kind", at("data.path", "run.yaml"), ["must end in .parquet"]),
    (
        "data not on the hub",
        at("data", {"name": "no-such/data"}),
        ["data.name = 'no-such/data'", "data.path"],
    ),
    (
        "evaluation data missing",
        at("data.eval", {"path": "x.csv"}),
        ["data.eval.path", "no such file"],
    ),
    (
        "misnamed column",
        at("data.columns.prompt", "qestion"),
        ["train.jsonl", "'qestion'", "'question'"],
    ),
    ("missing column", at("data.columns.source", "topic"), ["'topic'", "Known:"]),
    (
        "prompt of a wrong type",
        at("data.columns.prompt", "gold"),
        ["train.jsonl row 1", "'gold'", "text"],
    ),
    ("pass rate beyond 1", at("data.columns.pass_rate", "gold"), ["row 2", "[0, 1]"]),
    ("output is a file", at("output", "run.yaml"), ["output", "not a folder"]),
    ("resume from nothing", at("resume", "checkpoint-7"), ["resume", "not a complete checkpoint"]),
]


def files(folder: Path) -> dict[Path, bytes]:
    return {p: p.read_bytes() for p in folder.rglob("*") if p.is_file()}


def refused(run: Path, capsys: pytest.CaptureFixture[str], *arguments: str) -> str:
    """The one line that `depo train` says; both with and without --dry-run."""
    before = files(run.parent)
    lines = []
    for mode in (["--dry-run"], []):
        assert main(["train", str(run), *arguments, *mode]) == 2
        out, err = capsys.readouterr()
        assert out == ""
        lines.append([line for line in err.splitlines() if line.startswith("depo: ")])
        assert len(lines[-1]) == 1 and len(lines[-1][0]) < 600, err
        assert err.splitlines() == lines[-1], err
    assert lines[0] == lines[1]
    assert files(run.parent) == before and not (run.parent / "out").exists()
    return lines[0][0]


@pytest.mark.parametrize("change, says", [pytest.param(c, s, id=name) for name, c, s in SETTINGS])
def test_settings(
    change: Callable[[Change], None],
    says: list[str],
    tiny_model: str,
    tmp_path: Path,
    capsys: pytest.CaptureFixture[str],
) -> None:
    config = copy.deepcopy(settings(tiny_model))
    change(config)
    line = refused(write_run(tmp_path, config), capsys)
    assert all(part in line for part in says), line


ROWS: list[tuple[str, list[dict[str, Any]], list[str]]] = [
    ("no rows", [], ["train.jsonl"]),
    (
        "a prompt missing",
        [*rows(), {"question": " ", "gold": 1}],
        ["1 row of 13", "row 13", "drop_bad_rows"],
    ),
    (
        "answers missing",
        [*rows(), *([{"question": "1", "gold": None}] * 5)],
        ["5 rows of 17", "rows 13, 14, 15, ..."],
    ),
    (
        "duplicate prompts",
        [*rows(), *rows(2)],
        ["2 duplicate prompts", "row 13 repeats row 1", "drop_duplicates"],
    ),
    (
        "one prompt, two answers",
        [*rows(), {"question": "0+0=", "gold": 9}],
        ["1 with another answer"],
    ),
    (
        "answers no verifier reads",
        [{"question": f"{i}", "gold": "?"} for i in range(9)],
        ["none of 9", "unscorable"],
    ),
    (
        "a column of mixed types",
        [*rows(), {"question": "1", "gold": 1, "info": "x"}],
        ["column 'info' mixes types"],
    ),
]


@pytest.mark.parametrize("data, says", [pytest.param(d, s, id=name) for name, d, s in ROWS])
def test_rows(
    data: list[dict[str, Any]],
    says: list[str],
    tiny_model: str,
    tmp_path: Path,
    capsys: pytest.CaptureFixture[str],
) -> None:
    config = settings(tiny_model) | {"reward": {"kind": "gsm8k", "n_workers": 1}}
    line = refused(write_run(tmp_path, config, data), capsys)
    assert all(part in line for part in says), line


FILES = [
    (
        "train.jsonl",
        b'{"question": "1", "gold": 1}\n{"question": \n',
        ["train.jsonl line 2", "not JSON"],
    ),
    ("train.jsonl", b"[1]\n", ["train.jsonl line 1", "JSON object"]),
    ("train.jsonl", b'{"question": "\xff"}', ["train.jsonl", "not UTF-8"]),
    ("train.json", b'{"question": "1"}', ["train.json", "list of objects"]),
    ("train.json", b"[\n{]", ["train.json line 2"]),
    ("train.csv", b"question,gold\n1,2,3\n", ["train.csv row 1", "more fields"]),
    ("train.csv", b"", ["train.csv", "'question'"]),
    ("train.parquet", b"PAR1 no more", ["train.parquet", "not a parquet file"]),
    ("run.yaml", b"model: [\n", ["run.yaml line 2", "not valid YAML"]),
    ("run.yaml", b"model: {}\nmodel: {}\n", ["run.yaml line 2", "'model' is given twice"]),
    ("run.yaml", b"- model\n", ["run.yaml", "must be a mapping", "list"]),
    ("run.yaml", b"", ["run.yaml", "must be a mapping"]),
    ("run.yaml", b"\xff\xfe\x00", ["run.yaml", "UTF-8"]),
    ("rewards.py", b"1 / 0\n", ["running the file fails", "ZeroDivisionError"]),
]


@pytest.mark.parametrize(
    "name, content, says", [pytest.param(*f, id=f"{f[0]}: {f[2][-1]}") for f in FILES]
)
def test_files(
    name: str,
    content: bytes,
    says: list[str],
    tiny_model: str,
    tmp_path: Path,
    capsys: pytest.CaptureFixture[str],
) -> None:
    config = settings(tiny_model)
    if name.startswith("train"):
        config["data"]["path"] = name
    run = write_run(tmp_path, config)
    (tmp_path / name).write_bytes(content)
    line = refused(run, capsys)
    assert all(part in line for part in says), line


OVERRIDES = [
    ("trl.max_steps", ["must be key=value"]),
    ("=3", ["must be key=value"]),
    ("trl..x=3", ["must be key=value"]),
    ("method=[", ["not valid YAML"]),
    ("method.name=grpo", ["method = 'depo'", "not a section"]),
    ("reward.7.weight=1", ["reward.7", "a list of 2"]),
    ("reward.0.wieght=1", ["'wieght'", "'weight'"]),
    ("trl.learning_rat=1e-6", ["'trl.learning_rat'", "'learning_rate'"]),
    ("curriculum.estimator=ngrams", ["ngrams", "'fused' took its place"]),
    ("prompts_per_step=0", ["prompts_per_step = 0"]),
]


@pytest.mark.parametrize("override, says", OVERRIDES)
def test_overrides(
    override: str,
    says: list[str],
    tiny_model: str,
    tmp_path: Path,
    capsys: pytest.CaptureFixture[str],
) -> None:
    line = refused(write_run(tmp_path, settings(tiny_model)), capsys, override)
    assert all(part in line for part in says), line


def test_a_parquet_file_whose_names_are_damaged(
    tiny_model: str, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    config = settings(tiny_model)
    config["data"]["path"] = "train.parquet"
    run = write_run(tmp_path, config)
    path = tmp_path / "train.parquet"
    parquet.write_table(pyarrow.Table.from_pylist([{"question": "1", "gold": 1}]), path)
    path.write_bytes(path.read_bytes().replace(b"question", b"quest\xffon"))
    assert "train.parquet: not a parquet file ('utf-8'" in refused(run, capsys)


def test_bad_rows_can_be_left_out(
    tiny_model: str,
    tmp_path: Path,
    capsys: pytest.CaptureFixture[str],
) -> None:
    data = [{"question": None, "gold": 1}, *rows(), *rows(3), {"question": "0+0=", "gold": 7}]
    run = write_run(tmp_path, settings(tiny_model), data)
    allowed = [
        "data.drop_bad_rows=true",
        "data.drop_duplicates=true",
        "data.max_prompt_tokens=4",
        "--dry-run",
        "--json",
    ]
    assert main(["train", str(run), *allowed]) == 0
    found = json.loads(capsys.readouterr().out)["data"]
    assert found["rows_read"] == 17 and found["prompts"] == 10
    assert (found["dropped_bad"], found["dropped_duplicates"], found["dropped_too_long"]) == (
        1,
        4,
        2,
    )
    assert found["duplicates_with_another_answer"] == 1


RAISES = '\n\ndef raises(prompts, completions, **columns):\n    raise ValueError("mine")\n'


def test_what_a_library_refuses_in_the_first_step_is_one_line_too(
    tiny_model: str, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    """But an error of the user's own code keeps its traceback."""
    run = write_run(tmp_path, settings(tiny_model))
    assert main(["train", str(run), "trl.loss_type=grppo"]) == 2
    assert "depo: trl: Unknown loss type: grppo" in capsys.readouterr().err
    with (tmp_path / "rewards.py").open("a") as file:
        file.write(RAISES)
    with pytest.raises(ValueError, match="mine"):
        mine = f"reward.0.function={tmp_path}/rewards.py:raises"
        main(["train", str(run), f"output={tmp_path}/again", mine])


def test_gpu_settings_on_a_cpu(
    tiny_model: str,
    tmp_path: Path,
    capsys: pytest.CaptureFixture[str],
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setattr("torch.cuda.is_available", lambda: False)
    monkeypatch.setattr("transformers.training_args.is_torch_bf16_gpu_available", lambda: False)
    line = refused(
        write_run(tmp_path, settings(tiny_model)), capsys, "trl.bf16=true", "trl.use_cpu=false"
    )
    assert "set trl.use_cpu=true and trl.bf16=false" in line
    encoder = "curriculum.estimator={type: encoder, device: cuda}"
    assert "curriculum.estimator.device=cpu" in refused(tmp_path / "run.yaml", capsys, encoder)


def test_tokenizer_of_another_model(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    build_tiny_model(tmp_path / "tiny", vocab_size=8)
    line = refused(write_run(tmp_path, settings()), capsys)
    assert "the tokenizer has 20 tokens, the model 8" in line


@pytest.mark.parametrize(
    "error, code",
    [
        (errors.ConfigError("x"), 2),
        (errors.DataError("x"), 2),
        (errors.StateMismatch("x"), 2),
        (errors.CheckpointError("x"), 1),
        (errors.EngineError("x"), 1),
        (errors.RewardError("x"), 1),
        (errors.PoolExhausted("x"), 1),
        (KeyboardInterrupt(), 130),
    ],
)
def test_exit_codes(
    error: BaseException,
    code: int,
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
) -> None:
    def fail(*args: Any, **kwargs: Any) -> None:
        raise error

    monkeypatch.setattr("depo_rl.commands.train.run.run_train", fail)
    assert cli.main(["train", "run.yaml"]) == code
    assert len(capsys.readouterr().err.splitlines()) == 1
