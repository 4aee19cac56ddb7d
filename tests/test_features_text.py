"""Hashed text features: what is a token, what is counted, and that chunks and odd characters change
nothing."""

from __future__ import annotations

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from depo_rl.features.shape import NAMES, shape_features
from depo_rl.features.text import ANSWER, SHAPES, WORDS, answer_text, hash_texts

N = 2**16


def tokens(text: str, view: int, answer: str | None = None) -> dict[int, int]:
    hashed = hash_texts([text], N, [answer])
    keep = hashed.view == view
    return dict(zip(hashed.buckets[keep].tolist(), hashed.counts[keep].tolist(), strict=True))


def test_words_and_pairs_are_counted_and_case_does_not_matter():
    assert sorted(tokens("Ab ab 12", WORDS).values()) == [1, 1, 1, 2]  # ab x2, 12; "ab ab", "ab 12"
    assert tokens("Ab ab 12", WORDS) == tokens("AB  AB\n12", WORDS)
    assert len(tokens("x1", WORDS)) == 3  # x, 1, "x 1"
    assert tokens("ab", WORDS) != tokens("ba", WORDS)


def test_shapes_see_lengths_of_numbers_only():
    assert tokens("add 123 + 45", SHAPES) == tokens("789 take + 12", SHAPES)
    assert tokens("123 + 45", SHAPES) != tokens("12 + 345", SHAPES)
    assert len(tokens("1 + 1", SHAPES)) == 5  # 1 (twice), +; two pairs; one triple
    assert tokens("only words", SHAPES) == {}


def test_answer_has_its_own_view():
    assert len(tokens("", ANSWER, "abc")) == 6
    assert tokens("", WORDS, "abc") == {}
    assert tokens("q", ANSWER, None) == tokens("q", ANSWER, "") == {}
    assert tokens("", ANSWER, "z" * 64) == tokens("", ANSWER, "z" * 64 + "tail")
    assert [answer_text(v) for v in (None, float("nan"), 3, " x ")] == [None, None, "3", "x"]


def test_cjk_characters_are_tokens():
    assert len(tokens("数学", WORDS)) == 3
    assert len(tokens("привет", WORDS)) == 1


def test_chunks_and_neighbours_change_nothing():
    texts = ["a b c", "", "1 + 2 = 3", "\ud800 x", "😀 é", "a b c", "   "]
    whole = hash_texts(texts, N, texts, chunk=100)
    for chunk in (1, 2, 3):
        for left, right in zip(whole, hash_texts(texts, N, texts, chunk=chunk), strict=True):
            np.testing.assert_array_equal(left, right)
    assert whole.indptr[1] == whole.indptr[6] - whole.indptr[5]


def test_hashes_are_the_same_everywhere():
    assert sorted(tokens("ab 1", WORDS)) == [18917, 19680, 21156]


def test_bad_arguments():
    for n_buckets in (0, 1, 3, 2**17):
        with pytest.raises(ValueError, match="power of two"):
            hash_texts(["a"], n_buckets)
    with pytest.raises(ValueError, match="answers"):
        hash_texts(["a"], 16, [])
    assert hash_texts([], 16).indptr.tolist() == [0]


def test_shape_by_hand():
    block = shape_features(["Is 12 + 345 $x$?", ""], ["-7", None])
    row = dict(zip(NAMES, block[0].tolist(), strict=True))
    assert row["log_digit_runs"] == pytest.approx(np.log(3))
    assert row["log_dollars"] == pytest.approx(np.log(3))
    assert row["longest_digit_run"] == 3 and row["question_marks"] == 1
    assert row["log_largest_integer"] == pytest.approx(np.log(346))
    assert row["answer_integer"] == row["answer_minus"] == 1 and row["answer_length"] == 2
    assert row["answer_log_integer"] == pytest.approx(np.log(8))
    assert block[1].sum() == 1 and block[1, NAMES.index("answer_missing")] == 1


ANY = st.text(st.characters(exclude_categories=()), max_size=80)


@settings(max_examples=60, deadline=None)
@given(st.lists(st.tuples(ANY, st.none() | ANY), max_size=4))
def test_any_text_gives_finite_features(pairs):
    texts, answers = [t for t, _ in pairs], [a for _, a in pairs]
    hashed = hash_texts(texts, 256, answers)
    assert (
        hashed.indptr[-1] == len(hashed.buckets)
        and (hashed.counts > 0).all()
        and (hashed.buckets < 256).all()
    )
    assert np.isfinite(shape_features(texts, answers)).all()
