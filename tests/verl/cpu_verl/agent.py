"""verl's own agent loop, which also tells the rollout server which member of which group it asks
for."""

from __future__ import annotations

from typing import Any

from verl.experimental.agent_loop.single_turn_agent_loop import SingleTurnAgentLoop


class Numbered(SingleTurnAgentLoop):  # type: ignore[misc]
    async def run(self, sampling_params: dict[str, Any], **kwargs: Any) -> Any:
        asked_as = (kwargs["uid"], kwargs["session_id"]) if "session_id" in kwargs else None
        return await super().run({**sampling_params, "asked_as": asked_as}, **kwargs)
