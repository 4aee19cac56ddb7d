"""A router's directory: ``router.json`` says what it is, ``model.safetensors`` predicts,
``thresholds.json`` holds every threshold that was calibrated for it, the last one in force.

Nothing in it is code, and a threshold goes with the bits of the model that it was calibrated for.
"""

from __future__ import annotations

import hashlib
import json
import math
from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass
from datetime import datetime, timezone
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
from numpy.typing import NDArray

from ..checkpoint import load_state, save_state
from ..errors import CheckpointError, ConfigError, StateMismatch
from ..files import write_atomically
from ..types import FloatArray
from .guarantee import Kind
from .model import SuccessModel
from .scores import Scores

FORMAT = "depo-router-1"
_MODEL = "model.safetensors"
_CARD = "router.json"
_THRESHOLDS = "thresholds.json"


@dataclass(frozen=True)
class Card:
    """models: the cheapest first. costs: price of a call of each, or empty. n_queries and data: of
    what was learnt from, with a hash. created: UTC. model: hash of the model's file."""

    format: str
    models: tuple[str, ...]
    costs: Mapping[str, float]
    n_queries: int
    data: str
    created: str
    model: str


@dataclass(frozen=True)
class Threshold:
    """version: counts from 1. value: None keeps all on the cheapest model. promise, of, confidence:
    what it keeps. n_rows, data: what it was calibrated on, with a hash. share_large: of those rows.
    created: UTC. model: hash of the model that it goes with."""

    version: int
    value: float | None
    promise: Kind
    of: float
    confidence: float
    n_rows: int
    data: str
    share_large: float
    created: str
    model: str

    @property
    def gain(self) -> float:
        return math.inf if self.value is None else self.value


class Stored(NamedTuple):
    card: Card
    model: SuccessModel
    candidate_C: FloatArray
    seen_P: NDArray[np.uint64]
    thresholds: tuple[Threshold, ...]

    def seen(self, texts: Sequence[str]) -> NDArray[np.bool_]:
        """Which of the texts the router learnt from, (P,)."""
        return np.isin(_text_hashes(texts), self.seen_P)


def now() -> str:
    return datetime.now(timezone.utc).isoformat(timespec="seconds")


def data_hash(texts: Sequence[str], score_PM: FloatArray) -> str:
    """Of the queries and their scores, in order; 16 hex digits."""
    digest = hashlib.blake2b(digest_size=8)
    for text in texts:
        digest.update(text.encode("utf-8", "surrogatepass") + b"\0")
    digest.update(np.ascontiguousarray(score_PM, np.float64).tobytes())
    return digest.hexdigest()


def save_router(
    folder: Path,
    scores: Scores,
    costs: Mapping[str, float],
    model: SuccessModel,
    candidate_C: FloatArray,
) -> Card:
    """Writes a router that has no threshold yet. Raises ConfigError if the folder holds something
    else, CheckpointError if the disk fails."""
    if folder.is_dir() and any(folder.iterdir()) and not (folder / _CARD).is_file():
        raise ConfigError(f"{folder}: holds files but no router: name a new folder")
    state = {
        "model": model.state_dict(),
        "candidates": candidate_C,
        "seen": _text_hashes(scores.texts),
    }
    save_state(folder / _MODEL, state)
    card = Card(
        format=FORMAT,
        models=scores.models,
        costs=dict(costs),
        n_queries=len(scores.texts),
        data=data_hash(scores.texts, scores.score_PM),
        created=now(),
        model=_file_hash(folder / _MODEL),
    )
    _write(folder / _THRESHOLDS, [])
    _write(folder / _CARD, asdict(card))
    return card


def add_threshold(folder: Path, threshold: Threshold) -> None:
    known = _read(folder / _THRESHOLDS)
    _write(folder / _THRESHOLDS, [*known, asdict(threshold)])


def load_router(folder: Path) -> Stored:
    """Raises CheckpointError if a file is missing or damaged, StateMismatch if it is of another
    version or the files are not of one router."""
    card = _card(_read(folder / _CARD), folder)
    if (found := _file_hash(folder / _MODEL)) != card.model:
        raise StateMismatch(
            f"{folder}: {_CARD} goes with model {card.model}, {_MODEL} is {found}: fit it again"
        )
    state = load_state(folder / _MODEL)
    try:
        thresholds = tuple(Threshold(**each) for each in _read(folder / _THRESHOLDS))
        model = SuccessModel(state["model"])
        candidate_C = np.asarray(state["candidates"])
        seen_P = np.asarray(state["seen"])
    except (TypeError, KeyError, ValueError) as error:
        raise StateMismatch(f"{folder}: of another version ({error}): fit it again") from None
    if model.n_models != len(card.models):
        raise StateMismatch(
            f"{folder}: {len(card.models)} names for {model.n_models} models: fit it again"
        )
    return Stored(card, model, candidate_C, seen_P, thresholds)


def _text_hashes(texts: Sequence[str]) -> NDArray[np.uint64]:
    digests = [
        hashlib.blake2b(text.encode("utf-8", "surrogatepass"), digest_size=8).digest()
        for text in texts
    ]
    return np.frombuffer(b"".join(digests), np.uint64)


def _card(value: Any, folder: Path) -> Card:
    found = value.get("format") if isinstance(value, dict) else value
    if found != FORMAT:
        raise StateMismatch(f"{folder}: format {found!r}, this version reads {FORMAT!r}: fit again")
    try:
        return Card(**{**value, "models": tuple(value["models"])})
    except (TypeError, KeyError) as error:
        raise StateMismatch(f"{folder / _CARD}: {error}: fit it again") from None


def _read(path: Path) -> Any:
    try:
        return json.loads(path.read_bytes())
    except FileNotFoundError:
        raise CheckpointError(f"{path}: not there: `depo route fit` makes it") from None
    except (OSError, ValueError) as error:
        raise CheckpointError(f"{path}: cannot be read: {error}") from error


def _write(path: Path, value: Any) -> None:
    write_atomically(path, json.dumps(value, indent=2, allow_nan=False).encode())


def _file_hash(path: Path) -> str:
    try:
        with open(path, "rb") as file:
            digest = hashlib.blake2b(digest_size=8)
            while part := file.read(1 << 20):
                digest.update(part)
    except OSError as error:
        raise CheckpointError(f"{path}: cannot be read: {error.strerror or error}") from error
    return digest.hexdigest()
