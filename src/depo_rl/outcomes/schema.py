"""One row of the outcome log: what a finished group was, what had been predicted, and why it was
chosen.

A row is flat, so that JSONL and parquet hold the same columns: those of ``COLUMNS``, then the data
set's own under ``fields.<name>``. An unknown value is null, never 0.
"""

from __future__ import annotations

import math
from collections.abc import Mapping
from dataclasses import dataclass, field
from difflib import get_close_matches
from typing import Any

from ..errors import DataError
from ..types import GroupOutcome, Prompt, Settlement, finite, prompt_key

FIELD_PREFIX = "fields."
REQUIRED = ("prompt", "n_correct", "n_scored")
_TEXT = ("key", "prompt", "source", "chosen_because")
_COUNTS = ("step", "group_size", "n_correct", "n_scored", "n_failed", "tokens")
_NUMBERS = (
    "reward_mean",
    "reward_std",
    "mean_logprob",
    "predicted_mean",
    "predicted_strength",
    "suspicion",
    "inclusion",
)

COLUMNS = (
    "key", "prompt", "source", "step", "group_size", "n_correct", "n_scored", "n_failed", "reward_mean", "reward_std",
    "mean_logprob", "tokens", "predicted_mean", "predicted_strength", "suspicion",
    "chosen_because", "inclusion", "admitted",
)  # fmt: skip
"""The columns of a row, in the order they are written."""

# far more than a group has, and numpy's hypergeometric sampler takes no more
_COMPLETIONS_BELOW = 10**9
_OTHERS_BELOW = 2**63  # what parquet can hold


@dataclass(frozen=True, slots=True)
class LogRow:
    """One finished group.

    key: the prompt's. prompt: its text. source: data set or domain. step: number of the training
    step the group was rolled out for; resuming from step k keeps the rows of steps up to and
    including k. group_size: completions asked for. n_correct, n_scored, n_failed: completions
    right, judged, not judged. reward_mean, reward_std: of the shaped training reward. mean_logprob:
    nats per token. tokens: completion tokens of the whole group. predicted_mean: in [0, 1], and
    predicted_strength: > 0, equivalent rollouts; the belief before the rollout. chosen_because: why
    the prompt was proposed ("selected", "explored", ...: ``types.Flight``). suspicion: in [0, 1],
    the probability that its verdicts are coin flips. inclusion: > 0, how many times likelier it was
    to be in the batch than under uniform choice; None where the rule is no draw, and in older logs.
    admitted: whether the gate let it train. fields: the data set's other columns, JSON values. None
    is "unknown".
    """

    key: str
    prompt: str
    source: str
    step: int | None
    group_size: int
    n_correct: int
    n_scored: int
    n_failed: int
    reward_mean: float | None = None
    reward_std: float | None = None
    mean_logprob: float | None = None
    tokens: int | None = None
    predicted_mean: float | None = None
    predicted_strength: float | None = None
    chosen_because: str | None = None
    suspicion: float | None = None
    inclusion: float | None = None
    admitted: bool | None = None
    fields: Mapping[str, Any] = field(default_factory=dict)

    @classmethod
    def from_outcome(
        cls,
        prompt: Prompt,
        outcome: GroupOutcome,
        *,
        step: int | None,
        predicted_mean: float | None = None,
        predicted_strength: float | None = None,
        chosen_because: str | None = None,
        suspicion: float | None = None,
        inclusion: float | None = None,
        admitted: bool | None = None,
    ) -> LogRow:
        """The row of a settled group; NaN and infinite numbers become None. Raises DataError if the
        keys differ."""
        if prompt.key != outcome.key:
            raise DataError(
                f"outcome of {outcome.key!r} given with prompt {prompt.key!r}: a row needs both of one key"
            )
        return cls(
            key=prompt.key,
            prompt=prompt.text,
            source=prompt.source,
            step=step,
            group_size=outcome.group_size,
            n_correct=outcome.n_correct,
            n_scored=outcome.n_scored,
            n_failed=outcome.n_failed,
            reward_mean=finite(outcome.reward_mean),
            reward_std=finite(outcome.reward_std),
            mean_logprob=finite(outcome.mean_logprob),
            tokens=outcome.n_tokens,
            predicted_mean=finite(predicted_mean),
            predicted_strength=finite(predicted_strength),
            chosen_because=chosen_because,
            suspicion=finite(suspicion),
            inclusion=finite(inclusion),
            admitted=None if admitted is None else bool(admitted),
            fields=dict(prompt.fields),
        )

    @classmethod
    def from_settlement(
        cls, prompt: Prompt, settled: Settlement, step: int | None, admitted: bool
    ) -> LogRow:
        """The row of a settled group; admitted: whether it was trained on. Raises DataError if the
        keys differ."""
        return cls.from_outcome(
            prompt,
            settled.outcome,
            step=step,
            predicted_mean=settled.predicted_mean,
            predicted_strength=settled.predicted_strength,
            chosen_because=settled.because,
            suspicion=settled.suspicion,
            inclusion=settled.inclusion,
            admitted=admitted,
        )

    @classmethod
    def from_dict(cls, flat: Mapping[str, Any]) -> LogRow:
        """The row in a flat mapping. Raises DataError, without naming a file, at the first rule
        that is broken.

        Only ``prompt, n_correct, n_scored`` are required. ``key`` defaults to a hash of source and
        text, ``n_failed`` to what is missing from group_size (else 0), ``group_size`` to n_scored +
        n_failed. NaN counts as null.
        """
        _check_columns(flat)
        value: dict[str, Any] = {name: _text(name, flat.get(name)) for name in _TEXT}
        value |= {name: count(name, flat.get(name)) for name in _COUNTS}
        value |= {name: _number(name, flat.get(name)) for name in _NUMBERS}
        value["admitted"] = _flag("admitted", flat.get("admitted"))
        for name in REQUIRED:
            if value[name] is None:
                raise DataError(f"{name} is null: every row needs {', '.join(REQUIRED)}")
        if value["source"] is None:
            value["source"] = "default"
        if value["key"] is None:
            value["key"] = prompt_key(value["prompt"], value["source"])
        if value["n_failed"] is None:
            value["n_failed"] = max((value["group_size"] or 0) - value["n_scored"], 0)
        if value["group_size"] is None:
            value["group_size"] = value["n_scored"] + value["n_failed"]
        _check_rules(value)
        fields = {
            name.removeprefix(FIELD_PREFIX): v
            for name, v in flat.items()
            if name.startswith(FIELD_PREFIX)
        }
        return cls(**value, fields=fields)

    def to_dict(self) -> dict[str, Any]:
        """The row as a flat mapping: ``COLUMNS`` in order, then ``fields.*``."""
        flat = {name: getattr(self, name) for name in COLUMNS}
        return flat | {f"{FIELD_PREFIX}{name}": value for name, value in self.fields.items()}

    def to_prompt(self) -> Prompt:
        return Prompt(self.key, self.prompt, self.source, self.fields)

    def to_outcome(self) -> GroupOutcome:
        """The group's outcome; its ``policy_step`` is None: the log holds the step it was for, not
        the policy's."""
        return GroupOutcome(
            self.key, self.n_correct, self.n_scored, self.n_failed, self.reward_mean, self.reward_std,
            self.mean_logprob, self.tokens,
        )  # fmt: skip


def show(value: object, limit: int = 60) -> str:
    """``value`` for an error message: on one line, cut to ``limit`` characters."""
    text = repr(value)
    return text if len(text) <= limit else f"{text[: limit - 3]}..."


def _check_columns(flat: Mapping[str, Any]) -> None:
    missing = [name for name in REQUIRED if name not in flat]
    if missing == ["n_correct", "n_scored"] and "pass_rate" in flat:
        raise DataError(
            "column 'pass_rate' without n_correct: this is a labelled pool, not an outcome log"
        )
    if missing:
        raise DataError(f"no column {missing[0]!r}: every row needs {', '.join(REQUIRED)}")
    for name in flat:
        if name not in COLUMNS and not name.startswith(FIELD_PREFIX):
            near = get_close_matches(name, COLUMNS, 1)
            hint = (
                f"did you mean {near[0]!r}?"
                if near
                else f"a data set's own column is called '{FIELD_PREFIX}<name>'"
            )
            raise DataError(f"unknown column {show(name)}: {hint}")


def _check_rules(value: Mapping[str, Any]) -> None:
    if value["n_correct"] > value["n_scored"]:
        raise DataError(
            f"n_correct = {value['n_correct']}: must not exceed n_scored = {value['n_scored']}"
        )
    if value["n_scored"] + value["n_failed"] > value["group_size"]:
        raise DataError(
            f"group_size = {value['group_size']}: must not be below n_scored + n_failed = "
            f"{value['n_scored']} + {value['n_failed']}"
        )
    mean = value["predicted_mean"]
    strength = value["predicted_strength"]
    if mean is not None and not 0 <= mean <= 1:
        raise DataError(f"predicted_mean = {mean}: a pass rate lies in [0, 1]")
    if strength is not None and not strength > 0:
        raise DataError(f"predicted_strength = {strength}: must be above 0 (equivalent rollouts)")
    if (suspicion := value["suspicion"]) is not None and not 0.0 <= suspicion <= 1.0:
        raise DataError(
            f"suspicion = {suspicion}: must lie in [0, 1], the probability that verdicts are coin flips"
        )
    if (inclusion := value["inclusion"]) is not None and not inclusion > 0:
        raise DataError(
            f"inclusion = {inclusion}: must be above 0 (1: as likely as under uniform choice)"
        )


def _text(name: str, value: Any) -> str | None:
    if value is None or isinstance(value, str):
        return value
    raise DataError(f"{name} = {show(value)}: must be a string")


def count(name: str, value: Any) -> int | None:
    """A whole number >= 0; 8.0 is one, because pandas turns a column of counts with a hole into
    floats."""
    if value is None or (isinstance(value, float) and math.isnan(value)):
        return None
    whole = isinstance(value, int) or (isinstance(value, float) and value.is_integer())
    if isinstance(value, bool) or not whole or value < 0:
        raise DataError(f"{name} = {show(value)}: must be a whole number, 0 or more")
    if value >= (below := _OTHERS_BELOW if name in ("step", "tokens") else _COMPLETIONS_BELOW):
        raise DataError(f"{name} = {show(value)}: must be a whole number below {below:,}")
    return int(value)


def _number(name: str, value: Any) -> float | None:
    if value is None:
        return None
    if isinstance(value, bool) or not isinstance(value, (int, float)):
        raise DataError(f"{name} = {show(value)}: must be a number")
    try:
        number = float(value)
    except OverflowError:
        number = math.inf
    if math.isinf(number):
        raise DataError(f"{name} = {show(value)}: must be finite, or null if it was not measured")
    return None if math.isnan(number) else number


def _flag(name: str, value: Any) -> bool | None:
    if value is None or isinstance(value, bool):
        return value
    raise DataError(f"{name} = {show(value)}: must be true, false or null")
