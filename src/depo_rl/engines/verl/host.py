"""The estimator in a Ray actor: on any node, off the critical path, and expendable.

``HostedEstimator`` stands in for it in the trainer's process. When the actor is lost (its node
died, it does not answer) predictions become unknown, another actor is started wherever Ray finds
its resources, and it is given the last copy of the state and everything observed since, so that it
is what it would have been.
"""

from __future__ import annotations

import logging
from collections.abc import Callable, Sequence
from functools import cached_property
from typing import Any

import numpy as np
import ray

from ...config import CurriculumConfig
from ...errors import DepoError, EngineError
from ...methods import get_method
from ...parts import make_estimator
from ...pool import PromptPool
from ...protocols import PassRateEstimator
from ...types import GroupOutcome, Prediction, Prompt, State
from .settings import HostSettings, VerlSettings

_log = logging.getLogger(__name__)


class EstimatorHost:
    """Runs inside the actor. Builds the method's own estimator; calls come one at a time, in
    order."""

    def __init__(self, method: str, prompts: Sequence[Prompt], config: CurriculumConfig) -> None:
        self._given = (method, prompts, config)

    @cached_property
    def _pool(self) -> PromptPool:
        method, prompts, config = self._given
        return PromptPool(get_method(method).prepare(prompts, config), config.seed)

    @cached_property
    def _estimator(self) -> PassRateEstimator:
        # built by the first call: of what a constructor raises Ray keeps a text only
        return make_estimator(self._pool, self._given[2])

    def node(self) -> str:
        """The id of the node that this runs on, once the estimator is built."""
        _ = self._estimator
        return str(ray.get_runtime_context().get_node_id())

    def predict(self, keys: Sequence[str]) -> Prediction:
        return self._estimator.predict([self._pool[key] for key in keys])

    def observe(self, outcomes: Sequence[GroupOutcome]) -> dict[str, float]:
        """Learns; the estimator's metrics after it."""
        self._estimator.observe(outcomes)
        return self._estimator.metrics()

    def state_dict(self) -> State:
        return self._estimator.state_dict()

    def restore(self, state: State | None, batches: Sequence[Sequence[GroupOutcome]]) -> None:
        """Takes ``state`` on (None: none was ever saved) and learns again from what was observed
        after it."""
        if state is not None:
            self._estimator.load_state_dict(state)
        for outcomes in batches:
            self._estimator.observe(outcomes)


class HostedEstimator:
    """A ``PassRateEstimator`` whose work is done by an ``EstimatorHost`` on some node.

    start: creates the actor; the second argument of ``start_host``. Raises EngineError if no node
    takes the actor within ``start_timeout_s``, and what the estimator raises if it cannot be built.
    """

    def __init__(self, start: Callable[[], Any], settings: HostSettings) -> None:
        self._start = start
        self._settings = settings
        self._snapshot: State | None = None
        self._since: list[list[GroupOutcome]] = []  # observed after the snapshot
        # reference, and how many of _since it contains
        self._snapshot_due: tuple[Any, int] | None = None
        self._updates: list[Any] = []  # references not looked at yet
        self._metrics: dict[str, float] = {}
        self._restarts = 0
        self._restoring: Any | None = None
        self._actor = start()
        try:
            self.node = self._get(self._actor.node.remote(), settings.start_timeout_s)
        except ray.exceptions.GetTimeoutError:
            raise EngineError(
                f"no node took the estimator's actor within {settings.start_timeout_s:g} s: it asks for "
                f"num_cpus={settings.num_cpus:g}, num_gpus={settings.num_gpus:g}, resources={settings.resources}; the "
                f"cluster has {_short(ray.cluster_resources())}. Change data.depo.host, or set data.depo.host.use=never"
            ) from None

    # -- the estimator's contract ------------------------------------------------------------------

    def predict(self, prompts: Sequence[Prompt]) -> Prediction:
        """As the estimator predicts; NaN, shape (P,), while there is no actor that could."""
        self._collect()
        if self._is_back():
            try:
                keys = [prompt.key for prompt in prompts]
                belief: Prediction = self._get(
                    self._actor.predict.remote(keys), self._settings.timeout_s
                )
                suspicion_P = None if belief.suspicion_P is None else np.array(belief.suspicion_P)
                # copies: what Ray hands over is read-only and keeps its store busy
                return Prediction(np.array(belief.mean_P), np.array(belief.strength_P), suspicion_P)
            except _LOST as error:
                self._lose(error)
        return Prediction(np.full(len(prompts), np.nan), np.full(len(prompts), np.nan))

    def observe(self, outcomes: Sequence[GroupOutcome]) -> None:
        """Sends the outcomes and returns: the actor learns while verl does something else."""
        self._collect()
        self._since.append(list(outcomes))
        self._updates.append(self._actor.observe.remote(list(outcomes)))
        if self._snapshot_due is None and len(self._since) >= self._settings.snapshot_every:
            self._snapshot_due = (self._actor.state_dict.remote(), len(self._since))

    def state_dict(self) -> State:
        """The estimator's own state; if its actor is lost, the last copy of it, which is said."""
        if self._is_back():
            try:
                self._snapshot = self._get(
                    self._actor.state_dict.remote(), self._settings.timeout_s
                )
                self._since = []
                self._snapshot_due = None
                return self._snapshot
            except _LOST as error:
                self._lose(error)
        if self._snapshot is None:
            raise EngineError(
                "the estimator's actor is lost and there is no copy of its state yet: nothing to save"
            )
        _log.warning(
            "the estimator's actor is lost: its state of %d batches ago is saved", len(self._since)
        )
        return self._snapshot

    def load_state_dict(self, state: State) -> None:
        """Raises StateMismatch if the estimator refuses the state."""
        self._get(self._actor.restore.remote(state, []), self._settings.start_timeout_s)
        self._snapshot = state
        self._since = []
        self._snapshot_due = None

    def metrics(self) -> dict[str, float]:
        """The estimator's own, of the last batch that it is known to have learnt, and how its actor
        is.

        hosted: 1 while it answers, 0 while it is lost. restarts: actors started in place of lost
        ones.
        """
        return self._metrics | {
            "hosted": float(self._restoring is None),
            "restarts": float(self._restarts),
        }

    # -- the actor ---------------------------------------------------------------------------------

    def _get(self, reference: Any, timeout_s: float) -> Any:
        """Waits for an answer. What the estimator raised is raised as it was, without Ray's
        wrapping."""
        try:
            return ray.get(reference, timeout=timeout_s)
        except ray.exceptions.RayTaskError as error:
            raise _own(error.cause) or error from None

    def _collect(self) -> None:
        """Looks at what has come back, waiting for nothing."""
        try:
            while self._updates and ray.wait(self._updates[:1], timeout=0)[0]:
                self._metrics = ray.get(self._updates.pop(0))
            if self._snapshot_due is not None and ray.wait([self._snapshot_due[0]], timeout=0)[0]:
                reference, contained = self._snapshot_due
                self._snapshot_due = None
                self._snapshot = ray.get(reference)
                self._since = self._since[contained:]
        except _LOST as error:
            self._lose(error)
        except ray.exceptions.RayTaskError as error:  # the estimator raised: the actor lives on
            raise _own(error.cause) or error from None

    def _lose(self, error: Exception) -> None:
        if self._restoring is None:
            _log.warning(
                "the estimator's actor is lost (%s): prompts are chosen uniformly until another one has its state of "
                "%d batches ago and has learnt those again",
                type(error).__name__,
                len(self._since),
            )
        ray.kill(self._actor, no_restart=True)
        self._restarts += 1
        self._actor = self._start()
        self._updates = []
        self._snapshot_due = None
        self._restoring = self._actor.restore.remote(self._snapshot, list(self._since))

    def _is_back(self) -> bool:
        """Whether the actor has all that was observed; one that was lost while it came back is
        started again."""
        if self._restoring is None:
            return True
        if not ray.wait([self._restoring], timeout=0)[0]:
            return False
        try:
            ray.get(self._restoring)
        except _LOST as error:
            self._lose(error)
            return False
        self._restoring = None
        _log.warning("the estimator is back, with everything it had learnt")
        return True


_LOST = (
    ray.exceptions.RayActorError,
    ray.exceptions.GetTimeoutError,
    ray.exceptions.ObjectLostError,
)


def start_host(
    prompts: Sequence[Prompt], settings: VerlSettings, config: CurriculumConfig
) -> HostedEstimator:
    """An estimator in a Ray actor for ``VerlDriver``; needs a running Ray."""
    host = settings.host
    shared = ray.put(list(prompts))
    options = {
        "num_cpus": host.num_cpus,
        "num_gpus": host.num_gpus,
        "resources": host.resources or None,
    }
    remote = ray.remote(EstimatorHost).options(max_restarts=0, **options)
    return HostedEstimator(lambda: remote.remote(settings.method, shared, config), host)


def _own(cause: Any) -> DepoError | None:
    return cause if isinstance(cause, DepoError) else None


def _short(resources: dict[str, float]) -> dict[str, float]:
    return {
        name: amount
        for name, amount in resources.items()
        if not name.startswith(("node:", "object_store"))
    }
