"""`runtime: auto`: Docker where a daemon answers, and then for as long as the chain is up."""

from __future__ import annotations

import os
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import pytest

from chainctl.host.netns import Namespaces
from tests.docker.daemon import TestDaemon
from tests.leak.chain_rig import ChainRig, lab_alone
from tests.waiting import wait_until

pytestmark = [pytest.mark.root, pytest.mark.timeout(240)]


@contextmanager
def lab_of(daemon: TestDaemon) -> Iterator[ChainRig]:
    os.environ["CHAINCTL_DOCKER_SOCKET"] = str(daemon.socket)
    try:
        with lab_alone() as rig:
            with rig.lab.chain_file.open("a") as file:
                file.write("\nruntime: auto\n")
            yield rig
            rig.down()
    finally:
        del os.environ["CHAINCTL_DOCKER_SOCKET"]


def test_it_stays_what_it_came_up_as(daemon: TestDaemon) -> None:
    with lab_of(daemon) as rig:
        rig.up()
        assert len(daemon.containers()) == 6
        daemon.kill()
        rig.up()
        assert rig.is_open
        assert not (rig.run_dir / "clients").exists()
        daemon.start()
        wait_until(lambda: rig.is_open, seconds=60)
        rig.down()
        daemon.stop()
        try:
            rig.up()
            assert len(list((rig.run_dir / "clients").iterdir())) == 3
        finally:
            daemon.start()
        rig.up()
        assert daemon.containers() == []


def test_live_restore_keeps_everything(tmp_path: Path) -> None:
    namespaces = Namespaces(tmp_path / "netns")
    namespaces.create("live")
    daemon = TestDaemon(namespaces.path("live"), live_restore=True)
    try:
        daemon.start()
        with lab_of(daemon) as rig:
            rig.up()
            before = [rig.path(f"hop{number}").stat().st_ino for number in (1, 2, 3)]
            for end in (daemon.stop, daemon.kill):
                end()
                assert rig.is_open
                daemon.start()
                assert rig.is_open
            assert [rig.path(f"hop{number}").stat().st_ino for number in (1, 2, 3)] == before
            assert not rig.status()["repairs"]
    finally:
        daemon.destroy()
        namespaces.remove("live")
        namespaces.close()
    assert daemon.rests() == []
