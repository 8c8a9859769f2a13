"""How a chain meets the networks around it: several of devices, ways out of several kinds."""

from __future__ import annotations

import json
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
from chainctl.lab.layout import GATEWAY, HOST, TARGET, LabSpec
from chainctl.lab.wireguard_go import find_wireguard_go
from chainctl.model.chain import Slot, source_port
from chainctl.settings import Settings
from tests.leak.allow import Anything, Arp, Flow, Inside
from tests.leak.canary import Expect, Udp
from tests.leak.frames import UDP
from tests.leak.oracle import Oracle
from tests.waiting import wait_until

pytestmark = pytest.mark.root

GUESTS = "10.20.0.1"
EXITS = ("5.2.0.10", "5.4.0.10")
"""The servers of the last hop in a lab of two hops, as the target sees them."""


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


def ip_in(pin: Path, command: str) -> str:
    argv = ["nsenter", f"--net={pin}", "ip", *command.split()]
    return subprocess.run(argv, check=True, capture_output=True, text=True, timeout=10).stdout


def nft(lab: Lab, rules: str) -> None:
    done = lab.run("host", ["nft", "-f", "-"], timeout=10, stdin=rules)
    assert done.returncode == 0, done.stderr


def path(lab: Lab, place: str) -> Path:
    return Path("/run/netns", lab.namespace(place))


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


def bridged(lab: Lab) -> str:
    """The host's cable becomes a port of a bridge that has its address."""
    ip(
        lab,
        "host",
        "link add outside type bridge",
        "link set outside up",
        f"address del {HOST} dev eth0",
        "link set eth0 master outside",
        f"address add {HOST} dev outside",
        f"route add default via {HOST.network[1]}",
    )
    return "outside"


def rewrite(lab: Lab, wan: str) -> None:
    lines = lab.chain_file.read_text().splitlines()
    kept = [line for line in lines if not line.startswith("wan:")]
    lab.chain_file.write_text("\n".join([*kept, wan, ""]))


def host_state(lab: Lab) -> tuple[str, ...]:
    """What an uplink of its own leaves alone: forwarding, routes, rules for packets."""
    commands = (
        "sysctl -n net.ipv4.conf.eth0.forwarding",
        "ip route show table all",
        "nft list ruleset",
    )
    return tuple(lab.run("host", words.split(), timeout=10).stdout for words in commands)


@pytest.mark.parametrize("mode", ["macvlan", "bridge"])
def test_a_way_out_of_its_own_leaves_the_host_alone(lab: Lab, mode: str, tmp_path: Path) -> None:
    interface = bridged(lab) if mode == "bridge" else "eth0"
    # What the host thinks of forwarding does not matter, unless it asks itself about bridges too.
    switch = "/proc/sys/net/bridge/bridge-nf-call-iptables"
    lab.run("host", ["sh", "-c", f"test ! -e {switch} || echo 0 > {switch}"], timeout=10)
    nft(lab, "table ip strict { chain f { type filter hook forward priority 0; policy drop; }; }")
    before = host_state(lab)
    own = f"{HOST.network[20]}/{HOST.network.prefixlen}"
    rewrite(lab, f"wan: {{interface: {interface}, mode: {mode}, address: {own}}}")
    chainctl(lab, "up", str(lab.chain_file))
    plan = chainctl(lab, "plan", str(lab.chain_file))
    assert f"uplink {own} on {interface} by {mode}" in plan
    assert "Nothing to do" in plan
    assert host_state(lab) == before
    with Oracle(tmp_path / "oracle", test=mode) as oracle:
        gateway = str(GATEWAY.ip)
        oracle.client(path(lab, "client"), "eth0", address="192.168.10.50", gateway=gateway)
        guards = [server for server in lab.servers if server.plan.hop == 1]
        own_ip, port = str(HOST.network[20]), source_port(0, 1, Slot.A)
        oracle.watch(
            path(lab, "internet"),
            "host",
            "outside",
            allow=[
                *(
                    Flow(own_ip, port, str(guard.plan.uplink.ip), guard.plan.port, UDP)
                    for guard in guards
                ),
                Arp(own_ip, str(HOST.network[1])),
                Arp(str(HOST.ip), str(HOST.network[1])),
            ],
            hides=[Inside("192.168.10.0/24"), Inside("198.19.0.0/16"), Inside(f"{TARGET.ip}/32")],
        )
        oracle.watch(
            path(lab, "target"), "eth0", "target", allow=[Anything()], may_carry_canaries=True
        )
        oracle.send(Udp(str(TARGET.ip), 7, count=200), expect=Expect.DELIVERED)
        assert source(lab, "client", gateway) in EXITS
        chainctl(lab, "close")
        oracle.send(Udp(str(TARGET.ip), 7, count=200), expect=Expect.STOPPED, name="closed")
        oracle.judge().assert_clean()
    chainctl(lab, "down")
    assert host_state(lab) == before


SCAN = """
import socket, sys
with socket.socket(type=socket.SOCK_DGRAM) as sock:
    for number in range(int(sys.argv[1])):
        sock.sendto(b"?", (f"11.0.{number // 250}.{number % 250 + 1}", 9))
"""


def test_a_device_that_scans_the_internet_fills_no_table(lab: Lab) -> None:
    """One entry for whoever it sends to would be, in a table of 1024 for the whole machine."""
    chainctl(lab, "up", str(lab.chain_file))
    pins, many = lab.home / "run/netns", 300

    def sent(ns: str, link: str) -> int:
        text = ip_in(pins / ns, f"-json -stats link show {link}")
        return int(json.loads(text)[0]["stats64"]["tx"]["packets"])

    # Until it knows the gateway's address it can keep fewer packets than it will send.
    assert source(lab, "client", str(GATEWAY.ip)) in EXITS
    before = sent(f"{lab.name}.hop2", "tunA")
    argv = [sys.executable, "-I", "-c", SCAN, str(many)]
    assert lab.run("client", argv, timeout=30).returncode == 0
    wait_until(lambda: sent(f"{lab.name}.hop2", "tunA") >= before + many)
    for ns, link in (("gateway", "up0"), ("hop2", "in0"), ("hop2", "tunA"), ("hop2", "out0")):
        known = ip_in(pins / f"{lab.name}.{ns}", f"neighbour show nud all dev {link}")
        assert len(known.splitlines()) <= 1, (ns, known)


def test_the_way_out_changes_while_the_chain_is_up(lab: Lab) -> None:
    before = host_state(lab)
    gateway = str(GATEWAY.ip)
    chainctl(lab, "up", str(lab.chain_file))
    rewrite(lab, f"wan: {{interface: eth0, mode: macvlan, address: {HOST.network[20]}/24}}")
    chainctl(lab, "up", str(lab.chain_file))
    assert source(lab, "client", gateway) in EXITS
    assert host_state(lab) == before
    rewrite(lab, "wan: {interface: eth0}")
    chainctl(lab, "up", str(lab.chain_file))
    assert source(lab, "client", gateway) in EXITS
    chainctl(lab, "down")
    assert host_state(lab) == before


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
    assert source(lab, "client", str(GATEWAY.ip)) in EXITS
    assert source(lab, "client2", GUESTS) in EXITS
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
