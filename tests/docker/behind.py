"""A lab with a Docker daemon on its host, and containers in the network of the lab's chain."""

from __future__ import annotations

import json
import os
import subprocess
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import pytest

from tests.docker.busybox import import_busybox
from tests.docker.daemon import TestDaemon
from tests.leak.chain_rig import TARGET_ADDRESS, ChainRig, Passing, lab_alone
from tests.leak.oracle import Oracle

GATEWAY = "172.31.77.1"
SLOW = 60.0


@contextmanager
def lab_with_docker(*more: str) -> Iterator[tuple[ChainRig, TestDaemon]]:
    """The chain was never up. `more`: lines for its file."""
    with lab_alone() as rig:
        daemon = TestDaemon(rig.path("host"))
        os.environ["CHAINCTL_DOCKER_SOCKET"] = str(daemon.socket)
        try:
            daemon.start()
            import_busybox(daemon)
            text = rig.lab.chain_file.read_text().splitlines()
            lan = next(line for line in text if line.startswith("lan:"))
            device = lan.removeprefix("lan:").strip()
            own = f"{{mode: docker, address: {GATEWAY}/24}}"
            text[text.index(lan)] = f"lan:\n  - {device}\n  - {own}"
            rig.lab.chain_file.write_text("\n".join([*text, *more]) + "\n")
            yield rig, daemon
        finally:
            daemon.destroy()
            os.environ.pop("CHAINCTL_DOCKER_SOCKET", None)
    assert daemon.rests() == []


@pytest.fixture
def daemon(running: tuple[ChainRig, TestDaemon]) -> TestDaemon:
    """Of what the module's fixture `running` made by `lab_with_docker`."""
    return running[1]


def run(
    daemon: TestDaemon,
    chain: ChainRig,
    name: str,
    *,
    start: bool = True,
    labels: dict[str, str] | None = None,
    **host: Any,
) -> Path:
    """A container in the chain's network; gives its namespace."""
    with daemon.api() as api:
        wishes = {"network_mode": f"chain-{chain.lab.name}", "dns": [GATEWAY], **host}
        container = api.create_container(
            "busybox:test",
            ["sleep", "1000"],
            name=name,
            labels=labels,
            stop_signal="SIGKILL",
            host_config=api.create_host_config(**wishes),
        )
        if not start:
            return Path()
        api.start(container)
        pid = api.inspect_container(container)["State"]["Pid"]
        return Path(f"/proc/{pid}/ns/net")


def inside(daemon: TestDaemon, name: str, *words: str) -> tuple[int, str]:
    with daemon.api() as api:
        made = api.exec_create(name, list(words))
        output = api.exec_start(made).decode()
        return int(api.exec_inspect(made)["ExitCode"]), output


def reaches(daemon: TestDaemon, name: str) -> bool:
    """An echo through the chain comes back."""
    return inside(daemon, name, "ping", "-c1", "-W2", TARGET_ADDRESS)[0] == 0


def remove_all(daemon: TestDaemon) -> None:
    with daemon.api() as api:
        for name in daemon.containers():
            api.remove_container(name, force=True)


def watch(chain: ChainRig, oracle: Oracle, box: Path) -> None:
    """The lab as always, and the container as one more client."""
    chain.watch(oracle, Passing(at_leg=True))
    add_client(oracle, box)


def add_client(oracle: Oracle, box: Path) -> None:
    link = json.loads(
        subprocess.run(
            ["nsenter", f"--net={box}", "ip", "-j", "-4", "addr", "show", "eth0"],
            capture_output=True,
            check=True,
        ).stdout
    )
    address = link[0]["addr_info"][0]["local"]
    oracle.client(box, "eth0", address=address, gateway=GATEWAY, name="box")
