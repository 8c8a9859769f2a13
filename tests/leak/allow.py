"""What may be on a wire: an allow-list, and things that must not occur in it all the same.

A frame is legal when one entry permits it. A frame that could not be taken apart is never
legal. Wires far out also *hide* things: an inner layer's outer header, or an address of the
inside, whatever frame they come in.
"""

from __future__ import annotations

import struct
from collections.abc import Sequence
from dataclasses import dataclass
from functools import cached_property
from ipaddress import IPv4Address, IPv4Network
from typing import Protocol

from tests.leak.frames import ARP, ICMP, IPV4, TCP, UDP, Packet, addresses, quoted


class Allowed(Protocol):
    """One entry of an allow-list."""

    def permits(self, data: bytes, packet: Packet) -> bool: ...


@dataclass(frozen=True)
class Flow:
    """One tuple and its exact reverse. An end is an address or a prefix; a port None is any.

    Fragments pass only when asked for; those behind the first are told by their addresses and
    protocol, because they have no ports.
    """

    source: str
    source_port: int | None
    destination: str
    destination_port: int | None
    protocol: int
    fragments: bool = False

    def permits(self, data: bytes, packet: Packet) -> bool:
        if packet.ethertype != IPV4 or packet.options or packet.protocol != self.protocol:
            return False
        if packet.fragment and not self.fragments:
            return False
        return self.carries(packet)

    def carries(self, packet: Packet) -> bool:
        """Whether addresses and ports are those of this flow, in either direction."""
        there, back = (packet.source, packet.destination), (packet.destination, packet.source)
        ports = (packet.source_port, packet.destination_port)
        return self._joins(*there, *ports) or self._joins(*back, *reversed(ports))

    def _joins(self, source: int, destination: int, source_port: int, port: int) -> bool:
        return (
            source & self._ends[0][1] == self._ends[0][0]
            and destination & self._ends[1][1] == self._ends[1][0]
            and (self.source_port is None or source_port in (self.source_port, -1))
            and (self.destination_port is None or port in (self.destination_port, -1))
        )

    @cached_property
    def _ends(self) -> tuple[tuple[int, int], tuple[int, int]]:
        return _bits(self.source), _bits(self.destination)


@dataclass(frozen=True)
class IcmpErrorAbout:
    """An ICMP error that quotes a packet of `flow`, sent by `sender` (any, when None).

    For path MTU discovery and closed ports on a wire that may have them.
    """

    flow: Flow
    sender: str | None = None

    def permits(self, data: bytes, packet: Packet) -> bool:
        if packet.ethertype != IPV4 or packet.options or packet.fragment:
            return False
        quote = quoted(data, packet)
        if quote is None or quote.problem or quote.protocol != self.flow.protocol:
            return False
        if self.sender is not None and packet.source != int(IPv4Address(self.sender)):
            return False
        return packet.destination == quote.source and self.flow.carries(quote)


@dataclass(frozen=True)
class Echo:
    """ICMP echo and its answers between two ends, each an address or a prefix."""

    first: str
    second: str

    def permits(self, data: bytes, packet: Packet) -> bool:
        if packet.end <= packet.body or data[packet.body] not in (0, 8):
            return False
        return Flow(self.first, None, self.second, None, ICMP).permits(data, packet)


@dataclass(frozen=True)
class Farewell:
    """The end of a TCP connection, with nothing in it, from one of these servers.

    The kernel of a server repeats it for as long as nobody confirms it, whatever has become of
    the chain that the connection belonged to. To a server only the reset is legal by this that
    says there is no such connection.
    """

    senders: frozenset[str]

    def permits(self, data: bytes, packet: Packet) -> bool:
        if packet.ethertype != IPV4 or packet.options or packet.fragment:
            return False
        if packet.protocol != TCP:
            return False
        header = data[packet.body : packet.end]
        if len(header) < 20 or len(header) != header[12] >> 4 << 2:
            return False
        if str(IPv4Address(packet.source)) in self.senders:
            return bool(header[13] & (_FIN | _RST))
        return str(IPv4Address(packet.destination)) in self.senders and bool(header[13] & _RST)


@dataclass(frozen=True)
class Late:
    """A datagram that one of these servers still sends into a tunnel of an earlier chain, which
    it has not given up yet, or the ICMP error that tells it so. Nothing to a server is legal by
    this but that error.
    """

    senders: frozenset[str]

    def permits(self, data: bytes, packet: Packet) -> bool:
        if packet.ethertype != IPV4 or packet.options or packet.fragment:
            return False
        quote = quoted(data, packet)
        if quote is None:
            return self._is_of_one(packet)
        return quote.source == packet.destination and self._is_of_one(quote)

    def _is_of_one(self, packet: Packet) -> bool:
        return packet.protocol == UDP and str(IPv4Address(packet.source)) in self.senders


_FIN, _RST = 1, 4
_NOBODY = 0


@dataclass(frozen=True)
class Arp:
    """ARP between exactly these two addresses, either asking, also as a probe from 0.0.0.0
    (RFC 5227), by which chainctl asks whether the router of the uplink is there.
    """

    first: str
    second: str

    def permits(self, data: bytes, packet: Packet) -> bool:
        ends = {packet.source, packet.destination}
        probe = _NOBODY in ends and bool(ends & self._ends)
        return packet.ethertype == ARP and (ends == self._ends or probe)

    @cached_property
    def _ends(self) -> set[int]:
        return {int(IPv4Address(self.first)), int(IPv4Address(self.second))}


@dataclass(frozen=True)
class Anything:
    """Whatever can be taken apart: a wire on which only canaries and hidden things count."""

    def permits(self, data: bytes, packet: Packet) -> bool:
        return True


def legal(data: bytes, packet: Packet, allow: Sequence[Allowed]) -> bool:
    return not packet.problem and any(entry.permits(data, packet) for entry in allow)


class Hidden(Protocol):
    """Something that must not show on a wire."""

    def betrayed_by(self, data: bytes, packet: Packet) -> str:
        """What was seen, or "" when nothing was."""
        ...


@dataclass(frozen=True)
class Layer:
    """The outer header of one hop's tunnel, told by destination, source port and port.

    These eight bytes stand side by side in IPv4 and UDP or TCP; that they occur by chance has a
    probability of 2^-64 per byte of traffic. On the wire of that hop they have to be seen, on
    a wire further out they would be a layer without its wrapping.
    """

    name: str
    destination: str
    source_port: int
    destination_port: int

    @cached_property
    def mark(self) -> bytes:
        ports = struct.pack("!HH", self.source_port, self.destination_port)
        return IPv4Address(self.destination).packed + ports

    def betrayed_by(self, data: bytes, packet: Packet) -> str:
        return f"layer {self.name} without its wrapping" if self.mark in data else ""


@dataclass(frozen=True)
class Inside:
    """Addresses that must not stand in any header in the clear, ICMP quotes included."""

    prefix: str

    def betrayed_by(self, data: bytes, packet: Packet) -> str:
        network, mask = self._bits
        for address in addresses(data, packet):
            if address & mask == network:
                return f"address {IPv4Address(address)} of the inside in the clear"
        return ""

    @cached_property
    def _bits(self) -> tuple[int, int]:
        return _bits(self.prefix)


def _bits(prefix: str) -> tuple[int, int]:
    network = IPv4Network(prefix)
    return int(network.network_address), int(network.netmask)
