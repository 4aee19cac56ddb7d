"""One router and one proxy for the tests of this suite, which runs in the gateway's environment."""

from __future__ import annotations

import pytest

from routing_world import calibrated
from world import SLOW_IS_FINE, running


@pytest.fixture(scope="session")
def router(tmp_path_factory):
    return calibrated(tmp_path_factory.mktemp("router") / "r")


@pytest.fixture(scope="session")
def world(router, tmp_path_factory):
    with running(tmp_path_factory.mktemp("world"), router, SLOW_IS_FINE) as made:
        yield made
