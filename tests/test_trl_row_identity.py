"""Rows of a TRL data set that say the same are told apart by all else that they hold, images too."""

from __future__ import annotations

import pytest

pytest.importorskip("trl")
pytest.importorskip("PIL")  # environments of older releases of TRL are without

from datasets import Dataset, Features, Image, Sequence, Value
from PIL import Image as Picture

from depo_rl.engines.trl.prompts import identity_of, key_of, prompts_of

RED, BLUE = (Picture.new("RGB", (4, 4), colour) for colour in ("red", "blue"))


def pictures(column: str, shown: list) -> Dataset:
    stored = Sequence(Image()) if column == "images" else Image()
    features = Features({"prompt": Value("string"), "answer": Value("string"), column: stored})
    rows = [{"prompt": "How many?", "answer": "2", column: each} for each in shown]
    return Dataset.from_list(rows, features=features)


def quietly(*args, **kwargs):
    with pytest.warns(UserWarning, match="1 of 4 rows of train_dataset repeat another row"):
        return [prompt.key for prompt in prompts_of(*args, **kwargs)]


@pytest.mark.parametrize("decoded", [False, True])
@pytest.mark.parametrize("column", ["image", "images"])
def test_rows_that_differ_only_in_their_image_have_keys_that_tell_it(column, decoded):
    shown = [RED, BLUE, RED, None] if column == "image" else [[RED], [BLUE], [RED], [RED, BLUE]]
    keys = quietly(pictures(column, shown), "source", decoded=decoded)
    assert len(set(keys)) == 4 and keys[2] == f"{keys[0]}#2"
    other_order = pictures(column, [shown[i] for i in (1, 3, 0, 2)])
    assert quietly(other_order, "source", decoded=decoded) == [keys[i] for i in (1, 3, 0, 2)]


def test_rows_as_the_trainer_gets_them_are_found_by_their_pixels():
    """Method grpo knows a row by what the loader hands out, where images are decoded."""
    data = pictures("image", [BLUE, RED, RED, None])
    keys = quietly(data, "source", decoded=True)
    named = [f"{key_of(row, 'source')}-{identity_of(row)}" for row in data]
    assert named == [keys[0], keys[1], keys[1], keys[3]]


def test_a_list_of_rows_with_images_needs_no_storage():
    rows = list(pictures("image", [BLUE, RED, RED, None]))
    assert len(set(quietly(rows, "source"))) == 4


def test_images_are_not_decoded_where_texts_differ(monkeypatch):
    data = pictures("image", [RED, BLUE]).map(lambda row, i: {"prompt": f"{i}?"}, with_indices=True)
    monkeypatch.setattr(Image, "decode_example", lambda *_: 1 / 0)
    assert len(prompts_of(data, "source", decoded=True)) == 2
