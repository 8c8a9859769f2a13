"""Containers behind a chain: where they get, and that they get nowhere else."""

from __future__ import annotations

import json
import random
import subprocess
import sys
from collections.abc import Iterator
from functools import partial
from ipaddress import IPv4Address, IPv4Network
from pathlib import Path
from typing import Any

import pytest
from ruamel.yaml import YAML

from chainctl.spec.chain_file import load_chain_file
from tests.docker.behind import (
    GATEWAY,
    SLOW,
    daemon,
    inside,
    lab_with_docker,
    reaches,
    remove_all,
    run,
    watch,
)
from tests.docker.daemon import TestDaemon
from tests.leak.canary import Expect, Udp
from tests.leak.chain_rig import ECHO, TARGET_ADDRESS, ChainRig
from tests.leak.fixture import oracle
from tests.leak.oracle import Oracle
from tests.system.test_json import Seen, check
from tests.waiting import wait_until

__all__ = ["daemon", "oracle"]

pytestmark = [pytest.mark.root, pytest.mark.timeout(240)]

EXAMPLE = Path(__file__).parents[2] / "examples/containers"


@pytest.fixture(scope="module")
def running() -> Iterator[tuple[ChainRig, TestDaemon]]:
    with lab_with_docker() as both:
        yield both


@pytest.fixture
def chain(running: tuple[ChainRig, TestDaemon]) -> Iterator[ChainRig]:
    rig, daemon = running
    rig.up()
    yield rig
    remove_all(daemon)


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
    watch(chain, oracle, box)
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
    watch(chain, oracle, box)
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


def test_attach(chain: ChainRig, daemon: TestDaemon) -> None:
    run(daemon, chain, "alone", network_mode="none", dns=[GATEWAY])
    assert not reaches(daemon, "alone")
    said = json.loads(chain.chainctl("attach", "alone", "--json").stdout)
    seen = Seen()
    seen.add(said)
    check("`attach`", seen)
    address = said.pop("address")
    assert IPv4Address(address) in IPv4Network(f"{GATEWAY}/24", strict=False)
    network = f"chain-{chain.lab.name}"
    assert said == {"chain": chain.lab.name, "container": "alone", "network": network}
    assert reaches(daemon, "alone")
    with daemon.api() as api:
        api.restart("alone", timeout=0)
    assert reaches(daemon, "alone")
    assert chain.chainctl("attach", "alone").returncode == 0


@pytest.mark.parametrize(
    ("wishes", "why"),
    [
        ({"network_mode": "bridge"}, "other networks"),
        ({"network_mode": "host", "dns": []}, "other networks"),
        ({"network_mode": "none", "cap_add": ["NET_ADMIN"]}, "may administer"),
        ({"network_mode": "none", "privileged": True}, "may administer"),
    ],
)
def test_who_has_other_ways_is_refused(
    chain: ChainRig, daemon: TestDaemon, wishes: dict[str, Any], why: str
) -> None:
    run(daemon, chain, "free", start=False, **wishes)
    done = chain.chainctl("attach", "free", ok=False)
    assert done.returncode == 1
    assert "[C561]" in done.stderr
    assert why in done.stderr


def test_run(chain: ChainRig) -> None:
    def through(*words: str) -> subprocess.CompletedProcess[str]:
        return chain.chainctl("run", "--", *words, ok=False)

    assert through("sh", "-c", "exit 42").returncode == 42
    assert through("/nowhere").returncode == 127
    pinged = through("busybox", "ping", "-c1", "-W3", TARGET_ADDRESS)
    assert pinged.returncode == 0, (pinged.stdout, pinged.stderr)
    assert through("cat", "/etc/resolv.conf").stdout == f"nameserver {GATEWAY}\n"
    seen = json.loads(through("ip", "-j", "addr").stdout)
    assert [link["ifname"] for link in seen] == ["lo", "eth0"]
    assert not [a for link in seen for a in link["addr_info"] if a["family"] == "inet6"]
    # The kernel takes namespaces apart a little later.
    wait_until(lambda: not [name for name in chain.links("host") if name.startswith("chp")])
    chain.chainctl("close")
    assert through("busybox", "ping", "-c1", "-W1", TARGET_ADDRESS).returncode != 0
    chain.chainctl("open")


def test_two_programs_have_addresses_of_their_own(chain: ChainRig) -> None:
    words = [sys.executable, "-m", "chainctl", "run", "sh", "-c", "ip -j addr; read x"]
    pipes = {"stdin": subprocess.PIPE, "stdout": subprocess.PIPE, "text": True}
    both = [chain.lab.popen("host", words, **pipes) for _ in range(2)]
    # Now both are there.
    outputs = [process.stdout.readline() for process in both if process.stdout]
    for process in both:
        process.communicate("x\n", timeout=60)
    addresses = {json.loads(text)[1]["addr_info"][0]["local"] for text in outputs}
    assert len(addresses) == 2


def test_the_example_starts_in_any_order(chain: ChainRig, daemon: TestDaemon) -> None:
    """With stand-ins for its programs: closed until proved, then everything works."""
    example = YAML(typ="safe").load(EXAMPLE / "compose.yaml")
    networks = {"chain": f"chain-{chain.lab.name}", "pages": "pages", "web": "web"}
    services = list(example["services"].items())
    with daemon.api() as api:
        for name in ("pages", "web"):
            api.create_network(name, internal=example["networks"][name].get("internal", False))
        for name, service in services:
            first, *others = (networks[key] for key in service["networks"])
            run(daemon, chain, name, start=False, network_mode=first)
            for other in others:
                api.connect_container_to_network(name, other)
        chain.down()
        random.Random().shuffle(services)
        for name, _ in services:
            api.start(name)
    assert not reaches(daemon, "download")
    assert not reaches(daemon, "indexer")
    chain.up()
    for name in ("download", "indexer"):
        wait_until(partial(reaches, daemon, name), seconds=SLOW)
        assert inside(daemon, "proxy", "ping", "-c1", "-W3", name)[0] == 0
        route = inside(daemon, name, "ip", "route")[1]
        assert [line for line in route.splitlines() if line.startswith("default")] == [
            f"default via {GATEWAY} dev eth0 "
        ]
    remove_all(daemon)
    with daemon.api() as api:
        for name in ("pages", "web"):
            api.remove_network(name)


def test_the_examples_chain_is_read() -> None:
    spec = load_chain_file(EXAMPLE / "chain.yaml")
    compose = YAML(typ="safe").load(EXAMPLE / "compose.yaml")
    assert compose["networks"]["chain"]["name"] == f"chain-{spec.name}"
    (lan,) = spec.lans
    for service in compose["services"].values():
        if "chain" in service["networks"]:
            assert service["dns"] == [str(lan.address.ip)]
