"""The oracle's pure half: frames, allow-lists, streams, canaries, the weighing."""

from __future__ import annotations

import random
import struct
from ipaddress import IPv4Address
from itertools import pairwise
from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st

from tests.leak import frames
from tests.leak.allow import (
    Anything,
    Arp,
    Echo,
    Farewell,
    Flow,
    IcmpErrorAbout,
    Inside,
    Late,
    Layer,
    legal,
)
from tests.leak.canary import CUT, KINDS, Client, Family, Frames
from tests.leak.frames import ICMP, TCP, UDP, Packet, ethernet, icmp, ipv4, parse, tagged, udp
from tests.leak.pcap import write_pcap
from tests.leak.streams import Streams
from tests.leak.verdict import Evidence, Outcome, weigh

A, B, C = "10.1.0.1", "10.2.0.2", "10.3.0.3"
FLOW = Flow(A, 1000, B, 2000, UDP)


def datagram(
    source: str = A, source_port: int = 1000, destination: str = B, port: int = 2000
) -> bytes:
    ends = (source, source_port, destination, port)
    return ethernet(ipv4(source, destination, UDP, udp(*ends, b"payload")))


def is_legal(frame: bytes, *allow: object) -> bool:
    return legal(frame, parse(frame), allow)  # type: ignore[arg-type]


@given(st.binary(max_size=120), st.booleans())
def test_parse_takes_any_bytes(data: bytes, is_ethernet: bool) -> None:
    packet = parse(data, ethernet=is_ethernet)
    assert not (packet.problem and legal(data, packet, [Anything()]))
    list(frames.addresses(data, packet))


@given(st.binary(max_size=100))
def test_parse_takes_any_ipv4(data: bytes) -> None:
    parse(ethernet(b"\x45" + data))


@given(st.integers(0, len(datagram()) - 1), st.integers(1, 255))
def test_no_changed_byte_of_the_headers_is_legal_elsewhere(place: int, change: int) -> None:
    """What is still legal after a change has the same ends, protocol and lengths."""
    good = datagram()
    bad = bytearray(good)
    bad[place] ^= change
    packet = parse(bytes(bad))
    if legal(bytes(bad), packet, [FLOW]):
        before = parse(good)
        assert (packet.source, packet.destination) == (before.source, before.destination)
        assert (packet.source_port, packet.destination_port) == (1000, 2000)
        assert (packet.protocol, packet.body, packet.end) == (UDP, before.body, before.end)
        assert not packet.fragment


@pytest.mark.parametrize(
    ("frame", "permitted"),
    [
        (datagram(), True),
        (datagram(B, 2000, A, 1000), True),
        (datagram(source_port=1001), False),
        (datagram(port=2001), False),
        (datagram(source=C), False),
        (datagram(destination=C), False),
        (datagram(A, 2000, B, 1000), False),
        (datagram(B, 1000, A, 2000), False),
        (tagged(datagram()[14:]), False),
        (ethernet(ipv4(A, B, UDP, bytes(8), flags=1)), False),
        (ethernet(ipv4(A, B, UDP, bytes(8), offset=8)), False),
        (datagram() + bytes(10), True),
        (datagram() + b"\0x", False),
        (datagram()[:-1], False),
        (ethernet(ipv4(A, B, UDP, b"\x03\xe8\x07\xd0\0\x07\0\0")), False),
        (ethernet(ipv4(A, B, TCP, frames.tcp(A, 1000, B, 2000, b""))), False),
        (b"short", False),
        (ethernet(b"\x46" + datagram()[15:]), False),
    ],
)
def test_a_flow_is_one_tuple_and_its_reverse(frame: bytes, permitted: bool) -> None:
    assert is_legal(frame, FLOW) is permitted


def test_fragments_of_a_flow_pass_only_when_asked_for() -> None:
    flow = Flow(A, 1000, B, 2000, UDP, fragments=True)
    first = ethernet(ipv4(A, B, UDP, udp(A, 1000, B, 2000, bytes(40))[:24], flags=1))
    assert is_legal(first, flow)
    assert is_legal(ethernet(ipv4(A, B, UDP, bytes(24), offset=24)), flow)
    assert not is_legal(ethernet(ipv4(A, C, UDP, bytes(24), offset=24)), flow)
    other = ethernet(ipv4(A, B, UDP, udp(A, 1001, B, 2000, bytes(40))[:24], flags=1))
    assert not is_legal(other, flow)


def test_prefixes_and_any_port() -> None:
    flow = Flow("10.1.0.0/16", None, "0.0.0.0/0", 2000, UDP)
    assert is_legal(datagram(source="10.1.9.9", source_port=7), flow)
    assert not is_legal(datagram(source="10.4.9.9"), flow)


def test_an_error_is_about_the_flow_only_when_it_quotes_it() -> None:
    allowed = IcmpErrorAbout(FLOW, C)

    def error(sender: str, to: str, quote: bytes, kind: int = 3) -> bytes:
        return ethernet(ipv4(sender, to, ICMP, icmp(kind, 4, bytes(4), quote)))

    quote = datagram()[14 : 14 + 28]
    assert is_legal(error(C, A, quote), allowed)
    assert not is_legal(error(B, A, quote), allowed)
    assert not is_legal(error(C, B, quote), allowed)
    assert not is_legal(error(C, A, datagram(port=1)[14:42]), allowed)
    assert not is_legal(error(C, A, quote, kind=8), allowed)
    assert not is_legal(error(C, A, quote[:20]), allowed)


def test_echo_is_no_error_and_no_other_pair() -> None:
    ping = icmp(8, 0, bytes(4), b"x")
    assert is_legal(ethernet(ipv4(A, B, ICMP, ping)), Echo(A, B))
    assert is_legal(ethernet(ipv4(B, A, ICMP, icmp(0, 0, bytes(4), b"x"))), Echo(A, B))
    assert not is_legal(ethernet(ipv4(A, C, ICMP, ping)), Echo(A, B))
    assert not is_legal(ethernet(ipv4(A, B, ICMP, icmp(13, 0, bytes(4), b"x"))), Echo(A, B))


def test_arp_is_between_two() -> None:
    def asks(source: str, destination: str) -> bytes:
        return ethernet(frames.arp_request(bytes(6), source, destination), frames.ARP)

    assert is_legal(asks(A, B), Arp(A, B))
    assert is_legal(asks(B, A), Arp(A, B))
    assert not is_legal(asks(A, C), Arp(A, B))
    assert not is_legal(asks(A, A), Arp(A, B))
    assert not is_legal(asks(A, B) + b"x", Arp(A, B))


def test_hidden_things_betray_themselves() -> None:
    inner = ipv4(A, B, UDP, udp(A, 1000, B, 2000, b""))
    outer = ethernet(ipv4(C, C, UDP, udp(C, 1, C, 2, inner)))
    layer = Layer("inner", B, 1000, 2000)
    assert "inner" in layer.betrayed_by(outer, parse(outer))
    assert not layer.betrayed_by(datagram(port=1), parse(datagram(port=1)))
    inside = Inside("10.1.0.0/16")
    assert inside.betrayed_by(datagram(), parse(datagram()))
    assert not inside.betrayed_by(outer, parse(outer))
    quote = ethernet(ipv4(C, C, ICMP, icmp(11, 0, bytes(4), inner)))
    assert "10.1.0.1" in inside.betrayed_by(quote, parse(quote))


def test_a_canary_is_told_by_name_and_number() -> None:
    family = Family()
    first, second = family.new("first"), family.new("second")
    data = b"x" + first.numbered(7) + b"y" + second.numbered(12_345_678)
    assert list(family.sightings(data)) == [("first", 7), ("second", 12_345_678)]
    assert not list(Family().sightings(data))


@given(st.integers(0, 48))
def test_a_cut_canary_is_seen_on_one_side(cut: int) -> None:
    family = Family()
    data = family.new("one").numbered(1)
    sides = [list(family.sightings(side)) for side in (data[:cut], data[cut:])]
    assert ("part of a canary", CUT) in sides[0] + sides[1] or cut == 0


def test_a_whole_canary_does_not_hide_a_cut_one() -> None:
    family = Family()
    one = family.new("one")
    seen = list(family.sightings(one.numbered(1) + one.mark[:20]))
    assert seen == [("one", 1), ("part of a canary", CUT)]


@given(st.lists(st.integers(1, 299), max_size=12), st.integers(0, 2**32 - 1), st.randoms())
def test_a_tcp_stream_is_joined_whatever_the_cuts(
    cuts: list[int], begin: int, chance: random.Random
) -> None:
    data = bytes(range(256)) + bytes(44)
    places = sorted({0, *cuts, len(data)})
    pieces = [(a, data[a:b]) for a, b in pairwise(places)]
    pieces += pieces[:2]  # Sent again.
    chance.shuffle(pieces)
    streams = Streams()
    for number, (place, piece) in enumerate(pieces):
        segment = frames.tcp(A, 1, B, 2, piece, sequence=(begin + place) % 2**32)
        frame = ethernet(ipv4(A, B, TCP, segment))
        streams.add(float(number), frame, parse(frame))
    assert [joined for _, joined in streams.joined()] == [data]


def test_pieces_beside_a_gap_are_not_joined() -> None:
    streams = Streams()
    for place, piece in ((0, b"ab"), (4, b"ef"), (2, b"")):
        frame = ethernet(ipv4(A, B, TCP, frames.tcp(A, 1, B, 2, piece, sequence=place)))
        streams.add(0.0, frame, parse(frame))
    assert [joined for _, joined in streams.joined()] == [b"ab", b"ef"]


@pytest.mark.parametrize("kind", KINDS)
def test_every_kind_of_frame_carries_its_canary(kind: str) -> None:
    family = Family()
    order = Frames((kind,), B, count=2)
    spelled = order.spelled(family.new(kind), Client("eth0", A, C))
    assert order.asked == len(spelled["packets"]) == 2
    for number, pieces in enumerate(spelled["packets"]):
        # The headers between two fragments do not belong to what is joined.
        skipped = 14 + 20 if len(pieces) > 1 else 0
        whole = b"".join(bytes.fromhex(piece)[skipped:] for piece in pieces)
        assert (kind, number) in list(family.sightings(whole)), kind


def test_checksums_are_what_a_receiver_computes() -> None:
    packet = ipv4(A, B, UDP, udp(A, 1, B, 2, b"odd"))
    assert frames.checksum(packet[:20]) == 0


@pytest.mark.parametrize(
    ("evidence", "outcome"),
    [
        (Evidence([], [], {"W1": 0}, {"W1": 0}), Outcome.PASS),
        (Evidence([], ["no control"], {"W1": 0}, {"W1": 0}), Outcome.ERROR),
        (Evidence(["drops"], ["no control"], {"W1": 0}, {"W1": 0}), Outcome.INVALID),
        (Evidence(["drops"], ["no control"], {"W1": 1}, {"W1": 0}), Outcome.LEAK),
        (Evidence([], [], {"W1": 0}, {"W1": 1}), Outcome.LEAK),
    ],
)
def test_the_weighing(evidence: Evidence, outcome: Outcome) -> None:
    assert weigh(evidence)[0] is outcome


def test_a_pcap_has_one_kind_of_link(tmp_path: Path) -> None:
    path = tmp_path / "two.pcap"
    packet = datagram()[14:]
    both = [
        frames.Frame(1.5, 1, True, True, datagram()),
        frames.Frame(2.5, 2, True, False, packet),
    ]
    write_pcap(path, both)
    written = path.read_bytes()
    assert written[:4] == b"\x4d\x3c\xb2\xa1"
    assert len(written) == 24 + 2 * (16 + len(datagram()))
    assert written.count(packet) == 2


def test_a_packet_of_a_tun_device_has_no_ethernet_header() -> None:
    packet = parse(datagram()[14:], ethernet=False)
    assert (packet.source_port, packet.destination_port, packet.body) == (1000, 2000, 20)
    assert parse(b"\x60" + bytes(39), ethernet=False) == Packet(frames.IPV6)
    assert not legal(b"", parse(b"", ethernet=False), [FLOW])


@pytest.mark.parametrize(
    ("source", "destination", "flags", "payload", "may"),
    [
        ("5.8.0.10", "5.7.0.10", 0x11, b"", True),
        ("5.8.0.10", "5.7.0.10", 0x04, b"", True),
        ("5.8.0.10", "5.7.0.10", 0x10, b"", False),
        ("5.8.0.10", "5.7.0.10", 0x11, b"data", False),
        ("192.0.2.2", "5.7.0.10", 0x11, b"", False),
        ("5.7.0.10", "5.8.0.10", 0x04, b"", True),
        ("5.7.0.10", "5.8.0.10", 0x11, b"", False),
        ("5.7.0.10", "5.8.0.10", 0x04, b"data", False),
        ("5.7.0.10", "5.6.0.10", 0x04, b"", False),
    ],
)
def test_a_server_may_say_goodbye_and_be_told_that_nobody_is_there(
    source: str, destination: str, flags: int, payload: bytes, may: bool
) -> None:
    segment = struct.pack(">HHIIBBHHH", 443, 20002, 1, 1, 5 << 4, flags, 0, 0, 0) + payload
    ends = (IPv4Address(one).packed for one in (source, destination))
    head = struct.pack(">BBHHHBBH4s4s", 0x45, 0, 20 + len(segment), 0, 0, 64, 6, 0, *ends)
    frame = bytes(12) + b"\x08\x00" + head + segment
    assert Farewell(frozenset(["5.8.0.10"])).permits(frame, parse(frame)) is may


def test_a_server_of_an_earlier_chain_may_send_and_be_told_that_nobody_is_there() -> None:
    def unreachable(frame: bytes) -> bytes:
        ends = parse(frame)
        error = icmp(3, 3, bytes(4), frame[14 : 14 + 28])
        return ethernet(ipv4(str(IPv4Address(ends.destination)), A, ICMP, error))

    late = Late(frozenset([A]))
    sent, answer = datagram(), datagram(source=B, destination=A)
    judged = {frame: late.permits(frame, parse(frame)) for frame in (sent, answer)}
    assert judged == {sent: True, answer: False}
    assert late.permits(unreachable(sent), parse(unreachable(sent)))
    assert not late.permits(unreachable(answer), parse(unreachable(answer)))
