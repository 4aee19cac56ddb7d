"""Columns as features: which are chosen, what becomes of a value, and the errors."""

from __future__ import annotations

import numpy as np
import pytest

from depo_rl.errors import ConfigError
from depo_rl.features.columns import ColumnFeatures
from depo_rl.types import Prompt


def pool(**columns):
    n = len(next(iter(columns.values())))
    return [Prompt(str(i), "t", fields={k: v[i] for k, v in columns.items()}) for i in range(n)]


def test_auto_takes_numbers_and_repeating_strings():
    n = 60
    prompts = pool(
        level=list(range(n)),
        kind=["a", "b"] * (n // 2),
        name=[f"n{i}" for i in range(n)],
        same=[1] * n,
        flag=[True, False] * (n // 2),
        label=[0.1, 0.9] * (n // 2),
        items=[[1]] * n,
    )
    assert ColumnFeatures.fit(prompts, exclude=["label"]).names == ("flag", "kind", "level")


def test_numeric_by_hand():
    prompts = pool(x=[0.0, 10.0, None, float("nan"), float("inf")])
    fitted = ColumnFeatures.fit(prompts, ["x"])
    block = fitted.transform(prompts)
    assert fitted.width == block.shape[1] == 11
    assert block[:, 0].tolist() == [-1, 1, 0, 0, 0] and block[:, -1].tolist() == [0, 0, 1, 1, 1]
    assert not block[2:, :-1].any()
    np.testing.assert_allclose(block[:2, 1:-1].sum(axis=1), 1)  # hats add up to one
    far = fitted.transform(pool(x=[1e9]))
    assert far[0, 0] == 3 and far[0, -2] == 1
    assert fitted.numeric(prompts)[:, 0].tolist() == [-1, 1, 0, 0, 0]


def test_rate_has_a_clipped_logit():
    prompts = pool(p=[0.0, 0.5, 1.0])
    logit = ColumnFeatures.fit(prompts, ["p"]).transform(prompts)[:, -2]
    np.testing.assert_allclose(logit, [-np.log(99), 0, np.log(99)], rtol=1e-5)


def test_categorical_by_hand():
    fitted = ColumnFeatures.fit(pool(k=["b", "a"]), ["k"])
    assert fitted.transform(pool(k=["a", "b", "c", None])).tolist() == [
        [1, 0, 0],
        [0, 1, 0],
        [0, 0, 0],
        [0, 0, 1],
    ]


def test_errors_name_the_nearest():
    prompts = pool(pass_rate=[0.1, 0.2], empty=[None, None])
    with pytest.raises(ConfigError, match="Did you mean 'pass_rate'"):
        ColumnFeatures.fit(prompts, ["pass_rat"])
    with pytest.raises(ConfigError, match="holds no number"):
        ColumnFeatures.fit(prompts, ["empty"])
    with pytest.raises(ConfigError, match="excluded"):
        ColumnFeatures.fit(prompts, ["pass_rate"], exclude=["pass_rate"])


def test_no_columns():
    assert ColumnFeatures.fit([Prompt("a", "t")]).transform([Prompt("a", "t")]).shape == (1, 0)
