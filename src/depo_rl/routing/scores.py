"""Which model solved which query: logs, labelled pools and wide tables joined by the query's
text."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np

from ..errors import DataError
from ..outcomes.tables import GroupHistory, SourceOptions, read_source
from ..outcomes.tables.table import Table, read_table
from ..types import FloatArray, as_rate, finite


@dataclass(frozen=True)
class Scores:
    """Queries that every model was scored on, axes P and M. texts: distinct. score_PM: in [0, 1].
    fields: of each query, from the first model's file. left_out: queries that some model lacks."""

    models: tuple[str, ...]
    texts: tuple[str, ...]
    score_PM: FloatArray
    fields: tuple[Mapping[str, Any], ...]
    left_out: int


def read_scores(
    sources: Mapping[str, Path], where: Mapping[str, Mapping[str, str]] | None = None
) -> Scores:
    """sources: model -> file, models in the order wanted. A file is an outcome log, a labelled pool
    (``prompt, pass_rate``), or a wide table: ``prompt`` and a column with the model's name.

    where: model -> rows of its file that count. Raises DataError naming file and rule, and if no
    query was scored by all.
    """
    tables: dict[Path, Table] = {}
    found = [
        _scores_of(model, path, tables, (where or {}).get(model, {}))
        for model, path in sources.items()
    ]
    common = [text for text in found[0] if all(text in other for other in found[1:])]
    if not common:
        raise DataError(
            f"{', '.join(map(str, sources.values()))}: no query that all of {', '.join(sources)} were scored on: "
            "queries are joined by their exact text"
        )
    score_PM = np.array([[each[text].score for each in found] for text in common])
    everything = set().union(*found)
    fields = tuple(found[0][text].fields for text in common)
    return Scores(tuple(sources), tuple(common), score_PM, fields, len(everything) - len(common))


@dataclass(frozen=True)
class _Scored:
    score: float
    fields: Mapping[str, Any]


def _scores_of(
    model: str, path: Path, tables: dict[Path, Table], where: Mapping[str, str]
) -> dict[str, _Scored]:
    table = tables.setdefault(path, read_table(path)) if path not in tables else tables[path]
    if {"prompt", model} <= set(table.columns):
        return _wide(table, model)
    source = read_source(path, SourceOptions(where=where))
    if isinstance(source, GroupHistory):
        rates = {
            key: (sum(v.n_correct for v in visits), sum(v.n_scored for v in visits))
            for key, visits in source.visits.items()
        }
        rows = [(p, rates[p.key][0] / rates[p.key][1]) for p in source.prompts if rates[p.key][1]]
    else:
        rows = list(zip(source.prompts, source.rate_P.tolist(), strict=True))
    return _averaged([(p.text, float(rate), p.fields) for p, rate in rows])


def _wide(table: Table, model: str) -> dict[str, _Scored]:
    rows = []
    for row in table.rows:
        value = row.get(model)
        if finite(value) is None and not isinstance(value, str):
            continue  # null: not scored
        score = as_rate(value)
        if score is None:
            raise row.bad(f"{model} = {value!r}: a score is a number in [0, 1], or null")
        rows.append((row.text("prompt"), score, row.values))
    return _averaged(rows)


def _averaged(rows: Sequence[tuple[str, float, Mapping[str, Any]]]) -> dict[str, _Scored]:
    scores: dict[str, list[float]] = {}
    fields: dict[str, Mapping[str, Any]] = {}
    for text, score, others in rows:
        scores.setdefault(text, []).append(score)
        fields.setdefault(text, others)
    return {text: _Scored(sum(each) / len(each), fields[text]) for text, each in scores.items()}
