"""Embeddings on disk, by content: never wrong, at worst absent.

A folder per encoder, in it files of some thousand rows each: the texts' keys (U, 16) uint8 and
their vectors (U, D) float32, as safetensors. A file's name is the hash of its bytes, so that a torn
or altered one is told by its name, and two processes that write at once write different files, or
the same one twice. A disk that fails costs time, never a run: it is said in the log, and what
cannot be read or kept is computed again.
"""

from __future__ import annotations

import logging
import os
from collections.abc import Mapping, Sequence
from contextlib import suppress
from hashlib import blake2b
from pathlib import Path

import numpy as np
from numpy.typing import NDArray

from ..files import replacing

Vectors = NDArray[np.float32]
KEY_BYTES = 16
_SUFFIX = ".safetensors"
_log = logging.getLogger(__name__)


def default_cache() -> Path:
    """``depo-rl/embeddings`` in the user's cache folder."""
    return Path(os.environ.get("XDG_CACHE_HOME") or "~/.cache", "depo-rl", "embeddings")


def digest(*parts: bytes) -> bytes:
    """``KEY_BYTES`` bytes that tell ``parts``, and where each ends."""
    hashed = blake2b(digest_size=KEY_BYTES)
    for part in parts:
        hashed.update(len(part).to_bytes(8, "little"))
        hashed.update(part)
    return hashed.digest()


class EmbeddingCache:
    """folder: of one encoder's embeddings, which may not exist yet. Nothing here raises OSError."""

    def __init__(self, folder: Path) -> None:
        self._folder = Path(os.path.expanduser(folder))
        self._writable = True

    def fill(self, row_of: Mapping[bytes, int], vectors_UD: Vectors) -> NDArray[np.bool_]:
        """Writes the vectors that are known to their rows of ``vectors_UD``; which those are,
        shape (U,)."""
        known_U = np.zeros(len(vectors_UD), bool)
        for path in self._files():
            found = _read(path)
            if found is None:
                continue
            keys, stored = found
            row = np.fromiter((row_of.get(key, -1) for key in keys), np.int64, len(keys))
            vectors_UD[row[row >= 0]] = stored[row >= 0]
            known_U[row[row >= 0]] = True
        return known_U

    def add(self, keys: Sequence[bytes], vectors_UD: Vectors) -> None:
        """Keeps a vector for each key; after the first failure nothing more is tried."""
        from safetensors.numpy import save

        if not self._writable:
            return
        key_U16 = np.frombuffer(b"".join(keys), np.uint8).reshape(len(keys), KEY_BYTES)
        data = save({"keys": key_U16, "vectors": vectors_UD})
        try:
            self._folder.mkdir(parents=True, exist_ok=True)
            with replacing(self._folder / f"{digest(data).hex()}{_SUFFIX}") as file:
                file.write(data)
        except OSError as error:
            self._writable = False
            _log.warning(
                "embeddings cannot be kept in %s (%s): every start computes them again; free space, or name another "
                "folder in estimator.encoder.cache",
                self._folder,
                error.strerror or error,
            )

    def _files(self) -> list[Path]:
        try:
            return sorted(
                self._folder / name for name in os.listdir(self._folder) if name.endswith(_SUFFIX)
            )
        except FileNotFoundError:
            return []
        except OSError as error:
            _log.warning(
                "embeddings cannot be read from %s (%s): computed again",
                self._folder,
                error.strerror,
            )
            return []


def _read(path: Path) -> tuple[list[bytes], Vectors] | None:
    """Keys and vectors of a file; None, said in the log, if it is not what was written. A damaged
    one is removed."""
    from safetensors.numpy import load

    try:
        data = path.read_bytes()
    except OSError as error:  # gone since it was listed, perhaps
        _log.warning("embeddings cannot be read from %s (%s): computed again", path, error.strerror)
        return None
    if digest(data).hex() != path.stem:
        _log.warning("%s is damaged: its embeddings are computed again", path)
        with suppress(OSError):
            path.unlink()
        return None
    arrays = load(data)
    return [key.tobytes() for key in arrays["keys"]], arrays["vectors"]
