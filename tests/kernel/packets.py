"""Frames as bytes, byte by byte, for BPF_PROG_TEST_RUN."""

from __future__ import annotations

import struct
from ipaddress import IPv4Address

ETHERNET = b"\x02\0\0\0\0\x01\x02\0\0\0\0\x02"
MORE = 0x2000


def frame(packet: bytes, ethertype: int = 0x0800) -> bytes:
    return ETHERNET + struct.pack("!H", ethertype) + packet


def ipv4(
    source: str | IPv4Address,
    destination: str | IPv4Address,
    protocol: int,
    payload: bytes,
    *,
    fragment: int = 0,
    number: int = 7,
    options: bytes = b"",
    version: int = 4,
    total: int | None = None,
) -> bytes:
    """`fragment`: flags and offset in units of 8 bytes; `total`: a length that may be a lie."""
    words = 5 + len(options) // 4
    size = 4 * words + len(payload) if total is None else total
    ends = IPv4Address(source).packed + IPv4Address(destination).packed
    head = struct.pack(
        "!BBHHHBBH", version << 4 | words, 0, size, number, fragment, 64, protocol, 0
    )
    return head + ends + options + payload


def udp(source_port: int, destination_port: int, data: bytes = b"") -> bytes:
    return struct.pack("!HHHH", source_port, destination_port, 8 + len(data), 0) + data


def tcp(source_port: int, destination_port: int, data: bytes = b"", *, words: int = 5) -> bytes:
    head = struct.pack("!HHIIBBHHH", source_port, destination_port, 1, 1, words << 4, 2, 512, 0, 0)
    return head + b"\x01" * (4 * (words - 5)) + data


def echo(number: int, *, reply: bool = False, data: bytes = b"") -> bytes:
    return struct.pack("!BBHHH", 0 if reply else 8, 0, 0, number, 1) + data


def icmp_error(quoted: bytes, *, kind: int = 3, code: int = 4, quoted_bytes: int = 28) -> bytes:
    return struct.pack("!BBHI", kind, code, 0, 1280) + quoted[:quoted_bytes]
