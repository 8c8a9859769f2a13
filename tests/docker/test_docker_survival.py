"""A container's connection lives through what happens to the chain in front of it."""

from __future__ import annotations

import contextlib
import json
import os
import secrets
import select
import signal
import socket
import time
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest

from tests.docker.busybox import import_busybox
from tests.docker.daemon import TestDaemon
from tests.leak.namespace import inside
from tests.system.chain_lab import ECHO, MANY_CHANGES, ChainLab, chain_lab

pytestmark = [pytest.mark.root, pytest.mark.timeout(240)]

GATEWAY = "172.31.78.1"
PATIENCE = 60.0


@pytest.fixture(scope="module")
def chain() -> Iterator[ChainLab]:
    with chain_lab("dt", up=False, more=MANY_CHANGES) as chain:
        text = chain.lab.chain_file.read_text().splitlines()
        lan = next(line for line in text if line.startswith("lan:"))
        own = f"{{mode: docker, address: {GATEWAY}/24}}"
        text[text.index(lan)] = f"lan:\n  - {lan.removeprefix('lan:').strip()}\n  - {own}"
        chain.lab.chain_file.write_text("\n".join(text) + "\n")
        yield chain


@pytest.fixture(scope="module")
def daemon(chain: ChainLab) -> Iterator[TestDaemon]:
    daemon = TestDaemon(chain.path("host"))
    os.environ["CHAINCTL_DOCKER_SOCKET"] = str(daemon.socket)
    try:
        daemon.start()
        import_busybox(daemon)
        chain.up()
        yield daemon
    finally:
        daemon.destroy()
        os.environ.pop("CHAINCTL_DOCKER_SOCKET", None)


@pytest.fixture(scope="module")
def connection(chain: ChainLab, daemon: TestDaemon) -> Iterator[socket.socket]:
    """A TCP connection from inside a container to the target's echo service."""
    with daemon.api() as api:
        network = f"chain-{chain.lab.name}"
        host = api.create_host_config(network_mode=network, dns=[GATEWAY])
        made = api.create_container("busybox:test", ["sleep", "1000"], host_config=host)
        api.start(made)
        pid = api.inspect_container(made)["State"]["Pid"]
    with Path(f"/proc/{pid}/ns/net").open("rb") as place:
        stream = inside(place.fileno(), lambda: socket.create_connection(ECHO, PATIENCE))
    with stream:
        greeting = b""
        while not greeting.endswith(b"\n"):
            greeting += stream.recv(1)
        yield stream


def echoes(stream: socket.socket) -> None:
    """What is sent now comes back, however often TCP has to try."""
    word = secrets.token_bytes(32)
    stream.settimeout(PATIENCE)
    stream.sendall(word)
    got = b""
    while len(got) < len(word):
        more = stream.recv(100)
        assert more, "the connection was ended"
        got += more
    assert got == word


def eventually(what: Callable[[], object]) -> None:
    deadline = time.monotonic() + PATIENCE
    while not what():
        assert time.monotonic() < deadline, "it did not happen in time"
        select.select([], [], [], 0.05)


def guard_client(chain: ChainLab) -> int:
    """Its pid; 0 while there is none."""
    found = 0
    for state in (chain.lab.home / "run/runc").glob(f"{chain.lab.name}.hop1.*/state.json"):
        with contextlib.suppress(OSError, ValueError):
            found = int(json.loads(state.read_text())["init_process_pid"])
    return found


def test_the_guards_client_is_killed(chain: ChainLab, connection: socket.socket) -> None:
    echoes(connection)
    before = guard_client(chain)
    os.kill(before, signal.SIGKILL)
    eventually(lambda: guard_client(chain) not in (0, before))
    echoes(connection)


def test_the_guard_is_rotated(chain: ChainLab, connection: socket.socket) -> None:
    before = chain.servers["guard"]
    chain.rotate("guard")
    eventually(lambda: chain.servers["guard"] != before)
    echoes(connection)


def test_the_supervisor_is_killed_and_comes_back(
    chain: ChainLab, connection: socket.socket
) -> None:
    pid = int((chain.lab.home / "run/supervisor.pid").read_text())
    os.kill(pid, signal.SIGKILL)
    chain.up()
    echoes(connection)
