"""Links, addresses and routes of the calling thread's namespace as `chainctl.net.facts` tells them.

Read by hand, as in `chainctl.net.rtnl_read`, which is about what we make ourselves: a host with 200
chains has 200 legs, and pyroute2 takes a millisecond for each. The numbers are those of the
kernel's include/uapi/linux/{if,if_arp,if_link,if_addr,rtnetlink}.h.
"""

from __future__ import annotations

import socket
import struct
from collections.abc import Callable, Container, Iterator, Mapping
from ipaddress import ip_address, ip_interface, ip_network
from typing import TypeAlias

from chainctl.host import sysctl
from chainctl.model.facts import AddressFacts, LinkFacts, Reading, RouteFacts
from chainctl.net import rtnl_messages
from chainctl.net.netlink import parse_attributes
from chainctl.net.rtnl_messages import (
    IFA_LOCAL,
    IFLA_INFO_KIND,
    IFLA_LINKINFO,
    IFLA_MASTER,
    IFLA_MTU,
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

_NEXT_HOP = struct.Struct("=HBBi")
"""struct rtnexthop: its length, flags, hops, index of the link."""

_IFLA_ADDRESS, _IFLA_CARRIER = 1, 33
_ETHERNET = 1  # ARPHRD_ETHER
_IFF_UP, _IFF_NOARP = 0x1, 0x80
_IFA_ADDRESS = 1
_LOCAL_TABLE = 255
_PROTO_RA = 9
_ANYWHERE = {socket.AF_INET: bytes(4), socket.AF_INET6: bytes(16)}


Wireless: TypeAlias = Callable[[Mapping[int, str]], Mapping[int, Reading]]
"""Asked with the names of links by their indexes, tells which of them are Wi-Fi stations."""


def read_links(
    link: socket.socket, wireless: Wireless, left_out: Callable[[str], bool]
) -> tuple[tuple[LinkFacts, ...], tuple[AddressFacts, ...], tuple[RouteFacts, ...]]:
    """What there is but for the links of which `left_out` is true of their names, with their
    addresses and the routes to them.
    """
    seen = {message[0][2]: message for message in rtnl_messages.links(link)}
    names = {index: link_name(found) for index, (_, found) in seen.items()}
    kept = {index: name for index, name in names.items() if not left_out(name)}
    readings = wireless(kept)
    links = tuple(_link(seen[index], names, readings[index]) for index in kept)
    passed_over = names.keys() - kept.keys()
    return links, tuple(_addresses(link, kept)), tuple(_routes(link, kept, passed_over))


def _link(message: Message, names: Mapping[int, str], wireless: Reading) -> LinkFacts:
    (_, kind, _, flags, _), found = message
    name = link_name(found)
    return LinkFacts(
        name=name,
        kind=text(parse_attributes(found.get(IFLA_LINKINFO, b"")), IFLA_INFO_KIND),
        ethernet=kind == _ETHERNET and not flags & _IFF_NOARP,
        up=bool(flags & _IFF_UP),
        carrier=any(found.get(_IFLA_CARRIER, b"")),
        mtu=number(found, IFLA_MTU) or 0,
        mac=found.get(_IFLA_ADDRESS, b"").hex(":"),
        master=names.get(number(found, IFLA_MASTER) or 0),
        forwarding=_setting(name, "forwarding") == 1,
        rp_filter=max(_setting("all", "rp_filter"), _setting(name, "rp_filter")),
        wireless=wireless,
    )


def _setting(link: str, key: str) -> int:
    """An IPv4 setting of a link; 0 when the link has just gone."""
    try:
        return int(sysctl.read(f"net/ipv4/conf/{link}/{key}") or 0)
    except OSError:
        return 0


def _addresses(link: socket.socket, names: Mapping[int, str]) -> Iterator[AddressFacts]:
    for (_, prefix, _, _, index), found in rtnl_messages.addresses(link):
        # On a point-to-point link IFA_ADDRESS is the other side.
        address = found.get(IFA_LOCAL) or found.get(_IFA_ADDRESS)
        if address and index in names:
            yield AddressFacts(names[index], ip_interface((address, prefix)))


def _routes(
    link: socket.socket, names: Mapping[int, str], passed_over: Container[int]
) -> Iterator[RouteFacts]:
    for head, found in rtnl_messages.routes(link):
        family, prefix, _, _, table, protocol, _, kind, _ = head
        table = number(found, RTA_TABLE) or table
        index = _outgoing(found)
        # `local` are the addresses again.
        if table == _LOCAL_TABLE or family not in _ANYWHERE or index in passed_over:
            continue
        yield RouteFacts(
            to=ip_network((found.get(RTA_DST, _ANYWHERE[family]), prefix)),
            link=names.get(index) if kind == RTN_UNICAST else None,
            gateway=ip_address(found[RTA_GATEWAY]) if RTA_GATEWAY in found else None,
            table=table,
            metric=number(found, RTA_PRIORITY) or 0,
            from_advertisement=protocol == _PROTO_RA,
        )


def _outgoing(found: Mapping[int, bytes]) -> int:
    """The index of the link of a route; of several next hops the first."""
    if RTA_OIF not in found and RTA_MULTIPATH in found:
        return int(_NEXT_HOP.unpack_from(found[RTA_MULTIPATH])[3])
    return number(found, RTA_OIF) or 0
