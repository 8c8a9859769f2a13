"""Asking the LAN who is there: IPv6 routers, and holders of the gateway's address.

Frames are sent and received whole (packet(7)), so that it works on a link on which the host
itself has no IPv6 or no address at all. Both functions work in the network namespace of the
calling thread, send at most three frames, and raise OSError when the link is gone or the
right to open packet sockets is missing. The parsers are pure and never raise on what comes in.
"""

from __future__ import annotations

import socket
import struct
import time
from collections.abc import Callable, Iterator
from ipaddress import IPv4Address, IPv6Address, IPv6Network
from typing import TypeVar

from chainctl.model.facts import Router

T = TypeVar("T")

_ETH_ARP = 0x0806
_ETH_IPV6 = 0x86DD
_ALL_NODES_MAC = bytes.fromhex("333300000001")
_ALL_ROUTERS_MAC = bytes.fromhex("333300000002")
_ALL_ROUTERS = IPv6Address("ff02::2")
_BROADCAST_MAC = b"\xff" * 6

_SOL_PACKET, _PACKET_ADD_MEMBERSHIP, _PACKET_MR_MULTICAST = 263, 1, 0
_TO_OTHERS = 3
"""PACKET_OTHERHOST: also what the kernel calls a frame of a VLAN nobody here listens to."""

_ICMPV6 = 58
_SOLICITATION, _ADVERTISEMENT, _PREFIX = 133, 134, 3


def listen_for_routers(link: str, seconds: float = 1.5) -> tuple[Router, ...]:
    """Ask for routers (RFC 4861 §6.3.7) and return the first that answers, or nothing.

    Silence proves little: a router may answer only every three seconds.
    """
    with _open(link, _ETH_IPV6) as sock:
        # With IPv6 off the kernel has not told the card to take this multicast address.
        member = struct.pack(
            "iHH8s", socket.if_nametoindex(link), _PACKET_MR_MULTICAST, 6, _ALL_NODES_MAC
        )
        sock.setsockopt(_SOL_PACKET, _PACKET_ADD_MEMBERSHIP, member)
        frame = router_solicitation(_own_mac(sock))
        router = _ask(sock, frame, times=2, seconds=seconds, parse=parse_advertisement)
    return () if router is None else (router,)


def find_holders(link: str, address: IPv4Address, seconds: float = 1.0) -> tuple[str, ...]:
    """The MAC address of whoever has `address` on the LAN, or nothing (ARP probe, RFC 5227)."""
    with _open(link, _ETH_ARP) as sock:
        probe = arp_probe(_own_mac(sock), address)
        holder = _ask(
            sock,
            probe,
            times=3,
            seconds=seconds,
            parse=lambda frame: parse_arp_sender(frame, address),
        )
    return () if holder is None else (holder,)


def _open(link: str, protocol: int) -> socket.socket:
    sock = socket.socket(socket.AF_PACKET, socket.SOCK_RAW, 0)
    try:
        sock.bind((link, protocol))
    except OSError:
        sock.close()
        raise
    return sock


def _own_mac(sock: socket.socket) -> bytes:
    mac: bytes = sock.getsockname()[4]
    return mac[:6].ljust(6, b"\0")


def _ask(
    sock: socket.socket,
    frame: bytes,
    *,
    times: int,
    seconds: float,
    parse: Callable[[bytes], T | None],
) -> T | None:
    """Send `frame` `times` over the first two thirds; the first answer that `parse` accepts."""
    begun = time.monotonic()
    for sent in range(times):
        sock.send(frame)
        last = sent == times - 1
        until = begun + (seconds if last else seconds * 2 / 3 * (sent + 1) / times)
        for received in _receive(sock, until):
            answer = parse(received)
            if answer is not None:
                return answer
    return None


def _receive(sock: socket.socket, until: float) -> Iterator[bytes]:
    while (left := until - time.monotonic()) > 0:
        sock.settimeout(left)
        try:
            frame, sender = sock.recvfrom(2048)
        except TimeoutError:
            return
        if sender[2] != _TO_OTHERS:
            yield frame


# Frames -----------------------------------------------------------------------------------


def router_solicitation(mac: bytes) -> bytes:
    """From the unspecified address, so that the answer comes by multicast (RFC 4861 §6.2.6)."""
    source, target = bytes(16), _ALL_ROUTERS.packed
    message = struct.pack("!BBHI", _SOLICITATION, 0, 0, 0)
    message = message[:2] + struct.pack("!H", checksum(source, target, message)) + message[4:]
    header = struct.pack("!IHBB", 6 << 28, len(message), _ICMPV6, 255) + source + target
    return _ALL_ROUTERS_MAC + mac + struct.pack("!H", _ETH_IPV6) + header + message


def checksum(source: bytes, target: bytes, message: bytes) -> int:
    """The checksum of ICMPv6 (RFC 8200 §8.1); 0 over a message that carries a right one."""
    data = source + target + struct.pack("!II", len(message), _ICMPV6) + message
    data += b"\0" * (len(data) % 2)
    total: int = sum(struct.unpack(f"!{len(data) // 2}H", data))
    while total > 0xFFFF:
        total = (total & 0xFFFF) + (total >> 16)
    return ~total & 0xFFFF


def parse_advertisement(frame: bytes) -> Router | None:
    """The router in an Ethernet frame; None unless it is valid by RFC 4861 §6.1.2."""
    if len(frame) < 70 or frame[12:14] != struct.pack("!H", _ETH_IPV6):
        return None
    length, protocol, hop_limit = struct.unpack("!HBB", frame[18:22])
    source, target, message = frame[22:38], frame[38:54], frame[54 : 54 + length]
    if protocol != _ICMPV6 or hop_limit != 255 or len(message) < max(length, 16):
        return None
    if message[:2] != bytes([_ADVERTISEMENT, 0]) or checksum(source, target, message):
        return None
    address = IPv6Address(source)
    if not address.is_link_local:
        return None
    lifetime = int.from_bytes(message[6:8])
    return Router(address, _text(frame[6:12]), lifetime, tuple(_prefixes(message[16:])))


def _prefixes(options: bytes) -> Iterator[IPv6Network]:
    while len(options) >= 8:
        kind, size = options[0], options[1] * 8
        if size == 0:
            return
        if kind == _PREFIX and size == 32 and len(options) >= 32 and options[2] <= 128:
            yield IPv6Network((options[16:32], options[2]), strict=False)
        options = options[size:]


def arp_probe(mac: bytes, address: IPv4Address) -> bytes:
    """A question that names no sender address, so that no neighbour learns a wrong one."""
    header = struct.pack("!HHHBBH", _ETH_ARP, 1, 0x0800, 6, 4, 1)
    return _BROADCAST_MAC + mac + header + mac + bytes(4) + bytes(6) + address.packed


def parse_arp_sender(frame: bytes, address: IPv4Address) -> str | None:
    """The MAC address that claims `address` in this ARP frame."""
    ipv4_over_ethernet = struct.pack("!HHHBB", _ETH_ARP, 1, 0x0800, 6, 4)
    if len(frame) < 42 or frame[12:20] != ipv4_over_ethernet or frame[28:32] != address.packed:
        return None
    return _text(frame[22:28])


def _text(mac: bytes) -> str:
    return mac.hex(":")
