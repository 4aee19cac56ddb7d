"""What the policy makes of a prompt before it answers: its last hidden layer at the last token of the prompt.

One prefill of the candidates per policy step, by the main process alone, where the curriculum lives. It reads what the
policy would be given to go on from, tokenised by TRL itself, and touches nothing: no global generator, no mode, no
gradient.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from typing import TYPE_CHECKING, Any

import numpy as np
import torch
from accelerate.utils import DistributedType
from numpy.typing import NDArray

from ...config import FusedSettings
from ...errors import EngineError
from ...types import Prompt

if TYPE_CHECKING:
    from .trainer import DEPOTrainer

_TOKENS = 16_384  # of one forward, padding included: a small part of what the update itself takes


def attach_policy_states(trainer: DEPOTrainer) -> None:
    """Gives the estimator the policy's states if its settings ask for them; called on all ranks.

    Raises EngineError on all of them where the main process cannot compute the states alone.
    """
    settings = trainer.args.curriculum_config().estimator
    if not isinstance(settings, FusedSettings) or not settings.policy_features:
        return
    if reason := _hindrance(trainer):
        raise EngineError(
            f"estimator.policy_features = {settings.policy_features}: {reason}; set estimator.policy_features to 0"
        )
    if trainer.curriculum is not None:
        trainer.curriculum.estimator.policy_states = PolicyStates(trainer)  # type: ignore[attr-defined]


def _hindrance(trainer: DEPOTrainer) -> str | None:
    accelerator = trainer.accelerator
    plugin = getattr(accelerator.state, "deepspeed_plugin", None)
    of_several = "shards the policy's parameters, so that the main process cannot compute its states alone"
    if accelerator.distributed_type == DistributedType.FSDP:
        return f"FSDP {of_several}"
    if plugin is not None and plugin.zero_stage == 3:
        return f"DeepSpeed ZeRO-3 {of_several}"
    if accelerator.parallelism_config is not None and accelerator.parallelism_config.tp_enabled:
        return f"tensor parallelism {of_several}"
    if trainer.environment_factories is not None:
        return "the prompts are the environment's, which shows them at reset only"
    if trainer._is_vlm:
        return "the policy reads images, which its states here would leave out"
    return None


class PolicyStates:
    """Called with prompts, gives their states, float32 of shape (P, hidden); one forward per prompt and policy step."""

    def __init__(self, trainer: DEPOTrainer) -> None:
        self._trainer = trainer
        self._policy: tuple[Any, int] = (None, -1)  # the run's state, which is another after each ``train``, and step
        self._known: dict[str, NDArray[np.float32]] = {}

    def __call__(self, prompts: Sequence[Prompt]) -> NDArray[np.float32]:
        run, step = self._trainer.state, self._trainer.state.global_step
        if run is not self._policy[0] or step != self._policy[1]:
            self._policy, self._known = (run, step), {}
        new = [prompt.key for prompt in prompts if prompt.key not in self._known]
        if new:
            self._known |= zip(new, self._prefill(self._trainer.prompts_of(new)), strict=True)
        return np.stack([self._known[prompt.key] for prompt in prompts])

    def _prefill(self, prompts: list[Any]) -> list[NDArray[np.float32]]:
        """The state of each prompt, in order; short ones together, so that little is padded."""
        ids_P = [list(ids) or [0] for ids in self._trainer._tokenize_prompts(prompts)[0]]
        state_P: list[NDArray[np.float32]] = [np.empty(0, np.float32)] * len(ids_P)
        with _at_rest(self._trainer.model), torch.no_grad():
            for batch in _batches([len(ids) for ids in ids_P]):
                states = self._forward([ids_P[i] for i in batch])
                for i, state in zip(batch, states, strict=True):
                    state_P[i] = state
        return state_P

    def _forward(self, ids_P: list[list[int]]) -> NDArray[np.float32]:
        """Padded on the right, where a causal policy does not look: it needs no mask, and runs faster without."""
        trainer = self._trainer
        length_P = torch.tensor([len(ids) for ids in ids_P])
        ids_PT = torch.zeros(len(ids_P), int(length_P.max()), dtype=torch.long)
        for i, ids in enumerate(ids_P):
            ids_PT[i, : len(ids)] = torch.tensor(ids)
        with trainer.accelerator.autocast():
            output = _backbone(trainer)(ids_PT.to(trainer.accelerator.device), use_cache=False)
        last_PH = output.last_hidden_state[torch.arange(len(ids_P)), length_P - 1]
        states: NDArray[np.float32] = last_PH.float().cpu().numpy()
        return states


def _backbone(trainer: DEPOTrainer) -> Any:
    """The policy below its head, adapters included."""
    model = trainer.accelerator.unwrap_model(trainer.model, keep_torch_compile=False)
    return (model.get_base_model() if hasattr(model, "get_base_model") else model).base_model


@contextmanager
def _at_rest(model: torch.nn.Module) -> Iterator[None]:
    """No dropout; each module has its own mode back at the end."""
    training = [module for module in model.modules() if module.training]
    model.eval()
    try:
        yield
    finally:
        for module in training:
            module.training = True


def _batches(length_P: Sequence[int]) -> Iterator[list[int]]:
    """Positions in batches of neighbouring lengths, at most ``_TOKENS`` each unless one alone is longer."""
    batch: list[int] = []
    for i in sorted(range(len(length_P)), key=lambda i: length_P[i]):
        if batch and (len(batch) + 1) * length_P[i] > _TOKENS:
            yield batch
            batch = []
        batch.append(i)
    if batch:
        yield batch
