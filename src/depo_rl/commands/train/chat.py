"""Chat prompts: what the policy reads of a conversation is what the data set holds, or the row is
refused."""

from __future__ import annotations

import json
import re
from collections.abc import Mapping, Sequence
from typing import Any

from ...errors import DataError

Message = dict[str, Any]
_CALLS = ("tool_calls", "function_call")
_TEXT_PARTS = (None, "text", "input_text")


def read_chat(messages: Sequence[Any], where: str, arrow: bool = False) -> list[Message]:
    """The messages with every key that has a value: role, content, tool_calls, name, ...

    A content of typed parts becomes the text of its parts. arrow: nulls inside stand for what is
    absent, as in parquet. Raises DataError, one line that starts with ``where``, for what a text
    model cannot read as it stands.
    """
    return [
        _message(message, f"{where}, message {i}", arrow)
        for i, message in enumerate(messages, start=1)
    ]


def chat_of_text(text: str, where: str) -> list[Any] | None:
    """The messages of a chat that stands as JSON in a text column, as in CSV; None for any other
    text.

    Raises DataError for what only Python writes and reads (``[{'role': ...}]``).
    """
    if not re.match(r"\s*\[\s*\{\s*['\"](?:role|content)['\"]\s*:", text):
        return None
    try:
        found = json.loads(text)
    except json.JSONDecodeError as error:
        raise DataError(
            f"{where}: is a chat as a text, but not JSON ({error.msg}, column {error.colno}): use json.dumps, "
            "or use a format that holds lists (JSONL, parquet)"
        ) from None
    return list(found)


def _message(message: Any, where: str, arrow: bool) -> Message:
    if not isinstance(message, Mapping):
        raise DataError(
            f"{where}: must be a mapping with role and content, got {type(message).__name__}"
        )
    kept = {
        str(name): without_null(value) if arrow else value
        for name, value in message.items()
        if value is not None
    }
    role = kept.pop("role", None)
    if not isinstance(role, str) or not role.strip():
        shown = ", ".join(kept) or "nothing"
        raise DataError(f"{where}: has no role (it has {shown}); a message needs role and content")
    content = kept.pop("content", None)
    if content is None and not any(kept.get(name) for name in _CALLS):
        raise DataError(f"{where}: has neither content nor tool_calls")
    try:
        json.dumps(kept, allow_nan=False)
    except (TypeError, ValueError) as error:
        raise DataError(f"{where}: holds what no chat template reads ({error})") from None
    return {"role": role, "content": None if content is None else _text(content, where), **kept}


def _text(content: Any, where: str) -> str:
    if isinstance(content, str):
        return content
    if not isinstance(content, list):
        raise DataError(
            f"{where}: content must be a text or a list of parts, got {type(content).__name__}"
        )
    return "".join(_part(part, where) for part in content)


def _part(part: Any, where: str) -> str:
    if isinstance(part, str):
        return part
    kind = part.get("type") if isinstance(part, Mapping) else type(part).__name__
    text = part.get("text") if isinstance(part, Mapping) else None
    if kind not in _TEXT_PARTS or not isinstance(text, str):
        raise DataError(
            f"{where}: content has a part of type {kind!r}; depo train trains models of text, whose parts are "
            "{type: text, text: ...}: for images and sound give DEPOTrainer the model's processor in a script"
        )
    return text


def without_null(value: Any) -> Any:
    """The value without the fields of mappings that are null, at any depth."""
    if isinstance(value, Mapping):
        return {name: without_null(inner) for name, inner in value.items() if inner is not None}
    return [without_null(inner) for inner in value] if isinstance(value, list) else value


def needs_json(prompts: Sequence[Any]) -> bool:
    """Whether messages hold more than role and text, so that a table's columns would change
    them."""
    return any(
        message.keys() != {"role", "content"} or message["content"] is None
        for prompt in prompts
        if not isinstance(prompt, str)
        for message in prompt
    )


def left_out(prompt: Any, rendered: str) -> str | None:
    """What the chat template leaves out of tool calls and their results, for a message; None if
    nothing."""
    for number, message in enumerate(() if isinstance(prompt, str) else prompt, start=1):
        for call in message.get("tool_calls") or ():
            name = (call.get("function") or call).get("name") if isinstance(call, Mapping) else None
            if not isinstance(name, str) or name not in rendered:
                return f"the tool call {name!r} of message {number}"
        if message["role"] == "tool" and not _is_in(message["content"] or "", rendered):
            return f"the tool's result in message {number}"
    return None


def _is_in(text: str, rendered: str) -> bool:
    return text.strip() in rendered or json.dumps(text.strip())[1:-1] in rendered
