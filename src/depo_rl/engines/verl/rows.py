"""A verl training set becomes prompts: one per row that differs in anything that is generated from
or judged by."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Mapping
from dataclasses import dataclass
from typing import Any

from ...errors import DataError
from ...types import Prompt, chat_text, prompt_key
from ..rows import SCALAR, content_hash, keys_by_content, occurrence_keys, source_of

GROUP_SIZE_COLUMN = "__rollout_n__"
"""verl's own name: a row that has it is rolled out that many times."""


@dataclass(frozen=True, slots=True)
class PromptTable:
    """prompts: the distinct ones. key_of_row: each row's key. row_of: key -> the row that is rolled
    out for it."""

    prompts: list[Prompt]
    key_of_row: list[str]
    row_of: Mapping[str, int]


def prompt_table(
    rows: Iterable[Mapping[str, Any]],
    prompt_column: str,
    source_column: str,
    drop_duplicates: bool,
    media_of: Callable[[int], Mapping[str, Any]] | None = None,
) -> PromptTable:
    """Reads rows as verl's parquet files have them. Raises DataError if there is none, or one
    without a prompt.

    A prompt's ``fields`` hold the scalar columns, those of ``extra_info``, and
    ``reward_model.ground_truth`` as ``answer``. Rows that are equal in all but ``index`` are one
    prompt. Rows of equal text and source that differ in anything else have keys of their own.
    media_of: images and the like of row i, undecoded; asked where texts repeat.
    """
    texts = []
    sources = []
    fields = []
    contents = []
    for i, row in enumerate(rows):
        texts.append(_text(i, row, prompt_column))
        sources.append(source_of(row, source_column))
        fields.append(_fields(row, prompt_column))
        contents.append(content_hash(row))
    if not texts:
        raise DataError(
            "data.train_files holds no rows (or filter_overlong_prompts left none); a curriculum needs at least one"
        )
    keys = [prompt_key(text, source) for text, source in zip(texts, sources, strict=True)]

    def content_of(i: int) -> str:
        return content_hash({"row": contents[i], "media": media_of(i)}) if media_of else contents[i]

    keys = keys_by_content(keys, content_of)
    if not drop_duplicates:
        keys = occurrence_keys(keys)
    row_of: dict[str, int] = {}
    for i, key in enumerate(keys):
        row_of.setdefault(key, i)
    prompts = [Prompt(key, texts[i], sources[i], fields[i]) for key, i in row_of.items()]
    return PromptTable(prompts, keys, row_of)


def _text(i: int, row: Mapping[str, Any], column: str) -> str:
    prompt = row.get(column)
    if isinstance(prompt, str):
        return prompt
    if isinstance(prompt, list) and prompt:
        return chat_text(prompt)
    raise DataError(
        f"row {i} of data.train_files: {column} is {prompt!r}, must be a text or a list of messages; columns there: "
        f"{', '.join(sorted(row)) or 'none'} (data.prompt_key names the right one)"
    )


def _fields(row: Mapping[str, Any], prompt_column: str) -> dict[str, Any]:
    fields = {
        name: value
        for name, value in row.items()
        if name != prompt_column and isinstance(value, SCALAR)
    }
    for name, value in (row.get("extra_info") or {}).items():
        if isinstance(value, SCALAR):
            fields.setdefault(name, value)
    answer = (row.get("reward_model") or {}).get("ground_truth")
    return fields | ({"answer": answer} if isinstance(answer, SCALAR) else {})
