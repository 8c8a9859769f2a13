"""A whole chain whose VPN clients run in Docker: what becomes of it when Docker is disturbed.

The oracle watches meanwhile, as in `tests/leak`: whatever is done to containers or to the
daemon, nothing of a client leaves but inside all layers.
"""

from __future__ import annotations

import base64
import json
import os
import re
import signal
from collections.abc import Callable, Iterator
from typing import Any

import pytest
from docker.errors import APIError

from tests.docker.daemon import TestDaemon
from tests.leak.canary import Expect, Udp
from tests.leak.chain_rig import (
    ECHO,
    TARGET_ADDRESS,
    ChainRig,
    Fault,
    Passing,
    endure,
    lab_alone,
)
from tests.leak.fixture import oracle
from tests.leak.oracle import Oracle
from tests.waiting import wait_until

__all__ = ["oracle"]

pytestmark = [pytest.mark.root, pytest.mark.timeout(300)]

SLOW = 60.0
"""Seconds for a chain to be made again after Docker was restarted; measured 3 to 8."""
_GONE = re.compile("No such container|marked for removal|is not running")


@pytest.fixture(scope="module")
def running(daemon: TestDaemon) -> Iterator[ChainRig]:
    os.environ["CHAINCTL_DOCKER_SOCKET"] = str(daemon.socket)
    try:
        with lab_alone() as rig:
            with rig.lab.chain_file.open("a") as file:
                file.write("\nruntime: docker\n")
            rig.up()
            yield rig
            rig.down()
            assert daemon.containers() == []
            assert not (rig.run_dir / "docker").exists()
    finally:
        os.environ.pop("CHAINCTL_DOCKER_SOCKET", None)


@pytest.fixture
def chain(running: ChainRig, daemon: TestDaemon) -> ChainRig:
    if not daemon.answers:
        daemon.kill()
        daemon.start()
    wait_until(lambda: running.is_open, seconds=SLOW)
    return running


def named(daemon: TestDaemon, end: str) -> str:
    """The container whose name ends so."""
    (name,) = [name for name in daemon.containers() if name.endswith(end)]
    return name


def to_container(daemon: TestDaemon, end: str, what: str, **options: Any) -> Callable[..., None]:
    """The supervisor may have removed it before Docker gets to starting it again."""

    def act(_: ChainRig) -> None:
        with daemon.api() as api:
            try:
                getattr(api, what)(named(daemon, end), **options)
            except APIError as error:
                if what != "restart" or not _GONE.search(error.explanation or ""):
                    raise

    return act


def test_what_is_done_to_containers(chain: ChainRig, daemon: TestDaemon, oracle: Oracle) -> None:
    def connect(_: ChainRig) -> None:
        with daemon.api() as api:
            api.disconnect_container_from_network(named(daemon, "hop3"), "none")
            api.connect_container_to_network(named(daemon, "hop3"), "bridge")

    lost = ("configuration of VPN client",)
    faults = [
        Fault(
            "rm -f", to_container(daemon, "hop2.a", "remove_container", force=True), ("VPN client",)
        ),
        Fault("restart", to_container(daemon, "hop1.a", "restart", timeout=0), ("VPN client",)),
        Fault("holder restarted", to_container(daemon, "hop3", "restart", timeout=0), lost),
        Fault("holder removed", to_container(daemon, "hop1", "remove_container", force=True), lost),
        Fault("network connect", connect, ("foreign interface",)),
    ]
    endure(chain, oracle, faults)


def test_a_daemon_that_is_killed_changes_nothing(
    chain: ChainRig, daemon: TestDaemon, oracle: Oracle
) -> None:
    chain.watch(oracle, Passing(at_servers=True))
    before = [chain.path(f"hop{number}").stat().st_ino for number in (1, 2, 3)]
    daemon.kill()
    oracle.send(Udp(TARGET_ADDRESS, ECHO, count=2000, rate=500), expect=Expect.DELIVERED)
    assert chain.is_open
    chain.chainctl("up", str(chain.lab.chain_file))
    assert [chain.path(f"hop{number}").stat().st_ino for number in (1, 2, 3)] == before
    # What breaks now is not mended, so it stays shut.
    os.kill(client_pid(chain, 2), signal.SIGKILL)
    wait_until(lambda: not chain.is_open)
    oracle.send(Udp(TARGET_ADDRESS, ECHO, count=200, rate=100), expect=Expect.STOPPED)
    wait_until(lambda: "C546" in json.dumps(chain.status()))
    daemon.start()
    wait_until(lambda: chain.is_open, seconds=SLOW)
    oracle.send(Udp(TARGET_ADDRESS, ECHO), expect=Expect.DELIVERED, name="afterwards")
    oracle.judge().assert_clean()


def test_a_daemon_that_hangs_keeps_nobody(
    chain: ChainRig, daemon: TestDaemon, oracle: Oracle
) -> None:
    chain.watch(oracle, Passing(at_servers=True))
    daemon.signal(signal.SIGSTOP)
    try:
        oracle.send(Udp(TARGET_ADDRESS, ECHO, count=2000, rate=500), expect=Expect.DELIVERED)
        os.kill(client_pid(chain, 1), signal.SIGKILL)
        wait_until(lambda: not chain.is_open)
        chain.chainctl("close")
        oracle.send(Udp(TARGET_ADDRESS, ECHO, count=200, rate=100), expect=Expect.STOPPED)
    finally:
        daemon.signal(signal.SIGCONT)
    chain.chainctl("open", ok=False)
    wait_until(lambda: chain.is_open, seconds=SLOW)
    oracle.judge().assert_clean()


def test_a_restarted_daemon_ends_all_and_all_comes_back(
    chain: ChainRig, daemon: TestDaemon, oracle: Oracle
) -> None:
    chain.watch(oracle, Passing(at_servers=True))
    flood = oracle.start(Udp(TARGET_ADDRESS, ECHO, count=60_000, rate=500), expect=Expect.EITHER)
    daemon.stop()
    wait_until(lambda: not chain.is_open)
    daemon.start()
    wait_until(lambda: chain.is_open, seconds=SLOW)
    oracle.send(Udp(TARGET_ADDRESS, ECHO), expect=Expect.DELIVERED, name="afterwards")
    flood.stop()
    oracle.judge().assert_clean()


def test_docker_is_told_no_key(chain: ChainRig, daemon: TestDaemon) -> None:
    profiles = [path.read_text() for path in (chain.lab.home / "profiles").rglob("*.conf")]
    keys = {
        line.partition("=")[2].strip()
        for text in profiles
        for line in text.splitlines()
        if line.startswith(("PrivateKey", "PresharedKey"))
    }
    assert len(keys) >= 3
    with daemon.api() as api:
        told = json.dumps([api.inspect_container(name) for name in daemon.containers()])
        printed = b"".join(api.logs(name) for name in daemon.containers())
    told += printed.decode()
    assert "chainctl.hop" in told
    assert [key for key in keys if key in told or bytes_of(key).hex() in told] == []


def bytes_of(key: str) -> bytes:
    return base64.b64decode(key)


def client_pid(chain: ChainRig, hop: int) -> int:
    made = chain.run_dir / "docker/clients" / f"{chain.lab.name}.hop{hop}.a" / "made.json"
    return int(json.loads(made.read_text())["pid"])


def test_openvpn_hops_run_in_docker_too(daemon: TestDaemon, oracle: Oracle) -> None:
    os.environ["CHAINCTL_DOCKER_SOCKET"] = str(daemon.socket)
    try:
        with lab_alone(via="udp,wg,tcp") as rig:
            with rig.lab.chain_file.open("a") as file:
                file.write("\nruntime: docker\n")
            rig.up()
            rig.wait_open()
            rig.watch(oracle, Passing(layers=True))
            oracle.send(Udp(TARGET_ADDRESS, ECHO), expect=Expect.DELIVERED)
            oracle.judge().assert_clean()
            rig.down()
    finally:
        os.environ.pop("CHAINCTL_DOCKER_SOCKET", None)
