"""A TRL training set becomes prompts: one per row, in the order of the rows."""

from __future__ import annotations

import json
import warnings
from collections.abc import Mapping
from typing import Any

from ...errors import DataError
from ...types import Prompt, chat_text, prompt_key
from ..rows import SCALAR, content_hash, keys_by_content, occurrence_keys, source_of

_IMAGES = ("image", "images")  # columns


def prompts_of(
    dataset: Any, source_column: str, needs_prompt: bool = True, decoded: bool = False
) -> list[Prompt]:
    """Prompt i is row i of the map-style ``dataset``. Rows with the same text and source get keys
    of their own; those that differ in anything but ``index`` keys that tell what they hold.

    needs_prompt: False if an environment supplies the prompts. decoded: images are told apart by
    their pixels, as ``identity_of`` does, and not as they are stored, which is quick. Raises
    DataError if the data set has no random access, no rows, or a row has no prompt.
    """
    if not has_random_access(dataset):
        raise DataError(
            f"train_dataset is a {type(dataset).__name__}; choosing prompts needs random access to rows: use "
            "Dataset.from_generator(lambda: iter(stream)), which keeps them on disk, or method='grpo'"
        )
    if len(dataset) == 0:
        raise DataError("train_dataset has no rows; a curriculum needs at least one prompt")
    images = [name for name in _IMAGES if name in getattr(dataset, "column_names", ())]
    # decoding all images would take minutes
    bare = dataset.remove_columns(images) if images else dataset
    rows = [bare[i] for i in range(len(bare))]
    if needs_prompt:
        _check_prompts(rows)
    of_text = [key_of(row, source_column) for row in rows]
    whole = dataset if decoded or not images else _Stored(dataset, bare, images)
    keys = occurrence_keys(keys_by_content(of_text, lambda i: identity_of(whole[i])))
    prompts = [_prompt(key, row, source_column) for key, row in zip(keys, rows, strict=True)]
    repeated = sum("#" in key for key in keys)
    if repeated:
        warnings.warn(
            f"{repeated} of {len(prompts)} rows of train_dataset repeat another row; each is treated as "
            "a prompt of its own, with its own history. Remove duplicates to share what is learnt",
            stacklevel=2,
        )
    return prompts


def has_random_access(dataset: Any) -> bool:
    return hasattr(dataset, "__getitem__") and hasattr(dataset, "__len__")


def key_of(row: Mapping[str, Any], source_column: str) -> str:
    return prompt_key(text_of(row), _source(row, source_column))


def identity_of(row: Mapping[str, Any]) -> str:
    """Hash of all that a row holds but ``index``; of an image its pixels, or its bytes where it is
    not decoded."""
    return content_hash(row)


class _Stored:
    """Rows of a ``datasets.Dataset`` with their images as bytes or paths."""

    def __init__(self, dataset: Any, bare: Any, images: list[str]) -> None:
        self._bare = bare
        self._images = dataset.select_columns(images).with_format("arrow")

    def __getitem__(self, i: int) -> dict[str, Any]:
        return {**self._bare[i], **self._images[i].to_pylist()[0]}


def _check_prompts(rows: list[Any]) -> None:
    for i, row in enumerate(rows):
        if not isinstance(row.get("prompt"), (str, list)):
            raise DataError(
                f"row {i} of train_dataset: prompt is {row.get('prompt')!r}, must be a text or a list of messages; "
                f"columns there: {', '.join(sorted(row)) or 'none'}"
            )
        if not row["prompt"] or not (text_of(row).strip() or _has_parts(row["prompt"])):
            raise DataError(
                f"row {i} of train_dataset: prompt is empty, must say something: drop the row or mend it"
            )


def _has_parts(prompt: Any) -> bool:
    """Whether a message has content in parts, such as an image, which needs no text."""
    return isinstance(prompt, list) and any(
        isinstance(m.get("content"), list) and m["content"] for m in prompt
    )


def _source(row: Mapping[str, Any], source_column: str) -> str:
    return source_of(row, source_column)


def _prompt(key: str, row: Mapping[str, Any], source_column: str) -> Prompt:
    fields = {
        name: value for name, value in row.items() if name != "prompt" and isinstance(value, SCALAR)
    }
    return Prompt(key, text_of(row), _source(row, source_column), fields)


def text_of(row: Mapping[str, Any]) -> str:
    """What the policy reads, as one string: a plain prompt as it is, a conversation turn by
    turn."""
    prompt = row.get("prompt")
    if isinstance(prompt, str):
        return prompt
    if isinstance(prompt, list):
        return chat_text(prompt)
    # An environment owns the prompt and shows it at reset: the row's own columns stand for it.
    return json.dumps(
        {k: v for k, v in row.items() if isinstance(v, SCALAR)}, sort_keys=True, ensure_ascii=False
    )
