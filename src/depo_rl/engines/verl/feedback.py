"""Reads finished trajectories out of verl's TransferQueue (V1) or its batch (the older
trainers)."""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Iterable, Mapping, Sequence
from typing import Any

import numpy as np
import transfer_queue as tq
from tensordict import NonTensorData

from ...errors import EngineError
from .outcomes import Completion

ROW = "depo_row"
"""Column stamped on each row: its number in the training set. It travels with the trajectory."""

_FIELDS = ["rm_scores", "extra_fields", "response_mask", "rollout_log_probs"]


def read_groups(
    keys: Iterable[str], partition: str, tags: Mapping[str, Mapping[str, Any]]
) -> dict[int, list[Completion]]:
    """Row of the training set -> its completions, of trajectories ``{uid}_{session}_{index}`` in
    the queue.

    Of a session with several outputs the last one counts: it carries the session's reward. Padding
    is left out.
    """
    last: dict[tuple[str, str], tuple[int, str]] = {}
    for key in keys:
        uid, session, index = key.rsplit("_", 2)
        if not tags.get(key, {}).get("is_padding", False):
            last[uid, session] = max(last.get((uid, session), (-1, "")), (int(index), key))
    keys = [key for _, key in last.values()]
    if not keys:
        return {}
    data = tq.kv_batch_get(keys=keys, partition_id=partition, select_fields=[ROW, *_FIELDS])
    columns = {name: _column(data, name, len(keys)) for name in (ROW, *_FIELDS)}
    groups: dict[int, list[Completion]] = defaultdict(list)
    for i, key in enumerate(keys):
        row, *values = (columns[name][i] for name in (ROW, *_FIELDS))
        groups[int(row)].append(_completion(values, tags.get(key, {})))
    return dict(groups)


def row_of_uid(keys: Iterable[str], partition: str) -> dict[str, int]:
    """uid of each prompt -> its row of the training set, of trajectories
    ``{uid}_{session}_{index}`` in the queue.

    Raises EngineError where a session has several outputs: verl's GRPO judges the last alone, and
    tells it to nobody.
    """
    first: dict[str, str] = {}
    for key in keys:
        uid, _, index = key.rsplit("_", 2)
        first.setdefault(uid, key)
        if index != "0":
            raise EngineError(
                "data.depo.curriculum.importance: a session of this agent loop has several outputs, which an advantage "
                "estimator of one's own cannot tell apart in verl: set it to 0"
            )
    data = tq.kv_batch_get(keys=list(first.values()), partition_id=partition, select_fields=[ROW])
    return dict(zip(first, map(int, _column(data, ROW, len(first))), strict=True))


def read_rows(uids: Sequence[str], partition: str) -> list[int]:
    """Rows of prompts whose data are in the queue, as the asynchronous modes keep them."""
    if not uids:
        return []
    data = tq.kv_batch_get(keys=list(uids), partition_id=partition, select_fields=[ROW])
    return [int(row) for row in _column(data, ROW, len(uids)) if row is not None]


def groups_of_batch(batch: Any) -> dict[int, list[Completion]]:
    """As ``read_groups``, of the DataProto that the older trainers hand to ``on_batch_end``."""
    columns = batch.non_tensor_batch
    rewards = np.asarray(batch.batch["token_level_scores"].sum(-1).float().cpu(), dtype=np.float64)
    mask = batch.batch["response_mask"]
    logprobs = batch.batch.get("rollout_log_probs", None)
    per_sample = {
        name: values for name, values in columns.items() if name not in ("extra_info", "uid")
    }
    groups: dict[int, list[Completion]] = defaultdict(list)
    for i, extra in enumerate(columns["extra_info"]):
        groups[int(extra[ROW])].append(
            Completion(
                reward=float(rewards[i]),
                info={name: values[i] for name, values in per_sample.items()},
                n_tokens=int(mask[i].sum()),
                logprob_sum=None if logprobs is None else float((logprobs[i] * mask[i]).sum()),
                version=None,
            )
        )
    return dict(groups)


def _completion(values: Sequence[Any], tag: Mapping[str, Any]) -> Completion:
    rewards, extra, mask, logprobs = values
    extra = extra if isinstance(extra, Mapping) else {}
    n_tokens = int(mask.sum()) if mask is not None else int(tag.get("response_len") or 0)
    own = mask is not None and logprobs is not None and len(logprobs) == len(mask) > 0
    logprob_sum = float((logprobs * mask).sum()) if own else None
    return Completion(
        reward=None if rewards is None else float(rewards.sum()),
        info=extra.get("reward_extra_info") or {},
        n_tokens=n_tokens,
        logprob_sum=logprob_sum,
        version=tag.get("min_global_steps"),
    )


def _column(data: Any, name: str, size: int) -> list[Any]:
    """One value per key, out of whatever container tensordict has put them in; None where there is
    no such field."""
    if name not in data.keys():  # noqa: SIM118 (a TensorDict refuses ``in``)
        return [None] * size
    column = data[name]
    return [value.data if isinstance(value, NonTensorData) else value for value in column]
