"""The demo's task: graded addition, and a tiny warm-started policy that can do some of it.

Sums of two numbers of equally many digits; the more digits, the harder. To the shipped policy two
digits are easy, five are out of reach, and three are where it can learn; the pool holds mostly the
two kinds that teach nothing, as late in a real run. Everything is local: a character tokenizer and
0.3 M weights in ``assets/``, made by ``scripts/make_demo_policy.py``.
"""

from __future__ import annotations

import random
from collections.abc import Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field
from importlib import resources
from typing import Any

import numpy as np

from ...types import FloatArray
from ..evaluation import Evaluation

DESCRIPTION = (
    "sums of two numbers of 2 to 5 digits by a 0.3 M parameter character model; two digits are already easy for it, "
    "five are out of reach, three are where it can learn."
)
POOL_MIX: Mapping[int, float] = {2: 0.40, 3: 0.15, 4: 0.10, 5: 0.35}
"""Digits -> share of the pool. About 86 % of its groups of 4 are all right or all wrong at the
start."""
EVAL_DIGITS = 3
"""The level the policy is part-way to: most of what can be gained within a demo is there, and the
rest can be lost."""

_EVAL_MODULUS = 5  # one problem in five belongs to the held-out side, whatever the seeds
_SPECIAL = ("<pad>", "<eos>", "<unk>")
CHARACTERS = "0123456789+="

Row = dict[str, Any]


@dataclass(frozen=True, slots=True)
class DemoSettings:
    """What ``depo demo`` trains with; every value is the same for all methods but ``curriculum``.

    budget_tokens: completion tokens generated per run, discarded groups included. eval_every:
    optimiser steps. eval_sizes: digits -> held-out problems of that level. target_accuracy: on the
    whole pool, of one answer sampled at temperature 1 (``evaluate_pool``). trl: GRPOConfig fields.
    curriculum: method -> CurriculumConfig fields.
    """

    pool_size: int = 4000
    pool_seed: int = 1
    # Fixed problems and exact probabilities: what is left of the noise is the policy's own
    # step-to-step movement. Of 8,500 problems the start has .471 on the whole pool, of these .472.
    # A level that is known can only be lost, by a hundredth or so, and it takes a thousand problems
    # to see that.
    eval_sizes: Mapping[int, int] = field(default_factory=lambda: {2: 1000, 3: 1000, 4: 200, 5: 50})
    eval_seed: int = 3
    eval_every: int = 4
    budget_tokens: int = 140_000
    target_accuracy: float = 0.478
    trl: Mapping[str, Any] = field(
        default_factory=lambda: {
            # 64 prompts x 4 completions a step, one optimiser step each: on-policy, as in the
            # paper. Groups of 8 are no better for grpo and worse for depo+ (docs/learning.md).
            "per_device_train_batch_size": 256,
            "num_generations": 4,
            # 6 digits and the end: a longer answer is wrong anyway.
            "max_completion_length": 7,
            "temperature": 1.0,
            # The best of 5e-5, 1e-4 and 2e-4 for grpo and depo+, judged by the whole pool
            # (docs/learning.md).
            "learning_rate": 5e-5,
            "lr_scheduler_type": "constant_with_warmup",
            # Adam's first steps have full length whatever the gradient; without a warm-up they undo
            # some of the SFT.
            "warmup_steps": 10,
            "weight_decay": 0.0,
            "max_grad_norm": 1.0,
            # DAPO's loss and clip for all methods, so that only the choice of prompts differs.
            "loss_type": "dapo",
            "epsilon": 0.2,
            "epsilon_high": 0.28,
            "beta": 0.0,
            "gradient_checkpointing": False,
        }
    )
    curriculum: Mapping[str, Mapping[str, Any]] = field(
        default_factory=lambda: {
            # 100 warm-up steps are the paper's for a run of 1000; here four batches show the
            # estimator every kind. A seventh of the pool teaches, so a full batch needs more than 7
            # candidates a place.
            "depo": {"band": "auto", "warmup_steps": 4, "candidate_factor": 10, "explore": 0.05},
        }
    )


SETTINGS = DemoSettings()


def make_problem(digits: int, rng: random.Random) -> Row:
    """A sum of two numbers with exactly ``digits`` digits: {"prompt": "47+85=", "answer": "132",
    "source": "add2"}"""
    low = 10 ** (digits - 1) if digits > 1 else 0
    high = 10**digits
    a = rng.randrange(low, high)
    b = rng.randrange(low, high)
    return {"prompt": f"{a}+{b}=", "answer": str(a + b), "source": f"add{digits}"}


def is_held_out(row: Mapping[str, Any]) -> bool:
    """Which side of the split a problem is on; a function of the two numbers alone, so it holds for
    every seed."""
    a, b = row["prompt"].rstrip("=").split("+")
    return (int(a) * 7919 + int(b) * 104_729) % 1_000_003 % _EVAL_MODULUS == 0


def make_pool(n: int, seed: int, mix: Mapping[int, float] = POOL_MIX) -> list[Row]:
    """n distinct training problems, digits drawn by ``mix``; columns prompt, answer, source. Same
    seed, same rows."""
    return _distinct(n, seed, mix, held_out=False)


def make_eval(n: int, seed: int, mix: Mapping[int, float] | None = None) -> list[Row]:
    """n distinct held-out problems of ``EVAL_DIGITS`` digits (or by ``mix``); none is in any
    pool."""
    return _distinct(n, seed, mix or {EVAL_DIGITS: 1.0}, held_out=True)


def make_levels(sizes: Mapping[int, int], seed: int) -> list[Row]:
    """Held-out problems of every level, ``sizes[digits]`` each, level by level; none is in any
    pool."""
    return [row for digits, n in sizes.items() for row in make_eval(n, seed, {digits: 1.0})]


def _distinct(n: int, seed: int, mix: Mapping[int, float], held_out: bool) -> list[Row]:
    rng = random.Random(seed)
    rows: dict[str, Row] = {}
    for _ in range(1000 + 100 * n):
        if len(rows) == n:
            return list(rows.values())
        row = make_problem(rng.choices(list(mix), list(mix.values()))[0], rng)
        if is_held_out(row) is held_out:
            rows.setdefault(row["prompt"], row)
    raise ValueError(f"n = {n}: there are not that many distinct problems of {sorted(mix)} digits")


def correct_reward(completions: Sequence[str], answer: Sequence[str], **_: Any) -> list[float]:
    """TRL reward function: 1.0 where the completion, stripped, is the answer, else 0.0."""
    return [float(text.strip() == right) for text, right in zip(completions, answer, strict=True)]


def make_tokenizer() -> Any:
    """A fast tokenizer with one token per character, padding on the left as generation needs."""
    from tokenizers import Regex, Tokenizer, decoders, models, pre_tokenizers
    from transformers import PreTrainedTokenizerFast

    vocabulary = {token: i for i, token in enumerate([*_SPECIAL, *CHARACTERS])}
    core = Tokenizer(models.WordLevel(vocabulary, unk_token="<unk>"))
    core.pre_tokenizer = pre_tokenizers.Split(Regex("."), "isolated")
    core.decoder = decoders.Fuse()
    return PreTrainedTokenizerFast(
        tokenizer_object=core,
        pad_token="<pad>",
        eos_token="<eos>",
        unk_token="<unk>",
        padding_side="left",
        model_input_names=["input_ids", "attention_mask"],
    )


def tokenizer() -> Any:
    """The shipped tokenizer."""
    from transformers import PreTrainedTokenizerFast

    with _assets() as folder:
        return PreTrainedTokenizerFast.from_pretrained(folder, local_files_only=True)


def load_policy() -> Any:
    """The shipped warm-started policy, in float32 on the CPU; every call returns fresh, equal
    weights."""
    import torch
    from transformers import AutoModelForCausalLM

    with _assets() as folder:
        return AutoModelForCausalLM.from_pretrained(
            folder, dtype=torch.float32, local_files_only=True
        )


def _assets() -> Any:
    return resources.as_file(resources.files(__package__) / "assets")


def evaluate(
    model: Any, tokenizer: Any, rows: Sequence[Mapping[str, Any]], batch_size: int = 512
) -> float:
    """Expected accuracy in [0, 1] of one answer sampled at temperature 1: avg@k for k to infinity,
    without sampling."""
    return (
        float(success_probabilities(model, tokenizer, rows, batch_size).mean())
        if rows
        else float("nan")
    )


def evaluate_pool(model: Any, tokenizer: Any, rows: Sequence[Mapping[str, Any]]) -> Evaluation:
    """Exact accuracy on every level in ``rows`` (``make_levels``), weighted as the levels are in
    the pool.

    Level by level, so that short problems are hardly padded; in batches that fit a core's cache.
    """
    rate_P = success_probabilities(model, tokenizer, rows, batch_size=200)
    levels = dict.fromkeys(row["source"] for row in rows)
    weight = {
        f"add{digits}": share for digits, share in POOL_MIX.items() if f"add{digits}" in levels
    }
    return Evaluation.exact(rate_P, [row["source"] for row in rows], weight)


def success_probabilities(
    model: Any, tokenizer: Any, rows: Sequence[Mapping[str, Any]], batch_size: int = 512
) -> FloatArray:
    """Each prompt's exact pass rate at temperature 1, shape (P,).

    Only one string is right, so the pass rate *is* the probability of its tokens and the end token:
    one forward pass in place of many samples, no noise and no random numbers. The model's
    train/eval mode is left as it was.
    """
    import torch

    parts = []
    with _inference(model), torch.no_grad():
        for start in range(0, len(rows), batch_size):
            parts.append(_batch_probabilities(model, tokenizer, rows[start : start + batch_size]))
    return np.concatenate(parts) if parts else np.empty(0)


def _batch_probabilities(
    model: Any, tokenizer: Any, rows: Sequence[Mapping[str, Any]]
) -> FloatArray:
    import torch

    ends = tokenizer.eos_token
    batch = tokenizer(
        [r["prompt"] + r["answer"] + ends for r in rows], return_tensors="pt", padding=True
    )
    batch = batch.to(model.device)
    lengths = torch.tensor([len(r["answer"]) + 1 for r in rows], device=model.device)
    longest = int(lengths.max())
    # Position ids are TRL's in training: none. Rotary positions make the left padding's shift
    # harmless.
    logits = model(**batch, logits_to_keep=longest + 1).logits[:, :-1].float()
    targets = batch["input_ids"][:, -longest:, None]
    logprobs = logits.log_softmax(-1).gather(-1, targets).squeeze(-1)
    counts = torch.arange(longest, device=model.device)[None] >= longest - lengths[:, None]
    rate_P: FloatArray = (logprobs * counts).sum(1).exp().double().cpu().numpy()
    return rate_P


def pass_rates(
    model: Any,
    tokenizer: Any,
    rows: Sequence[Mapping[str, Any]],
    group_size: int = 8,
    seed: int = 0,
) -> FloatArray:
    """Each prompt's share of right answers among ``group_size`` sampled ones, shape (P,). Global
    RNGs are untouched."""
    import torch

    ends = [r["answer"] for r in rows for _ in range(group_size)]
    rewards: list[float] = []
    devices = [model.device] if model.device.type == "cuda" else []
    with _inference(model), torch.no_grad(), torch.random.fork_rng(devices=devices):
        torch.manual_seed(seed)
        for start in range(0, len(rows), 64):
            batch = tokenizer(
                [r["prompt"] for r in rows[start : start + 64]], return_tensors="pt", padding=True
            )
            batch = batch.to(model.device)
            out = model.generate(
                **batch,
                do_sample=True,
                top_k=0,
                temperature=1.0,
                num_return_sequences=group_size,
                max_new_tokens=SETTINGS.trl["max_completion_length"],
                pad_token_id=tokenizer.pad_token_id,
                eos_token_id=tokenizer.eos_token_id,
            )
            texts = tokenizer.batch_decode(
                out[:, batch["input_ids"].shape[1] :], skip_special_tokens=True
            )
            rewards += correct_reward(
                texts, ends[start * group_size : start * group_size + len(texts)]
            )
    rate_P: FloatArray = np.array(rewards).reshape(len(rows), group_size).mean(1)
    return rate_P


@contextmanager
def _inference(model: Any) -> Any:
    """Evaluation mode for the block only."""
    training = model.training
    model.eval()
    try:
        yield
    finally:
        model.train(training)
