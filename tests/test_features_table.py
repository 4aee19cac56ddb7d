"""The feature table: dense algebra, chunks, norms, keys."""

from __future__ import annotations

from types import MappingProxyType

import numpy as np
import pytest

from depo_rl import GroupOutcome, Prompt, make_curriculum
from depo_rl.config import FeatureSettings
from depo_rl.errors import ConfigError, StateMismatch, UnknownPrompt
from depo_rl.features import blocks, ngrams, table
from depo_rl.features.blocks import FeatureBlock
from depo_rl.features.table import FeatureTable

SETTINGS = FeatureSettings.model_validate({"n_buckets": 256, "n_random": 8})


def pool(n=50):
    texts = ["", "\ud800", "数学 12", "Find $x^2 + 3$?", "What is 7 times 8"]
    answers = [None, 3, 2.5, "\\frac{1}{2}", float("nan"), "12"]
    return [
        Prompt(
            str(i), texts[i % 5] + " 5" * (i % 7), fields={"answer": answers[i % 6], "level": i % 4}
        )
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
    monkeypatch.setattr(blocks, "CHUNK", 7)
    np.testing.assert_array_equal(
        dense(whole), dense(FeatureTable(pool(), SETTINGS).rows(np.arange(50)))
    )


def test_idf_reads_only_the_first_prompts(monkeypatch):
    monkeypatch.setattr(ngrams, "IDF_PROMPTS", 10)
    monkeypatch.setattr(blocks, "CHUNK", 7)
    left, right = FeatureTable(pool(), SETTINGS), FeatureTable(pool(20), SETTINGS)
    index = np.arange(20)
    np.testing.assert_array_equal(
        left.rows(index).sparse.toarray(), right.rows(index).sparse.toarray()
    )


def test_words_have_norm_one():
    settings = FeatureSettings.model_validate({"n_random": 0})
    row = (
        FeatureTable([Prompt("a", "alpha beta"), Prompt("b", "")], settings)
        .rows(np.array([0, 1]))
        .sparse.toarray()
    )
    np.testing.assert_allclose(np.linalg.norm(row, axis=1), [1, 0], atol=1e-3)


def test_keys_and_emptiness():
    table = FeatureTable(pool(), SETTINGS)
    assert table.index_of(["4", "2"]).tolist() == [4, 2] and table.nbytes > 0 and len(table) == 50
    with pytest.raises(UnknownPrompt, match="'nope'"):
        table.index_of(["nope"])
    assert len(table.rows(np.array([], int))) == 0 and len(FeatureTable([], SETTINGS)) == 0


class Marked:
    """A block of one's own: 1 for the prompts that hold a "$", believed to be worth ``slope``
    logits from the start."""

    width, scale, nbytes = 1, 0.5, 0
    origin = MappingProxyType({"marker": "dollar"})

    def __init__(self, prompts):
        self._marked_N = np.array([["$" in prompt.text] for prompt in prompts], np.float32).reshape(
            -1, 1
        )

    def rows(self, index_P):
        return self._marked_N[index_P]

    def start(self, slope):
        return np.array([slope])


def test_the_blocks_are_blocks():
    made = table.make_blocks(pool(), SETTINGS)
    assert len(made) == 4
    for block in (*made, Marked(pool())):
        assert isinstance(block, FeatureBlock)
        assert block.rows(np.arange(3)).shape == (3, block.width) and block.start(0.7).shape == (
            block.width,
        )


def test_a_block_of_ones_own_is_a_class_and_a_line_of_make_blocks(monkeypatch):
    """Width, start, rows, learning and resume follow; what it comes from is in the state."""
    given = {"estimator": {"n_buckets": 256, "n_random": 8, "exclude": ["level"]}}
    plain, own_blocks = make_curriculum("depo+", pool(), given), table.make_blocks
    monkeypatch.setattr(
        table, "make_blocks", lambda prompts, own: [*own_blocks(prompts, own), Marked(prompts)]
    )
    one, two = (make_curriculum("depo+", pool(), given) for _ in range(2))
    (mean_P, before_P) = (made.estimator.predict(pool()).mean_P for made in (one, plain))
    marked_P = np.array(["$" in prompt.text for prompt in pool()])
    assert (
        mean_P > before_P + 0.05
    ).tolist() == marked_P.tolist()  # its weight begins with the slope of rates
    for step in range(3):
        batch = one.propose(8)
        one.settle([GroupOutcome(p.key, 8 * ("$" in p.text), 8, policy_step=step) for p in batch])
    two.load_state_dict(one.state_dict())
    np.testing.assert_array_equal(
        one.estimator.predict(pool()).mean_P, two.estimator.predict(pool()).mean_P
    )
    assert one.state_dict()["estimator"]["origin"] == {
        "encoder": None,
        "marker": "dollar",
        "warm_start": None,
    }
    with pytest.raises((StateMismatch, ValueError)):
        plain.load_state_dict(one.state_dict())


def test_settings():
    with pytest.raises(ValueError, match="power of two"):
        FeatureSettings.model_validate({"n_buckets": 100})
    with pytest.raises(ConfigError, match="'level'"):
        FeatureTable(pool(), FeatureSettings.model_validate({"columns": ("levl",)}))
