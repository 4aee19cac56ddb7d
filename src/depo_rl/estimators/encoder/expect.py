"""That a checkpoint's parts are those of this estimator, checked before any is taken over."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import numpy as np
from torch import Tensor

from ...errors import StateMismatch


def expect_names(where: str, saved: Any, own: Any) -> None:
    if not isinstance(saved, Mapping):
        raise StateMismatch(
            f"encoder state: {where} must map names to values, got {type(saved).__name__}"
        )
    if set(saved) != set(own):
        only_saved = sorted(set(saved) - set(own))
        only_own = sorted(set(own) - set(saved))
        raise StateMismatch(
            f"encoder state: {where} has other names: {len(only_saved)} only in the saved state {only_saved[:3]}, "
            f"{len(only_own)} only in this run {only_own[:3]} (the first three of each): resume with the estimator "
            "settings that saved it"
        )


def expect_numbers(where: str, saved: Any, own: Any) -> None:
    expect_names(where, saved, own)
    for name, value in saved.items():
        if isinstance(value, bool) or not isinstance(value, (int, float)):
            raise StateMismatch(
                f"encoder state: {where}[{name!r}] was saved as {value!r}, this run has a number there"
            )


def expect_arrays(where: str, saved: Any, own: Mapping[str, Tensor]) -> None:
    expect_names(where, saved, own)
    for name, tensor in own.items():
        array = np.asarray(saved[name])
        theirs = (array.shape, str(array.dtype))
        ours = (tuple(tensor.shape), str(tensor.dtype).removeprefix("torch."))
        if theirs != ours:
            raise StateMismatch(
                f"encoder state: {where}[{name!r}] was saved as {theirs}, this run has {ours}: resume with the "
                "estimator settings that saved it"
            )
