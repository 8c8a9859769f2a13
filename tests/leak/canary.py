"""Canaries: marked packets, and the orders that say how to send them.

A mark is `family + identity + family`, 16 random digits each. Digits, because a resolver may
change the case of letters in a name; the family at both ends, because then one cut anywhere
leaves one whole. Behind the mark of every packet stands `-` and its number in 8 digits.
"""

from __future__ import annotations

import itertools
import re
import secrets
from collections.abc import Iterator
from dataclasses import dataclass, field
from enum import Enum
from typing import Any, Protocol

from tests.leak import frames

CUT = -1
"""The number of a canary of which only a part was seen."""

_DIGITS = 16
_identifications = itertools.count(1)


class Expect(Enum):
    """What should become of the canaries of one emission beyond the chain."""

    DELIVERED = "delivered"
    STOPPED = "stopped"
    EITHER = "either"


@dataclass(frozen=True)
class Canary:
    name: str
    mark: bytes

    def numbered(self, number: int) -> bytes:
        return self.mark + b"-%08d" % number


class Family:
    """All canaries of one oracle, found by one search."""

    def __init__(self) -> None:
        self.digits = _random_digits()
        self._names: dict[bytes, str] = {}
        family = re.escape(self.digits)
        self._whole = re.compile(family + rb"(\d{16})" + family + rb"-(\d{8})")

    def new(self, name: str) -> Canary:
        identity = _random_digits()
        self._names[identity] = name
        return Canary(name, self.digits + identity + self.digits)

    def sightings(self, data: bytes) -> Iterator[tuple[str, int]]:
        """(name, number) of every canary in `data`; a cut one as ("part of a canary", CUT)."""
        if self.digits not in data:
            return
        found = False
        for whole in self._whole.finditer(data):
            found = True
            yield self._names.get(whole[1], "unknown canary"), int(whole[2])
        if not found or len(self._whole.sub(b"", data).split(self.digits)) > 1:
            yield "part of a canary", CUT


def _random_digits() -> bytes:
    return b"%016d" % secrets.randbelow(10**_DIGITS)


@dataclass(frozen=True)
class Client:
    """Who sends: the addresses a frame built by hand needs."""

    interface: str
    address: str
    gateway: str


class Order(Protocol):
    """Something the sender can do; `sender.py` reads the result of `spelled`."""

    @property
    def destination(self) -> str: ...

    @property
    def port(self) -> int: ...

    @property
    def asked(self) -> int:
        """How many have to go out for the emission to count."""
        ...

    def spelled(self, canary: Canary, client: Client) -> dict[str, Any]: ...


@dataclass(frozen=True)
class Udp:
    """Datagrams from one socket, connected or not. `rate` is packets per second, 0 unbounded.

    A connected socket is not the same client: it is told of errors, keeps its route, and was
    what leaked in other products while rules were exchanged (40 of 40 restarts of gluetun).
    """

    destination: str
    port: int
    count: int = 5
    rate: float = 200
    connected: bool = False
    source_port: int = 0
    size: int = 0
    """Payload bytes at least."""

    @property
    def asked(self) -> int:
        return 1

    def spelled(self, canary: Canary, client: Client) -> dict[str, Any]:
        return _socket_order("udp", canary, vars(self))


@dataclass(frozen=True)
class Tcp:
    """A connection with a marked line every 1/`rate` seconds.

    Lines the kernel never put on the wire, because the window was shut, do not count as sent.
    """

    destination: str
    port: int
    count: int = 5
    rate: float = 200
    source_port: int = 0
    timeout: float = 3.0
    """For the connection to come about, in seconds."""

    @property
    def asked(self) -> int:
        return 1

    def spelled(self, canary: Canary, client: Client) -> dict[str, Any]:
        return _socket_order("tcp", canary, vars(self))


@dataclass(frozen=True)
class Dns:
    """Questions whose name has the mark as a label."""

    destination: str
    port: int = 53
    count: int = 5
    rate: float = 200
    suffix: str = "example"

    @property
    def asked(self) -> int:
        return 1

    def spelled(self, canary: Canary, client: Client) -> dict[str, Any]:
        return _socket_order("dns", canary, vars(self))


@dataclass(frozen=True)
class Frames:
    """Frames built by hand and sent past the client's own stack, `count` of each kind.

    `kinds` names entries of `KINDS`; `port` is where those with ports are aimed.
    """

    kinds: tuple[str, ...]
    destination: str
    port: int = 9
    count: int = 3
    rate: float = 500

    @property
    def asked(self) -> int:
        return len(self.kinds) * self.count

    def spelled(self, canary: Canary, client: Client) -> dict[str, Any]:
        target = _Target(client.address, self.destination, self.port)
        numbers = iter(range(len(self.kinds) * self.count))
        built = [
            KINDS[kind](target, canary.numbered(next(numbers)))
            for _ in range(self.count)
            for kind in self.kinds
        ]
        return {
            "kind": "frames",
            "interface": client.interface,
            "gateway": client.gateway,
            "rate": self.rate,
            # Pieces of one packet go out one after the other and count once.
            "packets": [[piece.hex() for piece in pieces] for pieces in built],
        }


def _socket_order(kind: str, canary: Canary, order: dict[str, Any]) -> dict[str, Any]:
    return {"kind": kind, "mark": canary.mark.decode(), **order}


@dataclass(frozen=True)
class _Target:
    source: str
    destination: str
    port: int

    def udp(self, data: bytes) -> bytes:
        return frames.udp(self.source, 40_001, self.destination, self.port, data)

    def ip(self, payload: bytes, protocol: int = frames.UDP, **more: Any) -> bytes:
        return frames.ipv4(self.source, self.destination, protocol, payload, **more)

    def to(self, destination: str) -> _Target:
        return _Target(self.source, destination, self.port)


def _icmp(target: _Target, data: bytes) -> list[bytes]:
    echo = frames.icmp(8, 0, b"\x4c\x4b\0\1", data)
    return [frames.ethernet(target.ip(echo, frames.ICMP))]


def _tcp_data(target: _Target, data: bytes) -> list[bytes]:
    return [_tcp(target, data, flags=0x18)]


def _tcp_syn(target: _Target, data: bytes) -> list[bytes]:
    return [_tcp(target, data, flags=0x02)]


def _tcp(target: _Target, data: bytes, *, flags: int) -> bytes:
    ends = (target.source, 40_002, target.destination, target.port)
    return frames.ethernet(target.ip(frames.tcp(*ends, data, flags=flags), frames.TCP))


def _udp(target: _Target, data: bytes) -> list[bytes]:
    return [frames.ethernet(target.ip(target.udp(data)))]


def _ttl_1(target: _Target, data: bytes) -> list[bytes]:
    return [frames.ethernet(target.ip(target.udp(data), ttl=1))]


def _big_df(target: _Target, data: bytes) -> list[bytes]:
    return [frames.ethernet(target.ip(target.udp(data.ljust(1472, b".")), flags=2))]


def _options(target: _Target, data: bytes) -> list[bytes]:
    record_route = bytes((7, 7, 4, 0, 0, 0, 0, 0))
    return [frames.ethernet(target.ip(target.udp(data), options=record_route))]


def _fragments(target: _Target, data: bytes) -> list[bytes]:
    whole = target.udp(data)
    identity = next(_identifications) & 0xFFFF
    first = target.ip(whole[:40], flags=1, identification=identity)
    rest = target.ip(whole[40:], offset=40, identification=identity)
    return [frames.ethernet(first), frames.ethernet(rest)]


def _late_fragment(target: _Target, data: bytes) -> list[bytes]:
    return [frames.ethernet(target.ip(data, offset=1480, identification=9))]


def _vlan(target: _Target, data: bytes) -> list[bytes]:
    return [frames.tagged(target.ip(target.udp(data)))]


def _double_vlan(target: _Target, data: bytes) -> list[bytes]:
    inner = frames.tagged(target.ip(target.udp(data)))
    return [frames.tagged(inner[14:], frames.VLAN, protocol=0x88A8)]


def _ipv6(target: _Target, data: bytes) -> list[bytes]:
    packet = frames.ipv6_udp("2001:db8::1", "2001:db8::2", target.port, data)
    return [frames.ethernet(packet, frames.IPV6)]


def _ipv6_multicast(target: _Target, data: bytes) -> list[bytes]:
    packet = frames.ipv6_udp("fe80::1", "ff02::1", target.port, data)
    to = bytes.fromhex("333300000001")
    return [frames.ethernet(packet, frames.IPV6, destination=to)]


def _multicast(target: _Target, data: bytes) -> list[bytes]:
    group = target.to("239.1.2.3")
    to = bytes.fromhex("01005e010203")
    return [frames.ethernet(group.ip(group.udp(data)), destination=to)]


def _broadcast(target: _Target, data: bytes) -> list[bytes]:
    everybody = target.to("255.255.255.255")
    packet = everybody.ip(everybody.udp(data))
    return [frames.ethernet(packet, destination=frames.BROADCAST)]


def _ip_in_ip(target: _Target, data: bytes) -> list[bytes]:
    return [frames.ethernet(target.ip(target.ip(target.udp(data)), 4))]


def _gre(target: _Target, data: bytes) -> list[bytes]:
    return [frames.ethernet(target.ip(b"\0\0\x08\0" + target.ip(target.udp(data)), 47))]


def _sctp(target: _Target, data: bytes) -> list[bytes]:
    ports = (40_003).to_bytes(2, "big") + target.port.to_bytes(2, "big")
    return [frames.ethernet(target.ip(ports + bytes(8) + data, 132))]


def _unknown_ethertype(target: _Target, data: bytes) -> list[bytes]:
    return [frames.ethernet(data, frames.EXPERIMENTAL)]


def _icmp_error(target: _Target, data: bytes) -> list[bytes]:
    error = frames.icmp(3, 3, bytes(4), target.ip(target.udp(data)))
    return [frames.ethernet(target.ip(error, frames.ICMP))]


KINDS = {
    "udp": _udp,
    "tcp-data": _tcp_data,
    "tcp-syn": _tcp_syn,
    "icmp": _icmp,
    "icmp-error": _icmp_error,
    "ttl-1": _ttl_1,
    "big-df": _big_df,
    "options": _options,
    "fragments": _fragments,
    "late-fragment": _late_fragment,
    "vlan": _vlan,
    "double-vlan": _double_vlan,
    "ipv6": _ipv6,
    "ipv6-multicast": _ipv6_multicast,
    "multicast": _multicast,
    "broadcast": _broadcast,
    "ip-in-ip": _ip_in_ip,
    "gre": _gre,
    "sctp": _sctp,
    "unknown-ethertype": _unknown_ethertype,
}
"""Every kind of frame the sender knows, each a list of pieces that carry one canary."""

PLAIN = ("udp", "tcp-data", "tcp-syn", "icmp", "fragments")
"""Kinds that a chain with no gate would carry as they are."""

ODD = tuple(kind for kind in KINDS if kind not in PLAIN)
"""Kinds that nothing should carry."""


@dataclass
class Emission:
    """What was sent under one name. `sent` is what the sender counted, not what it meant."""

    name: str
    canary: Canary
    expect: Expect
    destination: str
    asked: int
    """At least so many have to go out, or the emission proves nothing."""
    sent: int = 0
    errors: list[str] = field(default_factory=list)
