"""One router and one proxy for the tests of this suite, which runs in the gateway's environment."""

from __future__ import annotations

import pytest

from depo_rl.routing.store import Threshold, add_threshold, load_router
from routing_world import fitted
from world import SLOW_IS_FINE, running


@pytest.fixture(scope="session")
def router(tmp_path_factory):
    folder = fitted(tmp_path_factory.mktemp("router") / "r")
    model = load_router(folder).card.model
    add_threshold(folder, Threshold(1, 0.3, "quality", 0.95, 0.95, 9, "d", 0.5, "2026", model))
    return folder


@pytest.fixture(scope="session")
def world(router, tmp_path_factory):
    with running(tmp_path_factory.mktemp("world"), router, SLOW_IS_FINE) as made:
        yield made
