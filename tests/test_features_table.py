"""The feature table: dense algebra, chunks, norms, keys."""

from __future__ import annotations

import numpy as np
import pytest

from depo_rl.config import FeatureSettings
from depo_rl.errors import ConfigError, UnknownPrompt
from depo_rl.features import table as module
from depo_rl.features.table import FeatureTable
from depo_rl.types import Prompt

SETTINGS = FeatureSettings.model_validate({"n_buckets": 256, "n_random": 8})


def pool(n=50):
    texts = ["", "\ud800", "数学 12", "Find $x^2 + 3$?", "What is 7 times 8"]
    answers = [None, 3, 2.5, "\\frac{1}{2}", float("nan"), "12"]
    return [
        Prompt(str(i), texts[i % 5] + " 5" * (i % 7), fields={"answer": answers[i % 6], "level": i % 4})
        for i in range(n)
    ]


def dense(rows):
    return np.hstack([rows.sparse.toarray(), rows.dense])


def test_dot_and_t_dot_agree_with_dense_algebra():
    table, rng = FeatureTable(pool(), SETTINGS), np.random.default_rng(0)
    rows = table.rows(np.array([3, 0, 3, 49]))
    assert len(rows) == 4 and rows.width == table.width and np.isfinite(dense(rows)).all()
    weights, slopes = rng.normal(size=(table.width, 2)), rng.normal(size=(4, 2))
    np.testing.assert_allclose(rows.dot(weights), dense(rows) @ weights, atol=1e-5)
    np.testing.assert_allclose(rows.t_dot(slopes), dense(rows).T @ slopes, atol=1e-5)
    np.testing.assert_allclose(rows.dot(weights[:, 0]), rows.dot(weights)[:, 0], atol=1e-5)
    np.testing.assert_array_equal(dense(rows)[0], dense(rows)[2])


def test_chunks_change_nothing(monkeypatch):
    whole = FeatureTable(pool(), SETTINGS).rows(np.arange(50))
    monkeypatch.setattr(module, "_CHUNK", 7)
    np.testing.assert_array_equal(dense(whole), dense(FeatureTable(pool(), SETTINGS).rows(np.arange(50))))


def test_idf_reads_only_the_first_prompts(monkeypatch):
    monkeypatch.setattr(module, "IDF_PROMPTS", 10)
    monkeypatch.setattr(module, "_CHUNK", 7)
    left, right = FeatureTable(pool(), SETTINGS), FeatureTable(pool(20), SETTINGS)
    index = np.arange(20)
    np.testing.assert_array_equal(left.rows(index).sparse.toarray(), right.rows(index).sparse.toarray())


def test_words_have_norm_one():
    settings = FeatureSettings.model_validate({"n_random": 0})
    row = FeatureTable([Prompt("a", "alpha beta"), Prompt("b", "")], settings).rows(np.array([0, 1])).sparse.toarray()
    np.testing.assert_allclose(np.linalg.norm(row, axis=1), [1, 0], atol=1e-3)


def test_keys_and_emptiness():
    table = FeatureTable(pool(), SETTINGS)
    assert table.index_of(["4", "2"]).tolist() == [4, 2] and table.nbytes > 0 and len(table) == 50
    with pytest.raises(UnknownPrompt, match="'nope'"):
        table.index_of(["nope"])
    assert len(table.rows(np.array([], int))) == 0 and len(FeatureTable([], SETTINGS)) == 0


def test_settings():
    with pytest.raises(ValueError, match="power of two"):
        FeatureSettings.model_validate({"n_buckets": 100})
    with pytest.raises(ConfigError, match="'level'"):
        FeatureTable(pool(), FeatureSettings.model_validate({"columns": ("levl",)}))
