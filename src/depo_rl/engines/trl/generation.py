"""A generation under way: what TRL's hooks, called one after another, find out about its groups."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import torch

from ...types import GroupOutcome
from .rollouts import logprob_sums, loss_mask


@dataclass
class Generation:
    """Groups that are generated and scored together, from their choice until they are settled.

    keys: of the prompts, in the order of the groups. step: the optimiser step whose policy samples
    them. Of all ranks' samples S, groups contiguous, known once the rewards are: correct_S (1, 0 or
    NaN), reward_S (the total, NaN where unscorable), tokens_S (of the completion). Of this rank's
    B, where the estimator wants log-probabilities that only the loss will compute: logprob_B2, the
    sum of each completion's token log-probabilities (nats) and their number, NaN until the loss has
    seen it.
    """

    keys: list[str]
    step: int
    correct_S: torch.Tensor | None = None
    reward_S: torch.Tensor | None = None
    tokens_S: torch.Tensor | None = None
    logprob_B2: torch.Tensor | None = None
    in_the_loss: dict[str, Any] | None = None  # the batch of which the loss is being computed

    @property
    def scored(self) -> bool:
        """Whether its rewards are known."""
        return self.correct_S is not None

    @property
    def waits(self) -> bool:
        """Whether it is finished but for what the loss will tell."""
        return self.logprob_B2 is not None

    @property
    def heard_all(self) -> bool:
        """Whether the loss has told of every completion."""
        return self.logprob_B2 is not None and not bool(self.logprob_B2.isnan().any())

    def wait(self, output: dict[str, Any]) -> None:
        """From here on the loss tells; the numbers that it knows the samples by go into TRL's
        scored batch."""
        n = len(output["advantages"])
        device = output["advantages"].device
        output["depo_sample"] = torch.arange(n, device=device)  # TRL shuffles the batch
        self.logprob_B2 = torch.full((n, 2), torch.nan, device=device)

    def hear(self, logps_BT: torch.Tensor | None) -> None:
        """The log-probabilities of the batch that is in the loss; those of a second pass are not
        the sampler's."""
        if self.in_the_loss is not None and self.logprob_B2 is not None and logps_BT is not None:
            batch = self.in_the_loss
            self.in_the_loss = None
            self.logprob_B2[batch["depo_sample"]] = logprob_sums(
                logps_BT.detach(), loss_mask(batch)
            )

    def outcomes(self, logprob_S2: torch.Tensor | None) -> list[GroupOutcome]:
        """One outcome per key. logprob_S2: as ``logprob_B2``, of all ranks; None if unknown."""
        assert (
            self.correct_S is not None and self.reward_S is not None and self.tokens_S is not None
        )
        n = len(self.keys)
        verdicts_PG = self.correct_S.view(n, -1).tolist()
        rewards_PG = self.reward_S.double().cpu().view(n, -1).tolist()
        tokens_P = self.tokens_S.cpu().view(n, -1).sum(1).tolist()
        logprobs_P: list[Any] = [()] * n
        if logprob_S2 is not None:
            logprobs_P = logprob_S2.double().cpu().view(n, -1, 2).tolist()
        columns = zip(self.keys, verdicts_PG, rewards_PG, logprobs_P, tokens_P, strict=True)
        return [
            GroupOutcome.of(
                key, verdicts, rewards, logprobs=logprobs, n_tokens=tokens, policy_step=self.step
            )
            for key, verdicts, rewards, logprobs, tokens in columns
        ]
