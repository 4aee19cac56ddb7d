"""What is known of a run before it starts: checks of output, model and prompt lengths, and the plan
that is printed."""

from __future__ import annotations

import hashlib
import importlib.util
import json
import math
import warnings
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

from ...config import EncoderSettings, FusedSettings
from ...errors import ConfigError, DataError, EngineError, StateMismatch
from ...features.columns import ColumnFeatures
from ...files import write_atomically
from ...methods import get_method
from ..runs import check_folder
from .chat import left_out
from .config import TrainConfig
from .data import PromptTable
from .rewards import RewardCallable
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
    check_folder(output, f"output = {config.output!r}")
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
            model = AutoModelForCausalLM.from_config(model_config)
        return int(sum(p.numel() for p in model.parameters()))
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
