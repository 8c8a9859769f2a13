"""Leaks made on purpose, one for each rule: the oracle has to name every one of them.

The box plays a chain: it sends a tunnel's packets from its own address to the far end and lets
nothing else pass. Then it slips.
"""

from __future__ import annotations

import socket
from collections.abc import Callable
from functools import partial

import pytest

from tests.leak import frames
from tests.leak.allow import Anything, Arp, Flow, IcmpErrorAbout, Inside, Layer
from tests.leak.canary import ODD, PLAIN, Expect, Udp
from tests.leak.frames import UDP, ethernet, icmp, ipv4, tagged, udp
from tests.leak.namespace import inside, send_frame
from tests.leak.oracle import ANY, Oracle
from tests.leak.verdict import Outcome, Verdict
from tests.leak.wires import BOX_LAN, BOX_UP, CLIENT_ADDRESS, FAR_ADDRESS, Wires

pytestmark = pytest.mark.root

PORT = 51820
INNER = Layer("hop2", "10.79.0.1", 40_010, 51821)
OUTER = Layer("hop1", FAR_ADDRESS, PORT, PORT)
TUNNEL = Flow(BOX_UP, PORT, FAR_ADDRESS, PORT, UDP)
CIPHERTEXT = bytes(range(200, 250))


def packet(data: bytes = CIPHERTEXT, *, source: str = BOX_UP, port: int = PORT) -> bytes:
    return ipv4(source, FAR_ADDRESS, UDP, udp(source, port, FAR_ADDRESS, PORT, data))


def to_port(port: int) -> bytes:
    return ipv4(BOX_UP, FAR_ADDRESS, UDP, udp(BOX_UP, PORT, FAR_ADDRESS, port, CIPHERTEXT))


def to_address(address: str) -> bytes:
    return ipv4(BOX_UP, address, UDP, udp(BOX_UP, PORT, address, PORT, CIPHERTEXT))


def slip(wires: Wires, *leaving: bytes) -> None:
    """Let the box send these frames to the far end."""
    with wires.box.open("rb") as box:
        for frame in leaving:
            assert inside(box.fileno(), partial(send_frame, "up0", frame))


def watch(oracle: Oracle, wires: Wires) -> None:
    wires.run("box", "sysctl", "-qw", "net.ipv4.ip_forward=0")
    oracle.client(wires.client, "eth0", address=CLIENT_ADDRESS, gateway=BOX_LAN)
    oracle.watch(
        wires.far,
        "eth0",
        "W1",
        allow=[TUNNEL, Arp(BOX_UP, FAR_ADDRESS)],
        hides=[INNER, Inside("10.77.1.0/24")],
        shows=[OUTER],
    )


def judge_with(oracle: Oracle, wires: Wires, *leaving: bytes) -> Verdict:
    slip(wires, ethernet(packet()), *leaving)
    return oracle.judge()


def test_a_clean_run_passes(oracle: Oracle, wires: Wires) -> None:
    watch(oracle, wires)
    oracle.battery([(FAR_ADDRESS, PORT), (FAR_ADDRESS, 53)], resolver=FAR_ADDRESS)
    verdict = judge_with(oracle, wires)
    verdict.assert_clean()
    assert verdict.sent == verdict.c0
    assert sum(verdict.sent.values()) == 20 + 5 + 2 * 3 * (len(PLAIN) + len(ODD))
    assert verdict.frames["W1"] >= 1
    assert verdict.counters_equal


SLIPS: dict[str, tuple[Callable[[bytes], list[bytes]], str]] = {
    "canary in the tunnel's own tuple": (lambda c: [ethernet(packet(c))], "canary"),
    "source without NAT": (lambda c: [ethernet(packet(source=CLIENT_ADDRESS))], "of the inside"),
    "other source port": (lambda c: [ethernet(packet(port=40_000))], "allow-list"),
    "other port": (lambda c: [ethernet(to_port(53))], "allow-list"),
    "other destination": (lambda c: [ethernet(to_address("10.78.1.9"))], "allow-list"),
    "ipv6": (
        lambda c: [ethernet(frames.ipv6_udp("2001:db8::1", "2001:db8::2", 9, b"x"), frames.IPV6)],
        "allow-list",
    ),
    "vlan around the tunnel": (lambda c: [tagged(packet())], "allow-list"),
    "double vlan": (lambda c: [tagged(packet(), protocol=0x88A8)], "allow-list"),
    "icmp error that quotes the payload": (
        lambda c: [ethernet(ipv4(BOX_UP, FAR_ADDRESS, 1, icmp(3, 3, bytes(4), packet(c))))],
        "canary",
    ),
    "icmp error that quotes an address": (
        lambda c: [
            ethernet(
                ipv4(
                    *(BOX_UP, FAR_ADDRESS, 1),
                    icmp(3, 4, bytes(4), packet(source=CLIENT_ADDRESS)[:28]),
                )
            )
        ],
        "of the inside",
    ),
    "fragment of the tunnel": (
        lambda c: [ethernet(ipv4(BOX_UP, FAR_ADDRESS, UDP, CIPHERTEXT, offset=1480))],
        "allow-list",
    ),
    "options": (
        lambda c: [
            ethernet(
                ipv4(
                    *(BOX_UP, FAR_ADDRESS, UDP),
                    udp(BOX_UP, PORT, FAR_ADDRESS, PORT, CIPHERTEXT),
                    options=b"\1\1\1\1",
                )
            )
        ],
        "allow-list",
    ),
    "layer without its wrapping": (
        lambda c: [
            ethernet(
                packet(
                    ipv4(BOX_UP, "10.79.0.1", UDP, udp(BOX_UP, 40_010, "10.79.0.1", 51821, b"x"))
                )
            )
        ],
        "layer hop2",
    ),
    "arp for somebody else": (
        lambda c: [ethernet(frames.arp_request(bytes(6), BOX_UP, "10.78.1.77"), frames.ARP)],
        "allow-list",
    ),
    "arp with an address of the inside": (
        lambda c: [ethernet(frames.arp_request(bytes(6), CLIENT_ADDRESS, FAR_ADDRESS), frames.ARP)],
        "of the inside",
    ),
    "unknown ethertype": (lambda c: [ethernet(b"hello", frames.EXPERIMENTAL)], "allow-list"),
    "canary in an unknown ethertype": (lambda c: [ethernet(c, 0x9000)], "canary"),
    "bytes behind the packet": (lambda c: [ethernet(packet() + b"\0\0hidden")], "allow-list"),
    "dns label": (
        lambda c: [
            ethernet(packet(bytes(12) + bytes((len(c),)) + c + b"\7example\0\0\1\0\1", port=PORT))
        ],
        "canary",
    ),
    "canary cut over two tcp segments": (
        lambda c: [
            ethernet(
                ipv4(
                    *(BOX_UP, FAR_ADDRESS, 6),
                    frames.tcp(BOX_UP, 1, FAR_ADDRESS, 2, piece, sequence=place),
                )
            )
            for place, piece in ((100 + 8, c[8:16]), (100, c[:8]), (100 + 16, c[16:]))
        ],
        "canary",
    ),
    "canary cut over three tcp segments, no family whole": (
        lambda c: [
            ethernet(
                ipv4(
                    *(BOX_UP, FAR_ADDRESS, 6),
                    frames.tcp(BOX_UP, 1, FAR_ADDRESS, 2, piece, sequence=place),
                )
            )
            for place, piece in ((4294967290, c[:10]), (4, c[10:40]), (34, c[40:]))
        ],
        "cut into several packets",
    ),
    "canary cut over two fragments": (
        lambda c: [
            ethernet(ipv4(BOX_UP, FAR_ADDRESS, UDP, piece, flags=flags, offset=offset))
            for flags, offset, piece in ((0, 40, c[40:]), (1, 0, c[:40]))
        ],
        "canary",
    ),
}


@pytest.mark.parametrize("name", SLIPS)
def test_a_slip_is_named(name: str, oracle: Oracle, wires: Wires) -> None:
    build, words = SLIPS[name]
    watch(oracle, wires)
    emission = oracle.send(Udp(FAR_ADDRESS, 9))
    verdict = judge_with(oracle, wires, *build(emission.canary.numbered(0)))
    assert verdict.outcome is Outcome.LEAK, verdict.text()
    assert any(words in f"{leak.what}: {leak.why}" for leak in verdict.leaks), verdict.text()
    with pytest.raises(AssertionError, match=r"\.pcap"):
        verdict.assert_clean()


def test_what_the_box_really_forwards_is_named(oracle: Oracle, wires: Wires) -> None:
    """No frame made for the occasion: the client sends, the kernel routes."""
    watch(oracle, wires)
    wires.run("box", "sysctl", "-qw", "net.ipv4.ip_forward=1")
    emissions = oracle.battery([(FAR_ADDRESS, PORT)], resolver=FAR_ADDRESS)
    verdict = judge_with(oracle, wires)
    assert verdict.outcome is Outcome.LEAK
    seen = {leak.why.split(" number")[0] for leak in verdict.leaks}
    for emission in emissions[:-1]:  # The last one is of the odd kinds.
        assert f"canary {emission.name}" in seen, verdict.text()


def test_a_canary_that_was_to_be_stopped_comes_out(oracle: Oracle, wires: Wires) -> None:
    oracle.client(wires.client, "eth0", address=CLIENT_ADDRESS, gateway=BOX_LAN)
    oracle.watch(wires.far, "eth0", "X", allow=[Anything()], may_carry_canaries=True)
    oracle.send(Udp(FAR_ADDRESS, 7), expect=Expect.DELIVERED, name="open")
    oracle.send(Udp(FAR_ADDRESS, 7), expect=Expect.STOPPED, name="shut")
    verdict = oracle.judge()
    assert verdict.outcome is Outcome.LEAK
    assert {leak.why for leak in verdict.leaks} >= {"canary shut number 0 came out"}
    assert not any("open" in leak.why for leak in verdict.leaks)
    assert verdict.delivered["open"].count == 5
    assert verdict.delivered["open"].sources == (CLIENT_ADDRESS,)


def test_an_interface_that_appears_later_is_watched(oracle: Oracle, wires: Wires) -> None:
    watch(oracle, wires)
    oracle.watch(wires.far, ANY, "others")
    emission = oracle.send(Udp(FAR_ADDRESS, 9))
    wires.run("far", "ip", "link", "add", "late", "type", "veth", "peer", "name", "later")
    for link in ("late", "later"):
        wires.run("far", "ip", "link", "set", link, "up")
    with wires.far.open("rb") as far:
        frame = ethernet(packet(emission.canary.numbered(0)))
        assert inside(far.fileno(), partial(send_frame, "late", frame))
    verdict = judge_with(oracle, wires)
    assert verdict.outcome is Outcome.LEAK
    assert {leak.link for leak in verdict.leaks} == {"late", "later"}
    assert {leak.point for leak in verdict.leaks} == {"others"}


def test_an_error_about_the_tunnel_can_be_allowed(oracle: Oracle, wires: Wires) -> None:
    """A closed port answers with ICMP that quotes the tunnel's packet: legal if listed."""
    wires.run("box", "sysctl", "-qw", "net.ipv4.ip_forward=0")
    oracle.client(wires.client, "eth0", address=CLIENT_ADDRESS, gateway=BOX_LAN)
    arp = Arp(BOX_UP, FAR_ADDRESS)
    oracle.watch(wires.far, "eth0", "W1", allow=[TUNNEL, arp, IcmpErrorAbout(TUNNEL, FAR_ADDRESS)])
    oracle.watch(wires.box, "up0", "strict", allow=[TUNNEL, arp])
    oracle.send(Udp(FAR_ADDRESS, 9))
    with wires.box.open("rb") as box:
        inside(box.fileno(), _provoke_error)
    verdict = oracle.judge()
    assert (verdict.illegal["W1"], verdict.illegal["strict"]) == (0, 1), verdict.text()


def _provoke_error() -> None:
    with socket.socket(socket.AF_INET, socket.SOCK_DGRAM) as tunnel:
        tunnel.bind((BOX_UP, PORT))
        tunnel.settimeout(2)
        tunnel.connect((FAR_ADDRESS, PORT))
        tunnel.send(CIPHERTEXT)
        with pytest.raises(ConnectionRefusedError):
            tunnel.recv(1)
