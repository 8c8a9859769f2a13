"""Words to and from the kernel's rtnetlink, one function per request that we make.

Messages are built by hand and not by pyroute2's keyword interface: that one fills in fields
nobody asked for (broadcast addresses, priorities) and cannot say what the flags of a veth's
far end are. Every function takes the socket of a namespace (`Namespaces.netlink`) and raises
pyroute2's NetlinkError. Requests are rtnetlink(7); attributes are those of the kernel's
include/uapi/linux/{if_link,rtnetlink,fib_rules}.h.
"""

from __future__ import annotations

import errno
import socket
from collections.abc import Sequence
from dataclasses import dataclass
from ipaddress import IPv4Address, IPv4Interface, IPv4Network
from typing import Any, TypeAlias

from pyroute2 import IPRoute as IPRoute
from pyroute2.netlink.exceptions import NetlinkError as NetlinkError
from pyroute2.netlink.rtnl.fibmsg import fibmsg
from pyroute2.netlink.rtnl.ifaddrmsg import ifaddrmsg
from pyroute2.netlink.rtnl.ifinfmsg import ifinfmsg
from pyroute2.netlink.rtnl.rtmsg import rtmsg

Attributes: TypeAlias = Sequence[tuple[str, Any]]

LOCAL_TABLE = 255
IFF_UP = 0x1
IFF_NOARP = 0x80

_REQUEST, _ACK = 0x1, 0x4
_REPLACE, _EXCL, _CREATE, _APPEND = 0x100, 0x200, 0x400, 0x800

_NEWLINK, _DELLINK, _GETLINK = 16, 17, 18
_NEWADDR, _DELADDR = 20, 21
_NEWROUTE, _DELROUTE = 24, 25
_NEWRULE, _DELRULE = 32, 33

_SKIP_STATISTICS = 8
_UNICAST, _LOCAL, _UNREACHABLE = 1, 2, 7
_SCOPE_UNIVERSE, _SCOPE_LINK, _SCOPE_HOST, _SCOPE_NOWHERE = 0, 253, 254, 255
_PROTO_KERNEL, _PROTO_STATIC = 2, 4
_TO_TABLE, _RULE_UNREACHABLE = 1, 7
_WHOLE_MARK = 0xFFFFFFFF


@dataclass(frozen=True)
class LinkSeen:
    """A link as a dump shows it. `peer` is an index in the namespace that `peer_nsid` names;
    without the latter it is the link's own. `details` are those of its kind."""

    index: int
    name: str
    kind: str
    flags: int
    mtu: int
    peer: int | None = None
    peer_nsid: int | None = None
    master: int | None = None
    details: tuple[tuple[str, Any], ...] = ()

    @property
    def up(self) -> bool:
        return bool(self.flags & IFF_UP)


@dataclass(frozen=True)
class AddressSeen:
    index: int
    interface: IPv4Interface


@dataclass(frozen=True)
class RouteSeen:
    """`oddity` describes what we never make; it is empty for routes like ours. `kernels`: the
    kernel made it, for an address."""

    table: int
    to: IPv4Network
    index: int | None
    source: IPv4Address | None
    metric: int
    oddity: str = ""
    kernels: bool = False
    mtu: int | None = None
    via: IPv4Address | None = None


@dataclass(frozen=True)
class RuleSeen:
    """`table` None: unreachable. `oddity` as in RouteSeen."""

    priority: int
    iif: str
    mark: int | None
    table: int | None
    oddity: str = ""


def add_veth(
    route: IPRoute,
    name: str,
    *,
    peer: str,
    peer_namespace: int,
    mtu: int | None = None,
    flags: int = 0,
    master: int | None = None,
    peer_mac: str = "",
) -> None:
    """Both ends in one request, so the far one is never anywhere else; `flags` for both."""
    ends: list[tuple[str, Any]] = [("IFLA_MTU", mtu)] if mtu else []
    far = {
        "flags": flags,
        "change": flags,
        "attrs": [
            ("IFLA_IFNAME", peer),
            ("IFLA_NET_NS_FD", peer_namespace),
            *([("IFLA_ADDRESS", peer_mac)] if peer_mac else []),
            *ends,
        ],
    }
    near = [("IFLA_IFNAME", name), *ends]
    if master is not None:
        near.append(("IFLA_MASTER", master))
    details = {"attrs": [("VETH_INFO_PEER", far)]}
    _add_link(route, [*near, _kind("veth", details)], flags=flags)


def add_macvlan(route: IPRoute, name: str, *, parent: int, namespace: int, mac: str) -> None:
    """On `parent` of the socket's namespace, at once in the other. Bridge mode: siblings hear
    each other."""
    details = {"attrs": [("IFLA_MACVLAN_MODE", "bridge")]}
    where = [
        ("IFLA_IFNAME", name),
        ("IFLA_LINK", parent),
        ("IFLA_NET_NS_FD", namespace),
        ("IFLA_ADDRESS", mac),
    ]
    _add_link(route, [*where, _kind("macvlan", details)])


def add_bridge(route: IPRoute, name: str) -> None:
    _add_link(route, [("IFLA_IFNAME", name), _kind("bridge", {"attrs": []})])


def set_link(route: IPRoute, name: str, *, mtu: int | None = None, up: bool | None = None) -> None:
    message = ifinfmsg()
    message["attrs"] = [("IFLA_IFNAME", name)]
    if mtu is not None:
        message["attrs"].append(("IFLA_MTU", mtu))
    if up is not None:
        message["flags"], message["change"] = (IFF_UP if up else 0), IFF_UP
    _ask(route, message, _NEWLINK)


def delete_link(route: IPRoute, name: str) -> None:
    message = ifinfmsg()
    message["attrs"] = [("IFLA_IFNAME", name)]
    _ask(route, message, _DELLINK)


def add_address(route: IPRoute, index: int, interface: IPv4Interface) -> None:
    _ask(route, _address(index, interface), _NEWADDR, _CREATE | _EXCL)


def delete_address(route: IPRoute, index: int, interface: IPv4Interface) -> None:
    _ask(route, _address(index, interface), _DELADDR)


def restore_address(route: IPRoute, index: int, interface: IPv4Interface) -> None:
    """Make the route again by which an address that is there is local; as the kernel makes it
    (fib_add_ifaddr), so that it goes with the address. Two links may have the same one."""
    message = _route_key(RouteSeen(LOCAL_TABLE, IPv4Network(interface.ip), index, None, 0))
    message["proto"], message["type"], message["scope"] = _PROTO_KERNEL, _LOCAL, _SCOPE_HOST
    message["attrs"] += [("RTA_OIF", index), ("RTA_PREFSRC", str(interface.ip))]
    _ask(route, message, _NEWROUTE, _CREATE | _APPEND)


def put_route(route: IPRoute, what: RouteSeen, *, replace: bool = False) -> None:
    message = _route_key(what)
    message["proto"] = _PROTO_STATIC
    if what.index is None:
        message["type"], message["scope"] = _UNREACHABLE, _SCOPE_UNIVERSE
    else:
        scope = _SCOPE_LINK if what.via is None else _SCOPE_UNIVERSE
        message["type"], message["scope"] = _UNICAST, scope
        message["attrs"].append(("RTA_OIF", what.index))
    if what.via is not None:
        message["attrs"].append(("RTA_GATEWAY", str(what.via)))
    if what.source is not None:
        message["attrs"].append(("RTA_PREFSRC", str(what.source)))
    if what.mtu is not None:
        message["attrs"].append(("RTA_METRICS", {"attrs": [("RTAX_MTU", what.mtu)]}))
    _ask(route, message, _NEWROUTE, _CREATE | (_REPLACE if replace else _EXCL))


def delete_route(route: IPRoute, what: RouteSeen) -> None:
    """The first route with this table, prefix and metric, whatever else it is.

    The kernel takes metric 0 for any metric (fib_nh_match), so ask first whether there is one.
    """
    message = _route_key(what)
    message["scope"] = _SCOPE_NOWHERE
    _ask(route, message, _DELROUTE)


def add_rule(route: IPRoute, rule: RuleSeen, *, kernels_own: bool = False) -> None:
    """`kernels_own`: one that a namespace is born with. Without its mark the kernel takes it for
    another rule and keeps both (rule_exists in net/core/fib_rules.c). EEXIST: it is there, the
    same in everything.
    """
    message = fibmsg()
    message["family"] = socket.AF_INET
    message["attrs"] = [
        ("FRA_PRIORITY", rule.priority),
        ("FRA_PROTOCOL", _PROTO_KERNEL if kernels_own else _PROTO_STATIC),
    ]
    if rule.iif:
        message["attrs"].append(("FRA_IIFNAME", rule.iif))
    if rule.mark is not None:
        message["attrs"] += [("FRA_FWMARK", rule.mark), ("FRA_FWMASK", _WHOLE_MARK)]
    if rule.table is None:
        message["action"] = _RULE_UNREACHABLE
    else:
        message["action"] = _TO_TABLE
        message["attrs"].append(("FRA_TABLE", rule.table))
    _ask(route, message, _NEWRULE, _CREATE | _EXCL)


def delete_rule(route: IPRoute, priority: int) -> None:
    """The first rule with this priority, whatever else it is."""
    message = fibmsg()
    message["family"] = socket.AF_INET
    message["attrs"] = [("FRA_PRIORITY", priority)]
    _ask(route, message, _DELRULE)


def read_link(route: IPRoute, name: str) -> LinkSeen | None:
    message = ifinfmsg()
    message["attrs"] = [("IFLA_IFNAME", name), ("IFLA_EXT_MASK", _SKIP_STATISTICS)]
    try:
        (answer,) = route.nlm_request(message, _GETLINK, _REQUEST)
    except NetlinkError as error:
        if error.code == errno.ENODEV:
            return None
        raise
    return _link_seen(answer)


def _add_link(route: IPRoute, attributes: Attributes, *, flags: int = 0) -> None:
    message = ifinfmsg()
    message["flags"], message["change"] = flags, flags
    message["attrs"] = list(attributes)
    _ask(route, message, _NEWLINK, _CREATE | _EXCL)


def _kind(kind: str, details: dict[str, Any]) -> tuple[str, Any]:
    attributes = [("IFLA_INFO_KIND", kind), ("IFLA_INFO_DATA", details)]
    return ("IFLA_LINKINFO", {"attrs": attributes})


def _address(index: int, interface: IPv4Interface) -> Any:
    message = ifaddrmsg()
    message["family"] = socket.AF_INET
    message["index"], message["prefixlen"] = index, interface.network.prefixlen
    message["attrs"] = [("IFA_LOCAL", str(interface.ip)), ("IFA_ADDRESS", str(interface.ip))]
    return message


def _route_key(what: RouteSeen) -> Any:
    message = rtmsg()
    message["family"], message["dst_len"] = socket.AF_INET, what.to.prefixlen
    message["attrs"] = [("RTA_TABLE", what.table), ("RTA_PRIORITY", what.metric)]
    if what.to.prefixlen:
        message["attrs"].append(("RTA_DST", str(what.to.network_address)))
    return message


def _ask(route: IPRoute, message: Any, kind: int, flags: int = 0) -> None:
    route.nlm_request(message, kind, _REQUEST | _ACK | flags)


def _link_seen(message: Any) -> LinkSeen:
    about = message.get_attr("IFLA_LINKINFO")
    details = about and about.get_attr("IFLA_INFO_DATA")
    return LinkSeen(
        index=message["index"],
        name=message.get_attr("IFLA_IFNAME"),
        kind=(about and about.get_attr("IFLA_INFO_KIND")) or "",
        flags=message["flags"],
        mtu=message.get_attr("IFLA_MTU"),
        peer=message.get_attr("IFLA_LINK"),
        peer_nsid=message.get_attr("IFLA_LINK_NETNSID"),
        master=message.get_attr("IFLA_MASTER"),
        details=tuple(details["attrs"]) if isinstance(details, dict) else (),
    )
