"""A CPU as a platform of verl, and a rollout backend for it."""

from __future__ import annotations

import types
from contextlib import nullcontext
from typing import Any

import torch
import torch.distributed


def _nothing(*args: Any, **kwargs: Any) -> None: ...


class _Device(types.ModuleType):
    """``torch.cpu`` under the names that verl calls on ``torch.cuda``."""

    def __init__(self) -> None:
        super().__init__("cpu_verl_device")
        for name in (
            "max_memory_allocated",
            "max_memory_reserved",
            "memory_allocated",
            "memory_reserved",
        ):
            setattr(self, name, lambda *args, **kwargs: 0)
        for name in (
            "empty_cache",
            "synchronize",
            "set_device",
            "ipc_collect",
            "reset_peak_memory_stats",
        ):
            setattr(self, name, _nothing)
        self.manual_seed = self.manual_seed_all = torch.manual_seed
        self.is_available = lambda: True
        self.get_device_name = lambda *args: "CPU"
        self.device_count = lambda: 1
        self.current_device = lambda: "cpu"
        self.mem_get_info = lambda *args: (1 << 30, 1 << 30)
        self.get_rng_state = lambda *args: torch.get_rng_state()
        self.set_rng_state = lambda state, *args: torch.set_rng_state(state)

    def __getattr__(self, name: str) -> Any:
        return getattr(torch.cpu, name)


def _platform_class() -> type:
    from verl.plugin.platform import PlatformBase

    answers: dict[str, Any] = {
        "is_available": True,
        "current_device": "cpu",
        "device_count": 1,
        "set_device": None,
        "synchronize": None,
        "set_allocator_settings": None,
        "empty_cache": None,
        "get_device_capability": (None, None),
        "communication_backend_name": "gloo",
        "visible_devices_envvar": "CUDA_VISIBLE_DEVICES",
        "profiler_start": None,
        "profiler_stop": None,
        "ray_resource_name": "GPU",  # a logical resource: verl's pools count nothing else
        "ray_noset_envvars": [],
        "is_ipc_supported": False,
        "cudart": None,
    }
    body: dict[str, Any] = {
        name: (lambda self, *args, _value=value, **kwargs: _value)
        for name, value in answers.items()
    }
    device = _Device()
    body |= {
        "manual_seed": lambda self, seed: torch.manual_seed(seed),
        "manual_seed_all": lambda self, seed: torch.manual_seed(seed),
        "nvtx_range": lambda self, message: nullcontext(),
        "device_name": property(lambda self: "cpu"),
        "vendor_name": property(lambda self: "cpu"),
        "device_module": property(lambda self: device),
    }
    return type("PlatformCPU", (PlatformBase,), body)


def register() -> None:
    from verl.plugin.platform import PlatformRegistry
    from verl.workers.rollout.base import _ROLLOUT_REGISTRY
    from verl.workers.rollout.replica import RolloutReplicaRegistry

    PlatformRegistry.register(platform="cpu")(_platform_class())

    def load() -> Any:
        from .rollout import Replica

        return Replica

    RolloutReplicaRegistry.register("cpu", load)
    _ROLLOUT_REGISTRY["cpu", "async"] = "cpu_verl.rollout.Adapter"
    _accept_the_backend_name_that_verl_builds()


def _accept_the_backend_name_that_verl_builds() -> None:
    """verl asks for "cpu:gloo,<device>:<backend>", which torch refuses if the device is the CPU as
    well."""
    original = torch.distributed.init_process_group

    def init_process_group(backend: Any = None, *args: Any, **kwargs: Any) -> Any:
        return original("gloo" if backend == "cpu:gloo,cpu:gloo" else backend, *args, **kwargs)

    torch.distributed.init_process_group = init_process_group
