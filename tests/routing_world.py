"""A small world for the tests of routing: queries whose words say which models solve them."""

from __future__ import annotations

import json
from pathlib import Path

import numpy as np

from depo_rl.routing.guarantee import candidates
from depo_rl.routing.model import SuccessModel
from depo_rl.routing.scores import Scores
from depo_rl.routing.store import Threshold, add_threshold, load_router, save_router

KINDS = {  # probability that the small and the large model are right
    "add the numbers": (0.95, 0.97),
    "prove the theorem about rings": (0.15, 0.9),
    "name the capital of the country": (0.6, 0.62),
    "guess the coin": (0.03, 0.06),
}


def world(n: int, seed: int = 0) -> tuple[list[str], np.ndarray]:
    """Distinct texts, and scores (n, 2) drawn as the kind of each says."""
    rng = np.random.default_rng([11, seed])
    kinds = list(KINDS)
    kind = rng.integers(0, len(kinds), n)
    texts = [f"{kinds[k]} {rng.integers(10**9)} case {seed}-{i}" for i, k in enumerate(kind)]
    chance = np.array([KINDS[kinds[k]] for k in kind])
    return texts, (rng.random((n, 2)) < chance).astype(float)


def fitted(folder: Path, n: int = 300) -> Path:
    """A router without a threshold, learnt from ``world(n)``."""
    texts, score_PM = world(n)
    model, unseen_PM = SuccessModel.fit(texts, score_PM)
    scores = Scores(("small", "large"), tuple(texts), score_PM, tuple({} for _ in texts), 0)
    gains = unseen_PM[:, -1:] - unseen_PM[:, :-1]
    save_router(folder, scores, {"small": 1.0, "large": 5.0}, model, candidates(gains))
    return folder


def calibrated(folder: Path) -> Path:
    """``fitted``, with a threshold in force."""
    model = load_router(fitted(folder)).card.model
    add_threshold(folder, Threshold(1, 0.3, "quality", 0.95, 0.95, 9, "d", 0.5, "2026", model))
    return folder


def write_table(path: Path, n: int, seed: int = 0) -> Path:
    """A wide table of ``world(n, seed)``."""
    texts, score_PM = world(n, seed)
    rows = [
        {"prompt": text, "small": s, "large": g, "kind": " ".join(text.split()[:2])}
        for text, (s, g) in zip(texts, score_PM.tolist(), strict=True)
    ]
    path.write_text("".join(json.dumps(row) + "\n" for row in rows))
    return path
