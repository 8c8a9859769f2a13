"""A hostile hop, one layer alone, and break-ins that worked where a rule was missing."""

from __future__ import annotations

import json
import subprocess
import sys
import time
from functools import partial
from pathlib import Path

import pytest

from tests.leak.allow import Anything
from tests.leak.canary import KINDS, Expect, Frames, Udp
from tests.leak.chain_rig import (
    CLIENT,
    ECHO,
    HOPS,
    TARGET_ADDRESS,
    ChainRig,
    Fault,
    Passing,
    endure,
)
from tests.leak.frames import TCP, UDP, Packet, ethernet, ipv4, tcp, udp
from tests.leak.namespace import send_frame
from tests.leak.oracle import Oracle
from tests.waiting import wait_until

pytestmark = pytest.mark.root

INTRUDER = Path(__file__).parents[1] / "kernel" / "intruder.py"
LONG = 60.0
"""Seconds for which a test keeps a gate open; it shuts it by letting the supervisor go on."""


_FIN, _SYN = 1, 2


class Marked:
    """Something that must not be in any frame."""

    def __init__(self, mark: bytes) -> None:
        self.mark = mark

    def betrayed_by(self, data: bytes, packet: Packet) -> str:
        return "marked" if self.mark in data else ""


def accept_all(hop: int) -> str:
    """A hop's table that routes and translates as ours does, and judges nothing."""
    return f"""
        add table inet chainctl
        delete table inet chainctl
        table inet chainctl {{
            chain prerouting {{
                type filter hook prerouting priority -300
                iifname "in0" meta mark set 101 accept
            }}
            chain nat {{
                type nat hook postrouting priority 100
                oifname "tunA" masquerade
            }}
            comment "hop {hop}"
        }}
    """


# One layer alone.


def nothing_leaks_in_a_flood(chain: ChainRig, oracle: Oracle) -> None:
    """While a device's traffic passes, from devices and from inside the hops."""
    stand_in_hops(chain, oracle)
    flood = oracle.start(Udp(TARGET_ADDRESS, ECHO, count=60_000, rate=200), expect=Expect.DELIVERED)
    chain.send_everything(oracle, chain.endpoints[0], expect=Expect.EITHER)
    oracle.send(Udp("10.64.0.1", ECHO), name="to an inner address")
    send_from_hops(chain, oracle)
    flood.stop()
    oracle.judge().assert_clean()


def test_nft_alone_holds(chain: ChainRig, oracle: Oracle) -> None:
    """Programs that pass everything are on all wires, and nobody takes them away."""
    with chain.supervisor_stopped():
        chain.hold_gates(LONG)
        chain.open_wires()
        chain.watch(oracle, Passing(at_servers=True, at_leg=True))
        nothing_leaks_in_a_flood(chain, oracle)


def test_the_filter_alone_holds(chain: ChainRig, oracle: Oracle) -> None:
    """Every table routes and translates, and accepts everything."""
    with chain.supervisor_stopped():
        chain.hold_gates(LONG)
        for hop in range(1, HOPS + 1):
            chain.nft(f"hop{hop}", accept_all(hop))
        for place in ("gateway", "panel", "host"):
            chain.run(place, "nft", "flush", "ruleset")
        chain.nft(
            "host",
            "table ip nat { chain out { type nat hook postrouting priority 100;"
            ' oifname "eth0" masquerade; }; }',
        )
        chain.watch(oracle, Passing(at_servers=True))
        nothing_leaks_in_a_flood(chain, oracle)
    chain.run("host", "nft", "delete", "table", "ip", "nat")


def test_the_filter_alone_holds_without_any_table(chain: ChainRig, oracle: Oracle) -> None:
    with chain.supervisor_stopped():
        chain.hold_gates(LONG)
        for place in chain.places:
            chain.run(place, "nft", "flush", "ruleset")
        chain.watch(oracle, Passing(naked=True))
        chain.send_everything(oracle, (TARGET_ADDRESS, ECHO), *chain.endpoints)
        oracle.judge().assert_clean()


# A hostile hop.


def stand_in_hops(chain: ChainRig, oracle: Oracle) -> None:
    """Have the oracle look at every leg of every hop, to send from there."""
    for hop in range(1, HOPS + 1):
        for link in ("out0", "in0"):
            (shown,) = json.loads(chain.run(f"hop{hop}", "ip", "-j", "address", "show", link))
            own, who = shown["addr_info"][0]["local"], f"hop{hop} {link}"
            oracle.client(chain.path(f"hop{hop}"), link, address=own, gateway=own, name=who)


def send_from_hops(chain: ChainRig, oracle: Oracle) -> None:
    """Every kind of frame out of every leg of every hop, past the hop's own tables."""
    running = []
    for hop in range(1, HOPS + 1):
        for link in ("out0", "in0"):
            to = chain.endpoints[hop - 1] if link == "out0" else (TARGET_ADDRESS, ECHO)
            who = f"hop{hop} {link}"
            running.append(oracle.start(Frames(tuple(KINDS), *to, count=1), client=who, name=who))
    for sending in running:
        sending.wait()


def test_frames_of_a_hop_go_nowhere(chain: ChainRig, oracle: Oracle) -> None:
    chain.watch(oracle)
    stand_in_hops(chain, oracle)
    send_from_hops(chain, oracle)
    oracle.judge().assert_clean()


def test_its_own_tuple_goes_to_its_server(chain: ChainRig, oracle: Oracle) -> None:
    """The control of the test above: one that is right is seen, so others would be."""
    layer, mark = chain.layer(1), b"the tuple of hop 1"
    oracle.watch(
        *(chain.path("server1"), "eth0", "server 1"), allow=[Anything()], hides=[Marked(mark)]
    )
    for port in (layer.source_port, layer.source_port + 1):
        data = udp(chain.leg, port, layer.destination, layer.destination_port, mark)
        frame = ethernet(ipv4(chain.leg, layer.destination, UDP, data))
        assert chain.inside("hop1", partial(send_frame, "out0", frame))
    wait_until(lambda: chain.is_open)
    verdict = oracle.judge(without_canaries=True)
    assert verdict.leaked == {"server 1": 1}


def test_a_hops_administrator_reaches_nothing_else(chain: ChainRig, oracle: Oracle) -> None:
    """Root in the user namespace of a hop, who also spoils what is his."""

    def intrude(chain: ChainRig) -> None:
        argv = [sys.executable, str(INTRUDER), str(chain.path("hop2")), "owner", "c0-h2in"]
        done = subprocess.run(argv, check=True, capture_output=True, text=True, timeout=30)
        answer = json.loads(done.stdout)
        assert set(answer["own"]) == {"lo", "in0", "out0", "tunA"}
        assert answer["seen"] == []
        assert all(answer[what] for what in ("macvlan", "delete", "replace"))
        assert answer["renames its own"] == 0

    endure(chain, oracle, [Fault("administrator", intrude, ("in0 of",))])


# Rules without which it leaks.


_COUNTING = """
    table ip counting {
        counter odd {}
        counter own {}
        counter translated {}
        chain came {
            type filter hook prerouting priority -500;
            iifname "in0" tcp flags & (fin | syn) == fin | syn counter name odd
        }
        chain goes {
            type filter hook postrouting priority 500;
            oifname "tunA" ip saddr 192.168.10.0/24 counter name own
            oifname "tunA" udp dport 7 ip saddr != 192.168.10.0/24 counter name translated
        }
    }
"""


def test_nft_alone_lets_nothing_untranslated_into_the_last_tunnel(chain: ChainRig) -> None:
    """Conntrack makes nothing of SYN with FIN, and without its mark there is no way out."""
    exit_hop = f"hop{HOPS}"
    segment = tcp(CLIENT, 4000, TARGET_ADDRESS, ECHO, b"odd", flags=_SYN | _FIN)
    datagram = udp(CLIENT, 4000, TARGET_ADDRESS, ECHO, b"even")
    gateway = bytes.fromhex(chain.gateway_mac().replace(":", ""))

    def send(protocol: int, payload: bytes) -> bool:
        packet = ipv4(CLIENT, TARGET_ADDRESS, protocol, payload)
        frame = ethernet(packet, destination=gateway)
        return chain.inside("client", partial(send_frame, "eth0", frame))

    def counted() -> dict[str, int]:
        listed = json.loads(chain.run(exit_hop, "nft", "-j", "list", "counters"))["nftables"]
        counters = (each["counter"] for each in listed if "counter" in each)
        return {each["name"]: each["packets"] for each in counters}

    chain.nft(exit_hop, _COUNTING)
    for _ in range(10):
        assert send(TCP, segment)
        assert send(UDP, datagram)
    wait_until(lambda: counted()["translated"] == counted()["odd"] == 10)
    assert counted()["own"] == 0
    chain.nft(exit_hop, "delete table ip counting")


def test_an_open_connection_does_not_outlive_the_gate(chain: ChainRig, oracle: Oracle) -> None:
    """With only the table left: one that knows connections first keeps them open for ever."""
    chain.watch(oracle)
    shut: dict[str, float] = {}
    with chain.supervisor_stopped():
        chain.open_wires()
        for name in ("ours", "naive"):
            if name == "naive":
                rule = "ct state established,related accept"
                chain.nft("gateway", f"insert rule inet chainctl forward {rule}")
            order = Udp(TARGET_ADDRESS, ECHO, count=6000, rate=100)
            flood = oracle.start(order, expect=Expect.DELIVERED, name=name)
            chain.hold_gates(0.5)
            shut[name] = time.time() + 0.5
            wait_until(lambda end=shut[name] + 1.0: time.time() > end)  # type: ignore[misc]
            flood.stop()
        verdict = oracle.judge()
    verdict.assert_clean()
    late = {name: verdict.delivered[name].last - shut[name] for name in shut}
    assert late["ours"] < 0.4
    assert late["naive"] > 0.8, "the control: without the rule it stays open"


@pytest.mark.parametrize("naive", [False, True], ids=["ours", "naive"])
def test_a_wire_to_the_wrong_hop_carries_nothing_out(
    chain: ChainRig, oracle: Oracle, naive: bool
) -> None:
    """The gateway's wire ends in hop 1, so that clients' packets would leave at server 1."""
    chain.watch(oracle)
    with chain.supervisor_stopped():
        chain.hold_gates(LONG)
        ports = chain.ports
        with chain.maps() as maps:
            chain.inside("panel", lambda: maps.put_far(ports["c0-gw"], ports["c0-h1in"]))
        if naive:
            chain.nft("hop1", accept_all(1))
        # No TCP: the target would go on answering server 1 for a minute.
        oracle.send(Udp(TARGET_ADDRESS, ECHO))
        oracle.send(Frames(("udp", "icmp", "fragments"), TARGET_ADDRESS, ECHO))
        verdict = oracle.judge()
    if naive:
        assert verdict.leaked["server1"], "the control: hop 1 lets everything into its tunnel"
        assert verdict.leaked["X"]
    else:
        verdict.assert_clean()


# A host with Docker.


def docker(*, user_chain: bool) -> str:
    """What Docker makes of a host's forwarding."""
    inside = "jump DOCKER-USER" if user_chain else ""
    chain = "chain DOCKER-USER { }" if user_chain else ""
    return f"""
        table ip filter {{
            {chain}
            chain FORWARD {{
                type filter hook forward priority 0; policy drop;
                {inside}
            }}
        }}
    """


def test_a_chain_works_beside_docker(fresh: ChainRig, oracle: Oracle) -> None:
    fresh.nft("host", docker(user_chain=True))
    before = fresh.run("host", "nft", "list", "ruleset")
    fresh.up()
    flush = Fault(
        "Docker's chain flushed",
        lambda chain: chain.run("host", "nft", "flush", "chain", "ip", "filter", "DOCKER-USER"),
        ("DOCKER-USER",),
    )
    endure(fresh, oracle, [flush])
    fresh.down()
    assert fresh.run("host", "nft", "list", "ruleset") == before


def test_a_drop_that_cannot_be_undone_is_refused(fresh: ChainRig) -> None:
    fresh.nft("host", docker(user_chain=False))
    before = fresh.run("host", "nft", "list", "ruleset")
    done = fresh.chainctl("up", "--json", str(fresh.lab.chain_file), ok=False)
    assert (done.returncode, json.loads(done.stdout)["error"]["code"]) == (3, "C332")
    assert fresh.run("host", "nft", "list", "ruleset") == before
    assert not list((fresh.run_dir / "netns").glob("*"))
