"""Two processes that train together: do both roll out what the main process decided, in every
step, and end with the same weights?"""

from __future__ import annotations

from functools import partial
from pathlib import Path
from typing import Any

import torch

import trl_toys as toys

from .book import Case, Result
from .processes import Ranks

METHODS: dict[str, dict[str, Any]] = {
    "depo+": {"method": "depo+", "curriculum": {"warmup_steps": 1, "estimator": toys.FUSED}},
}


class Noting(toys.DEPOTrainer):
    """Remembers the rows that this rank was told of in each step, and where its own start."""

    def __init__(self, *args: Any, **kwargs: Any) -> None:
        self.decided: list[list[int]] = []
        super().__init__(*args, **kwargs)

    def local_rows(self, rows: list[int], n_local: int) -> list[dict[str, Any]]:
        self.decided.append(list(rows))
        return super().local_rows(rows, n_local)


def train(folder: Path, method: str, steps: int) -> None:
    made = toys.trainer(
        folder,
        cls=Noting,
        data=toys.dataset(90),
        per_device_train_batch_size=8,
        max_steps=steps,
        logging_steps=50,
        learning_rate=1e-3,
        **METHODS[method],
    )
    made.train()
    seen = {"decided": made.decided, "weights": toys.weights(made)}
    torch.save(seen, folder / f"rank{made.accelerator.process_index}.pt")


def together(method: str, steps: int, folder: Path) -> Result:
    Ranks(lambda: train(folder, method, steps), 2).wait()
    main, other = (torch.load(folder / f"rank{rank}.pt", weights_only=False) for rank in (0, 1))
    pairs = list(zip(main["decided"], other["decided"], strict=True))
    equal = toys.differences(main["weights"], other["weights"]) == []
    held = sum(left == right for left, right in pairs) if equal else 0
    distinct = len({row for rows in main["decided"] for row in rows})
    figure = f"{method}: {len(pairs) - held} differed, weights equal bit by bit, {distinct} prompts"
    return Result(len(pairs), held, figure if equal else f"{method}: weights differ")


def cases(toy: bool) -> list[Case]:
    steps = 4 if toy else 1000
    what = f"two processes, {steps:,} steps: decisions that both obeyed alike"
    return [Case(what, method, partial(together, method, steps)) for method in METHODS]
