"""A whole chain whose VPN clients run in containers of Docker."""

from __future__ import annotations

import os
import select
import time
from collections.abc import Callable, Iterator

import pytest

from tests.docker.daemon import TestDaemon
from tests.system.chain_lab import MANY_CHANGES, ChainLab, chain_lab

pytestmark = pytest.mark.root

PATIENCE = 60.0


@pytest.fixture(scope="module")
def chain(daemon: TestDaemon) -> Iterator[ChainLab]:
    os.environ["CHAINCTL_DOCKER_SOCKET"] = str(daemon.socket)
    try:
        with chain_lab("dk", more=f"{MANY_CHANGES}runtime: docker\n") as chain:
            yield chain
            chain.down()
            assert daemon.containers() == []
    finally:
        del os.environ["CHAINCTL_DOCKER_SOCKET"]


def eventually(what: Callable[[], object]) -> None:
    deadline = time.monotonic() + PATIENCE
    while not what():
        assert time.monotonic() < deadline, "it did not happen in time"
        select.select([], [], [], 0.1)


def test_it_works(chain: ChainLab, daemon: TestDaemon) -> None:
    assert len(daemon.containers()) == 6
    assert chain.source()
