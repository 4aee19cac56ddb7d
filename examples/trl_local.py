"""GRPO on word problems in a local file, with prompts chosen before the rollout.

    python examples/trl_local.py                                # Qwen2.5-0.5B-Instruct, one GPU
    python examples/trl_local.py --tiny                         # two small steps, to see that everything is in place
    python examples/trl_local.py --data mine.jsonl --model Qwen/Qwen2.5-1.5B-Instruct --out runs/mine

A row of the file has ``prompt``, ``answer`` (a number, or a solution that ends in "#### number")
and, if you like, ``source``. Other columns, such as published pass rates, are read by the
estimator. Stopped and started again, it goes on where it was.
"""

from __future__ import annotations

import argparse
from collections.abc import Sequence
from pathlib import Path

import torch
from datasets import Dataset, load_dataset

from depo_rl.rewards import math_reward
from depo_rl.trl import DEPOConfig, DEPOTrainer

HERE = Path(__file__).resolve().parent
QUESTION = "{prompt}\nThink step by step and end with a line '#### ' and the number."


def problems(path: Path) -> Dataset:
    """The rows of a JSONL file, each prompt as a chat."""
    rows = load_dataset("json", data_files=str(path), split="train")
    return rows.map(
        lambda row: {"prompt": [{"role": "user", "content": QUESTION.format(prompt=row["prompt"])}]}
    )


def settings(out: Path, tiny: bool) -> DEPOConfig:
    """32 prompts x 4 completions a step on one device; with ``tiny`` 2 x 4, twice."""
    on_gpu = torch.cuda.is_available()
    return DEPOConfig(
        str(out),
        method="depo+",
        num_generations=4,
        per_device_train_batch_size=8,
        gradient_accumulation_steps=1 if tiny else 16,
        max_completion_length=16 if tiny else 512,
        max_steps=2 if tiny else 200,
        learning_rate=1e-6,
        logging_steps=1,
        save_steps=50,
        bf16=on_gpu,
        use_cpu=not on_gpu,
    )


def main(argv: Sequence[str] | None = None) -> None:
    parser = argparse.ArgumentParser(description="GRPO on word problems in a local file.")
    parser.add_argument("--data", type=Path, default=HERE / "problems.jsonl")
    parser.add_argument(
        "--model", default="Qwen/Qwen2.5-0.5B-Instruct", help="a hub name or a local folder"
    )
    parser.add_argument("--out", type=Path, default=Path("runs/trl_local"))
    parser.add_argument("--tiny", action="store_true", help="two small steps")
    options = parser.parse_args(argv)

    trainer = DEPOTrainer(
        model=options.model,
        reward_funcs=math_reward("gsm8k", answer_column="answer"),
        args=settings(options.out, options.tiny),
        train_dataset=problems(options.data),
    )
    trainer.train(resume_from_checkpoint="auto")
    trainer.save_model(str(options.out / "model"))
    print(f"One row a group, for depo replay: {options.out / 'outcomes.jsonl'}")


if __name__ == "__main__":
    main()
