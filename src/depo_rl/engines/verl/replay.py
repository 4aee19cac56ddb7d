"""The feedback: verl's replay buffers, which also tell the curriculum what became of each group.

trainer.v1.sampler.custom_sampler.path=pkg://depo_rl.engines.verl.replay
trainer.v1.sampler.custom_sampler.name=CurriculumReplayBuffer          (mode sync)
trainer.v1.sampler.custom_sampler.name=CurriculumReplayBufferAsync     (modes colocate_async, separate_async)
"""

from __future__ import annotations

import logging
from collections import Counter
from typing import Any

from verl.trainer.ppo.v1.replay_buffer import ReplayBuffer, ReplayBufferAsync

from ...errors import EngineError
from .checks import check_buffer, checked_sampler_kwargs, require_verl
from .dataset import CurriculumDataset
from .driver import VerlDriver
from .feedback import read_groups, read_rows, row_of_uid
from .importance import leave_weights

_log = logging.getLogger(__name__)
_TRAIN = "train"
_SAMPLER_KWARGS = (
    "poll_interval",
    "filter_groups_metric",
    "train_batch_size",
    "gen_batch_size",
    "max_inflight_gen_batches",
    "sync_refill_failed_groups",
)  # of verl's own buffers

require_verl(
    [
        (ReplayBuffer, "sample", ["global_steps", "partition_id", "batch_size"]),
        (ReplayBufferAsync, "sample", ["global_steps", "partition_id", "batch_size"]),
        (ReplayBuffer, "_clear_groups", ["partition_id", "uids"]),
        (
            ReplayBuffer,
            "_select_prompt_uids",
            ["partition_id", "sampleable_keys", "batch_size"],
        ),
        (ReplayBuffer, "_dapo_filtered_keys", ["partition_id"]),
    ]
)


class _Observed:
    """What both buffers add to verl's; the classes below put it before one of those."""

    asynchronous = False

    def __init__(
        self, *, trainer_mode: str, refill_fn: Any = None, sampler_kwargs: Any = None, **kwargs: Any
    ) -> None:
        # verl passes a method of the trainer
        self._trainer: Any = getattr(refill_fn, "__self__", None)
        root: Any = getattr(self._trainer, "config", None)
        if root is None:
            raise EngineError(
                f"{type(self).__name__} was made without verl's trainer: set it as trainer.v1.sampler.custom_sampler"
            )
        check_buffer(root, trainer_mode, self.asynchronous)
        # verl forwards these to its own buffers only, and would not filter at all, without a word
        kwargs |= _own_settings(self._trainer, self.asynchronous)
        kwargs |= checked_sampler_kwargs(sampler_kwargs, _SAMPLER_KWARGS)
        super().__init__(  # type: ignore[call-arg]
            trainer_mode=trainer_mode,
            refill_fn=self._refill,
            sampler_kwargs=sampler_kwargs,
            **kwargs,
        )
        self._step = 0
        self._n_dropped = 0  # groups dropped in this step
        self._selected: set[str] = set()
        self._first = True

    @property
    def driver(self) -> VerlDriver:
        """The run's curriculum; it is made with the dataset, after this buffer."""
        dataset = getattr(self._trainer, "train_dataset", None)
        if not isinstance(dataset, CurriculumDataset) or dataset.driver is None:
            raise EngineError(
                f"the training set is a {type(dataset).__name__}, not a CurriculumDataset with a curriculum"
            )
        return dataset.driver

    def _refill(self, n_prompts: int) -> int:
        self.driver.expect(n_prompts)
        return int(self._trainer._add_prompts_to_generate(n_prompts))

    def sample(
        self, global_steps: int, partition_id: str, batch_size: int
    ) -> tuple[Any, dict[str, Any]]:
        """As verl's, with the curriculum's figures under ``depo/`` for a training batch."""
        if partition_id != _TRAIN:
            passed_on: tuple[Any, dict[str, Any]]
            passed_on = super().sample(global_steps, partition_id, batch_size)  # type: ignore[misc]
            return passed_on
        if global_steps != self._step:  # a step of separate_async takes several samples
            self._step = global_steps
            self._n_dropped = 0
        driver = self.driver
        self._warn_if_resumed_without_state(driver, global_steps)
        batch, metrics = super().sample(global_steps, partition_id, batch_size)  # type: ignore[misc]
        with driver.session.timed("reading"):
            groups = read_groups(
                batch.keys, partition_id, dict(zip(batch.keys, batch.tags, strict=True))
            )
        self._leave_weights(driver, batch)
        metrics.update(
            driver.finish(groups, global_steps, nothing_in_flight=self._holds_no_other(batch))
        )
        return batch, metrics

    def _leave_weights(self, driver: VerlDriver, batch: Any) -> None:
        """For the advantages of this batch, which verl computes next; before its groups are
        settled."""
        if not driver.weighs:
            leave_weights(None)
            return
        row_of = row_of_uid(batch.keys, _TRAIN)
        leave_weights(dict(zip(row_of, driver.importance(list(row_of.values())), strict=True)))

    def _holds_no_other(self, batch: Any) -> bool:
        """Whether verl is rolling out or keeping nothing beside this batch."""
        taken = {key.split("_")[0] for key in batch.keys}
        held = (self.pending_keys, self.running_keys, self.finished_keys, self.failure_keys)  # type: ignore[attr-defined]
        alive = set().union(*(keys[_TRAIN] for keys in held)) - self._selected
        return not self.asynchronous and not (alive - taken)

    def _select_prompt_uids(
        self, partition_id: str, sampleable_keys: set[str], batch_size: int
    ) -> Any:
        """As verl's, the oldest first; of one step in the order of choice, not by hash of a random
        uid."""
        asked = self.prompt_global_steps[partition_id]  # type: ignore[attr-defined]
        in_order = [uid for uid in asked if uid in sampleable_keys]
        selected = super()._select_prompt_uids(partition_id, in_order, batch_size)  # type: ignore[misc]
        self._selected = set(selected[0])
        return selected

    def _clear_groups(self, partition_id: str, uids: set[str]) -> None:
        """verl drops these groups: filtered, stale, failed or surplus. They were paid for, so they
        are learnt from."""
        if partition_id == _TRAIN and uids:
            partition = self.partitions[partition_id]  # type: ignore[attr-defined]
            keys = [key for key in partition if key.split("_")[0] in uids]
            groups = read_groups(keys, partition_id, partition)
            failed = sorted(uids & self.failure_keys[partition_id]) if self.asynchronous else []  # type: ignore[attr-defined]
            self.driver.drop(groups, read_rows(failed, partition_id))
            self._n_dropped += len(uids)
        super()._clear_groups(partition_id, uids)  # type: ignore[misc]

    def _dapo_filtered_keys(self, partition_id: str) -> tuple[set[str], Counter[float]]:
        """verl filters without end; after ``max_rounds`` batches' worth of groups what comes is
        trained on."""
        limit = (
            self.driver.curriculum.config.max_rounds * self.driver.batch_size
            if partition_id == _TRAIN
            else 0
        )
        if partition_id == _TRAIN and self._n_dropped >= limit:
            return set(), Counter()
        filtered: tuple[set[str], Counter[float]] = super()._dapo_filtered_keys(partition_id)  # type: ignore[misc]
        return filtered

    def _warn_if_resumed_without_state(self, driver: VerlDriver, step: int) -> None:
        if self._first and step > 1 and driver.resumed_at is None:
            _log.warning(
                "step %d of a resumed run, but its checkpoint holds no curriculum: it starts to learn from nothing",
                step,
            )
        self._first = False


class CurriculumReplayBuffer(_Observed, ReplayBuffer):
    """For ``trainer.v1.trainer_mode=sync``."""


class CurriculumReplayBufferAsync(_Observed, ReplayBufferAsync):
    """For ``trainer.v1.trainer_mode=colocate_async`` and ``separate_async``."""

    asynchronous = True


def _own_settings(trainer: Any, asynchronous: bool) -> dict[str, Any]:
    """What verl passes to its own buffers but not to others: the filter of groups and its
    limits."""
    root = trainer.config
    sampler = root.trainer.v1.sampler
    metric = trainer._resolve_filter_groups_metric()
    refills_failed = bool(sampler.get("sync_refill_failed_groups", False))
    settings: dict[str, Any] = {
        "filter_groups_metric": metric,
        "sync_refill_failed_groups": refills_failed,
    }
    if not asynchronous:
        exact = metric is not None or refills_failed
        batch_size = root.data.train_batch_size
        filters = root.algorithm.get("filter_groups") or {}
        settings |= {
            "train_batch_size": batch_size,
            "gen_batch_size": 1 if exact else (root.data.get("gen_batch_size") or batch_size),
            "max_inflight_gen_batches": filters.get("max_inflight_gen_batches", 1)
            if metric is not None
            else 1,
        }
    return settings
