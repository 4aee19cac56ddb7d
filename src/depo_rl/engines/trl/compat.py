"""TRL's ``GRPOTrainer`` as its newest release has it, on every release from 0.24 on.

The only place that knows of releases. What we wrap inside TRL is checked once at import, so that an
unsupported release fails early and clearly. What an old release lacks has the value here that means
"not used"; its own settings and losses stay its own.
"""

from __future__ import annotations

import inspect
import math
from collections.abc import Sequence
from typing import Any, NamedTuple

import torch

from ...errors import EngineError

SUPPORTED = "trl>=0.24,!=1.15.0,<2"

try:
    import trl
    from transformers import ProcessorMixin
    from trl import GRPOTrainer
except (ImportError, RuntimeError) as error:  # transformers wraps a failed import into the latter
    raise EngineError(
        f"the TRL engine needs trl and torch ({' '.join(str(error).split())}): pip install './depo-rl[trl]'"
    ) from error

_HOOKS: dict[str, list[list[str] | None]] = {
    "_generate_and_score_completions": [["inputs"]],
    "_calculate_rewards": [["inputs", "prompts", "completions", "completion_ids_list"]],
    "_generate": [["prompts"], ["prompts", "images"]],  # the latter: 0.24
    "_tokenize_prompts": [["prompts"], None],  # none before 0.29
    "_compute_loss": [["model", "inputs"]],
}

BY_UNSLOTH: bool = GRPOTrainer.__name__.startswith("Unsloth")
"""Whether ``import unsloth`` came first and put its own trainer in TRL's place: generation and
rewards are TRL's, the loss is not."""


def require_trl() -> None:
    """Raises EngineError if TRL's ``GRPOTrainer`` lacks a hook that ``DEPOTrainer`` wraps."""
    for name, expected in _HOOKS.items():
        method = getattr(GRPOTrainer, name, None)
        parameters = inspect.signature(method).parameters if method else {}
        if any(each.kind is each.VAR_POSITIONAL for each in parameters.values()):
            continue  # a wrapper, such as Unsloth's, which passes on what it is given
        found = list(parameters)[1:] if method else None
        if found not in expected:
            takes = f"takes {found}" if method else "is missing"
            raise EngineError(
                f"trl {trl.__version__} is not supported: GRPOTrainer.{name} {takes}, expected {expected[0]}. "
                f"Install {SUPPORTED}"
            )


def model_id(model: Any) -> str:
    """The name that a model was loaded by."""
    return model if isinstance(model, str) else getattr(model.config, "_name_or_path", "")


class Rollouts(NamedTuple):
    """The tuple of ``GRPOTrainer._generate``, with what we read of it by name.

    fields: all of it, which grew with the releases. completions: as reward functions take them.
    extra: columns of a ``rollout_func``.
    """

    fields: tuple[Any, ...]
    completions: list[Any]
    extra: dict[str, Any]

    @property
    def completion_ids(self) -> list[list[int]]:
        """Token ids of each completion."""
        ids: list[list[int]] = self.fields[1]
        return ids


def place_of_total(fields: Sequence[Any]) -> int | None:
    """Where ``_generate`` tells the number of completion tokens of all ranks; it does before
    1.9."""
    return next((i for i, field in enumerate(fields) if isinstance(field, torch.Tensor)), None)


def with_total(fields: tuple[Any, ...], everyone: Sequence[Sequence[Any]]) -> tuple[Any, ...]:
    """``fields`` of ``_generate``, where that number is of ``everyone``: the fields of one
    completion each, of all ranks."""
    place = place_of_total(fields)
    if place is None:
        return fields
    if place > 2 and everyone[0][2] is not None:  # the mask of what the policy itself said
        n_tokens = sum(sum(of_one[2][0]) for of_one in everyone)
    else:
        n_tokens = sum(len(of_one[1][0]) for of_one in everyone)
    return (*fields[:place], torch.full_like(fields[place], n_tokens), *fields[place + 1 :])


class StockTrainer(GRPOTrainer):
    """``GRPOTrainer`` with the attributes and methods of the newest release."""

    # of releases that have no tools, environments, adaptive entropy, logging by reward functions
    tools: Any = ()
    environments: Any = None
    entropy_coef = 0.0
    _last_world_entropy = math.inf

    def __init__(self, *args: Any, **kwargs: Any) -> None:
        if trl.GRPOTrainer is not GRPOTrainer:
            raise EngineError(
                f"{trl.GRPOTrainer.__name__} took the place of trl.GRPOTrainer after depo_rl.trl was imported, which "
                "builds on the one before: import unsloth first, then depo_rl"
            )
        if "__init__" not in vars(GRPOTrainer):
            raise EngineError(
                "ms-swift was imported and has removed GRPOTrainer.__init__: train with TRL in its own process, "
                "without importing swift"
            )
        self._pending_extra_logs: Any = {}
        super().__init__(*args, **kwargs)

    @property
    def in_environment(self) -> bool:
        """Whether an environment supplies the prompts."""
        return getattr(self, "environment_factories", self.environments) is not None  # before 1.8

    @property
    def reads_images(self) -> bool:
        """Whether the policy takes images."""
        return getattr(self, "_is_vlm", isinstance(self.processing_class, ProcessorMixin))

    def logging_functions(self) -> dict[str, Any]:
        """Arguments by which a reward function logs."""
        named = {"log_extra": "_log_completion_extra", "log_metric": "_log_metric"}
        return {name: getattr(self, own) for name, own in named.items() if hasattr(self, own)}

    def generate_from(self, prompts: list[Any]) -> Rollouts:
        """Completions of prompts without images."""
        takes_images = "images" in inspect.signature(super()._generate).parameters
        fields = self._generate(prompts, None) if takes_images else self._generate(prompts)
        total = place_of_total(fields)
        if total == 2:  # before 0.26 completions are decoded by the caller
            return Rollouts(fields, self._decoded(prompts, fields[1]), fields[4] or {})
        return Rollouts(fields, fields[3], fields[5 if total is None else 6] or {})

    def _decoded(self, prompts: list[Any], ids: list[list[int]]) -> list[Any]:
        texts = list(self.processing_class.batch_decode(ids, skip_special_tokens=True))
        if not isinstance(prompts[0], list):
            return texts
        begun = [turns[-1] for turns in prompts]  # an answer may be, to be gone on with
        starts = [turn["content"] if turn["role"] == "assistant" else "" for turn in begun]
        return [
            [{"role": "assistant", "content": start + text}]
            for start, text in zip(starts, texts, strict=True)
        ]

    def prompt_tokens(self, prompts: Sequence[Any]) -> list[list[int]]:
        """What the policy would be given to go on from."""
        if hasattr(GRPOTrainer, "_tokenize_prompts"):
            return [list(ids) for ids in self._tokenize_prompts(list(prompts))[0]]
        from trl.data_utils import maybe_apply_chat_template

        texts = [
            maybe_apply_chat_template({"prompt": prompt}, self.processing_class)["prompt"]
            for prompt in prompts
        ]
        limits = {"max_length": self.max_prompt_length, "truncation": True}
        return list(self.processing_class(texts, add_special_tokens=False, **limits)["input_ids"])

    def get_batch_samples(self, *args: Any, **kwargs: Any) -> Any:
        """transformers 4 asks only after a step whether a run is over; a finished one that resumes
        gets no batch."""
        if self.is_over and not hasattr(GRPOTrainer, "_run_epoch"):
            self.control.should_training_stop = True
            return [], None
        return super().get_batch_samples(*args, **kwargs)

    @property
    def is_over(self) -> bool:
        """Whether no step is left to take."""
        over: bool = self.state.global_step >= self.state.max_steps
        return over or self.control.should_training_stop
