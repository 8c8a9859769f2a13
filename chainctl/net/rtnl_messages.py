"""Messages of rtnetlink as both readers of it take them apart.

The numbers are those of the kernel's include/uapi/linux/{rtnetlink,if_link,if_addr}.h.
"""

from __future__ import annotations

import socket
import struct
from collections.abc import Iterable, Iterator, Mapping
from typing import Any, TypeAlias

from chainctl.net.netlink import ask, dump, pack_attribute, parse_attributes

Message: TypeAlias = tuple[tuple[Any, ...], dict[int, bytes]]
"""The numbers of its head, and its attributes."""

IFINFO = struct.Struct("=BxHiII")
"""struct ifinfomsg: family, ARPHRD type, index, IFF flags, what of them changed."""
IFADDR = struct.Struct("=BBBBI")
"""struct ifaddrmsg: family, length of the prefix, flags, scope, index of the link."""
ROUTE = struct.Struct("=8BI")
"""struct rtmsg and fib_rule_hdr: family, lengths of the prefixes, TOS, table, protocol, scope,
type, flags.
"""

IFLA_MTU, IFLA_MASTER, IFLA_LINKINFO = 4, 10, 18
IFLA_INFO_KIND = 1
IFA_LOCAL = 2
RTA_DST, RTA_OIF, RTA_GATEWAY, RTA_PRIORITY, RTA_MULTIPATH, RTA_TABLE = 1, 4, 5, 6, 9, 15
RTN_UNICAST = 1

_GETLINK, _GETADDR, _GETROUTE = 18, 22, 26
_IFLA_IFNAME = 3
_EXT_MASK, _SKIP_STATISTICS = 29, 8
_WITHOUT_STATISTICS = pack_attribute(_EXT_MASK, struct.pack("=I", _SKIP_STATISTICS))
_U32 = struct.Struct("=I")


def links(link: socket.socket) -> Iterator[Message]:
    """All of the socket's namespace."""
    return _parsed(IFINFO, dump(link, _GETLINK, bytes(IFINFO.size) + _WITHOUT_STATISTICS))


def link_of(link: socket.socket, index: int) -> Message:
    """Raises OSError ENODEV when there is none."""
    head = IFINFO.pack(0, 0, index, 0, 0)
    (message,) = _parsed(IFINFO, ask(link, _GETLINK, 0, head + _WITHOUT_STATISTICS))
    return message


def addresses(link: socket.socket, family: int = socket.AF_UNSPEC) -> Iterator[Message]:
    return _parsed(IFADDR, dump(link, _GETADDR, IFADDR.pack(family, 0, 0, 0, 0)))


def routes(link: socket.socket, family: int = socket.AF_UNSPEC) -> Iterator[Message]:
    """Of all tables."""
    return _parsed(ROUTE, dump(link, _GETROUTE, ROUTE.pack(family, *[0] * 8)))


def link_name(found: Mapping[int, bytes]) -> str:
    """Every message about a link has one."""
    return _text(found[_IFLA_IFNAME])


def number(found: Mapping[int, bytes], kind: int) -> int | None:
    """An attribute that is a 32-bit number; None when it is not there."""
    value = found.get(kind)
    return None if value is None else int(_U32.unpack(value)[0])


def text(found: Mapping[int, bytes], kind: int) -> str:
    """An attribute that is a name; "" when it is not there."""
    return _text(found.get(kind, b""))


def _text(value: bytes) -> str:
    return value.rstrip(b"\0").decode()


def _parsed(head: struct.Struct, bodies: Iterable[bytes]) -> Iterator[Message]:
    for body in bodies:
        yield head.unpack_from(body), parse_attributes(body, head.size)
