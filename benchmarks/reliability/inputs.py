"""Bad settings, values, files and options at every command: exit code 2, one line, nothing written.

Whether a value is bad is not known beforehand: one that is taken is told in the figures, by name on
stderr for somebody to judge, and not counted.
But what ``depo train --dry-run`` takes is then trained on for two steps, which may not end in a
traceback either.
"""

from __future__ import annotations

import contextlib
import io
import json
import random
import shutil
import warnings
from collections.abc import Iterable, Iterator, Sequence
from functools import partial
from itertools import product
from pathlib import Path
from typing import Any

import pyarrow
import pyarrow.parquet
import yaml

from depo_rl.cli import main
from test_train_cli import build_tiny_model, settings, write_run
from test_verl_config import GOOD

from .book import Case, Result

VALUES = ("word", "-1", "0", "2.5", ".nan", ".inf", "[]", "[1, x]", "{}", "{a: 1}", "null", "true")
CELLS = ("x", "", -1, 2.5, 10**30, float("nan"), float("inf"), [1, "x"], {"a": 1}, None, True)
REFUSED = "refused"
TAKEN = "taken"


def files(folder: Path) -> dict[Path, bytes]:
    return {path: path.read_bytes() for path in folder.rglob("*") if path.is_file()}


def depo(arguments: Sequence[str]) -> tuple[int | str, list[str]]:
    """Exit code of ``depo ARGUMENTS``, or what it raises, and the lines that it says."""
    said = io.StringIO()
    with warnings.catch_warnings(), contextlib.ExitStack() as stack:
        warnings.simplefilter("ignore")
        stack.enter_context(contextlib.redirect_stdout(said))
        stack.enter_context(contextlib.redirect_stderr(said))
        try:
            code: int | str = main(list(arguments))
        except BaseException as error:
            code = f"{type(error).__name__}: {error}"
    return code, said.getvalue().splitlines()


def outcome(arguments: Sequence[str], folder: Path) -> str:
    """REFUSED, TAKEN, or what is wrong."""
    before = files(folder)
    code, lines = depo(arguments)
    if code == 0:
        return TAKEN
    if files(folder) != before:
        return "files were written"
    one_line = len(lines) == 1 and lines[0].startswith("depo: ")
    return REFUSED if code == 2 and one_line else f"{code}, {len(lines)} lines"


def count(tries: Iterable[tuple[str, str]]) -> Result:
    """Of (what was tried, its outcome); what did not hold is told by name."""
    seen = list(tries)
    taken = sum(outcome == TAKEN for _, outcome in seen)
    wrong = [f"{what}: {outcome}" for what, outcome in seen if outcome not in (REFUSED, TAKEN)]
    for line in wrong:
        print("did not hold:", line)
    print("taken:", ", ".join(what for what, outcome in seen if outcome == TAKEN))
    tried = len(seen) - taken
    return Result(tried, tried - len(wrong), f"{taken:,} more were taken" if taken else "")


def names_in(tree: Any, path: str = "") -> list[str]:
    """Dotted names of all settings in ``tree`` and of the sections that hold them."""
    if not isinstance(tree, dict):
        return [path]
    inner = [
        n for name, value in tree.items() for n in names_in(value, f"{path}.{name}".strip("."))
    ]
    return [path, *inner] if path else inner


TRAIN_NAMES = [
    "curriculum.explore", "curriculum.candidate_factor", "curriculum.estimator",
    "curriculum.guard", "curriculum.band", "curriculum.window", "curriculum.gate",
    "data.prompt_template", "data.eval", "data.max_prompt_tokens", "data.drop_bad_rows",
    "data.columns.source", "correct.reward", "correct.threshold", "resume", "model.revision",
    "peft", "trl.beta", "trl.temperature", "trl.top_k", "trl.scale_rewards",
    "trl.steps_per_generation", "trl.num_iterations", "trl.loss_type", "reward.0.kind",
    "reward.0.function", "reward.1.weight", "reward.1.timeout_s", "reward.1.n_workers",
]  # fmt: skip


def train_settings(names: int | None, folder: Path) -> Result:
    """Each setting of a file with each wrong value; ``names``: only so many settings."""
    build_tiny_model(folder / "tiny")
    config = settings("tiny")
    run = write_run(folder, config)
    chosen = [*names_in(config), *TRAIN_NAMES][:names]
    chosen = [name for name in chosen if name != "output"]  # any word is a folder's name

    def tries() -> Iterator[tuple[str, str]]:
        for name, value in product(chosen, VALUES):
            arguments = ["train", str(run), f"{name}={value}"]
            found = outcome([*arguments, "--dry-run"], folder)
            if found == TAKEN:
                found = trained(arguments, folder)
            yield f"{name}={value}", found

    return count(tries())


def trained(arguments: Sequence[str], folder: Path) -> str:
    """What the dry run took: the run ends well, or in one last line of ``depo``'s."""
    code, lines = depo(arguments)
    shutil.rmtree(folder / "out", ignore_errors=True)
    told = sum(line.startswith("depo: ") for line in lines)
    return TAKEN if code == 0 or (code in (1, 2) and told == 1) else f"trained: {code}"


def train_cells(cells: int | None, folder: Path) -> Result:
    """One wrong cell in the data; ``cells``: only so many values."""
    build_tiny_model(folder / "tiny")
    rows = [{"question": f"{i}+{i}=", "gold": 2 * i, "rate": 0.5} for i in range(12)]
    config = settings("tiny") | {"reward": {"kind": "gsm8k", "n_workers": 1}}
    config["data"]["columns"]["pass_rate"] = "rate"

    def tries() -> Iterator[tuple[str, str]]:
        for column, value in product(rows[0], CELLS[:cells]):
            run = write_run(folder, config, [*rows, {**rows[0], "question": "9+9=", column: value}])
            yield f"{column}={value!r}", outcome(["train", str(run), "--dry-run"], folder)

    return count(tries())


VERL_NAMES = [
    "curriculum.explore", "curriculum.estimator", "curriculum.gate", "environment",
    "environment.A", "verl.trainer", "verl.trainer.v1", "verl.trainer.v1.trainer_mode",
    "verl.data.seed", "verl.data.custom_cls", "verl.actor_rollout_ref.rollout.n",
    "verl.reward.reward_model",
]  # fmt: skip


def verl_settings(names: int | None, folder: Path) -> Result:
    """Each setting that this command reads with each wrong value; the rest is verl's to judge."""
    path = folder / "mine.yaml"
    path.write_text(GOOD)
    chosen = [*names_in(yaml.safe_load(GOOD)), *VERL_NAMES][:names]
    return count(
        (f"{name}={value}", outcome(["verl-config", str(path), f"{name}={value}"], folder))
        for name, value in product(chosen, VALUES)
    )


def replay_arguments(path: Path) -> list[str]:
    sizes = [
        "--seeds",
        "0",
        "--steps",
        "2",
        "--prompts-per-step",
        "4",
        "--group-size",
        "4",
        "--methods",
        "grpo,depo",
    ]
    return ["replay", str(path), "--out", str(path.parent / "out"), *sizes]


POOL: dict[str, Any] = {"prompt": "p", "pass_rate": 0.5, "k": 4, "source": "a", "key": "k"}
LOG: dict[str, Any] = {
    "prompt": "p",
    "n_correct": 1,
    "n_scored": 4,
    "n_failed": 0,
    "group_size": 4,
    "step": 1,
}


def replay_cells(cells: int | None, folder: Path) -> Result:
    """One wrong cell in a labelled pool and in an outcome log."""

    def tries() -> Iterator[tuple[str, str]]:
        for kind in (POOL, LOG):
            good = [
                {**kind, "prompt": f"p{i}", **({"key": f"k{i}"} if "key" in kind else {})}
                for i in range(8)
            ]
            for column, value in product(kind, CELLS[:cells]):
                path = folder / "t.jsonl"
                path.write_text(
                    "".join(json.dumps(row) + "\n" for row in [*good, {**kind, column: value}])
                )
                yield f"{column}={value!r}", outcome(replay_arguments(path), folder)
                shutil.rmtree(folder / "out", ignore_errors=True)

    return count(tries())


OPTIONS: dict[str, tuple[str, ...]] = {
    "--methods": ("word", "", ",", "grpo,word", "grpo,grpo"),
    "--group-size": ("word", "-1", "0", "1", "2.5", ""),
    "--prompts-per-step": ("word", "-1", "0", "9", "2.5", ""),
    "--steps": ("word", "-1", "0", "2.5", ""),
    "--seeds": ("word", "-1", "2.5", "", ",", "0,0"),
    "--set": ("word", "=", "explore", "explore=2", "explore=.nan", "expolre=0", "word.explore=0"),
    "--where": ("word", "=", "source=z", "sourec=a"),
    "--pass-rate-column": ("word", "", "prompt"),
    "--correct-threshold": ("word", ""),
    "--max-gap": ("word", "-1", "2.5"),
    "--word": ("1",),
}


def replay_options(options: int | None, folder: Path) -> Result:
    path = folder / "t.jsonl"
    rows = [{"prompt": f"p{i}", "pass_rate": 0.5, "source": "a"} for i in range(8)]
    path.write_text("".join(json.dumps(row) + "\n" for row in rows))
    return count(
        (f"{name} {value!r}", outcome([*replay_arguments(path), name, value], folder))
        for name, values in list(OPTIONS.items())[:options]
        for value in values
    )


DEMO_OPTIONS: dict[str, tuple[str, ...]] = {
    "--methods": ("word", "", ",", "grpo,word", "grpo,grpo"),
    "--seed": ("word", "-1", "2.5", ""),
    "--seeds": ("word", "-1", "0", "2.5", ""),
    "--budget-tokens": ("word", "-1", "0", "2.5", ""),
    "--jobs": ("word", "-1", "0", "2.5", ""),
    "--word": ("1",),
}


def demo_options(options: int | None, folder: Path) -> Result:
    (folder / "taken").write_text("a file")
    sizes = ["--methods", "grpo", "--budget-tokens", "64", "--jobs", "1"]
    wrong = [(n, v) for n, values in list(DEMO_OPTIONS.items())[:options] for v in values]
    wrong += [("--out", str(folder / "taken")), ("--out", str(folder / "taken" / "below"))]
    return count(
        (f"{n} {v!r}", outcome(["demo", "--out", str(folder / "demo"), *sizes, n, v], folder))
        for n, v in wrong
    )


def damaged_files(damages: int, folder: Path) -> Result:
    """Data files cut off, with a byte changed, or of another kind than their name says, at ``depo
    train`` and ``depo replay``. A file that still reads well is no bad input."""
    build_tiny_model(folder / "tiny")
    rows = [{"prompt": f"{i}+{i}=", "answer": str(2 * i), "pass_rate": 0.5} for i in range(40)]
    whole = {
        "data.jsonl": "".join(json.dumps(row) + "\n" for row in rows).encode(),
        "data.json": json.dumps(rows).encode(),
        "data.csv": (
            "prompt,answer,pass_rate\n" + "".join(f"{i}+{i}=,{2 * i},0.5\n" for i in range(40))
        ).encode(),
    }
    pyarrow.parquet.write_table(pyarrow.Table.from_pylist(rows), folder / "data.parquet")
    whole["data.parquet"] = (folder / "data.parquet").read_bytes()
    (folder / "data.parquet").unlink()
    config = settings("tiny") | {"data": {"chat": False}, "reward": "gsm8k"}
    rng = random.Random(0)

    def tries() -> Iterator[tuple[str, str]]:
        for name in whole:
            config["data"] = {"path": name, "columns": {"answer": "answer"}, "chat": False}
            run = write_run(folder, config)
            for what, data in damaged(whole, name, damages, rng):
                (folder / name).write_bytes(data)
                yield f"train {name}, {what}", outcome(["train", str(run), "--dry-run"], folder)
                yield f"replay {name}, {what}", outcome(replay_arguments(folder / name), folder)
                shutil.rmtree(folder / "out", ignore_errors=True)
            (folder / name).unlink()

    return count(tries())


def damaged(
    whole: dict[str, bytes], name: str, damages: int, rng: random.Random
) -> Iterator[tuple[str, bytes]]:
    data = whole[name]
    for _ in range(damages):
        at = rng.randrange(len(data))
        yield f"cut at {at}", data[:at]
        yield (
            f"byte {at} changed",
            data[:at] + bytes([data[at] ^ rng.randrange(1, 256)]) + data[at + 1 :],
        )
    for other in whole:
        if other != name:
            yield f"holds {other}", whole[other]


def cases(toy: bool) -> list[Case]:
    few = 2 if toy else None
    what = "`depo {}`: bad input refused in one line, exit code 2, nothing written"
    return [
        Case(what.format("train"), "settings", partial(train_settings, few)),
        Case(what.format("train"), "cells", partial(train_cells, few)),
        Case(what.format("replay"), "cells", partial(replay_cells, few)),
        Case(what.format("replay"), "options", partial(replay_options, few)),
        Case(what.format("verl-config"), "settings", partial(verl_settings, few)),
        Case(what.format("demo"), "options", partial(demo_options, few)),
        Case(
            "damaged data files at `depo train` and `depo replay`",
            "files",
            partial(damaged_files, 1 if toy else 15),
        ),
    ]
