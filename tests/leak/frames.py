"""Frames as bytes: taking them apart, and building those no socket would send.

`parse` understands IPv4 over Ethernet (or alone, from a TUN device) exactly and nothing else:
what it does not understand carries a `problem`, and a problem is never legal. Layouts: RFC 791,
792, 768, 9293, 826; IEEE 802.1Q.
"""

from __future__ import annotations

import struct
from collections.abc import Iterator
from ipaddress import IPv4Address, IPv6Address
from typing import NamedTuple

IPV4 = 0x0800
ARP = 0x0806
VLAN = 0x8100
IPV6 = 0x86DD
EXPERIMENTAL = 0x88B5
"""IEEE's ethertype for local experiments: no protocol, so nobody answers or forwards it."""

ICMP = 1
TCP = 6
UDP = 17

BROADCAST = b"\xff" * 6
NO_MAC = bytes(6)
"""A builder's place for an address that is not known yet."""

_IP = struct.Struct("!BBHHHBBHII")
_PORTS = struct.Struct("!HH")
_ICMP_ERRORS = (3, 4, 5, 11, 12)


class Frame(NamedTuple):
    """What a capture saw: when (seconds since 1970), on which interface, which way."""

    when: float
    interface: int
    outgoing: bool
    ethernet: bool
    data: bytes


class Packet(NamedTuple):
    """A frame taken apart. Ports are -1 where there are none, addresses 0 unless IPv4 or ARP."""

    ethertype: int
    problem: str = ""
    source: int = 0
    destination: int = 0
    protocol: int = -1
    source_port: int = -1
    destination_port: int = -1
    options: bool = False
    fragment: bool = False
    offset: int = 0
    """Of a fragment, in bytes."""
    identification: int = 0
    body: int = 0
    """Where the payload of IPv4 begins in the frame."""
    end: int = 0


def parse(data: bytes, *, ethernet: bool = True) -> Packet:
    """Take a frame apart; never raises."""
    if not ethernet:
        version = data[0] >> 4 if data else 0
        return _parse_ipv4(data, 0) if version == 4 else Packet(IPV6 if version == 6 else 0)
    if len(data) < 14:
        return Packet(0, "shorter than an Ethernet header")
    ethertype = data[12] << 8 | data[13]
    if ethertype == IPV4:
        return _parse_ipv4(data, 14)
    if ethertype == ARP:
        return _parse_arp(data)
    return Packet(ethertype)


def quoted(data: bytes, packet: Packet) -> Packet | None:
    """The packet an ICMP error is about, as far as it is quoted; None if this is no error."""
    start = packet.body
    if packet.protocol != ICMP or packet.fragment or packet.end - start < 8 + 20:
        return None
    if data[start] not in _ICMP_ERRORS:
        return None
    return _parse_ipv4(data[: packet.end], start + 8, whole=False)


def addresses(data: bytes, packet: Packet) -> Iterator[int]:
    """Every IPv4 address that stands in a header, those in ICMP quotes included."""
    if packet.ethertype in (IPV4, ARP) and not packet.problem:
        yield packet.source
        yield packet.destination
        quote = quoted(data, packet) if packet.ethertype == IPV4 else None
        if quote is not None:
            yield quote.source
            yield quote.destination


def describe(packet: Packet) -> str:
    """One line for a person."""
    if packet.ethertype == ARP:
        return f"arp {IPv4Address(packet.source)} asks or answers {IPv4Address(packet.destination)}"
    if packet.ethertype != IPV4:
        names = {IPV6: "IPv6", VLAN: "VLAN-tagged", 0x88A8: "VLAN-tagged (802.1ad)"}
        return names.get(packet.ethertype, f"ethertype {packet.ethertype:#06x}")
    name = {ICMP: "icmp", TCP: "tcp", UDP: "udp"}.get(packet.protocol, f"ip/{packet.protocol}")
    ends = [str(IPv4Address(packet.source)), str(IPv4Address(packet.destination))]
    if packet.source_port >= 0:
        ends = [f"{ends[0]}:{packet.source_port}", f"{ends[1]}:{packet.destination_port}"]
    notes = [
        *(["fragment"] if packet.fragment else []),
        *(["options"] if packet.options else []),
        *([packet.problem] if packet.problem else []),
    ]
    return f"{name} {' > '.join(ends)}{' (' + ', '.join(notes) + ')' if notes else ''}"


def _parse_ipv4(data: bytes, start: int, *, whole: bool = True) -> Packet:
    if len(data) < start + 20:
        return Packet(IPV4, "shorter than an IPv4 header")
    first, _, total, identification, flags, _, protocol, _, source, destination = _IP.unpack_from(
        data, start
    )
    header = (first & 15) * 4
    body, end = start + header, start + total
    if first >> 4 != 4 or header < 20 or total < header or (whole and end > len(data)):
        return Packet(IPV4, "IPv4 header contradicts itself", source, destination, protocol)
    end = min(end, len(data))
    problem = "bytes behind the packet" if whole and any(data[end:]) else ""
    ports = (-1, -1)
    if protocol in (TCP, UDP) and not flags & 0x1FFF:
        if end - body < 4:
            problem = problem or "no ports"
        else:
            ports = _PORTS.unpack_from(data, body)
            if whole and protocol == UDP and not flags & 0x3FFF:
                problem = problem or _udp_problem(data, body, end)
    return Packet(
        *(IPV4, problem, source, destination, protocol, *ports, header > 20),
        *(bool(flags & 0x3FFF), (flags & 0x1FFF) * 8, identification, body, end),
    )


def _udp_problem(data: bytes, body: int, end: int) -> str:
    if end - body < 8:
        return "shorter than a UDP header"
    return "" if data[body + 4] << 8 | data[body + 5] == end - body else "UDP length is wrong"


def _parse_arp(data: bytes) -> Packet:
    if len(data) < 14 + 28 or data[14:20] != b"\0\1\x08\0\6\4" or data[20:22] not in _ARP_WORDS:
        return Packet(ARP, "not an ARP question or answer for IPv4")
    if any(data[42:]):
        return Packet(ARP, "bytes behind the ARP packet")
    source, destination = struct.unpack_from("!I6xI", data, 28)
    return Packet(ARP, "", source, destination)


_ARP_WORDS = (b"\0\1", b"\0\2")


# Building: everything below returns bytes on the wire, addresses are texts.


def ethernet(payload: bytes, ethertype: int = IPV4, *, destination: bytes = NO_MAC) -> bytes:
    """A frame whose source (and, unless given, destination) the sender fills in."""
    return destination + NO_MAC + struct.pack("!H", ethertype) + payload


def tagged(payload: bytes, ethertype: int = IPV4, *, vlan: int = 7, protocol: int = VLAN) -> bytes:
    return ethernet(struct.pack("!HH", vlan, ethertype) + payload, protocol)


def ipv4(
    source: str,
    destination: str,
    protocol: int,
    payload: bytes,
    *,
    ttl: int = 64,
    flags: int = 0,
    offset: int = 0,
    identification: int = 1,
    options: bytes = b"",
) -> bytes:
    """A packet; `flags` is 2 for DF and 1 for MF, `offset` counts bytes."""
    header_words = 5 + len(options) // 4
    fields = (
        *(0x40 | header_words, 0, header_words * 4 + len(payload), identification),
        *(flags << 13 | offset // 8, ttl, protocol),
    )
    ends = (int(IPv4Address(source)), int(IPv4Address(destination)))
    blank = _IP.pack(*fields, 0, *ends) + options
    return _IP.pack(*fields, checksum(blank), *ends) + options + payload


def udp(
    source: str, source_port: int, destination: str, destination_port: int, data: bytes
) -> bytes:
    header = struct.pack("!HHHH", source_port, destination_port, 8 + len(data), 0)
    total = checksum(_pseudo(source, destination, UDP, 8 + len(data)) + header + data)
    return header[:6] + struct.pack("!H", total or 0xFFFF) + data


def tcp(
    source: str,
    source_port: int,
    destination: str,
    destination_port: int,
    data: bytes,
    *,
    sequence: int = 1,
    flags: int = 0x18,
) -> bytes:
    """A segment of no connection; PSH and ACK unless `flags` says otherwise."""
    parts = (source_port, destination_port, sequence, 1, 0x50, flags, 65535)
    header = struct.pack("!HHIIBBH", *parts) + bytes(4)
    total = checksum(_pseudo(source, destination, TCP, 20 + len(data)) + header + data)
    return header[:16] + struct.pack("!HH", total, 0) + data


def icmp(kind: int, code: int, rest: bytes, data: bytes) -> bytes:
    """`rest` is the second word of the header, 4 bytes."""
    blank = struct.pack("!BBH", kind, code, 0) + rest + data
    return struct.pack("!BBH", kind, code, checksum(blank)) + rest + data


def ipv6_udp(source: str, destination: str, port: int, data: bytes) -> bytes:
    ends = IPv6Address(source).packed + IPv6Address(destination).packed
    header = struct.pack("!HHHH", port, port, 8 + len(data), 0)
    total = checksum(ends + struct.pack("!IHBB", 8 + len(data), 0, 0, UDP) + header + data)
    segment = header[:6] + struct.pack("!H", total or 0xFFFF) + data
    return struct.pack("!IHBB", 6 << 28, len(segment), UDP, 64) + ends + segment


def arp_request(source_mac: bytes, source: str, destination: str) -> bytes:
    ends = (IPv4Address(source).packed, IPv4Address(destination).packed)
    return struct.pack("!HHBBH", 1, IPV4, 6, 4, 1) + source_mac + ends[0] + NO_MAC + ends[1]


def checksum(data: bytes) -> int:
    """The Internet checksum (RFC 1071)."""
    padded = data + b"\0" * (len(data) % 2)
    total: int = sum(struct.unpack(f"!{len(padded) // 2}H", padded))
    while total >> 16:
        total = (total & 0xFFFF) + (total >> 16)
    return ~total & 0xFFFF


def _pseudo(source: str, destination: str, protocol: int, length: int) -> bytes:
    ends = IPv4Address(source).packed + IPv4Address(destination).packed
    return ends + struct.pack("!HH", protocol, length)
