"""How a generation is cut into batches: the rest of one that a checkpoint was saved inside goes on
only where it is still cut like that."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

Layout = Mapping[str, int]


def layout_of(trainer: Any) -> dict[str, int]:
    """What decides which batch comes when, and what the loss finds in it (the last two, 0 or 1)."""
    args = trainer.args
    corrected = args.use_vllm and getattr(args, "vllm_importance_sampling_correction", False)
    return {
        "num_processes": trainer.accelerator.num_processes,
        "per_device_train_batch_size": trainer._train_batch_size,
        "steps_per_generation": args.steps_per_generation,
        "gradient_accumulation_steps": args.gradient_accumulation_steps,
        "num_iterations": trainer.num_iterations,
        "num_generations": trainer.num_generations,
        "reference_logprobs": int(trainer.beta != 0.0),
        "sampler_logprobs": int(corrected),
    }


def layout_seen(world: int, buffered: Sequence[Mapping[str, Any]]) -> dict[str, int]:
    """As much of it as the batches tell themselves, for a checkpoint of version 0.1."""
    seen = {"num_processes": world}
    if buffered:
        seen["per_device_train_batch_size"] = len(buffered[0]["advantages"])
        seen["steps_per_generation"] = len(buffered)
        seen["reference_logprobs"] = int("ref_per_token_logps" in buffered[0])
    return seen


def changes(saved: Layout, own: Layout) -> str:
    """Of the fields that ``saved`` has, those that are others now, in words; "" if none is."""
    return ", ".join(
        f"{name} {value}, now {own.get(name)}"
        for name, value in saved.items()
        if value != own.get(name)
    )
