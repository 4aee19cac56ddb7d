"""A decision for a query: which model is to answer it, and why."""

from __future__ import annotations

import os
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np

from ..errors import ConfigError
from ..types import FloatArray
from .guarantee import choose
from .store import load_router

Message = Mapping[str, Any]


@dataclass(frozen=True, slots=True)
class Decision:
    """model: its name. reason: "within" (the large model gains no more than the threshold), "gain"
    (it gains more), "override", "no_text" (nothing to judge by) or "not_text_alone" (an image, a
    sound); the last two go to the default model, the large one. success: predicted success of each
    model, in [0, 1]; empty where nothing was predicted. gain: predicted, of the large model over
    the cheapest; None likewise. threshold_version: which threshold decided."""

    model: str
    reason: str
    success: Mapping[str, float]
    gain: float | None
    threshold_version: int


class Router:
    """Decides by the directory that ``depo route fit`` and ``depo route calibrate`` made.

    Reads it once; safe to share between threads. Raises CheckpointError or StateMismatch if it is
    missing, damaged or of another version, ConfigError if it was never calibrated.
    """

    def __init__(self, folder: str | os.PathLike[str]) -> None:
        stored = load_router(Path(folder))
        if not stored.thresholds:
            raise ConfigError(f"{folder}: has no threshold yet: run `depo route calibrate`")
        self._model = stored.model
        self.models = stored.card.models
        self.threshold = stored.thresholds[-1]
        if self.threshold.model != stored.card.model:
            raise ConfigError(f"{folder}: its threshold is of another model: calibrate it again")

    @property
    def default(self) -> str:
        """The model for what cannot be judged: the large one."""
        return self.models[-1]

    def route(self, messages: Sequence[Message], override: str | None = None) -> Decision:
        """messages: as OpenAI's chat API has them; the last one of the user is judged, its text
        alone. override: a model's name, taken as it is.

        Raises ConfigError for an override that is no model of this router.
        """
        if override is not None:
            if override not in self.models:
                raise ConfigError(f"no model {override!r}: one of {', '.join(self.models)}")
            return self._without(override, "override")
        text, alone = query_text(messages)
        if not text.strip():
            return self._without(self.default, "no_text")
        if not alone:
            return self._without(self.default, "not_text_alone")
        return self.route_texts([text])[0]

    def route_texts(self, texts: Sequence[str]) -> list[Decision]:
        """One decision a text; many at once cost less each."""
        predicted = self._model.predict(texts)
        gain_PK = predicted[:, -1:] - predicted[:, :-1]
        chosen = choose(gain_PK, self.threshold.gain).tolist()
        return [
            self._decision(k, row, gain)
            for k, row, gain in zip(
                chosen, np.clip(predicted, 0.0, 1.0), gain_PK[:, 0].tolist(), strict=True
            )
        ]

    def _decision(self, chosen: int, success_M: FloatArray, gain: float) -> Decision:
        reason = "gain" if chosen == len(self.models) - 1 else "within"
        success = dict(zip(self.models, success_M.tolist(), strict=True))
        return Decision(self.models[chosen], reason, success, gain, self.threshold.version)

    def _without(self, model: str, reason: str) -> Decision:
        return Decision(model, reason, {}, None, self.threshold.version)


def query_text(messages: Sequence[Message]) -> tuple[str, bool]:
    """Text of the user's last message, and whether it is nothing but text. Never raises: what is no
    message is no text."""
    for message in reversed(messages if isinstance(messages, (list, tuple)) else ()):
        if isinstance(message, Mapping) and message.get("role") == "user":
            return _text(message.get("content"))
    return "", True


def _text(content: Any) -> tuple[str, bool]:
    if isinstance(content, str):
        return content, True
    parts = [p for p in content if isinstance(p, Mapping)] if isinstance(content, list) else []
    texts = [p["text"] for p in parts if isinstance(p.get("text"), str)]
    return "\n".join(texts), len(texts) == len(parts)
