"""The callback of a LiteLLM proxy: ``litellm_settings.callbacks: [depo_rl.routing.gateway.callback]``.

The only module that imports litellm; ``depo route litellm`` prints the whole configuration. Requests
for the model AUTO are routed; all others pass untouched. Of a request nothing but the model's name
is changed.
"""

from __future__ import annotations

import os
import sys
import time
from collections import OrderedDict
from collections.abc import Mapping
from typing import Any

from fastapi import HTTPException
from litellm.integrations.custom_logger import CustomLogger
from prometheus_client import Counter, Histogram

from ..errors import ConfigError
from .desk import PREFIX, Answer, Desk, DeskSettings, expect_closed_door, headers

_IN_FLIGHT = 10_000  # decisions kept for their response's headers, the latest
_DECISIONS = Counter("depo_route_decisions", "Decisions taken.", ["model", "reason", "mode"])
_FALLBACKS = Counter("depo_route_fallbacks", "Queries left to the default model.", ["cause"])
_SECONDS = Histogram(
    "depo_route_seconds",
    "Seconds that a decision took.",
    buckets=(0.0005, 0.001, 0.002, 0.003, 0.005, 0.01, 0.02, 0.05, 0.1),
)


class RouterCallback(CustomLogger):
    """Made when the proxy reads its configuration; refuses to start behind an open door."""

    def __init__(self) -> None:
        super().__init__()
        expect_closed_door(sys.argv, os.environ)
        self._desk = Desk(DeskSettings.from_environment())
        self._auto = os.environ.get(PREFIX + "AUTO", "depo")
        self._answers: OrderedDict[str, Answer] = OrderedDict()

    async def async_pre_call_hook(
        self, user_api_key_dict: Any, cache: Any, data: dict[str, Any], call_type: str
    ) -> dict[str, Any] | None:
        if data.get("model") != self._auto or "messages" not in data:
            return None
        start = time.perf_counter()
        asked = _headers_of(data)
        session = asked.get("x-depo-session") or data.get("litellm_session_id")
        try:
            answer = await self._desk.answer(
                data["messages"],
                asked.get("x-depo-model"),
                str(session) if session else None,
                str(getattr(user_api_key_dict, "token", None) or ""),
            )
        except ConfigError as error:
            raise HTTPException(400, {"error": str(error)}) from None
        self._count(answer, time.perf_counter() - start)
        self._keep(str(data.get("litellm_call_id")), answer)
        data["model"] = answer.model
        return data

    async def async_post_call_response_headers_hook(
        self,
        data: dict[str, Any],
        user_api_key_dict: Any,
        response: Any,
        request_headers: Mapping[str, str] | None = None,
        litellm_call_info: Mapping[str, Any] | None = None,
    ) -> dict[str, str] | None:
        answer = self._answers.pop(str(data.get("litellm_call_id")), None)
        return None if answer is None else headers(answer, self._desk.settings.observe)

    def _count(self, answer: Answer, seconds: float) -> None:
        mode = "observe" if self._desk.settings.observe else "route"
        reason = answer.decision.reason
        _DECISIONS.labels(answer.decision.model, reason, mode).inc()
        _SECONDS.observe(seconds)
        if reason.startswith("fallback_"):
            _FALLBACKS.labels(reason.removeprefix("fallback_")).inc()

    def _keep(self, call: str, answer: Answer) -> None:
        self._answers[call] = answer
        if len(self._answers) > _IN_FLIGHT:
            self._answers.popitem(last=False)


def _headers_of(data: Mapping[str, Any]) -> Mapping[str, str]:
    request = data.get("proxy_server_request")
    found = request.get("headers") if isinstance(request, Mapping) else None
    return {str(k).lower(): v for k, v in found.items()} if isinstance(found, Mapping) else {}


callback = RouterCallback()
