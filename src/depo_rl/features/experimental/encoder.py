"""A frozen encoder's embeddings of a pool's texts as features: computed once a text, kept on disk,
reduced to few.

``_U`` distinct texts, ``_D`` the encoder's width, then the dimensions kept. torch is imported by
``embed`` only.
"""

from __future__ import annotations

from collections.abc import Sequence
from importlib.util import find_spec
from pathlib import Path
from typing import TYPE_CHECKING

import numpy as np
from numpy.typing import NDArray

from ...config import EncoderFeatureSettings
from ...errors import ConfigError
from ...types import Prompt
from ..blocks import StoredBlock
from ..embedding_cache import EmbeddingCache, Vectors, default_cache, digest

if TYPE_CHECKING:
    from ..backbone import FrozenEncoder

SETTING = "estimator.encoder"
SCALE = 0.5  # norm of a row's embedding, where its words have 1: at 1 it drowned them, in what was measured
_SHARD = 2048  # texts between two saves: what a crash costs
_PCA_PROMPTS = 20_000  # from which the principal components are found, spread over the pool


def embedding_block(
    prompts: Sequence[Prompt], settings: EncoderFeatureSettings | None
) -> StoredBlock:
    """``settings.dims`` features, or the encoder's width if that is less, of mean squared norm 1
    over the pool.

    Without settings it has none. Raises ConfigError as ``embed``.
    """
    if settings is None:
        return StoredBlock(np.zeros((len(prompts), 0), np.float16), SCALE, {"encoder": None})
    identity, vectors_PD = embed([prompt.text for prompt in prompts], settings)
    features = principal_components(vectors_PD, settings.dims)
    return StoredBlock(features, SCALE, {"encoder": f"{identity}, {features.shape[1]} dimensions"})


def embed(texts: Sequence[str], settings: EncoderFeatureSettings) -> tuple[str, Vectors]:
    """The encoder in words, and the mean of its last hidden states over each text's tokens, (P, D)
    float32.

    Raises ConfigError if torch or transformers is not installed, the encoder or the device cannot
    be had, or the encoder gives numbers that are not finite.
    """
    if missing := [name for name in ("torch", "transformers") if find_spec(name) is None]:
        raise ConfigError(
            f"{SETTING}.backbone = {settings.backbone!r}: needs {' and '.join(missing)}, not installed: "
            "pip install './depo-rl[trl]', or leave the setting out"
        )
    from ..backbone import FrozenEncoder

    encoder = FrozenEncoder(settings.backbone, settings.max_length, settings.device, SETTING)
    cache = EmbeddingCache(
        (Path(settings.cache) if settings.cache else default_cache()) / encoder.digest.hex()
    )
    keys = [_key(text, encoder.max_length) for text in texts]
    distinct = dict(zip(keys, texts, strict=True))
    row_of = {key: row for row, key in enumerate(distinct)}
    vectors_UD = np.zeros((len(distinct), encoder.width), np.float32)
    known_U = cache.fill(row_of, vectors_UD)
    # in an order of their own, so that that of the pool changes nothing; texts of like length
    # together
    new = sorted(
        (key for key, row in row_of.items() if not known_U[row]),
        key=lambda k: (len(distinct[k]), k),
    )
    _compute(encoder, cache, {key: distinct[key] for key in new}, row_of, vectors_UD)
    return encoder.name, vectors_UD[[row_of[key] for key in keys]]


def _key(text: str, max_length: int) -> bytes:
    return digest(max_length.to_bytes(8, "little"), text.encode("utf-8", "surrogatepass"))


def _compute(
    encoder: FrozenEncoder,
    cache: EmbeddingCache,
    texts: dict[bytes, str],
    row_of: dict[bytes, int],
    vectors_UD: Vectors,
) -> None:
    """Embeds ``texts`` into their rows, saving as it goes, with a progress bar on a terminal."""
    from rich.console import Console
    from rich.progress import Progress

    console = Console(stderr=True)
    keys = list(texts)
    with Progress(
        console=console, disable=not (console.is_terminal and keys), transient=True
    ) as progress:
        task = progress.add_task(f"embedding {len(keys):,} prompts", total=len(keys))
        for start in range(0, len(keys), _SHARD):
            shard = keys[start : start + _SHARD]
            vectors = encoder.embed(
                [texts[key] for key in shard], lambda n: progress.advance(task, n)
            )
            vectors_UD[[row_of[key] for key in shard]] = vectors
            cache.add(shard, vectors)


def principal_components(vectors_PD: Vectors, dims: int) -> NDArray[np.float16]:
    """The first ``dims`` principal components, scaled together to a mean squared norm of 1 over the
    pool (all 0 if the vectors are equal). Found from a bounded part of the pool; the sign of each
    is that of its largest loading."""
    spread = np.unique(
        np.linspace(0, len(vectors_PD) - 1, min(len(vectors_PD), _PCA_PROMPTS)).astype(np.int64)
    )
    sample = vectors_PD[spread].astype(np.float64)
    if not len(sample):
        return np.zeros((0, min(dims, vectors_PD.shape[1])), np.float16)
    mean_D = sample.mean(axis=0)
    sample -= mean_D
    _, loadings = np.linalg.eigh(sample.T @ sample)
    loadings = loadings[:, ::-1][:, :dims]
    largest = np.take_along_axis(loadings, np.abs(loadings).argmax(axis=0)[None], axis=0)
    loadings = loadings * np.sign(largest)
    norm = float(np.sqrt(((sample @ loadings) ** 2).sum(axis=1).mean()))
    if norm <= 1e-6 * float(np.abs(mean_D).max()):
        return np.zeros((len(vectors_PD), loadings.shape[1]), np.float16)
    centred = vectors_PD - mean_D.astype(np.float32)
    components: NDArray[np.float16] = (centred @ (loadings / norm).astype(np.float32)).astype(
        np.float16
    )
    return components
