"""GRPO on GSM8K, with prompts chosen before the rollout.

    python examples/trl_gsm8k.py                            # Qwen2.5-0.5B-Instruct, 7,473 problems, one GPU
    python examples/trl_gsm8k.py --method grpo --out runs/gsm8k_grpo        # without a choice, to compare with
    python examples/trl_gsm8k.py --data train.jsonl --test test.jsonl --model FOLDER    # without a network

A row has ``question`` and ``answer``, a solution that ends in "#### number"; without files both
splits come from the hub. ``eval_reward`` is the accuracy on held-out problems. Stopped and started
again, it goes on where it was.
"""

from __future__ import annotations

import argparse
from collections.abc import Sequence
from pathlib import Path

import torch
from datasets import Dataset, load_dataset

from depo_rl.rewards import math_reward
from depo_rl.trl import DEPOConfig, DEPOTrainer

PROMPT = "{question}\nThink step by step and end with a line '#### ' and the number."
HELD_OUT = 256  # problems of the test set that each evaluation answers once


def problems(split: str, file: Path | None) -> Dataset:
    """GSM8K's rows, of a file or of the hub, each question as a chat."""
    if file is None:
        rows = load_dataset("openai/gsm8k", "main", split=split)
    else:
        rows = load_dataset("json", data_files=str(file), split="train")
    return rows.map(
        lambda row: {
            "prompt": [{"role": "user", "content": PROMPT.format(question=row["question"])}]
        }
    )


def settings(options: argparse.Namespace) -> DEPOConfig:
    """64 prompts x 4 completions a step on one device unless told otherwise."""
    on_gpu = torch.cuda.is_available()
    return DEPOConfig(
        str(options.out),
        method=options.method,
        num_generations=4,
        per_device_train_batch_size=8,
        gradient_accumulation_steps=options.prompts_per_step * 4 // 8,
        max_completion_length=options.max_completion_length,
        max_steps=options.max_steps,
        learning_rate=1e-6,
        eval_strategy="steps",
        eval_steps=50,
        eval_on_start=True,
        num_generations_eval=1,
        logging_steps=1,
        save_steps=50,
        bf16=on_gpu,
        use_cpu=not on_gpu,
    )


def main(argv: Sequence[str] | None = None) -> None:
    parser = argparse.ArgumentParser(description="GRPO on GSM8K.")
    parser.add_argument("--data", type=Path, help="training rows, JSONL; the hub's unless given")
    parser.add_argument("--test", type=Path, help="held-out rows, JSONL; the hub's unless given")
    parser.add_argument(
        "--model", default="Qwen/Qwen2.5-0.5B-Instruct", help="a hub name or a local folder"
    )
    parser.add_argument("--method", default="depo+", help="depo+, grpo, dapo, depo, ...")
    parser.add_argument("--out", type=Path, default=Path("runs/trl_gsm8k"))
    parser.add_argument("--max-steps", type=int, default=200)
    parser.add_argument("--prompts-per-step", type=int, default=64, help="an even number")
    parser.add_argument("--max-completion-length", type=int, default=512)
    options = parser.parse_args(argv)

    held_out = problems("test", options.test)
    trainer = DEPOTrainer(
        model=options.model,
        reward_funcs=math_reward("gsm8k", answer_column="answer"),
        args=settings(options),
        train_dataset=problems("train", options.data),
        eval_dataset=held_out.select(range(min(HELD_OUT, len(held_out)))),
    )
    trainer.train(resume_from_checkpoint="auto")
    trainer.save_model(str(options.out / "model"))
    print(
        f"Accuracy on {len(trainer.eval_dataset)} held-out problems: {trainer.evaluate()['eval_reward']:.3f}"
    )
    print(f"One row a group, for depo replay: {options.out / 'outcomes.jsonl'}")


if __name__ == "__main__":
    main()
