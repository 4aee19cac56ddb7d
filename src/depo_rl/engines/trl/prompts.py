"""A TRL training set becomes prompts: one per row, in the order of the rows."""

from __future__ import annotations

import json
import warnings
from collections.abc import Mapping
from typing import Any

from ...errors import DataError
from ...types import Prompt, prompt_key

_SCALAR = (str, int, float, bool)


def prompts_of(dataset: Any, source_column: str) -> list[Prompt]:
    """Prompt i is row i of the map-style ``dataset``. Rows with the same text and source get keys of their own.

    Raises DataError if the data set has no random access or no rows.
    """
    if not hasattr(dataset, "__getitem__") or not hasattr(dataset, "__len__"):
        raise DataError(
            f"train_dataset is a {type(dataset).__name__}; choosing prompts needs random access to rows: use a map-style "
            "Dataset (for instance Dataset.from_list(list(iterable))), or method='grpo'"
        )
    if len(dataset) == 0:
        raise DataError("train_dataset has no rows; a curriculum needs at least one prompt")
    seen: dict[str, int] = {}
    prompts = [_prompt(dataset[i], source_column, seen) for i in range(len(dataset))]
    repeated = len(prompts) - len(seen)
    if repeated:
        warnings.warn(
            f"{repeated} of {len(prompts)} rows of train_dataset repeat the prompt of another row; each is treated as a "
            "prompt of its own, with its own history. Remove duplicates to share what is learnt",
            stacklevel=2,
        )
    return prompts


def _prompt(row: Mapping[str, Any], source_column: str, seen: dict[str, int]) -> Prompt:
    text, source = text_of(row), str(row.get(source_column) or "default")
    key = prompt_key(text, source)
    seen[key] = seen.get(key, 0) + 1
    if seen[key] > 1:
        key = f"{key}#{seen[key]}"
    fields = {name: value for name, value in row.items() if name != "prompt" and isinstance(value, _SCALAR)}
    return Prompt(key, text, source, fields)


def text_of(row: Mapping[str, Any]) -> str:
    """What the policy reads, as one string: a plain prompt as it is, a conversation turn by turn."""
    prompt = row.get("prompt")
    if isinstance(prompt, str):
        return prompt
    if isinstance(prompt, list):
        return "\n".join(_content(message.get("content")) for message in prompt)
    # An environment owns the prompt and shows it at reset: the row's own columns stand for it.
    return json.dumps({k: v for k, v in row.items() if isinstance(v, _SCALAR)}, sort_keys=True, ensure_ascii=False)


def _content(content: Any) -> str:
    if isinstance(content, list):  # typed blocks: keep the text, images have none
        return " ".join(str(block.get("text") or "") for block in content)
    return str(content or "")
