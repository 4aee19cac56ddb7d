"""A router at work in a gateway: it always names a model, in time, whatever happens.

What goes wrong (no router, one that raises or takes too long) sends the query to the default model
and is counted. Nothing here keeps or logs a query, and nothing grows with the number of requests.
"""

from __future__ import annotations

import asyncio
import hashlib
import logging
import os
from collections import Counter, OrderedDict
from collections.abc import Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from pathlib import Path
from typing import Any, NamedTuple

from ..errors import ConfigError, DepoError
from .router import Decision, Message, Router

PREFIX = "DEPO_ROUTER_"
_SESSIONS = 100_000  # remembered, the latest
_WAITING = 64  # queries handed to the estimator and not decided yet, from which on none is added
_log = logging.getLogger("depo_rl.routing")


@dataclass(frozen=True)
class DeskSettings:
    """folder: of the router. default: model for what cannot be decided. observe: decide and tell,
    but let the default model answer. limit_s: seconds a decision may take."""

    folder: Path
    default: str
    observe: bool = False
    limit_s: float = 0.05

    @classmethod
    def from_environment(cls, environment: Mapping[str, str] = os.environ) -> DeskSettings:
        """DEPO_ROUTER_DIR, _DEFAULT, _MODE (route or observe), _LIMIT_MS. Raises ConfigError."""
        mode = environment.get(PREFIX + "MODE", "route")
        if mode not in ("route", "observe"):
            raise ConfigError(f"{PREFIX}MODE = {mode!r}: route or observe")
        for name in ("DIR", "DEFAULT"):
            if not environment.get(PREFIX + name):
                raise ConfigError(f"{PREFIX}{name} is not set: `depo route litellm` prints it")
        try:
            limit_ms = float(environment.get(PREFIX + "LIMIT_MS", "50"))
        except ValueError:
            limit_ms = 0.0
        if not 0 < limit_ms < 1e6:
            raise ConfigError(f"{PREFIX}LIMIT_MS: a number of milliseconds above 0")
        return cls(
            Path(environment[PREFIX + "DIR"]),
            environment[PREFIX + "DEFAULT"],
            mode == "observe",
            limit_ms / 1000,
        )


class Answer(NamedTuple):
    """decision: what the router would do. model: what is to answer, another one in observe-only
    mode."""

    decision: Decision
    model: str


class Desk:
    """fallbacks: how often the default model was taken, by cause ("unavailable", "timeout", "busy",
    "error")."""

    def __init__(self, settings: DeskSettings) -> None:
        self.settings = settings
        self.fallbacks: Counter[str] = Counter()
        self._sessions: OrderedDict[str, str] = OrderedDict()
        self._thread = ThreadPoolExecutor(1, thread_name_prefix="depo-route")
        self._waiting = 0
        self._router = self._load()

    def _load(self) -> Router | None:
        try:
            router = Router(self.settings.folder)
            router.route_texts(["the first one imports what later ones need"])
            return router
        except (DepoError, OSError) as error:
            _log.error("no router: %s; every query goes to %s", error, self.settings.default)
            return None

    @property
    def models(self) -> tuple[str, ...]:
        return self._router.models if self._router else (self.settings.default,)

    async def answer(
        self,
        messages: Sequence[Message],
        override: str | None = None,
        session: str | None = None,
        owner: str = "",
    ) -> Answer:
        """override: a model asked for. session: whose queries stay with the model of the first one;
        owner: whose session it is. Raises ConfigError for an override that is no model."""
        known = self._sessions.get(key := _key(owner, session)) if session else None
        if known is not None and override is None:
            self._sessions.move_to_end(key)
            decision = self._plain(known, "sticky")
        else:
            decision = await self._decide(messages, override)
            if session and override is None and not decision.reason.startswith("fallback"):
                self._remember(key, decision.model)
        observed = self.settings.observe and override is None
        return Answer(decision, self.settings.default if observed else decision.model)

    async def _decide(self, messages: Sequence[Message], override: str | None) -> Decision:
        router = self._router
        if override is not None and override not in self.models:
            raise ConfigError(f"no model {override!r}: one of {', '.join(self.models)}")
        if override is not None:
            return self._plain(override, "override")
        if router is None:
            return self._fall_back("unavailable")
        if self._waiting >= _WAITING:
            return self._fall_back("busy")
        self._waiting += 1
        task = asyncio.get_running_loop().run_in_executor(self._thread, router.route, messages)
        task.add_done_callback(self._done)
        try:
            return await asyncio.wait_for(asyncio.shield(task), self.settings.limit_s)
        except (TimeoutError, asyncio.TimeoutError):
            return self._fall_back("timeout")
        except Exception as error:  # whatever it is, the query must be answered
            _log.warning(
                "the router raised %s", type(error).__name__
            )  # its text may hold the query
            return self._fall_back("error")

    def _done(self, task: asyncio.Future[Decision]) -> None:
        self._waiting -= 1
        if not task.cancelled():
            task.exception()  # seen, so that nobody reports it later

    def _fall_back(self, why: str) -> Decision:
        self.fallbacks[why] += 1
        return self._plain(self.settings.default, f"fallback_{why}")

    def _plain(self, model: str, reason: str) -> Decision:
        version = self._router.threshold.version if self._router else 0
        return Decision(model, reason, {}, None, version)

    def _remember(self, key: str, model: str) -> None:
        self._sessions[key] = model
        if len(self._sessions) > _SESSIONS:
            self._sessions.popitem(last=False)


def _key(owner: str, session: str) -> str:
    return hashlib.blake2b(
        f"{owner}\0{session}".encode("utf-8", "replace"), digest_size=16
    ).hexdigest()


def headers(answer: Answer, observe: bool) -> dict[str, str]:
    """Response headers of a decision: names, numbers and versions, nothing of the query."""
    decision = answer.decision
    told: dict[str, Any] = {
        "x-depo-model": decision.model,
        "x-depo-reason": decision.reason,
        "x-depo-threshold-version": decision.threshold_version,
        "x-depo-mode": "observe" if observe else "route",
    }
    if decision.success:
        told["x-depo-success"] = f"{decision.success[decision.model]:.3f}"
    if decision.gain is not None:
        told["x-depo-gain"] = f"{decision.gain:.3f}"
    return {name: str(value) for name, value in told.items()}


def expect_closed_door(arguments: Sequence[str], environment: Mapping[str, str]) -> None:
    """Refuses to serve other machines without a key. arguments: of the LiteLLM command, whose
    default host is all of them. Raises ConfigError."""
    host = "0.0.0.0"
    for at, argument in enumerate(arguments):
        if argument == "--host" and at + 1 < len(arguments):
            host = arguments[at + 1]
        elif argument.startswith("--host="):
            host = argument.removeprefix("--host=")
    local = host in ("localhost", "::1") or host.startswith("127.")
    keyed = environment.get("LITELLM_MASTER_KEY") or environment.get(PREFIX + "KEYED") == "1"
    if not local and not keyed:
        raise ConfigError(
            f"host {host} is open to other machines and no master key is set: set LITELLM_MASTER_KEY, or serve with "
            "--host 127.0.0.1"
        )
