"""Weights from the trainer to rollout servers of their own, through a torch store: nccl needs GPUs.

``rollout.checkpoint_engine.backend=cpu`` with ``custom_backend_module=cpu_verl.weights``.
"""

from __future__ import annotations

import io
from typing import Any

import torch
from torch.distributed import TCPStore
from verl.checkpoint_engine.base import CheckpointEngine, CheckpointEngineRegistry


@CheckpointEngineRegistry.register("cpu")
class StoreEngine(CheckpointEngine):  # type: ignore[misc]
    """The first worker of the trainer has the store; a new one for each update."""

    def __init__(self, bucket_size: int, is_master: bool = False) -> None:
        self.is_master = is_master
        self.store: Any = None

    def prepare(self) -> dict[str, Any]:
        if self.is_master:
            self.store = TCPStore("127.0.0.1", 0, is_master=True, wait_for_workers=False)
        return {"port": self.store.port if self.is_master else None}

    @classmethod
    def build_topology(
        cls, actor_wg_world_size: int, rollout_world_size: int, metadata: list[dict[str, Any]]
    ) -> tuple[dict[str, list[Any]], dict[str, list[Any]]]:
        port = metadata[0]["port"]
        return {"port": [port] * actor_wg_world_size}, {"port": [port] * rollout_world_size}

    def init_process_group(self, port: int) -> None:
        if not self.is_master:
            self.store = TCPStore("127.0.0.1", port, is_master=False, wait_for_workers=False)

    def finalize(self) -> None:
        self.store = None

    async def send_weights(self, weights: Any, global_steps: int | None = None) -> None:
        named = {name: value.detach().cpu() for name, value in weights}  # on all workers: a gather
        if self.is_master:
            file = io.BytesIO()
            torch.save(named, file)
            self.store.set("weights", file.getvalue())

    async def receive_weights(self, global_steps: int | None = None) -> Any:
        named = torch.load(io.BytesIO(self.store.get("weights")))  # waits for it
        for item in named.items():
            yield item
