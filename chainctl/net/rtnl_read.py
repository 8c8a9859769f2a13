"""What rtnetlink shows of a namespace, read by hand: a hundred times as fast as by pyroute2.

Every function takes a socket of `chainctl.net.netlink`; the numbers are those of the kernel's
include/uapi/linux/{if_link,if_tun,rtnetlink,fib_rules,net_namespace}.h.
"""

from __future__ import annotations

import errno
import socket
import struct
import sys
from ipaddress import IPv4Address, IPv4Interface, IPv4Network

from chainctl.net import rtnl_messages
from chainctl.net.netlink import ask, dump, pack_attribute, parse_attributes
from chainctl.net.rtnl import AddressSeen, LinkSeen, RouteSeen, RuleSeen
from chainctl.net.rtnl_messages import (
    IFA_LOCAL,
    IFLA_INFO_KIND,
    IFLA_LINKINFO,
    IFLA_MASTER,
    IFLA_MTU,
    ROUTE,
    RTA_DST,
    RTA_GATEWAY,
    RTA_MULTIPATH,
    RTA_OIF,
    RTA_PRIORITY,
    RTA_TABLE,
    RTN_UNICAST,
    Message,
    link_name,
    number,
    text,
)

_GETNEIGH, _GETRULE, _GETNSID = 30, 34, 90
_NEIGHBOUR = struct.Struct("=BxHiHBB")
_U32 = struct.Struct("=I")
_I32 = struct.Struct("=i")

_LINK, _LINK_NETNSID = 5, 37
_INFO_DATA = 2
_TUN = {
    1: "IFLA_TUN_OWNER",
    2: "IFLA_TUN_GROUP",
    3: "IFLA_TUN_TYPE",
    6: "IFLA_TUN_PERSIST",
    7: "IFLA_TUN_MULTI_QUEUE",
}
_MACVLAN_MODE = 1
_MACVLAN_MODES = {1: "private", 2: "vepa", 4: "bridge", 8: "passthru", 16: "source"}

_PREFSRC, _METRICS = 7, 8
_VIA, _ENCAP = 18, 22
_METRIC_MTU = 2
_ROUTE_ODDITIES = {
    _VIA: "RTA_VIA",
    RTA_MULTIPATH: "RTA_MULTIPATH",
    _ENCAP: "RTA_ENCAP",
}
_NEIGHBOUR_ADDRESS, _NEIGHBOUR_MAC = 1, 2
_ANSWERED = 0x02 | 0x04 | 0x08 | 0x10 | 0x80
"""NUD_REACHABLE, _STALE, _DELAY, _PROBE, _PERMANENT: it did, sooner or later."""

_KERNELS = 2
_UNREACHABLE = 7

_RULE_ODDITIES = {
    1: "FRA_DST",
    2: "FRA_SRC",
    4: "FRA_GOTO",
    12: "FRA_TUN_ID",
    13: "FRA_SUPPRESS_IFGROUP",
    17: "FRA_OIFNAME",
    19: "FRA_L3MDEV",
    20: "FRA_UID_RANGE",
    22: "FRA_IP_PROTO",
    23: "FRA_SPORT_RANGE",
    24: "FRA_DPORT_RANGE",
}
_IIFNAME, _RULE_PRIORITY, _FWMARK, _SUPPRESS, _RULE_TABLE, _FWMASK = 3, 6, 10, 14, 15, 16
_NOTHING_SUPPRESSED = _WHOLE_MARK = 0xFFFFFFFF
_TO_TABLE = 1
_INVERTED = 2

_NSID, _NSID_FD = 1, 3
_NO_NSID = -1


def read_links(link: socket.socket) -> list[LinkSeen]:
    return list(map(_link, rtnl_messages.links(link)))


def read_link(link: socket.socket, index: int) -> LinkSeen | None:
    """None when there is none of this index."""
    try:
        return _link(rtnl_messages.link_of(link, index))
    except OSError as error:
        if error.errno == errno.ENODEV:
            return None
        raise


def read_addresses(link: socket.socket) -> list[AddressSeen]:
    return list(map(_address, rtnl_messages.addresses(link, socket.AF_INET)))


def read_routes(link: socket.socket) -> list[RouteSeen]:
    """All tables."""
    return list(map(_route, rtnl_messages.routes(link, socket.AF_INET)))


def read_rules(link: socket.socket) -> list[RuleSeen]:
    head = ROUTE.pack(socket.AF_INET, *[0] * 8)
    return [_rule(body) for body in dump(link, _GETRULE, head)]


def read_neighbours(link: socket.socket) -> list[tuple[int, IPv4Address, str]]:
    """(index of the link, address, MAC) of who answered for an IPv4 address."""
    head = _NEIGHBOUR.pack(socket.AF_INET, 0, 0, 0, 0, 0)
    return list(filter(None, map(_neighbour, dump(link, _GETNEIGH, head))))


def read_nsid(link: socket.socket, namespace: int) -> int | None:
    """The number by which the socket's namespace knows another, None while it has no need.

    `namespace` is a descriptor.
    """
    where = pack_attribute(_NSID_FD, _U32.pack(namespace))
    (answer,) = ask(link, _GETNSID, 0, bytes(4) + where)
    (nsid,) = _I32.unpack(parse_attributes(answer, 4)[_NSID])
    return None if nsid == _NO_NSID else int(nsid)


def _link(message: Message) -> LinkSeen:
    (_, _, index, flags, _), found = message
    about = parse_attributes(found.get(IFLA_LINKINFO, b""))
    kind = text(about, IFLA_INFO_KIND)
    return LinkSeen(
        index=index,
        name=link_name(found),
        kind=kind,
        flags=flags,
        mtu=int(_U32.unpack(found[IFLA_MTU])[0]),
        peer=number(found, _LINK),
        peer_nsid=number(found, _LINK_NETNSID),
        master=number(found, IFLA_MASTER),
        details=_details(kind, about.get(_INFO_DATA, b"")),
    )


def _details(kind: str, data: bytes) -> tuple[tuple[str, object], ...]:
    """Of the kinds of links that we make."""
    if kind == "tun":
        found = parse_attributes(data)
        return tuple(
            (name, int.from_bytes(found[key], sys.byteorder))
            for key, name in _TUN.items()
            if key in found
        )
    if kind == "macvlan":
        mode = number(parse_attributes(data), _MACVLAN_MODE)
        return (("IFLA_MACVLAN_MODE", _MACVLAN_MODES.get(mode or 0, "")),)
    return ()


def _address(message: Message) -> AddressSeen:
    (_, prefix, _, _, index), found = message
    return AddressSeen(index, IPv4Interface((found[IFA_LOCAL], prefix)))


def _route(message: Message) -> RouteSeen:
    (_, prefix, _, tos, table, protocol, _, kind, _), found = message
    index = number(found, RTA_OIF)
    oddities = [name for key, name in _ROUTE_ODDITIES.items() if key in found]
    if (kind, index is None) not in ((RTN_UNICAST, False), (_UNREACHABLE, True)):
        oddities.append(f"type {kind}")
    if tos:
        oddities.append(f"tos {tos}")
    metrics = parse_attributes(found.get(_METRICS, b""))
    mtu = number(metrics, _METRIC_MTU)
    oddities += [f"metric {key}" for key in sorted(metrics) if key != _METRIC_MTU]
    return RouteSeen(
        table=number(found, RTA_TABLE) or table,
        to=IPv4Network((found.get(RTA_DST, bytes(4)), prefix)),
        index=index,
        source=IPv4Address(found[_PREFSRC]) if _PREFSRC in found else None,
        metric=number(found, RTA_PRIORITY) or 0,
        oddity=", ".join(oddities),
        kernels=protocol == _KERNELS,
        mtu=mtu,
        via=IPv4Address(found[RTA_GATEWAY]) if RTA_GATEWAY in found else None,
    )


def _rule(body: bytes) -> RuleSeen:
    _, _, _, tos, table, _, _, action, flags = ROUTE.unpack_from(body)
    found = parse_attributes(body, ROUTE.size)
    mask = number(found, _FWMASK)
    oddities = [name for key, name in _RULE_ODDITIES.items() if key in found]
    if mask not in (None, 0, _WHOLE_MARK):
        oddities.append(f"mask {mask:#x}")
    if number(found, _SUPPRESS) not in (None, _NOTHING_SUPPRESSED):
        oddities.append("FRA_SUPPRESS_PREFIXLEN")
    if action not in (_TO_TABLE, _UNREACHABLE):
        oddities.append(f"action {action}")
    if flags & _INVERTED:
        oddities.append("not")
    if tos:
        oddities.append(f"tos {tos}")
    return RuleSeen(
        priority=number(found, _RULE_PRIORITY) or 0,
        iif=text(found, _IIFNAME),
        mark=(number(found, _FWMARK) or 0) if mask else None,
        table=(number(found, _RULE_TABLE) or table) if action == _TO_TABLE else None,
        oddity=", ".join(oddities),
    )


def _neighbour(body: bytes) -> tuple[int, IPv4Address, str] | None:
    _, _, index, state, _, _ = _NEIGHBOUR.unpack_from(body)
    found = parse_attributes(body, _NEIGHBOUR.size)
    address, mac = found.get(_NEIGHBOUR_ADDRESS, b""), found.get(_NEIGHBOUR_MAC, b"")
    if not state & _ANSWERED or len(address) != 4 or len(mac) != 6:
        return None
    return index, IPv4Address(address), mac.hex(":")
