"""OpenVPN and WireGuard mixed in one chain, all of it in containers of Docker."""

from __future__ import annotations

import json
import os
import sys
from collections.abc import Iterator

import pytest

from chainctl.lab.layout import GATEWAY
from tests.docker.daemon import TestDaemon
from tests.system.openvpn_lab import OpenVpnLab, openvpn_lab

pytestmark = [pytest.mark.root, pytest.mark.timeout(180)]


@pytest.fixture
def mixed(daemon: TestDaemon) -> Iterator[OpenVpnLab]:
    os.environ["CHAINCTL_DOCKER_SOCKET"] = str(daemon.socket)
    try:
        with openvpn_lab("do", ("udp", "wg", "tcp")) as rig:
            with rig.lab.chain_file.open("a") as file:
                file.write("\nruntime: docker\n")
            command(rig, "up", str(rig.lab.chain_file))
            yield rig
            command(rig, "down")
            assert daemon.containers() == []
    finally:
        os.environ.pop("CHAINCTL_DOCKER_SOCKET", None)


def command(rig: OpenVpnLab, *words: str) -> None:
    done = rig.lab.run("host", [sys.executable, "-m", "chainctl", *words], timeout=120)
    assert done.returncode == 0, (words, done.stdout, done.stderr)


def test_a_mixed_chain(mixed: OpenVpnLab, daemon: TestDaemon) -> None:
    exit_server = mixed.lab.servers[-1].plan.uplink.ip
    assert mixed.lab.ask(resolver=str(GATEWAY.ip))["web"]["source"] == str(exit_server)
    with daemon.api() as api:
        told = json.dumps([api.inspect_container(name) for name in daemon.containers()])
    assert "/run/openvpn" in told
    assert "PRIVATE KEY" not in told
