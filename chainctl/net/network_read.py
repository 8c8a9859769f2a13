"""Links, addresses and routes of the calling thread's namespace as `chainctl.net.facts` tells them.

Read by hand, as in `chainctl.net.rtnl_read`, which is about what we make ourselves: a host with 200
chains has 200 legs, and pyroute2 takes a millisecond for each. The numbers are those of the
kernel's include/uapi/linux/{if_link,if_addr,rtnetlink}.h.
"""

from __future__ import annotations

import socket
import struct
import sys
from collections.abc import Callable, Container, Iterator, Mapping
from ipaddress import ip_address, ip_interface, ip_network
from pathlib import Path
from typing import TypeAlias

from chainctl.model.facts import AddressFacts, LinkFacts, Reading, RouteFacts
from chainctl.net.netlink import dump, pack_attribute, parse_attributes

_GETLINK, _GETADDR, _GETROUTE = 18, 22, 26
_IFINFO = struct.Struct("=BxHiII")
_IFADDR = struct.Struct("=BBBBI")
_ROUTE = struct.Struct("=8BI")
_NEXT_HOP = struct.Struct("=HBBi")

_EXT_MASK, _SKIP_STATISTICS = 29, 8
_ADDRESS, _IFNAME, _MTU, _MASTER, _LINKINFO, _CARRIER = 1, 3, 4, 10, 18, 33
_INFO_KIND = 1
_ETHERNET = 1  # ARPHRD_ETHER
_IFF_UP, _IFF_NOARP = 0x1, 0x80

_LOCAL = 2

_DST, _OIF, _GATEWAY, _PRIORITY, _MULTIPATH, _TABLE = 1, 4, 5, 6, 9, 15
_LOCAL_TABLE = 255
_UNICAST = 1
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
    mask = pack_attribute(_EXT_MASK, struct.pack("=I", _SKIP_STATISTICS))
    seen = {
        _IFINFO.unpack_from(body)[2]: (body, parse_attributes(body, _IFINFO.size))
        for body in dump(link, _GETLINK, bytes(_IFINFO.size) + mask)
    }
    names = {index: _text(found[_IFNAME]) for index, (_, found) in seen.items()}
    kept = {index: name for index, name in names.items() if not left_out(name)}
    readings = wireless(kept)
    links = tuple(_link(*seen[index], names, readings[index]) for index in kept)
    passed_over = names.keys() - kept.keys()
    return links, tuple(_addresses(link, kept)), tuple(_routes(link, kept, passed_over))


def _link(
    body: bytes, found: Mapping[int, bytes], names: Mapping[int, str], wireless: Reading
) -> LinkFacts:
    _, kind, _, flags, _ = _IFINFO.unpack_from(body)
    name = _text(found[_IFNAME])
    about = parse_attributes(found.get(_LINKINFO, b""))
    return LinkFacts(
        name=name,
        kind=_text(about.get(_INFO_KIND, b"")),
        ethernet=kind == _ETHERNET and not flags & _IFF_NOARP,
        up=bool(flags & _IFF_UP),
        carrier=any(found.get(_CARRIER, b"")),
        mtu=_number(found.get(_MTU)),
        mac=found.get(_ADDRESS, b"").hex(":"),
        master=names.get(_number(found.get(_MASTER))),
        forwarding=_setting(name, "forwarding") == 1,
        rp_filter=max(_setting("all", "rp_filter"), _setting(name, "rp_filter")),
        wireless=wireless,
    )


def _setting(link: str, key: str) -> int:
    """An IPv4 setting of a link; /proc/sys/net answers for the reading thread's namespace."""
    try:
        return int(Path(f"/proc/sys/net/ipv4/conf/{link}/{key}").read_text())
    except OSError:
        return 0


def _addresses(link: socket.socket, names: Mapping[int, str]) -> Iterator[AddressFacts]:
    for body in dump(link, _GETADDR, bytes(_IFADDR.size)):
        _, prefix, _, _, index = _IFADDR.unpack_from(body)
        found = parse_attributes(body, _IFADDR.size)
        # On a point-to-point link IFA_ADDRESS is the other side.
        address = found.get(_LOCAL) or found.get(_ADDRESS)
        if address and index in names:
            yield AddressFacts(names[index], ip_interface((address, prefix)))


def _routes(
    link: socket.socket, names: Mapping[int, str], passed_over: Container[int]
) -> Iterator[RouteFacts]:
    for body in dump(link, _GETROUTE, bytes(_ROUTE.size)):
        family, prefix, _, _, table, protocol, _, kind, _ = _ROUTE.unpack_from(body)
        found = parse_attributes(body, _ROUTE.size)
        table = _number(found.get(_TABLE)) or table
        index = _outgoing(found)
        # `local` are the addresses again.
        if table == _LOCAL_TABLE or family not in _ANYWHERE or index in passed_over:
            continue
        yield RouteFacts(
            to=ip_network((found.get(_DST, _ANYWHERE[family]), prefix)),
            link=names.get(index) if kind == _UNICAST else None,
            gateway=ip_address(found[_GATEWAY]) if _GATEWAY in found else None,
            table=table,
            metric=_number(found.get(_PRIORITY)),
            from_advertisement=protocol == _PROTO_RA,
        )


def _outgoing(found: Mapping[int, bytes]) -> int:
    """The index of the link of a route; of several next hops the first."""
    if _OIF not in found and _MULTIPATH in found:
        return int(_NEXT_HOP.unpack_from(found[_MULTIPATH])[3])
    return _number(found.get(_OIF))


def _number(value: bytes | None) -> int:
    return 0 if value is None else int.from_bytes(value, sys.byteorder)


def _text(value: bytes) -> str:
    return value.rstrip(b"\0").decode()
