"""A rollout server that samples with transformers, one request at a time, the same for the same
weights.

CPU_ROLLOUT_PER_VERSION: prompts that are answered for each version of the weights, in the order in
which verl asked for them; the others wait for new weights. 0: as many as come.
"""

from __future__ import annotations

import asyncio
import os
from collections import Counter
from typing import Any

import ray
import torch
import transfer_queue as tq
from verl.workers.rollout.base import BaseRollout
from verl.workers.rollout.replica import RolloutReplica, TokenOutput

PER_VERSION = int(os.environ.get("CPU_ROLLOUT_PER_VERSION", "0"))


def _name(rank: int) -> str:
    return f"cpu_rollout_{rank}"


@ray.remote(num_cpus=0)
class Server:
    """What is sampled depends on weights, prompt and place in its group, so that a resumed run
    repeats it, on whichever server."""

    def __init__(self, path: str, response_length: int) -> None:
        torch.set_num_threads(1)
        from transformers import AutoModelForCausalLM

        self.model = AutoModelForCausalLM.from_pretrained(path, dtype=torch.float32).eval()
        self.eos = self.model.config.eos_token_id
        self.response_length = response_length
        self.version = 0
        self.asked = Counter[tuple[int, ...]]()  # of v0, which does not number a group's members
        self.n_loads = 0
        self.n_aborts = 0
        self.news = asyncio.Event()  # new weights or an abort, for those who wait
        self.places: dict[str, int] = {}  # of each prompt in the line
        if PER_VERSION:
            tq.init()

    async def ready(self) -> bool:
        return True

    async def generate(
        self, request_id: str, *, prompt_ids: Any, sampling_params: Any, **kwargs: Any
    ) -> TokenOutput:
        prompt = tuple(int(token) for token in prompt_ids)
        self.asked[prompt] += 1
        uid, member = sampling_params.get("asked_as") or (None, self.asked[prompt])
        if not await self._turn(uid):
            return TokenOutput(token_ids=[], log_probs=[], stop_reason="aborted", num_preempted=0)
        seed = hash((prompt, self.version, member)) & 0xFFFFFFFF  # integers: alike in any process
        tokens, logprobs = self._sample(
            list(prompt), float(sampling_params.get("temperature", 1.0)), seed
        )
        return TokenOutput(
            token_ids=tokens,
            log_probs=logprobs,
            stop_reason="completed",
            num_preempted=0,
            extra_fields={
                "global_steps": self.version,
                "min_global_steps": self.version,
                "max_global_steps": self.version,
            },
        )

    async def _turn(self, uid: str | None) -> bool:
        """Waits until this prompt is answered; False if it is aborted before."""
        place = await self._place(uid) if PER_VERSION and uid else -1
        while place >= PER_VERSION * self.n_loads:
            aborts = self.n_aborts
            await self.news.wait()
            if self.n_aborts > aborts:
                return False
        return True

    async def _place(self, uid: str) -> int:
        """In the order of verl's queue, which is that of asking; -1: not of the training set."""
        if uid not in self.places:
            queue = (await tq.async_kv_list("train")).get("train", {})
            for key in (key for key, tag in queue.items() if tag.get("is_prompt")):
                self.places.setdefault(key, len(self.places))
        return self.places.get(uid, -1)

    def _tell_waiting(self) -> None:
        news = self.news
        self.news = asyncio.Event()
        news.set()

    @torch.no_grad()
    def _sample(
        self, ids: list[int], temperature: float, seed: int
    ) -> tuple[list[int], list[float]]:
        generator = torch.Generator().manual_seed(seed)
        tokens: list[int] = []
        logprobs: list[float] = []
        given, cache = torch.tensor([ids]), None
        for _ in range(self.response_length):
            output = self.model(given, past_key_values=cache, use_cache=True)
            cache = output.past_key_values
            logprob = torch.log_softmax(output.logits[0, -1].float() / max(temperature, 1e-6), -1)
            token = int(
                logprob.argmax()
                if temperature == 0
                else torch.multinomial(logprob.exp(), 1, generator=generator)
            )
            tokens.append(token)
            logprobs.append(float(logprob[token]))
            if token == self.eos:
                break
            given = torch.tensor([[token]])
        return tokens, logprobs

    async def load(self, weights: dict[str, torch.Tensor], version: int | None) -> None:
        own = self.model.state_dict()
        with torch.no_grad():
            for name, value in weights.items():
                own[name].copy_(value)
        if version is not None:
            self.version = version
        self.asked.clear()
        self.n_loads += 1
        self._tell_waiting()

    async def wake_up(self, tags: Any = None) -> None: ...

    async def sleep(self) -> None: ...

    async def clear_kv_cache(self) -> None: ...

    async def release_kv_cache(self) -> None: ...

    async def resume_kv_cache(self) -> None: ...

    async def abort_all_requests(self, reject_request: bool = False) -> None:
        self.n_aborts += 1
        self._tell_waiting()

    async def resume_generation(self) -> None: ...

    async def start_profile(self, **kwargs: Any) -> None: ...

    async def stop_profile(self) -> None: ...


class Replica(RolloutReplica):
    async def launch_servers(self) -> None:
        name = _name(self.replica_rank)
        server = Server.options(name=name).remote(
            self.model_config.path, self.config.response_length
        )
        await server.ready.remote()
        self.servers, self._server_handle, self._server_address = [server], server, name


class Adapter(BaseRollout):
    """In the trainer's worker: hands the new weights to the server."""

    def __init__(
        self, config: Any, model_config: Any, device_mesh: Any, replica_rank: int = -1
    ) -> None:
        super().__init__(config, model_config, device_mesh)
        self.replica_rank = int(os.environ["RANK"]) if replica_rank == -1 else replica_rank
        self.is_leader_rank = True

    async def resume(self, tags: Any) -> None: ...

    async def release(self) -> None: ...

    async def update_weights(
        self, weights: Any, wire_format: str = "", global_steps: Any = None, **kw: Any
    ) -> None:
        from verl.workers.rollout.utils import ensure_async_iterator

        named = {}
        async for name, value in ensure_async_iterator(weights):
            named[name] = value.detach().to("cpu", torch.float32).clone()
        await ray.get_actor(_name(self.replica_rank)).load.remote(named, global_steps)
