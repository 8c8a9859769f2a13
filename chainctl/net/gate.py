"""The gate's copy in the gateway's nft table, prolonged by messages that are made once.

libnftables takes a millisecond to parse, look up and send the same few words; this is done for
every open chain every second or two. The messages are those of `nft add element …` (the kernel's
include/uapi/linux/netfilter/{nfnetlink,nf_tables}.h).
"""

from __future__ import annotations

import os
import socket
import struct
from collections.abc import Callable, Iterable, Iterator, Sequence
from contextlib import suppress

from chainctl.errors import ChainctlError, MendHost
from chainctl.host import clock
from chainctl.host.netns import Namespaces
from chainctl.model.parts import HOST, NsName
from chainctl.net.changes import QUIET, Changes
from chainctl.net.guard import GATE_SET, TABLE
from chainctl.net.netlink import (
    ACK,
    CREATE,
    NETFILTER,
    NFTABLES,
    REQUEST,
    open_netlink,
    pack_attribute,
    pack_message,
    split,
)

_BATCH_BEGIN, _BATCH_END = 16, 17
_NEW_ELEMENT, _DELETE_ELEMENT = NFTABLES << 8 | 12, NFTABLES << 8 | 14
_INET = 1
_LIST_TABLE, _LIST_SET, _LIST_ELEMENTS, _ELEMENT = 1, 2, 3, 1
_KEY, _TIMEOUT, _DATA_VALUE = 1, 4, 1
_NESTED = 0x8000
_ERROR = 2
_UPWARD = b"up0".ljust(16, b"\0")
"""What the gateway forwards crosses this link, either way. A name has 16 bytes (IFNAMSIZ)."""


class NftGate:
    """Safe to use from several threads."""

    def __init__(self, namespaces: Namespaces, changes: Changes) -> None:
        self._namespaces = namespaces
        self._changes = changes

    def open(self, until_boot_ns: Sequence[tuple[NsName, int]]) -> list[ChainctlError | None]:
        """Let packets between LAN and chain pass until then, in each of these gateways; the error
        of one that cannot be opened stands in its place.
        """
        return self._namespaces.call(HOST, lambda: [self._try(*each) for each in until_boot_ns])

    def _try(self, gateway: NsName, until_boot_ns: int) -> ChainctlError | None:
        """On the thread for namespaces: one visit for all of them."""
        left = (until_boot_ns - clock.boot_ns()) // 1_000_000
        if left <= 0:
            return None  # It shuts by itself in this moment.
        try:
            self._namespaces.with_socket(gateway, "gate", self._connect, _sender(left))
        except ChainctlError as error:
            return error
        return None

    def _connect(self) -> socket.socket:
        link = open_netlink(NETFILTER)
        link.setblocking(False)
        try:
            link.bind((QUIET, 0))
        except OSError:
            link.bind((0, 0))  # Another supervisor's socket is not closed yet.
        sender, _ = link.getsockname()
        self._changes.pass_over(sender)
        return link


def _sender(milliseconds: int) -> Callable[[socket.socket], None]:
    batch = _PROLONG.replace(_MARK, struct.pack(">Q", milliseconds))

    def send(link: socket.socket) -> None:
        link.send(batch)
        numbers = [number for number in _answers(link) if number]
        if numbers:
            raise MendHost("C305", f"nftables refused: the gate: {os.strerror(-numbers[0])}")

    return send


def _answers(link: socket.socket) -> Iterator[int]:
    """The kernel has answered before `send` returns: once, or once a message it refuses."""
    with suppress(BlockingIOError):
        while True:
            for message in split(link.recv(1 << 16)):
                if message.kind == _ERROR:
                    yield struct.unpack_from("=i", message.body)[0]


def _batch(messages: Iterable[bytes]) -> bytes:
    head = struct.pack(">BBH", 0, 0, NFTABLES)
    begin = pack_message(_BATCH_BEGIN, REQUEST, head)
    return b"".join((begin, *messages, pack_message(_BATCH_END, REQUEST, head)))


def _elements(kind: int, flags: int, timeout: bytes | None) -> bytes:
    element = _nested(_KEY, pack_attribute(_DATA_VALUE, _UPWARD))
    if timeout is not None:
        element += pack_attribute(_TIMEOUT, timeout)
    body = (
        struct.pack(">BBH", _INET, 0, 0)
        + pack_attribute(_LIST_TABLE, TABLE.encode() + b"\0")
        + pack_attribute(_LIST_SET, GATE_SET.encode() + b"\0")
        + _nested(_LIST_ELEMENTS, _nested(_ELEMENT, element))
    )
    return pack_message(kind, REQUEST | flags, body)


def _nested(kind: int, content: bytes) -> bytes:
    return pack_attribute(kind | _NESTED, content)


_MARK = b"\xffTIMEOUT"
"""Stands for the milliseconds: eight bytes that are nothing else in the messages."""
_PROLONG = _batch(
    (
        _elements(_NEW_ELEMENT, CREATE, _MARK),
        _elements(_DELETE_ELEMENT, 0, None),
        _elements(_NEW_ELEMENT, CREATE | ACK, _MARK),
    )
)
"""Added, deleted and added again in one transaction: adding alone does not prolong an element, and
deleting one that has just expired fails (measured).
"""
