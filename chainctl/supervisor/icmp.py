"""ICMP echo and what may come back for it: bytes in, values out, no socket (RFC 792)."""

from __future__ import annotations

import struct
from typing import NamedTuple

_ECHO_REPLY, _UNREACHABLE, _ECHO, _TIME_EXCEEDED = 0, 3, 8, 11
_HEADER = struct.Struct("!BBHHH")
_IP_AND_ICMP = 28
"""Bytes of an IPv4 header without options and an ICMP header."""


class Answer(NamedTuple):
    """Something came back for echo number `sequence` of `identifier`."""

    identifier: int
    sequence: int


def render_echo(identifier: int, sequence: int, size: int = _IP_AND_ICMP) -> bytes:
    """An echo request that makes an IPv4 packet of `size` bytes (at least 28)."""
    payload = bytes(max(0, size - _IP_AND_ICMP))
    head = _HEADER.pack(_ECHO, 0, 0, identifier, sequence)
    return _HEADER.pack(_ECHO, 0, _checksum(head + payload), identifier, sequence) + payload


def parse_answer(packet: bytes) -> Answer | None:
    """What a raw ICMP socket received (IPv4 header included); None when it is not for us.

    An error counts as an answer: whoever sent it got the echo and could send back.
    """
    if len(packet) < 20:
        return None
    body = packet[(packet[0] & 0xF) * 4 :]
    if len(body) < 8:
        return None
    kind, _, _, identifier, sequence = _HEADER.unpack_from(body)
    if kind == _ECHO_REPLY:
        return Answer(identifier, sequence)
    quoted = body[8:]
    if kind in (_UNREACHABLE, _TIME_EXCEEDED) and len(quoted) >= 20:
        inner = quoted[(quoted[0] & 0xF) * 4 :]
        if quoted[9] == 1 and len(inner) >= 8 and inner[0] == _ECHO:
            _, _, _, identifier, sequence = _HEADER.unpack_from(inner)
            return Answer(identifier, sequence)
    return None


def _checksum(data: bytes) -> int:
    """The Internet checksum (RFC 1071)."""
    if len(data) % 2:
        data += b"\0"
    total: int = sum(struct.unpack(f"!{len(data) // 2}H", data))
    while total >> 16:
        total = (total & 0xFFFF) + (total >> 16)
    return ~total & 0xFFFF
