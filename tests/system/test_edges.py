"""How a chain meets the networks around it: several networks of devices."""

from __future__ import annotations

import secrets
import subprocess
import sys
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import pytest

from chainctl.lab.clearing import remove
from chainctl.lab.lab import Lab
from chainctl.lab.layout import GATEWAY, LabSpec
from chainctl.lab.wireguard_go import find_wireguard_go
from chainctl.settings import Settings

pytestmark = pytest.mark.root

GUESTS = "10.20.0.1"
EXIT = "5.2.0.10"
"""The last server of a lab of two hops, as the target sees it."""


@pytest.fixture
def lab(tmp_path: Path) -> Iterator[Lab]:
    spec = LabSpec(f"edges{secrets.token_hex(3)}", hops=2, clients=2)
    try:
        go = find_wireguard_go(Settings.load().image_dir)
        yield Lab.create(spec, tmp_path / "chain", wireguard_go=go)
    finally:
        remove(spec.name)


def chainctl(lab: Lab, *words: str) -> str:
    done = lab.run("host", [sys.executable, "-m", "chainctl", *words], timeout=90)
    assert done.returncode == 0, (words, done.stdout, done.stderr)
    return done.stdout


def ip(lab: Lab, place: str, *commands: str) -> None:
    for command in commands:
        done = lab.run(place, ["ip", *command.split()], timeout=10)
        assert done.returncode == 0, (command, done.stderr)


def source(lab: Lab, place: str, gateway: str) -> Any:
    return lab.ask(place, resolver=gateway, timeout=2)["web"].get("source")


LISTEN = """
import socket
with socket.create_server(("", 7777)) as server:
    print("listening", flush=True)
    while True:
        server.accept()[0].close()
"""
CONNECT = "import socket, sys; socket.create_connection((sys.argv[1], 7777), 2).close()"


@contextmanager
def listening(lab: Lab, place: str) -> Iterator[None]:
    argv = [sys.executable, "-I", "-c", LISTEN]
    with lab.popen(place, argv, stdout=subprocess.PIPE) as process:
        assert process.stdout is not None
        assert process.stdout.readline() == b"listening\n"
        yield
        process.kill()


def reaches(lab: Lab, place: str, address: str) -> bool:
    argv = [sys.executable, "-I", "-c", CONNECT, address]
    return lab.run(place, argv, timeout=30).returncode == 0


def test_two_networks_of_devices_share_a_chain_and_do_not_meet(lab: Lab) -> None:
    guest = lab.namespace("client2")
    ip(
        lab,
        "host",
        "link add guests type bridge",
        "link set guests up",
        f"link add guest0 type veth peer name guest netns {guest}",
        "link set guest0 master guests up",
    )
    ip(
        lab,
        "client2",
        "link set eth0 down",
        "address add 10.20.0.50/24 dev guest",
        "link set guest up",
        f"route replace default via {GUESTS}",
    )
    file = lab.chain_file.read_text()
    (lan,) = (line for line in file.splitlines() if line.startswith("lan:"))
    both = f"lan: [{lan.removeprefix('lan: ')}, {{interface: guests, address: {GUESTS}/24}}]"
    lab.chain_file.write_text(file.replace(lan, both))
    chainctl(lab, "up", str(lab.chain_file))
    assert "guests" in chainctl(lab, "plan", str(lab.chain_file))
    assert source(lab, "client", str(GATEWAY.ip)) == EXIT
    assert source(lab, "client2", GUESTS) == EXIT
    with listening(lab, "client"), listening(lab, "client2"):
        assert reaches(lab, "client", "192.168.10.50")
        assert reaches(lab, "client2", "10.20.0.50")
        # Each device has a way to the other network: the gateway stands in both.
        assert not reaches(lab, "client2", "192.168.10.50")
        assert not reaches(lab, "client", "10.20.0.50")
    chainctl(lab, "close")
    assert source(lab, "client", str(GATEWAY.ip)) is None
    assert source(lab, "client2", GUESTS) is None
    chainctl(lab, "down")
