"""What is known of a run before it starts: checks of output, model and prompt lengths, and the plan
that is printed."""

from __future__ import annotations

import hashlib
import importlib.util
import json
import math
import os
import warnings
from collections import Counter
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import numpy as np

from ...config import EncoderSettings, FusedSettings
from ...errors import ConfigError, DataError, EngineError, StateMismatch
from ...features.columns import ColumnFeatures
from ...files import write_atomically
from ...methods import get_method
from ..evaluation import dead_share
from .chat import left_out
from .config import TrainConfig
from .data import PromptTable
from .rewards import RewardCallable, reward_name
from .trl_args import BatchLayout

_RECORD = "run.json"


@dataclass(frozen=True, slots=True)
class ModelCheck:
    """tokenizer and model configuration; n_parameters and context (tokens) are None where the model
    does not say."""

    tokenizer: Any
    n_parameters: int | None
    context: int | None


@dataclass(frozen=True, slots=True)
class Prepared:
    """Everything a run needs, checked. lengths: prompts in tokens. named: the reward that says what
    is correct."""

    config: TrainConfig
    table: PromptTable
    held_out: PromptTable | None
    layout: BatchLayout
    model: ModelCheck
    lengths: list[int]
    rewards: list[RewardCallable]
    named: str
    args: Any
    peft: Any
    gold: dict[str, Any]
    dataset: Any
    eval_dataset: Any


# ---- output and resume


def check_output(config: TrainConfig) -> None:
    """The output can be written, and no earlier run is overwritten. Raises ConfigError."""
    output = Path(config.output)
    there = (
        output if output.exists() else next(parent for parent in output.parents if parent.exists())
    )
    if not there.is_dir() or not os.access(there, os.W_OK):
        raise ConfigError(
            f"output = {config.output!r}: {there} is not a folder that can be written to; choose another"
        )
    if config.resume not in ("auto", "never"):
        _check_checkpoint(Path(config.resume), output)
    elif config.resume == "never" and (old := _earlier_run(output)):
        raise ConfigError(
            f"output = {config.output!r}: already holds a run ({old}): set resume=auto to go on, or another output"
        )


def _earlier_run(output: Path) -> str | None:
    if not output.is_dir():
        return None
    names = sorted(path.name for path in output.iterdir())
    run = [
        n
        for n in names
        if n.startswith("checkpoint-") or n in (_RECORD, "outcomes.jsonl", "results.json", "model")
    ]
    return run[0] if run else None


def _check_checkpoint(folder: Path, output: Path) -> None:
    if (folder / "trainer_state.json").is_file():
        return
    found = sorted(path.parent.name for path in output.glob("checkpoint-*/trainer_state.json"))
    known = (
        f"; complete ones in {output}: {', '.join(found)}"
        if found
        else "; use auto, never, or a checkpoint folder"
    )
    raise ConfigError(
        f"resume = {str(folder)!r}: not a complete checkpoint (no trainer_state.json){known}"
    )


def fingerprint(table: PromptTable) -> str:
    """Of prompts, answers and their order."""
    digest = hashlib.blake2b(digest_size=8)
    for row in table.rows:
        shown = [row["prompt"], row.get("answer"), row["source"]]
        # parquet's answers may hold dates
        digest.update(json.dumps(shown, sort_keys=True, default=str).encode())
    return digest.hexdigest()


def _record(config: TrainConfig, table: PromptTable) -> dict[str, str]:
    data = f"{len(table.rows)} prompts, fingerprint {fingerprint(table)}"
    return {"method": config.method, "data": data, "model": config.model.location}


def write_record(config: TrainConfig, table: PromptTable) -> None:
    """``output/run.json``: the whole configuration and what a resumed run must share with this
    one."""
    record = _record(config, table) | {"config": config.model_dump(mode="json")}
    write_atomically(Path(config.output) / _RECORD, (json.dumps(record, indent=2) + "\n").encode())


def check_same_run(config: TrainConfig, table: PromptTable) -> None:
    """A resumed run has the method, data and model it was started with. Raises StateMismatch."""
    if config.resume == "never":
        return
    folder = Path(config.output) if config.resume == "auto" else Path(config.resume).parent
    try:
        saved = json.loads((folder / _RECORD).read_text(encoding="utf-8"))
    except FileNotFoundError:
        return
    except (OSError, ValueError) as error:
        raise StateMismatch(
            f"{folder / _RECORD}: cannot be read ({error}): delete it, or choose another output"
        ) from None
    own = _record(config, table)
    for name, value in own.items():
        if saved.get(name) != value:
            raise StateMismatch(
                f"resume = {config.resume!r}: {folder} was started with {name} {saved.get(name)!r}, "
                f"this configuration has {value!r}: resume with what it was started with, or choose another output"
            )


# ---- model and prompt lengths


def check_model(config: TrainConfig) -> ModelCheck:
    """Loads configuration and tokenizer, not the weights. Raises ConfigError if they are missing or
    do not fit."""
    from transformers import AutoConfig, AutoTokenizer

    where = "model.path" if config.model.path else "model.name"
    if config.model.path and not Path(config.model.path).is_dir():
        raise ConfigError(f"model.path = {config.model.path!r}: no such folder")
    options = {
        "revision": config.model.revision,
        "trust_remote_code": config.model.trust_remote_code,
    }
    try:
        model = AutoConfig.from_pretrained(config.model.location, **options)
        tokenizer = AutoTokenizer.from_pretrained(
            config.model.location, padding_side="left", truncation_side="left", **options
        )
    except Exception as error:  # the hub, the loaders and remote code raise dozens of types
        reason = " ".join(str(error).split())[:200]
        raise ConfigError(
            f"{where} = {config.model.location!r}: cannot be loaded ({reason}); check the name or path"
        ) from None
    text = model.get_text_config()
    n_embeddings = getattr(text, "vocab_size", None)
    if n_embeddings is not None and len(tokenizer) > n_embeddings:
        raise ConfigError(
            f"{where} = {config.model.location!r}: the tokenizer has {len(tokenizer)} tokens, the model {n_embeddings}"
        )
    if config.data.chat and not tokenizer.chat_template:
        raise ConfigError(
            f"data.chat = true: the tokenizer of {config.model.location} has no chat template; set data.chat=false"
        )
    _check_encoder(config)
    return ModelCheck(
        tokenizer, _n_parameters(model), getattr(text, "max_position_embeddings", None)
    )


def _check_encoder(config: TrainConfig) -> None:
    """The estimator's backbone and device, and vLLM: what would otherwise fail after the policy is
    loaded."""
    estimator = config.curriculum_config().estimator
    if isinstance(estimator, EncoderSettings):
        import torch
        from transformers import AutoConfig

        name = "curriculum.estimator"
        if estimator.device.startswith("cuda") and not torch.cuda.is_available():
            raise ConfigError(
                f"{name}.device = {estimator.device!r}: no GPU here; set {name}.device=cpu"
            )
        if estimator.backbone != "tiny-random":
            try:
                AutoConfig.from_pretrained(estimator.backbone)
            except Exception as error:
                reason = " ".join(str(error).split())[:200]
                raise ConfigError(
                    f"{name}.backbone = {estimator.backbone!r}: cannot be loaded ({reason}); "
                    "name another, or set curriculum.estimator=fused, which needs no download"
                ) from None
    if config.trl.get("use_vllm") and importlib.util.find_spec("vllm") is None:
        raise ConfigError(
            "trl.use_vllm = True: vLLM is not installed: pip install vllm, or set trl.use_vllm=false"
        )


def _n_parameters(model_config: Any) -> int | None:
    """Counted on the meta device, which holds no weights."""
    import torch
    from transformers import AutoModelForCausalLM

    try:
        with torch.device("meta"):
            return sum(
                p.numel() for p in AutoModelForCausalLM.from_config(model_config).parameters()
            )
    except Exception:  # a remote-code or unusual model: the number is only shown
        return None


def check_lengths(
    config: TrainConfig, table: PromptTable, model: ModelCheck, max_completion: int | None
) -> tuple[PromptTable, list[int]]:
    """The rows short enough, and their lengths in tokens. Raises DataError if a prompt does not fit
    the context."""
    lengths = _lengths(table, model.tokenizer)
    limit = config.data.max_prompt_tokens
    short = [i for i, length in enumerate(lengths) if limit is None or length <= limit]
    if not short:
        raise DataError(
            f"{table.where}: every prompt is longer than data.max_prompt_tokens = {limit}: raise it"
        )
    lengths = [lengths[i] for i in short]
    table = replace(
        table, rows=[table.rows[i] for i in short], places=[table.places[i] for i in short]
    )
    longest = max(lengths)
    room = math.inf if model.context is None else model.context - (max_completion or 0)
    if longest > room:
        raise DataError(
            f"{table.where}: a prompt of {longest} tokens and trl.max_completion_length = {max_completion} exceed the "
            f"model's context of {model.context}: set data.max_prompt_tokens={max(int(room), 1)} or shorter completions"
        )
    return table, lengths


def _lengths(table: PromptTable, tokenizer: Any) -> list[int]:
    prompts = [row["prompt"] for row in table.rows]
    if isinstance(prompts[0], str):
        return [len(ids) for ids in tokenizer(prompts)["input_ids"]]
    return [
        len(ids)
        for ids in tokenizer(_rendered(table, tokenizer), add_special_tokens=False)["input_ids"]
    ]


def _rendered(table: PromptTable, tokenizer: Any) -> list[str]:
    """The chats as the policy reads them. Raises DataError for one that its template cannot show
    whole."""
    texts = []
    for i, row in enumerate(table.rows):
        try:
            text = tokenizer.apply_chat_template(
                row["prompt"], tokenize=False, add_generation_prompt=True
            )
        except Exception as error:  # a template raises what it likes, jinja2 a dozen types
            raise DataError(
                f"{table.row_at(i)}: the model's chat template refuses the prompt ({' '.join(str(error).split())})"
            ) from None
        if missing := left_out(row["prompt"], text):
            raise DataError(
                f"{table.row_at(i)}: the model's chat template leaves out {missing}: the policy would read another "
                "conversation; write it into a message's content, or use a model whose template shows it"
            )
        texts.append(text)
    return texts


# ---- method


def check_method(config: TrainConfig, dataset: Any, source_column: str) -> None:
    """What the engine would refuse after the weights are loaded: a gate that TRL lacks, columns
    without what they are read for. The estimator is not built, which takes long for some. Raises
    ConfigError or DataError."""
    from ...engines.trl.driver import check_gate
    from ...engines.trl.prompts import prompts_of

    settings = config.curriculum_config()
    method = get_method(config.method)
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # the engine says it again
        prompts = method.prepare(prompts_of(dataset, source_column), settings)
    try:
        check_gate(method.name, method.gate(settings))
    except EngineError as error:
        raise ConfigError(str(error)) from None
    if isinstance(fused := settings.estimator, FusedSettings):
        ColumnFeatures.fit(prompts, fused.columns, fused.exclude)


# ---- the plan


def describe(prepared: Prepared) -> dict[str, Any]:
    """The plan as JSON values: model, data, batch, method, reward, output."""
    config = prepared.config
    args = prepared.args
    return {
        "model": {
            "location": config.model.location, "parameters": prepared.model.n_parameters, "dtype": config.model.dtype,
            "context": prepared.model.context, "peft": config.peft is not None,
        },
        "data": _data(prepared),
        "batch": _batch(prepared),
        "method": _method(prepared),
        "reward": {
            "functions": {
                reward_name(function): reward.weight
                for function, reward in zip(prepared.rewards, config.reward, strict=True)
            },
            "correct": f"{prepared.named} >= {0.5 if config.correct.threshold is None else config.correct.threshold:g}",
            "own_answers": prepared.gold,
        },
        "training": {
            "loss_type": args.loss_type, "learning_rate": args.learning_rate, "epsilon": args.epsilon,
            "epsilon_high": args.epsilon_high, "beta": args.beta, "max_completion_length": args.max_completion_length,
            "seed": args.seed,
        },
        "output": config.output,
        "resume": _resume(config),
    }  # fmt: skip


def _data(prepared: Prepared) -> dict[str, Any]:
    table = prepared.table
    held_out = prepared.held_out
    return {
        "from": table.where,
        "files": len(table.files) if len(table.files) > 1 else None,
        "rows_read": table.n_read,
        "prompts": len(table.rows),
        "dropped_bad": len(table.bad),
        "dropped_duplicates": len(table.duplicates),
        "duplicates_with_another_answer": table.n_conflicts,
        "dropped_too_long": table.n_read - len(table.rows) - len(table.bad) - len(table.duplicates),
        "longest_prompt_tokens": max(prepared.lengths),
        "sources": dict(Counter(row["source"] for row in table.rows).most_common(20)),
        "eval_prompts": None if held_out is None else len(held_out.rows),
        "eval_prompts_also_trained_on": None
        if held_out is None
        else len(_texts(table) & _texts(held_out)),
    }


def _texts(table: PromptTable) -> set[str]:
    return {json.dumps(row["prompt"], sort_keys=True) for row in table.rows}


def n_steps(prepared: Prepared) -> int:
    """Optimiser steps: ``max_steps``, or what the epochs come to."""
    if prepared.args.max_steps > 0:
        return int(prepared.args.max_steps)
    generations = len(prepared.table.rows) // prepared.layout.prompts_per_generation
    return math.ceil(
        prepared.args.num_train_epochs * generations * prepared.layout.steps_per_generation
    )


def _batch(prepared: Prepared) -> dict[str, Any]:
    layout = prepared.layout
    steps = n_steps(prepared)
    generations = math.ceil(steps / layout.steps_per_generation)
    return {
        "steps": steps,
        "prompts_per_step": layout.prompts_per_step,
        "prompts_per_generation": layout.prompts_per_generation,
        "group_size": layout.group_size,
        "rollouts": generations * layout.generation_batch_size,
        "steps_per_generation": layout.steps_per_generation,
        "per_device_train_batch_size": layout.per_device_train_batch_size,
        "processes": layout.n_processes,
        "gradient_accumulation_steps": layout.gradient_accumulation_steps,
    }


def _method(prepared: Prepared) -> dict[str, Any]:
    """The method, its estimator, and the settings that it reads."""
    settings = prepared.config.curriculum_config()
    read = get_method(prepared.config.method).settings_under(settings) - {
        "group_size",
        "seed",
        "estimator",
    }
    plan: dict[str, Any] = {"name": prepared.config.method, "estimator": settings.estimator.type}
    plan |= settings.model_dump(mode="json", include=set(read))
    if "candidate_factor" in read:
        plan["candidates_per_generation_at_most"] = (
            prepared.layout.prompts_per_generation * settings.most_candidates
        )
    plan["expected_dead_share_uniform"] = _dead_share(prepared)
    return plan


def _dead_share(prepared: Prepared) -> float | None:
    """What a uniform choice would waste by the published pass rates; None without them."""
    rates = [row["pass_rate"] for row in prepared.table.rows if row.get("pass_rate") is not None]
    if prepared.config.data.columns.pass_rate is None or not rates:
        return None
    return round(dead_share(np.array(rates), prepared.layout.group_size), 4)


def _resume(config: TrainConfig) -> str:
    if config.resume != "auto":
        return config.resume
    found = [p.parent for p in Path(config.output).glob("checkpoint-*/trainer_state.json")]
    newest = max(found, key=lambda p: int(p.name.rpartition("-")[2]), default=None)
    return f"auto: {newest.name if newest else 'starts anew'}"
