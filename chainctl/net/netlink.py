"""Netlink messages by hand (netlink(7)), where much is read or one thing is said often.

A socket belongs to the namespace in which it was opened. What the kernel refuses is an OSError.
"""

from __future__ import annotations

import os
import socket
import struct
from collections.abc import Iterator
from typing import NamedTuple

REQUEST, ACK, DUMP = 0x1, 0x4, 0x300
CREATE = 0x400
NETFILTER = 12
NFTABLES = 10
"""The subsystem of a message about nftables (linux/netfilter/nfnetlink.h), in its upper byte."""

_NLMSG_ERROR, _NLMSG_DONE = 2, 3
_DUMP_INTR = 0x10
_HEADER = struct.Struct("=IHHII")
_ATTRIBUTE = struct.Struct("=HH")
_NUMBER = struct.Struct("=i")
_KIND = 0x3FFF
"""Without the bits that say "nested" and "big-endian"."""
_ROOM = 1 << 18
"""Bytes: more than the kernel puts into one answer of a dump (NLMSG_GOODSIZE and 32 KiB)."""
_PATIENCE = 5.0
_ATTEMPTS = 10


class Message(NamedTuple):
    kind: int
    flags: int
    sender: int
    """The address of the socket that asked for what this is about; 0: nobody did."""
    body: bytes


def open_netlink(protocol: int = socket.NETLINK_ROUTE) -> socket.socket:
    """In the namespace of the calling thread; whoever opens it closes it."""
    link = socket.socket(socket.AF_NETLINK, socket.SOCK_RAW | socket.SOCK_CLOEXEC, protocol)
    link.settimeout(_PATIENCE)
    return link


def pack_message(kind: int, flags: int, body: bytes, *, sequence: int = 1) -> bytes:
    return _HEADER.pack(_HEADER.size + len(body), kind, flags, sequence, 0) + body


def pack_attribute(kind: int, payload: bytes) -> bytes:
    head = _ATTRIBUTE.pack(_ATTRIBUTE.size + len(payload), kind)
    return head + payload + b"\0" * (-len(payload) % 4)


def split(received: bytes) -> Iterator[Message]:
    at = 0
    while at + _HEADER.size <= len(received):
        size, kind, flags, _, sender = _HEADER.unpack_from(received, at)
        if size < _HEADER.size:
            return
        yield Message(kind, flags, sender, received[at + _HEADER.size : at + size])
        at += size + -size % 4


def parse_attributes(data: bytes, at: int = 0) -> dict[int, bytes]:
    """Those from `at` on; of several of one kind the last."""
    found = {}
    end = len(data)
    while at + 4 <= end:
        size, kind = _ATTRIBUTE.unpack_from(data, at)
        if size < 4:
            break
        found[kind & _KIND] = data[at + 4 : at + size]
        at += (size + 3) & ~3
    return found


def ask(link: socket.socket, kind: int, flags: int, body: bytes) -> list[bytes]:
    """The answers to one request, without their headers, up to the last or to the ACK."""
    return [answer.body for answer in _ask(link, kind, flags, body)]


def dump(link: socket.socket, kind: int, body: bytes) -> list[bytes]:
    """Everything there is. A table that changed during the dump is asked for again."""
    answers: list[Message] = []
    for _ in range(_ATTEMPTS):
        answers = _ask(link, kind, DUMP, body)
        if not any(answer.flags & _DUMP_INTR for answer in answers):
            break
    return [answer.body for answer in answers]


def _ask(link: socket.socket, kind: int, flags: int, body: bytes) -> list[Message]:
    link.send(pack_message(kind, REQUEST | flags, body))
    answers: list[Message] = []
    while True:
        for message in split(link.recv(_ROOM)):
            if message.kind in (_NLMSG_DONE, _NLMSG_ERROR):
                (number,) = _NUMBER.unpack_from(message.body)
                if number:
                    raise OSError(-number, os.strerror(-number))
                return answers
            answers.append(message)
        if not flags & (DUMP | ACK) and answers:
            return answers
