"""Containers behind a chain: where they get, and that they get nowhere else."""

from __future__ import annotations

import io
import json
import os
import shutil
import subprocess
import tarfile
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

from tests.docker.daemon import TestDaemon
from tests.leak.canary import Expect, Udp
from tests.leak.chain_rig import ECHO, TARGET_ADDRESS, ChainRig, Passing, lab_alone, wait_until
from tests.leak.fixture import oracle
from tests.leak.oracle import Oracle

__all__ = ["oracle"]

pytestmark = [pytest.mark.root, pytest.mark.timeout(240)]

GATEWAY = "172.31.77.1"
SLOW = 60.0


@pytest.fixture(scope="module")
def running() -> Iterator[tuple[ChainRig, TestDaemon]]:
    """A lab with a Docker daemon on its host, and a chain that was never up."""
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
            rig.lab.chain_file.write_text("\n".join(text) + "\n")
            yield rig, daemon
        finally:
            daemon.destroy()
            del os.environ["CHAINCTL_DOCKER_SOCKET"]
    assert daemon.rests() == []


@pytest.fixture
def chain(running: tuple[ChainRig, TestDaemon]) -> Iterator[ChainRig]:
    rig, daemon = running
    rig.up()
    yield rig
    remove_all(daemon)


@pytest.fixture
def daemon(running: tuple[ChainRig, TestDaemon]) -> TestDaemon:
    return running[1]


def import_busybox(daemon: TestDaemon) -> None:
    program = shutil.which("busybox")
    assert program
    buffer = io.BytesIO()
    with tarfile.open(fileobj=buffer, mode="w") as archive:
        archive.add(Path(program).resolve(), "bin/busybox")
        for folder in ("etc", "proc", "sys", "dev", "tmp"):
            entry = tarfile.TarInfo(folder)
            entry.type, entry.mode = tarfile.DIRTYPE, 0o755
            archive.addfile(entry)
        for name in ("sh", "ping", "nc", "wget", "sleep", "cat", "ip", "nslookup"):
            entry = tarfile.TarInfo(f"bin/{name}")
            entry.type, entry.linkname = tarfile.SYMTYPE, "busybox"
            archive.addfile(entry)
    with daemon.api() as api:
        api.import_image_from_data(buffer.getvalue(), repository="busybox", tag="test")


def run(daemon: TestDaemon, chain: ChainRig, name: str, **host: Any) -> Path:
    """Start a container in the chain's network; gives its namespace."""
    with daemon.api() as api:
        wishes = {"network_mode": f"chain-{chain.lab.name}", "dns": [GATEWAY], **host}
        container = api.create_container(
            "busybox:test",
            ["sleep", "1000"],
            name=name,
            stop_signal="SIGKILL",
            host_config=api.create_host_config(**wishes),
        )
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


def test_a_container_is_behind_the_chain(chain: ChainRig, daemon: TestDaemon) -> None:
    run(daemon, chain, "first")
    assert reaches(daemon, "first")
    status, output = inside(daemon, "first", "ip", "route")
    assert status == 0
    assert f"default via {GATEWAY}" in output


def test_there_is_no_other_way_whatever_becomes_of_the_chain(
    chain: ChainRig, daemon: TestDaemon, oracle: Oracle
) -> None:
    box = run(daemon, chain, "box")
    watch(chain, oracle, box, daemon)
    plain = Udp(TARGET_ADDRESS, ECHO, count=200, rate=200)
    oracle.send(plain, expect=Expect.DELIVERED, name="open", client="box")
    flood = oracle.start(
        Udp(TARGET_ADDRESS, ECHO, count=20_000, rate=500), expect=Expect.EITHER, client="box"
    )
    chain.down()
    flood.stop()
    oracle.battery([(TARGET_ADDRESS, ECHO)], client="box")
    chain.up()
    wait_until(lambda: reaches(daemon, "box"), seconds=SLOW)
    oracle.send(plain, expect=Expect.DELIVERED, name="up again", client="box")
    oracle.judge().assert_clean()


def test_the_machine_is_no_way_around(chain: ChainRig, daemon: TestDaemon, oracle: Oracle) -> None:
    """A container that sends its frames to the bridge itself, whose machine forwards for Docker."""
    box = run(daemon, chain, "rebel")
    watch(chain, oracle, box, daemon)
    bridge = f"ch-{chain.lab.name}"
    (link,) = json.loads(chain.run("host", "ip", "-j", "link", "show", bridge))
    assert chain.run("host", "cat", "/proc/sys/net/ipv4/ip_forward").strip() == "1"
    neighbour = ["ip", "neigh", "replace", GATEWAY, "lladdr", link["address"], "dev", "eth0"]
    subprocess.run(["nsenter", f"--net={box}", *neighbour], check=True)
    oracle.battery([(TARGET_ADDRESS, ECHO)], client="box")
    chain.down()
    oracle.battery([(TARGET_ADDRESS, ECHO)], client="box")
    oracle.judge().assert_clean()


def test_a_restarted_container_or_daemon_needs_nobody(chain: ChainRig, daemon: TestDaemon) -> None:
    run(daemon, chain, "lasting", restart_policy={"Name": "always"})
    with daemon.api() as api:
        api.restart("lasting", timeout=0)
    assert reaches(daemon, "lasting")
    daemon.restart()
    wait_until(lambda: chain.is_open, seconds=SLOW)
    wait_until(lambda: reaches(daemon, "lasting"), seconds=SLOW)


def test_a_container_that_comes_first_waits_for_the_chain(
    chain: ChainRig, daemon: TestDaemon
) -> None:
    run(daemon, chain, "early")
    chain.down()
    with daemon.api() as api:
        api.restart("early", timeout=0)
    assert not reaches(daemon, "early")
    chain.up()
    wait_until(lambda: reaches(daemon, "early"), seconds=SLOW)


def test_an_empty_network_goes_with_the_chain(chain: ChainRig, daemon: TestDaemon) -> None:
    chain.down()
    with daemon.api() as api:
        assert [n["Name"] for n in api.networks() if n["Name"].startswith("chain-")] == []
    assert f"ch-{chain.lab.name}" not in chain.links("host")
    assert "_lan" not in chain.run("host", "nft", "list", "tables")


def watch(chain: ChainRig, oracle: Oracle, box: Path, daemon: TestDaemon) -> None:
    """The lab as always, and the container as one more client."""
    chain.watch(oracle, Passing(at_leg=True))
    link = json.loads(
        subprocess.run(
            ["nsenter", f"--net={box}", "ip", "-j", "-4", "addr", "show", "eth0"],
            capture_output=True,
            check=True,
        ).stdout
    )
    address = link[0]["addr_info"][0]["local"]
    oracle.client(box, "eth0", address=address, gateway=GATEWAY, name="box")
