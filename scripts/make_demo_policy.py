"""Makes the demo's policy: a tiny character model, warm-started on addition by supervised learning,
and its tokenizer.

    python scripts/make_demo_policy.py [--out src/depo_rl/commands/demo/assets]

Two phases, three to five minutes on one core. The first learns addition up to where three digits
start to work; the second, on mostly two digits, makes those reliable and leaves three half-learnt:
a policy for which most of the pool teaches nothing. Same machine and torch release, same weights.
Prints the pass rates and the share of dead groups.
"""

from __future__ import annotations

import argparse
import json
import random
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from transformers import GPTNeoXConfig, GPTNeoXForCausalLM

from depo_rl.commands.demo import arithmetic
from depo_rl.commands.evaluation import dead_share

DEFAULT_OUT = (
    Path(__file__).resolve().parents[1] / "src" / "depo_rl" / "commands" / "demo" / "assets"
)


@dataclass(frozen=True)
class Phase:
    """A part of the warm start: ``steps`` batches of problems with digits drawn by ``mix``.

    The rate rises over ``warmup`` steps, stays, and falls over the last ``decay`` share.
    ``stop_at``: (digits, pass rate) that ends it earlier; when sums of a size are suddenly
    understood differs from seed to seed by hundreds of steps, so a number of steps alone would not
    say how good the policy is.
    """

    steps: int
    mix: Mapping[int, float]
    learning_rate: float
    warmup: int
    decay: float
    batch: int = 128
    stop_at: tuple[int, float] | None = None


PHASES = (
    Phase(
        2000, {1: 0.15, 2: 0.35, 3: 0.40, 4: 0.10}, 2e-3, warmup=100, decay=0.0, stop_at=(3, 0.33)
    ),
    Phase(250, {1: 0.10, 2: 0.84, 3: 0.06}, 1e-3, warmup=20, decay=0.3),
)


def new_model(tokenizer: Any, seed: int) -> GPTNeoXForCausalLM:
    """3 layers of width 96. GPT-NeoX for its fused layer norms (fast on a CPU) and rotary positions
    (left padding)."""
    torch.manual_seed(seed)
    return GPTNeoXForCausalLM(
        GPTNeoXConfig(
            vocab_size=len(tokenizer),
            hidden_size=96,
            intermediate_size=384,
            num_hidden_layers=3,
            num_attention_heads=4,
            max_position_embeddings=64,
            rope_parameters={
                "rope_type": "default",
                "rope_theta": 10_000.0,
                "partial_rotary_factor": 1.0,
            },
            rotary_pct=1.0,  # the same; older releases of transformers read it over the line above
            use_parallel_residual=False,
            tie_word_embeddings=True,
            initializer_range=0.04,
            hidden_act="gelu",
            attention_dropout=0.0,
            hidden_dropout=0.0,
            pad_token_id=tokenizer.pad_token_id,
            bos_token_id=None,
            eos_token_id=tokenizer.eos_token_id,
        )
    )


def rate(phase: Phase, step: int) -> float:
    """Learning rate of a step."""
    left = 1.0 if phase.decay == 0 else min(1.0, (phase.steps - step) / (phase.decay * phase.steps))
    return phase.learning_rate * min(1.0, (step + 1) / phase.warmup) * max(0.05, left)


def problems(phase: Phase, rng: random.Random) -> list[dict[str, Any]]:
    """A batch of problems from the training side of the split."""
    rows: list[dict[str, Any]] = []
    while len(rows) < phase.batch:
        row = arithmetic.make_problem(
            rng.choices(list(phase.mix), list(phase.mix.values()))[0], rng
        )
        if not arithmetic.is_held_out(row):
            rows.append(row)
    return rows


def loss_on(model: GPTNeoXForCausalLM, tokenizer: Any, rows: list[dict[str, Any]]) -> torch.Tensor:
    """Cross-entropy of the answers' characters and the end token."""
    texts = [r["prompt"] + r["answer"] + tokenizer.eos_token for r in rows]
    batch = tokenizer(texts, return_tensors="pt", padding=True)
    labels = batch["input_ids"].clone()
    for i, row in enumerate(rows):
        labels[i, : -len(row["answer"]) - 1] = -100
    return model(**batch, labels=labels).loss


def train(model: GPTNeoXForCausalLM, tokenizer: Any, phase: Phase, seed: int) -> None:
    """One phase, with an optimizer of its own."""
    rng = random.Random(seed)
    optimizer = torch.optim.AdamW(model.parameters(), lr=phase.learning_rate, weight_decay=0.0)
    model.train()
    probe = arithmetic.make_pool(200, seed, {phase.stop_at[0]: 1.0}) if phase.stop_at else []
    for step in range(phase.steps):
        for group in optimizer.param_groups:
            group["lr"] = rate(phase, step)
        loss = loss_on(model, tokenizer, problems(phase, rng))
        optimizer.zero_grad()
        loss.backward()
        torch.nn.utils.clip_grad_norm_(model.parameters(), 1.0)
        optimizer.step()
        if (step + 1) % 25 == 0:
            reached = arithmetic.evaluate(model, tokenizer, probe)
            print(
                f"step {step + 1:5d}  loss {loss.item():.3f}  pass rate {reached:.3f}", flush=True
            )
            if phase.stop_at and reached >= phase.stop_at[1]:
                return


def save(model: GPTNeoXForCausalLM, tokenizer: Any, out: Path) -> None:
    """Weights as float16 (0.7 MB), config and tokenizer."""
    model.half().save_pretrained(out)
    tokenizer.save_pretrained(out)
    (out / "README.md").write_text(
        "Weights and tokenizer of the demo's policy, random initialisation trained on generated sums only, under this "
        "repository's licence.\nMade by `scripts/make_demo_policy.py`; do not edit.\n"
    )
    (out / "model.safetensors").chmod(0o644)  # written 0600: unreadable to others once packaged
    # The trainer's library version is noise in a diff and means nothing to a reader of the weights.
    for name in ("config.json", "generation_config.json"):
        path = out / name
        if path.exists():
            values = {
                k: v for k, v in json.loads(path.read_text()).items() if k != "transformers_version"
            }
            path.write_text(json.dumps(values, indent=2, sort_keys=True) + "\n")


def describe() -> None:
    """Pass rates per number of digits and the share of dead groups, of what was saved."""
    model, tokenizer = arithmetic.load_policy(), arithmetic.tokenizer()
    print(f"{sum(p.numel() for p in model.parameters()):,} parameters")
    for digits in arithmetic.POOL_MIX:
        p = arithmetic.success_probabilities(
            model, tokenizer, arithmetic.make_eval(500, 3, {digits: 1.0})
        )
        print(f"{digits} digits: pass rate {p.mean():.3f}, dead groups of 8 {dead_share(p, 8):.2f}")
    pool = arithmetic.make_pool(arithmetic.SETTINGS.pool_size, arithmetic.SETTINGS.pool_seed)
    p = arithmetic.success_probabilities(model, tokenizer, pool)
    print(f"pool: pass rate {p.mean():.3f}, dead groups of 8 {dead_share(p, 8):.3f}")


def main() -> None:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument(
        "--out",
        type=Path,
        default=DEFAULT_OUT,
        help="folder to write (default: the package's assets)",
    )
    parser.add_argument("--seed", type=int, default=0)
    args = parser.parse_args()
    torch.set_num_threads(1)
    tokenizer = arithmetic.make_tokenizer()
    model = new_model(tokenizer, args.seed)
    for i, phase in enumerate(PHASES):
        train(model, tokenizer, phase, seed=1000 * (i + 1) + args.seed)
    save(model, tokenizer, args.out)
    if args.out.resolve() == DEFAULT_OUT:
        describe()


if __name__ == "__main__":
    main()
