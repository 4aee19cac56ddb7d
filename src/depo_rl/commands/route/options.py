"""What the options of ``depo route`` mean."""

from __future__ import annotations

import math
from collections.abc import Iterable, Mapping
from pathlib import Path

from ...errors import ConfigError
from ...outcomes import tables
from ...routing.guarantee import Promise
from ...validation import nearest


def parse_models(given: Iterable[str]) -> dict[str, Path]:
    """NAME=LOG texts, at least two distinct names. Raises ConfigError."""
    sources: dict[str, Path] = {}
    for text in given:
        name, log = _pair("--model", text, "NAME=LOG")
        if name in sources:
            raise ConfigError(f"--model {text}: {name!r} is there already: one log a model")
        sources[name] = Path(log)
    if len(sources) < 2:
        raise ConfigError(
            "--model: a router needs two models or more, the cheapest first: "
            "--model small=a.jsonl --model large=b.jsonl"
        )
    return sources


def parse_costs(given: Iterable[str], models: Iterable[str]) -> dict[str, float]:
    """NAME=PRICE texts for all models or for none. Raises ConfigError."""
    names = list(models)
    costs: dict[str, float] = {}
    for text in given:
        name, price = _pair("--cost", text, "NAME=PRICE")
        if name not in names:
            raise ConfigError(f"--cost {text}: no model {name!r}.{nearest(name, names)}")
        costs[name] = _number(f"--cost {text}", price)
        if not costs[name] >= 0:
            raise ConfigError(f"--cost {text}: a price is 0 or more")
    if costs and len(costs) < len(names):
        missing = [name for name in names if name not in costs]
        raise ConfigError(f"--cost: none for {', '.join(missing)}: give all models a price or none")
    return costs


def parse_where(given: Iterable[str]) -> dict[str, dict[str, str]]:
    """NAME:COLUMN=VALUE texts, by name. Raises ConfigError."""
    where: dict[str, dict[str, str]] = {}
    for text in given:
        name, colon, rest = text.partition(":")
        if not colon:
            raise ConfigError(f"--where {text}: write it as NAME:COLUMN=VALUE")
        where.setdefault(name, {}).update(tables.parse_where([rest]))
    return where


def parse_promise(
    *, quality: float | None, points: float | None, budget: float | None, confidence: float
) -> Promise:
    """The one promise that is asked for. Raises ConfigError."""
    if not 0.5 <= confidence < 1:
        raise ConfigError(f"--confidence {confidence:g}: must be at least 0.5 and below 1")
    if quality is not None and points is None and budget is None:
        _expect("--quality", quality, 0, 1)
        return Promise("quality", quality, confidence)
    if points is not None and quality is None and budget is None:
        _expect("--points", points, 0, 100)
        return Promise("points", points, confidence)
    if budget is not None and quality is None and points is None:
        _expect("--budget", budget, 0, 1)
        return Promise("budget", budget, confidence)
    raise ConfigError("one of --quality, --points and --budget says what is promised")


def parse_on(given: Iterable[str], models: Mapping[str, object] | Iterable[str]) -> dict[str, Path]:
    """One table for all models, or NAME=LOG for each, in the models' order. Raises ConfigError."""
    names = list(models)
    texts = list(given)
    if len(texts) == 1 and texts[0].partition("=")[0] not in names:
        return dict.fromkeys(names, Path(texts[0]))
    logs = dict(_pair("--on", text, "NAME=LOG") for text in texts)
    if set(logs) != set(names):
        raise ConfigError(f"--on: give NAME=LOG for each of {', '.join(names)}, or one table")
    return {name: Path(logs[name]) for name in names}


def _pair(option: str, text: str, form: str) -> tuple[str, str]:
    name, equals, value = text.partition("=")
    if not equals or not name or not value:
        raise ConfigError(f"{option} {text}: write it as {form}")
    return name, value


def _expect(option: str, value: float, low: float, high: float) -> None:
    if not low < value < high:
        raise ConfigError(f"{option} {value:g}: must lie between {low:g} and {high:g}")


def _number(what: str, text: str) -> float:
    try:
        value = float(text)
    except ValueError:
        value = math.nan
    if not math.isfinite(value):
        raise ConfigError(f"{what}: must be a finite number")
    return value
