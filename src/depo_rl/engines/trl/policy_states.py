"""What the policy makes of a prompt before it answers: its last hidden layer at the last token of
the prompt, and the log-probability that it gives the reference answer there.

One prefill of the candidates per policy step, by the main process alone, where the curriculum
lives. It reads what the policy would be given to go on from, tokenised by TRL itself, and touches
nothing: no global generator, no mode, no gradient.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from typing import Any, NamedTuple, Protocol

import numpy as np
import torch
from accelerate.utils import DistributedType
from numpy.typing import NDArray

from ...config import FusedSettings
from ...errors import EngineError
from ...types import Prompt

_TOKENS = 16_384  # of one forward, padding included: a small part of what the update itself takes


class HasPolicy(Protocol):
    """What reading the policy asks of a trainer. state: the run's, which is another after each
    ``train``."""

    accelerator: Any
    model: Any
    processing_class: Any
    state: Any
    temperature: float

    def tokens_of(self, keys: Sequence[str]) -> list[list[int]]:
        """What the policy would be given to go on from, for each prompt, tokenised by TRL
        itself."""
        ...


class Readings(NamedTuple):
    """What an estimator takes by ``read_policy``."""

    states: PolicyStates | None
    answers: AnswerLogprobs | None


def policy_readings(trainer: HasPolicy, settings: Any, hindrance: str | None) -> Readings | None:
    """How to read the policy if the estimator's settings ask for it, else None; called on all
    ranks.

    hindrance: why the main process cannot, None if it can. Raises EngineError for one, on all
    ranks.
    """
    if not isinstance(settings, FusedSettings) or not settings.policy_width:
        return None
    name, off = ("policy_features", 0) if settings.policy_features else ("answer_logprob", "false")
    if hindrance is not None:
        raise EngineError(
            f"estimator.{name} = {getattr(settings, name)}: {hindrance}; set estimator.{name} to {off}"
        )
    return Readings(
        PolicyStates(trainer) if settings.policy_features else None,
        AnswerLogprobs(trainer, settings.answer_field) if settings.answer_logprob else None,
    )


def hindrance(accelerator: Any, in_environment: bool, reads_images: bool) -> str | None:
    """Why the main process cannot compute the policy's states alone; None if it can."""
    plugin = getattr(accelerator.state, "deepspeed_plugin", None)
    of_several = (
        "shards the policy's parameters, so that the main process cannot compute its states alone"
    )
    if accelerator.distributed_type == DistributedType.FSDP:
        return f"FSDP {of_several}"
    if plugin is not None and plugin.zero_stage == 3:
        return f"DeepSpeed ZeRO-3 {of_several}"
    if accelerator.parallelism_config is not None and accelerator.parallelism_config.tp_enabled:
        return f"tensor parallelism {of_several}"
    if in_environment:
        return "the prompts are the environment's, which shows them at reset only"
    if reads_images:
        return "the policy reads images, which its states here would leave out"
    return None


class _Reading:
    """Something read of each prompt in one forward per prompt and policy step; called with prompts,
    gives an array."""

    def __init__(self, trainer: HasPolicy) -> None:
        self._trainer = trainer
        self._policy: tuple[Any, int] = (
            None,
            -1,
        )  # the run's state, which is another after each ``train``, and step
        self._known: dict[str, Any] = {}

    def __call__(self, prompts: Sequence[Prompt]) -> NDArray[Any]:
        run = self._trainer.state
        if run is not self._policy[0] or run.global_step != self._policy[1]:
            self._policy = (run, run.global_step)
            self._known = {}
        new = [
            prompt for prompt in dict.fromkeys(p.key for p in prompts) if prompt not in self._known
        ]
        if new:
            own = {prompt.key: prompt for prompt in prompts}
            self._known |= zip(new, self._read([own[key] for key in new]), strict=True)
        return np.stack([self._known[prompt.key] for prompt in prompts])

    def _read(self, prompts: Sequence[Prompt]) -> list[Any]:
        raise NotImplementedError

    def _tokens_of(self, prompts: Sequence[Prompt]) -> list[list[int]]:
        return [ids or [0] for ids in self._trainer.tokens_of([prompt.key for prompt in prompts])]

    def _hidden(self, ids_P: list[list[int]]) -> Iterator[tuple[int, torch.Tensor]]:
        """(position, last hidden layer of shape (T, hidden)) of each; short ones together, so that
        little is padded."""
        with _at_rest(self._trainer.model), torch.no_grad():
            for batch in _batches([len(ids) for ids in ids_P]):
                hidden_PTH = self._forward([ids_P[i] for i in batch])
                yield from ((i, hidden_PTH[row, : len(ids_P[i])]) for row, i in enumerate(batch))

    def _forward(self, ids_P: list[list[int]]) -> torch.Tensor:
        """Padded on the right, where a causal policy does not look: it needs no mask, and runs
        faster without."""
        trainer = self._trainer
        ids_PT = torch.zeros(len(ids_P), max(map(len, ids_P)), dtype=torch.long)
        for i, ids in enumerate(ids_P):
            ids_PT[i, : len(ids)] = torch.tensor(ids)
        with trainer.accelerator.autocast():
            output = _policy(trainer).base_model(
                ids_PT.to(trainer.accelerator.device), use_cache=False
            )
        hidden_PTH: torch.Tensor = output.last_hidden_state
        return hidden_PTH


class PolicyStates(_Reading):
    """The last hidden layer at each prompt's last token, float32 of shape (P, hidden)."""

    def _read(self, prompts: Sequence[Prompt]) -> list[Any]:
        ids_P = self._tokens_of(prompts)
        state_P: list[Any] = [None] * len(ids_P)
        for i, hidden_TH in self._hidden(ids_P):
            state_P[i] = hidden_TH[-1].float().cpu().numpy()
        return state_P


class AnswerLogprobs(_Reading):
    """Log-probability (nats) that the policy, at the run's temperature, answers with column
    ``field`` and ends, (P,).

    NaN for a prompt without such a column. It is the pass rate's own where a policy answers at once
    and one string is right; where it reasons first, it is a hint that the heads of the estimator
    weigh by what it turned out to be worth.
    """

    def __init__(self, trainer: HasPolicy, field: str) -> None:
        super().__init__(trainer)
        self._field = field

    def _read(self, prompts: Sequence[Prompt]) -> list[Any]:
        answers_P = [self._answer(prompt.fields.get(self._field)) for prompt in prompts]
        asked = [i for i, answer in enumerate(answers_P) if answer]
        before_P = self._tokens_of([prompts[i] for i in asked]) if asked else []
        found_P: list[Any] = [np.float64(np.nan)] * len(prompts)
        whole_P = [ids + answers_P[i] for i, ids in zip(asked, before_P, strict=True)]
        for row, hidden_TH in self._hidden(whole_P):
            answer = answers_P[asked[row]]
            said_TH = hidden_TH[-len(answer) - 1 : -1]
            found_P[asked[row]] = np.float64(self._logprob(said_TH, answer))
        return found_P

    def _answer(self, value: Any) -> list[int]:
        if value is None or not (text := str(value).strip()):
            return []
        tokenizer: Any = self._trainer.processing_class
        tokenizer = getattr(tokenizer, "tokenizer", tokenizer)
        ids = list(tokenizer(text, add_special_tokens=False)["input_ids"])
        return ids + ([tokenizer.eos_token_id] if tokenizer.eos_token_id is not None else [])

    def _logprob(self, hidden_TH: torch.Tensor, ids: list[int]) -> float:
        trainer = self._trainer
        with trainer.accelerator.autocast():
            logits_TV = (
                _policy(trainer).get_output_embeddings()(hidden_TH).float() / trainer.temperature
            )
        picked_T1 = torch.tensor(ids, device=logits_TV.device)[:, None]
        return float(logits_TV.log_softmax(-1).gather(-1, picked_T1).sum())


def _policy(trainer: HasPolicy) -> Any:
    """The policy, adapters included: ``base_model`` is what is below its head."""
    model = trainer.accelerator.unwrap_model(trainer.model, keep_torch_compile=False)
    return model.get_base_model() if hasattr(model, "get_base_model") else model


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
    """Positions in batches of neighbouring lengths, at most ``_TOKENS`` each unless one alone is
    longer."""
    batch: list[int] = []
    for i in sorted(range(len(length_P)), key=lambda i: length_P[i]):
        if batch and (len(batch) + 1) * length_P[i] > _TOKENS:
            yield batch
            batch = []
        batch.append(i)
    if batch:
        yield batch
