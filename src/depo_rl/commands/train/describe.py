"""What a dry run says: data, batch, method and resume of a prepared run, as plain values."""

from __future__ import annotations

import json
import math
from collections import Counter
from pathlib import Path
from typing import Any

import numpy as np

from ...methods import get_method
from ..evaluation import dead_share
from .config import TrainConfig
from .data import PromptTable
from .plan import Prepared
from .rewards import reward_name


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
    epochs = float(prepared.args.num_train_epochs)
    return math.ceil(epochs * generations * prepared.layout.steps_per_generation)


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
