"""``results.json``: one object per (method, seed). What was not measured is null, never 0."""

from __future__ import annotations

import json
import os
from collections.abc import Mapping, Sequence
from difflib import get_close_matches
from pathlib import Path
from typing import Annotated, Any

from pydantic import (
    BaseModel,
    BeforeValidator,
    ConfigDict,
    Field,
    ValidationError,
    field_validator,
    model_validator,
)

from ..errors import DataError
from ..files import plain, write_atomically


def _whole(value: Any) -> Any:
    """12.0 as 12: counters that went through a dict of floats."""
    return int(value) if isinstance(value, float) and value.is_integer() else value


Share = Annotated[float, Field(ge=0, le=1)]
Count = Annotated[int, BeforeValidator(_whole), Field(ge=0)]
Amount = Annotated[float, Field(ge=0)]

FORGOTTEN_BELOW = 0.01
"""A source counts as forgotten if its accuracy fell by more than this: less is the noise of an
evaluation."""


class _Record(BaseModel):
    """Closed (an unknown name is a mistake), strict (no "3" for 3), and NaN means null."""

    model_config = ConfigDict(frozen=True, extra="forbid", strict=True)

    @model_validator(mode="before")
    @classmethod
    def _from_any(cls, data: Any) -> Any:
        return plain(data)


class AccuracyPoint(_Record):
    """One evaluation during training.

    rollouts, tokens, seconds: spent up to it, by this run. accuracy: in [0, 1], on held-out
    problems. step: optimiser steps done; where it is null the figures derive it from the rollouts.
    """

    rollouts: Count | None = None
    tokens: Count | None = None
    seconds: Amount | None = None
    accuracy: Share | None = None
    step: Count | None = None


class SourceAccuracy(_Record):
    """start, end: accuracy in [0, 1] on held-out problems of one source, at the first and at the
    last evaluation."""

    start: Share | None = None
    end: Share | None = None

    @property
    def change(self) -> float | None:
        """end - start, in [-1, 1]; None unless both are known."""
        return None if self.start is None or self.end is None else self.end - self.start


def forgotten_sources(by_source: Mapping[str, SourceAccuracy]) -> list[str]:
    """The sources whose accuracy at the end is more than ``FORGOTTEN_BELOW`` below that at the
    start."""
    changes = {source: accuracy.change for source, accuracy in by_source.items()}
    return [
        source
        for source, change in changes.items()
        if change is not None and change < -FORGOTTEN_BELOW
    ]


class ReliabilityBin(_Record):
    """predicted, observed: mean predicted P(mixed) and share of mixed groups among the bin's
    ``count`` groups."""

    predicted: Share
    observed: Share
    count: Count


class SkipAudit(_Record):
    """What the explored groups, chosen whatever the prediction, say about what a selector skips.

    explored: such groups after the warm-up; explored_mixed: those of them that were mixed. skipped:
    those that the selector would have skipped; skipped_mixed: those of these that were mixed, that
    is false skips. low, high: Wilson's 95 % interval of the false-skip rate; None if nothing would
    have been skipped. auc_mixed: of the predicted P(mixed) over the explored groups, a fair sample
    of the pool, which the chosen groups are not.
    """

    explored: Count
    explored_mixed: Count
    skipped: Count
    skipped_mixed: Count
    low: Share | None = None
    high: Share | None = None
    auc_mixed: Share | None = None

    @property
    def rate(self) -> float | None:
        """The false-skip rate, in [0, 1]."""
        return self.skipped_mixed / self.skipped if self.skipped else None


class RunResult(_Record):
    """What one run of one method with one seed did. A value that was not measured is None.

    Learnt: accuracy_whole: in [0, 1], at the last evaluation, on held-out problems of all sources,
    weighted by the sources' shares of the pool. accuracy_by_source: source -> its accuracies at the
    first and the last evaluation, each in [0, 1]. forgotten: the sources that ended more than .01
    below their start. pass_at_8_whole: in [0, 1], weighted like accuracy_whole, mean of 1 - (1 -
    p)^8: that one of 8 answers is right; only where exact rates p are known. accuracy: all
    evaluations, of the whole pool where accuracy_whole is known. target: accuracy to be reached.
    rollouts_to_target, seconds_to_target: spent when it was first reached; None if it never was,
    too.

    Spent: steps: optimiser steps. groups, rollouts, tokens: rolled out in the whole run (completion
    tokens), groups that were then discarded included, and those screened out after a few
    completions as these. seconds_selecting, seconds_learning, seconds_total: of wall-clock, in the
    selector, in the estimator's updates, in all. candidates_scored: prompts whose pass rate was
    predicted.

    Chosen: mixed_share, all_pass_share, all_fail_share: of the groups rolled out, in [0, 1].
    explored_share, fallback_share, guarded_share: of the groups chosen, in [0, 1]. skip_audit: what
    was skipped and would have been mixed. unanswered: groups that a replayed history could not
    answer.

    Breadth, as ``Breadth.metrics`` has it at the end: distinct_prompts: different prompts that were
    chosen. distinct_share: different prompts among the places of the last 20 batches, in (0, 1].
    unseen_share: of the pool, in [0, 1], never chosen. effective_prompts: as many, visited equally
    often, would be as varied; from 1 to the size of the pool. most_visits: of one prompt.
    sources_per_batch: different sources in a batch, mean of the run, from 1 on.

    Predicted: auc_mixed, log_loss (nats), ece: of the predicted P(mixed). ece_floor: what the ece
    of perfectly calibrated predictions would be on as many groups. reliability: bins of the
    predicted P(mixed).

    history: a dict per step, of ``step`` and any of rollouts, tokens (cumulative), mixed_share,
    all_pass_share, all_fail_share, predicted_mean, observed_mean, reward, grad_norm,
    seconds_selecting, seconds_learning, seconds_step, sources_in_batch, distinct_share,
    unseen_share, effective_prompts, most_visits, and where a policy was evaluated by source,
    ``accuracy_<source>``.
    """

    method: Annotated[str, Field(min_length=1)]
    seed: int
    steps: Count | None = None
    groups: Count | None = None
    rollouts: Count | None = None
    tokens: Count | None = None
    mixed_share: Share | None = None
    all_pass_share: Share | None = None
    all_fail_share: Share | None = None
    explored_share: Share | None = None
    fallback_share: Share | None = None
    candidates_scored: Count | None = None
    seconds_selecting: Amount | None = None
    seconds_learning: Amount | None = None
    auc_mixed: Share | None = None
    log_loss: Amount | None = None
    ece: Share | None = None
    accuracy: list[AccuracyPoint] | None = None
    rollouts_to_target: Count | None = None
    seconds_to_target: Amount | None = None
    seconds_total: Amount | None = None
    target: Share | None = None
    history: list[dict[str, float | None]] | None = None
    reliability: list[ReliabilityBin] | None = None
    skip_audit: SkipAudit | None = None
    unanswered: Count | None = None
    distinct_prompts: Count | None = None
    guarded_share: Share | None = None
    accuracy_whole: Share | None = None
    accuracy_by_source: dict[str, SourceAccuracy] | None = None
    forgotten: list[str] | None = None
    pass_at_8_whole: Share | None = None
    sources_per_batch: Amount | None = None
    distinct_share: Share | None = None
    unseen_share: Share | None = None
    effective_prompts: Amount | None = None
    most_visits: Count | None = None
    ece_floor: Amount | None = None

    @field_validator("history")
    @classmethod
    def _steps_are_known(
        cls, history: list[dict[str, float | None]] | None
    ) -> list[dict[str, float | None]] | None:
        for i, row in enumerate(history or ()):
            if row.get("step") is None:
                raise ValueError(f"entry {i} has no step")
        return history

    def series(self, name: str) -> tuple[list[float], list[float]]:
        """(steps, values) of ``name`` in the history, without the steps at which it was not
        measured."""
        rows = [(row["step"], row.get(name)) for row in self.history or ()]
        known = sorted(
            (float(step), float(value))
            for step, value in rows
            if step is not None and value is not None
        )
        return [step for step, _ in known], [value for _, value in known]

    def curve(self, name: str) -> tuple[list[float], list[float]]:
        """(spent, accuracies): the evaluations against ``name``, one of rollouts, tokens, seconds,
        step."""
        rows = [(getattr(point, name), point.accuracy) for point in self.accuracy or ()]
        known = sorted((float(x), float(y)) for x, y in rows if x is not None and y is not None)
        return [x for x, _ in known], [y for _, y in known]

    @property
    def false_skip_rate(self) -> float | None:
        """Share of mixed groups among the explored ones that the selector would have skipped."""
        return self.skip_audit.rate if self.skip_audit else None

    @property
    def final_accuracy(self) -> float | None:
        """The last evaluation's accuracy, in [0, 1]."""
        known = [point.accuracy for point in self.accuracy or () if point.accuracy is not None]
        return known[-1] if known else None


def parse_results(values: Any, where: str = "results") -> list[RunResult]:
    """Runs from a list of mappings. Raises DataError naming entry, field and value, or a repeated
    (method, seed)."""
    if not isinstance(values, Sequence) or isinstance(values, (str, bytes)):
        raise DataError(
            f"{where}: must be a list of one object per (method, seed), not {type(values).__name__}"
        )
    results = []
    for i, value in enumerate(values):
        try:
            results.append(
                value if isinstance(value, RunResult) else RunResult.model_validate(value)
            )
        except ValidationError as error:
            raise DataError(f"{where}: entry {i}: {_explain(error)}") from None
    check_distinct(results, where)
    return results


def check_distinct(results: Sequence[RunResult], where: str = "results") -> None:
    """Raises DataError if two runs have the same method and seed: they would be counted as two
    seeds."""
    seen: set[tuple[str, int]] = set()
    for run in results:
        if (run.method, run.seed) in seen:
            raise DataError(
                f"{where}: method {run.method!r} with seed {run.seed} is there twice: keep one of them"
            )
        seen.add((run.method, run.seed))


def _explain(error: ValidationError) -> str:
    first = error.errors(include_url=False)[0]
    name = ".".join(str(part) for part in first["loc"])
    if first["type"] == "extra_forbidden":
        near = get_close_matches(name, RunResult.model_fields, 1)
        return f"unknown field {name!r}" + (f": did you mean {near[0]!r}?" if near else "")
    given = "" if first["type"] == "missing" else f" = {repr(first['input'])[:60]}"
    return f"{name or 'value'}{given}: {first['msg']}"


def read_results(path: str | os.PathLike[str]) -> list[RunResult]:
    """The runs in a ``results.json``. Raises DataError naming file, entry and field."""
    path = Path(path)
    try:
        values = json.loads(path.read_bytes())
    except OSError as error:
        raise DataError(f"{path}: cannot read the results: {error.strerror or error}") from error
    except (ValueError, RecursionError) as error:
        raise DataError(f"{path}: not JSON: {str(error).splitlines()[0]}") from None
    return parse_results(values, str(path))


def write_results(results: Sequence[RunResult], path: str | os.PathLike[str]) -> None:
    """Writes the runs as JSON, one a line, all at once; every field is there, null if not measured.

    Raises DataError for a repeated (method, seed), CheckpointError if the disk fails (an earlier
    file is untouched).
    """
    check_distinct(results, str(path))
    lines = [
        json.dumps(run.model_dump(mode="json"), ensure_ascii=False, allow_nan=False)
        for run in results
    ]
    write_atomically(path, ("[\n" + ",\n".join(lines) + "\n]\n").encode())
