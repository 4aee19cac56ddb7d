"""A training step of TRL under each curriculum: seconds in all, generating, choosing prompts and
learning from them.

The part "cost" of bench_gpu.py. The policy has random weights and Qwen2.5's shapes; rewards are
drawn with each problem's published pass rate, so that groups are mixed as often as for a real
policy.
"""

from __future__ import annotations

import gc
import os
import tempfile
import time
import zlib
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from pathlib import Path
from statistics import median
from typing import Any

import numpy as np
import torch
from bench_features import synthetic_prompts
from datasets import Dataset
from transformers import (
    AutoModelForCausalLM,
    DistilBertConfig,
    DistilBertModel,
    PrinterCallback,
    Qwen2Config,
    TrainerCallback,
)

from depo_rl.commands.demo.run import quiet
from depo_rl.engines.trl import DEPOConfig, DEPOTrainer

Shape = tuple[int, int, int, int, int]


@dataclass(frozen=True)
class Scale:
    """How large everything is.

    policies: name -> width, layers, heads, inner width, vocabulary. encoder: what differs from
    DistilBERT's shape. runs: (policy, variant), the most telling first. pool, prompts: problems in
    all and of a step. completion: tokens.
    """

    policies: Mapping[str, Shape]
    encoder: Mapping[str, int]
    runs: tuple[tuple[str, str], ...]
    pool: int
    prompts: int
    completion: int


VARIANTS = ("grpo", "encoder", "depo+", "depo+ with states", "depo", "encoder on the CPU")
SCALES = {
    "full": Scale(
        policies={"0.5B": (896, 24, 14, 4864, 151_936), "1.5B": (1536, 28, 12, 8960, 151_936)},
        encoder={},
        runs=(
            *(("0.5B", variant) for variant in VARIANTS),
            ("1.5B", "depo+ with states"),
            ("1.5B", "grpo"),
        ),
        pool=17_000,
        prompts=128,
        completion=256,
    ),
    "small": Scale(
        policies={"tiny": (64, 2, 2, 128, 2048)},
        encoder={"dim": 64, "n_layers": 2, "n_heads": 2, "hidden_dim": 128},
        runs=(
            ("tiny", "grpo"),
            ("tiny", "depo+"),
            ("tiny", "depo+ with states"),
            ("tiny", "encoder"),
        ),
        pool=1000,
        prompts=8,
        completion=4,
    ),
}


def make_trainer(
    policy: Any,
    reward: Any,
    rows: Dataset,
    tokenizer: Any,
    device: str,
    *callbacks: TrainerCallback,
    **settings: Any,
) -> DEPOTrainer:
    """A trainer with groups of 8 that logs every step and prints none."""
    own = {"num_generations": 8, "seed": 0, "use_cpu": device == "cpu", "report_to": []}
    args = DEPOConfig(logging_steps=1, disable_tqdm=True, **own, **settings)
    trainer = DEPOTrainer(
        policy, reward, args, rows, processing_class=tokenizer, callbacks=list(callbacks)
    )
    trainer.remove_callback(PrinterCallback)
    return trainer


def problems(n: int) -> list[dict[str, Any]]:
    """n problems with a pass rate: DeepScaleR's and Qwen2.5-Math-7B's (``DEPO_DATA``), or else
    synthetic ones."""
    path = (
        Path(os.environ.get("DEPO_DATA", "")) / "pass_rates" / "deepscaler_qwen2.5-math-7b.parquet"
    )
    if path.is_file():
        import pyarrow.parquet

        rows = pyarrow.parquet.read_table(
            path, columns=["prompt", "answer", "pass_rate"]
        ).to_pylist()
        # A batch is padded to its longest prompt: a few of 5,000 characters would be all that is
        # measured.
        rows = [row for row in rows if len(row["prompt"]) <= 800]
        return [rows[i] for i in np.random.default_rng(0).permutation(len(rows))[:n]]
    made = synthetic_prompts(n)
    return [
        {"prompt": p.text, "answer": p.fields["answer"], "pass_rate": _coin(p.text.encode())}
        for p in made
    ]


def _coin(data: bytes) -> float:
    """A number in [0, 1) that looks random, always the same for the same bytes."""
    return zlib.crc32(data) / 2**32


def coin_reward(completion_ids: list[list[int]], pass_rate: list[float], **_: Any) -> list[float]:
    """1 with the problem's own pass rate: a random policy is never right, and without mixed groups
    nobody learns."""
    tokens = (np.asarray(ids, np.int32).tobytes() for ids in completion_ids)
    return [float(_coin(data) < rate) for data, rate in zip(tokens, pass_rate, strict=True)]


def make_tokenizer(texts: list[str], vocabulary: int) -> Any:
    """Byte pairs learnt from ``texts``, for policy and encoder."""
    from tokenizers import Tokenizer, decoders, models, pre_tokenizers, processors, trainers
    from transformers import PreTrainedTokenizerFast

    special, alphabet = (
        ["[PAD]", "[UNK]", "[CLS]", "[SEP]", "[EOS]"],
        pre_tokenizers.ByteLevel.alphabet(),
    )
    core = Tokenizer(models.BPE())
    core.pre_tokenizer, core.decoder = (
        pre_tokenizers.ByteLevel(add_prefix_space=False),
        decoders.ByteLevel(),
    )
    learning = trainers.BpeTrainer(
        vocab_size=vocabulary, special_tokens=special, initial_alphabet=alphabet
    )
    core.train_from_iterator(texts, learning)
    ends = [("[CLS]", 2), ("[SEP]", 3)]
    core.post_processor = processors.TemplateProcessing(
        single="[CLS] $A [SEP]", special_tokens=ends
    )
    names = dict(
        zip(("pad_token", "unk_token", "cls_token", "sep_token", "eos_token"), special, strict=True)
    )
    return PreTrainedTokenizerFast(
        tokenizer_object=core, padding_side="left", model_max_length=512, **names
    )


def make_policy(shape: Shape, eos: int, device: str) -> Any:
    """Qwen2 with random weights in bfloat16. It hardly ever ends an answer, so all have the full
    length."""
    names = (
        "hidden_size",
        "num_hidden_layers",
        "num_attention_heads",
        "intermediate_size",
        "vocab_size",
    )
    sizes = dict(zip(names, shape, strict=True))
    config = Qwen2Config(**sizes, num_key_value_heads=2, tie_word_embeddings=True, eos_token_id=eos)
    torch.manual_seed(0)
    with torch.device(device):
        return AutoModelForCausalLM.from_config(config, dtype=torch.bfloat16)


def curriculum_of(variant: str, encoder: Path, device: str) -> dict[str, Any]:
    """Method and settings. After one batch each ranks 8 candidates a place: the most that any has
    to look at."""
    if variant == "grpo":
        return {"method": "grpo"}
    ranked: dict[str, Any] = {"warmup_steps": 1, "band": "auto"}
    if variant.startswith("depo"):  # the column that the reward is made from must not be seen
        # of the policy at each prompt's end, projected
        states = 128 if variant.endswith("states") else 0
        ranked |= {
            "estimator": {"exclude": ["pass_rate"], "policy_features": states},
            "guard": False,
        }
    if variant.startswith("encoder"):
        where = "cpu" if variant.endswith("CPU") else device
        ranked["estimator"] = {"type": "encoder", "backbone": str(encoder), "device": where}
    return {"method": "depo+" if variant.startswith("depo+") else "depo", "curriculum": ranked}


class Stopwatch(TrainerCallback):
    """Wall-clock of each step and of the generation in it, in seconds."""

    def __init__(self, device: str) -> None:
        self.total: list[float] = []
        self.generating: list[float] = []
        self._wait = torch.cuda.synchronize if device == "cuda" else lambda: None
        self._last = 0.0

    def watch(self, trainer: DEPOTrainer) -> None:
        generate = trainer._generate

        def timed(prompts: Any) -> Any:
            started = self._now()
            generated = generate(prompts)
            self.generating.append(self._now() - started)
            return generated

        trainer._generate, self._last = timed, self._now()

    def _now(self) -> float:
        self._wait()
        return time.perf_counter()

    def on_step_end(self, args: Any, state: Any, control: Any, **kwargs: Any) -> None:
        now = self._now()
        self.total.append(now - self._last)
        self._last = now


def measure(
    policy: Any, data: Dataset, tokenizer: Any, scale: Scale, device: str, chosen: dict[str, Any]
) -> Any:
    """Three steps; medians in seconds over the last two, since the first warms up kernels and
    chooses uniformly."""
    micro_batch = min(32, 8 * scale.prompts)
    sizes = {
        "per_device_train_batch_size": micro_batch,
        "max_completion_length": scale.completion,
        "max_steps": 3,
    }
    sizes |= {
        "gradient_accumulation_steps": 8 * scale.prompts // micro_batch,
        "bf16": True,
        "learning_rate": 1e-6,
    }
    watch, started = Stopwatch(device), time.perf_counter()
    with tempfile.TemporaryDirectory() as folder, quiet():
        fixed = {"output_dir": folder, "save_strategy": "no"}
        trainer = make_trainer(
            policy, coin_reward, data, tokenizer, device, watch, **fixed, **sizes, **chosen
        )
        building = time.perf_counter() - started
        watch.watch(trainer)
        trainer.train()
    logged = [row for row in trainer.state.log_history if "loss" in row]
    steps = {"total": watch.total, "generating": watch.generating}
    steps |= {
        name: [row.get(f"depo/seconds_{name}", 0.0) for row in logged]
        for name in ("selecting", "learning")
    }
    found = {name: median(seconds[1:]) for name, seconds in steps.items()}
    share = (found["selecting"] + found["learning"]) / found["total"]
    steps |= {
        "drawn": [row.get("depo/drawn") for row in logged],
        "mixed": [row["depo/mixed_share"] for row in logged],
    }
    each = {name: [round(value, 3) for value in values] for name, values in steps.items()}
    return {**found, "ours_share": share, "building": building, "each_step": each}


def cost(scale: Scale, device: str, add: Callable[..., None], seconds: float) -> None:
    """The runs of ``scale`` that begin within ``seconds``; the others are named."""
    started = time.perf_counter()
    rows = problems(scale.pool)
    tokenizer = make_tokenizer([row["prompt"] for row in rows], 2000 if scale.encoder else 30_000)
    data = Dataset.from_list(rows)
    with tempfile.TemporaryDirectory() as folder:
        torch.manual_seed(0)
        encoder = DistilBertModel(DistilBertConfig(**scale.encoder))
        encoder.save_pretrained(folder)
        tokenizer.save_pretrained(folder)
        weights = sum(p.numel() for p in encoder.parameters())
        add(
            "cost",
            prepared=time.perf_counter() - started,
            pool=len(rows),
            encoder_parameters=weights,
        )
        for name, variant in scale.runs:
            if time.perf_counter() - started > seconds:
                add("cost", policy=name, variant=variant, left_out="no time left")
                continue
            policy = make_policy(scale.policies[name], tokenizer.eos_token_id, device)
            found = measure(
                policy, data, tokenizer, scale, device, curriculum_of(variant, Path(folder), device)
            )
            peak = torch.cuda.max_memory_allocated() / 2**30 if device == "cuda" else None
            add("cost", policy=name, variant=variant, **found, peak_gib=peak)
            del policy
            gc.collect()  # a trainer refers to itself
            if device == "cuda":
                torch.cuda.empty_cache()
                torch.cuda.reset_peak_memory_stats()
