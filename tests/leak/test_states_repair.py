"""Repair: what carries is broken during a flood; it is mended and nothing leaks meanwhile."""

from __future__ import annotations

import json
import os
import signal
import subprocess
from collections.abc import Iterator
from pathlib import Path

import pytest

from tests.leak.chain_rig import GATEWAY_ADDRESS, ChainRig, Fault, endure
from tests.leak.oracle import ANY, Oracle
from tests.waiting import wait_until

pytestmark = pytest.mark.root


@pytest.fixture
def stranger(chain: ChainRig) -> Iterator[Path]:
    """A namespace of somebody else."""
    name = f"{chain.lab.name}-stranger"
    subprocess.run(["ip", "netns", "add", name], check=True)
    quiet = ["sysctl", "-qw", "net.ipv6.conf.default.disable_ipv6=1"]
    subprocess.run(["ip", "netns", "exec", name, *quiet], check=True)
    yield Path("/run/netns", name)
    subprocess.run(["ip", "netns", "del", name], check=True)


def flush_routes(chain: ChainRig) -> None:
    for place in ("gateway", "hop1", "hop2", "hop3"):
        chain.run(place, "ip", "route", "flush", "table", "main")
        if place != "gateway":
            chain.run(place, "ip", "route", "flush", "table", "101")


def flush_addresses(chain: ChainRig) -> None:
    """What the kernel made with each address goes, and everything that was put by it."""
    for place in ("gateway", "hop1", "hop2", "hop3"):
        chain.run(place, "ip", "route", "flush", "table", "local")
        chain.run(place, "ip", "route", "flush", "table", "all")


def flush_rules(chain: ChainRig) -> None:
    for place in ("gateway", "hop1", "hop2", "hop3"):
        chain.run(place, "ip", "rule", "flush")


def add_way_out(chain: ChainRig) -> None:
    """A link from the exit hop to the host's namespace, and a default route by it."""
    into = ("type", "veth", "peer", "name", "evil1", "netns", str(chain.supervisor))
    chain.run("hop3", "ip", "link", "add", "evil0", *into)
    chain.run("host", "ip", "link", "set", "evil1", "up")
    chain.run("hop3", "ip", "link", "set", "evil0", "up")
    chain.run("hop3", "ip", "route", "replace", "default", "dev", "evil0", "table", "101")


def forward_in_panel(chain: ChainRig) -> None:
    chain.run("panel", "sysctl", "-qw", "net.ipv4.ip_forward=1")


def delete_link(place: str, link: str, said: str = "") -> Fault:
    return Fault(
        f"ip link del {link} in {place}",
        lambda chain: chain.run(place, "ip", "link", "del", link),
        (said or f"{link} of",),
    )


def kill_client(chain: ChainRig) -> None:
    os.kill(chain.client_pid(2), signal.SIGKILL)


def remove_pin(place: str) -> Fault:
    def remove(chain: ChainRig) -> None:
        pin = chain.path(place)
        subprocess.run(["umount", "--lazy", str(pin)], check=True)
        pin.unlink()

    # Of so many things that are missing then, `status` keeps the last ones.
    said = {"panel": "connection at the gateway"}
    return Fault(f"the pin of {place} removed", remove, (said.get(place, place),))


def test_routes_rules_and_settings(chain: ChainRig, oracle: Oracle) -> None:
    faults = [
        Fault("ip route flush", flush_routes, ("route to",)),
        Fault("ip route flush table local", flush_addresses, ("address", "route to")),
        Fault("ip rule flush", flush_rules, ("routing rule",)),
        Fault("forwarding in the panel", forward_in_panel, ("namespace of the filter",)),
    ]
    endure(chain, oracle, faults)


def test_links(chain: ChainRig, oracle: Oracle) -> None:
    faults = [
        delete_link("gateway", "lan0"),
        delete_link("hop2", "tunA"),
        delete_link("hop2", "out0"),
        delete_link("panel", "c0-gw", "connection at the gateway"),
        Fault("a link too much", add_way_out, ("foreign interface evil0",)),
    ]
    endure(chain, oracle, faults)


def test_a_gateway_that_is_back_tells_devices_that_looked_for_it(chain: ChainRig) -> None:
    """Who asked for its address in vain would wait for up to a second otherwise, or for ever."""
    wrong = "02:00:00:00:00:99"
    chain.run(
        *("client", "ip", "neigh", "replace", GATEWAY_ADDRESS, "lladdr", wrong),
        *("nud", "stale", "dev", "eth0"),
    )

    def believed() -> str:
        (known,) = json.loads(chain.run("client", "ip", "-j", "neigh", "show", GATEWAY_ADDRESS))
        return str(known["lladdr"])

    assert believed() == wrong
    mended = chain.mended("lan0")
    chain.run("gateway", "ip", "link", "delete", "lan0")
    wait_until(mended)
    assert believed() == chain.gateway_mac()


def test_clients_and_namespaces(chain: ChainRig, oracle: Oracle) -> None:
    faults = [
        Fault("client killed", kill_client, ("VPN client",)),
        remove_pin("hop2"),
        remove_pin("panel"),
    ]
    endure(chain, oracle, faults)


def test_what_is_broken_while_hops_are_proved_is_mended_at_once(chain: ChainRig) -> None:
    """Not when the proof was given up, which nobody could give."""
    (last, _, _), *_ = chain.events()

    def since() -> list[str]:
        return [kind for seq, kind, _ in chain.events() if seq > last]

    server = chain.lab.server(1)
    server.freeze()
    try:
        os.kill(chain.client_pid(1), signal.SIGKILL)
        wait_until(lambda: "repaired" in since())
        chain.run("hop2", "ip", "route", "flush", "table", "main")
        wait_until(lambda: "in0" in chain.run("hop2", "ip", "route"))
        assert "step_failed" not in since()
    finally:
        server.thaw()
    chain.wait_open()


def test_a_used_number_inherits_nothing(chain: ChainRig, oracle: Oracle, stranger: Path) -> None:
    """The exit's leg is replaced by somebody else's, whose port gets the same number."""

    def steal(chain: ChainRig) -> None:
        index = chain.ports["c0-h3in"]
        with chain.supervisor_stopped():
            chain.run("panel", "ip", "link", "del", "c0-h3in")
            mine = ("peer", "name", "eth0", "netns", stranger.name)
            name = ("name", "c0-h3in", "index", str(index))
            chain.run("panel", "ip", "link", "add", *name, "type", "veth", *mine)
            chain.run("panel", "ip", "link", "set", "c0-h3in", "up")
            subprocess.run(["ip", "-n", stranger.name, "link", "set", "eth0", "up"], check=True)
            assert chain.ports["c0-h3in"] == index
            oracle.control("stranger", chain.path("panel"), "c0-h3in")

    oracle.watch(stranger, ANY, "stranger", allow=[], control=False)
    endure(chain, oracle, [Fault("leg stolen", steal, ("in0 of",))])
