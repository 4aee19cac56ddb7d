"""Importance weights on verl: an advantage estimator that is GRPO's times the weight of each group.

verl gives an estimator the rewards, the mask and each completion's ``uid``, and none of the data
set's columns. But it calls it in the process that sampled the batch: the replay buffer leaves the
weights by uid here. This is imported with the dataset, which puts it into verl's own registry:

algorithm.adv_estimator=depo_grpo
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import numpy as np
import torch
from verl.trainer.ppo.core_algos import compute_grpo_outcome_advantage, register_adv_est

from ...errors import EngineError
from .names import ADVANTAGES

_PADDING = "pad"  # what verl's uid of the samples begins with that only fill its batch's shape
_weight_of_uid: Mapping[str, float] | None = None


def leave_weights(weight_of_uid: Mapping[str, float] | None) -> None:
    """The weights of the batch that was just sampled, each > 0; None: it is not weighted."""
    global _weight_of_uid
    _weight_of_uid = weight_of_uid


@register_adv_est(ADVANTAGES)  # type: ignore[untyped-decorator]
def weighted_grpo(
    token_level_rewards: torch.Tensor,
    response_mask: torch.Tensor,
    index: Any,
    config: Any = None,
    **unused: Any,
) -> tuple[torch.Tensor, torch.Tensor]:
    """Advantages and returns, shape (samples, tokens): verl's GRPO, times the weight of each
    sample's group.

    index: uids, shape (samples,). Raises EngineError for a uid that was not sampled.
    """
    by_std = True if config is None else config.get("norm_adv_by_std_in_grpo", True)
    advantages, returns = compute_grpo_outcome_advantage(
        token_level_rewards=token_level_rewards,
        response_mask=response_mask,
        index=np.asarray(index),
        norm_adv_by_std_in_grpo=by_std,
    )
    if _weight_of_uid is None:
        return advantages, returns
    weight_S = torch.tensor(
        [_weight(str(uid), _weight_of_uid) for uid in index], dtype=torch.float64
    )
    weighted = advantages * weight_S.to(advantages).unsqueeze(-1)
    return weighted, weighted


def _weight(uid: str, weight_of_uid: Mapping[str, float]) -> float:
    if uid in weight_of_uid or uid.startswith(_PADDING):
        return weight_of_uid.get(uid, 1.0)
    raise EngineError(
        f"no importance weight for uid {uid!r}: advantages are computed of a batch that this process did not sample; "
        "set data.depo.curriculum.importance=0"
    )
