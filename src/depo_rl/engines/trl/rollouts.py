"""Rollouts as plain per-completion records, so that groups of several generation rounds can form
one batch."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import torch


@dataclass(frozen=True, slots=True)
class Completion:
    """One completion: its slice of every field of ``_generate``'s tuple, and what reward functions
    logged for it."""

    fields: tuple[Any, ...]
    logged: dict[str, Any]


@dataclass(frozen=True, slots=True)
class RolledGroup:
    """The G completions of one prompt.

    row: index in the data set. rewards_GF: shape (G, reward functions). weight: of its advantages,
    > 0. admitted: by the gate.
    """

    row: int
    completions: list[Completion]
    rewards_GF: torch.Tensor
    weight: float
    admitted: bool


def split(generated: tuple[Any, ...], n: int, logged: dict[str, list[Any]]) -> list[Completion]:
    """The ``n`` completions of one ``_generate`` call. logged: columns of which the last n values
    are these."""
    return [
        Completion(
            tuple(_item(field, i, n) for field in generated),
            {
                name: values[len(values) - n + i]
                for name, values in logged.items()
                if len(values) >= n
            },
        )
        for i in range(n)
    ]


def join(completions: Sequence[Completion]) -> tuple[Any, ...]:
    """The inverse of ``split``: the tuple that ``_generate`` would have returned for these
    completions."""
    return tuple(
        _merge([c.fields[k] for c in completions]) for k in range(len(completions[0].fields))
    )


def logged(completions: Sequence[Completion]) -> dict[str, list[Any]]:
    """What reward functions logged for these completions, by column; None where they logged nothing
    there."""
    names = sorted({name for completion in completions for name in completion.logged})
    return {name: [completion.logged.get(name) for completion in completions] for name in names}


def add_columns(inputs: Sequence[dict[str, Any]], columns: dict[str, Any]) -> None:
    """Gives the rows what a ``rollout_func`` returned beside the completions, for reward functions,
    as TRL does."""
    for name, values in columns.items():
        for i, row in enumerate(inputs):
            row[name] = values[i] if isinstance(values, list) else values


def _item(field: Any, i: int, n: int) -> Any:
    """Sample i of a field: per-sample lists are cut, dicts of them likewise, anything else belongs
    to all."""
    if isinstance(field, dict):
        return {key: _item(value, i, n) for key, value in field.items()}
    return [field[i]] if isinstance(field, list) and len(field) == n else field


def _merge(fields: list[Any]) -> Any:
    first = fields[0]
    if isinstance(first, dict):
        return {key: _merge([f[key] for f in fields]) for key in first}
    return [item for f in fields for item in f] if isinstance(first, list) else first


def loss_mask(inputs: dict[str, Any]) -> torch.Tensor:
    """Completion tokens that take part in the loss, 1 or 0, shape (B, T)."""
    mask: torch.Tensor = inputs["completion_mask"]
    return mask if inputs.get("tool_mask") is None else mask * inputs["tool_mask"]


def logprob_sums(logps_BT: torch.Tensor, mask_BT: torch.Tensor) -> torch.Tensor:
    """Per completion: sum of its token log-probabilities (unknown ones left out) and their number,
    shape (B, 2)."""
    known_BT = (mask_BT > 0) & logps_BT.isfinite()
    return torch.stack(
        [logps_BT.float().masked_fill(~known_BT, 0.0).sum(1), known_BT.sum(1).float()], dim=1
    )


def known_logprobs(output: dict[str, Any]) -> torch.Tensor | None:
    """From the sampling engine (vLLM) or TRL's pass before the update, if either has them; else
    None."""
    for name in ("sampling_per_token_logps", "old_per_token_logps"):
        if output.get(name) is not None:
            return logprob_sums(output[name], loss_mask(output))
    return None
