"""One Docker daemon for a test module, in a network namespace of its own."""

from __future__ import annotations

import tempfile
from collections.abc import Iterator
from pathlib import Path

import pytest

from chainctl.host.netns import Namespaces
from tests.docker.daemon import TestDaemon


@pytest.fixture(scope="module")
def daemon() -> Iterator[TestDaemon]:
    with tempfile.TemporaryDirectory(prefix="chaind-ns-") as pins:
        namespaces = Namespaces(Path(pins) / "netns")
        namespaces.create("docker")
        daemon = TestDaemon(namespaces.path("docker"))
        try:
            daemon.start()
            yield daemon
        finally:
            daemon.destroy()
            namespaces.remove("docker")
            namespaces.close()
    assert daemon.rests() == []
