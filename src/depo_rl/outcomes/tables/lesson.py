"""What an estimator can learn before a run begins: groups of other prompts, or of an earlier
run."""

from __future__ import annotations

import dataclasses
import hashlib
from pathlib import Path

import numpy as np

from ...errors import ConfigError, DepoError
from ...types import FloatArray, Lesson, finite
from .sources import LabelledPool, Source, hidden_columns, read_source


def read_lesson(path: str, setting: str) -> Lesson:
    """Of a labelled pool or any history that ``depo replay`` reads: of a prompt's groups, the
    latest one.

    Raises ConfigError that names ``setting`` and the file's fault.
    """
    try:
        source = read_source(Path(path).expanduser())
    except DepoError as error:
        raise ConfigError(f"{setting}: {error}") from error
    hidden = set(hidden_columns(source))
    prompts = tuple(
        dataclasses.replace(
            p, key=f"{setting} {i}", fields={n: v for n, v in p.fields.items() if n not in hidden}
        )
        for i, p in enumerate(source.prompts)
    )
    counts_P2 = _counts(source)
    kept = np.flatnonzero(counts_P2[:, 1] > 0).tolist()
    if not kept:
        raise ConfigError(
            f"{setting}: {path}: no group has a scored completion: there is nothing to learn"
        )
    return Lesson(tuple(prompts[i] for i in kept), counts_P2[kept], _identity(source, counts_P2))


def _counts(source: Source) -> FloatArray:
    if isinstance(source, LabelledPool):
        # 8: a usual group
        samples_P = np.array([finite(p.fields.get("k")) or 8.0 for p in source.prompts])
        return np.column_stack([source.rate_P * samples_P, samples_P])
    latest = [source.visits[p.key][-1] for p in source.prompts]
    return np.array([(row.n_correct, row.n_scored) for row in latest], dtype=np.float64).reshape(
        -1, 2
    )


def _identity(source: Source, counts_P2: FloatArray) -> str:
    digest = hashlib.blake2b(counts_P2.tobytes(), digest_size=8)
    for prompt in source.prompts:
        digest.update(prompt.text.encode("utf-8", "surrogatepass") + b"\x00")
    return f"{len(source.prompts)} prompts ({digest.hexdigest()})"
