"""Work that the main process does for all ranks."""

from __future__ import annotations

import pickle
from collections.abc import Callable
from typing import TYPE_CHECKING, Any, TypeVar

from accelerate.utils import broadcast_object_list

from ...errors import EngineError

if TYPE_CHECKING:
    from accelerate import Accelerator

T = TypeVar("T")


def on_main(accelerator: Accelerator, work: Callable[[], T]) -> T:
    """``work()`` of the main process, on all ranks; an error there is raised on all of them, so
    none waits for ever."""
    result: list[Any] = [None, None]
    if accelerator.is_main_process:
        try:
            result[0] = work()
        except Exception as error:
            result[1] = error
    if accelerator.num_processes > 1:
        sent = [result[0], _sendable(result[1])]
        broadcast_object_list(sent, from_process=0)
        result = result if accelerator.is_main_process else sent
    if result[1] is not None:
        raise result[1]
    value: T = result[0]
    return value


def _sendable(error: Exception | None) -> Exception | None:
    """``error`` itself if it survives pickling: not every library's exceptions do."""
    try:
        pickle.loads(pickle.dumps(error))
    except Exception:
        return EngineError(f"the main process failed: {type(error).__name__}: {error}")
    return error
