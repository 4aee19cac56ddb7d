"""What verl's configuration calls our parts; free of verl."""

from __future__ import annotations

SUPPORTED = "0.9.1"
MODES = ("sync", "colocate_async", "separate_async")
DATASET = "pkg://depo_rl.engines.verl.dataset"
DATASET_CLASS = "CurriculumDataset"
ADVANTAGES = "depo_grpo"
REPLAY = "pkg://depo_rl.engines.verl.replay"


def buffer_name(mode: str) -> str:
    """The replay buffer of a trainer mode."""
    return "CurriculumReplayBuffer" if mode == "sync" else "CurriculumReplayBufferAsync"
