"""The host's bridges for clients that live on this machine: made, looked at, removed.

A bridge of ours has no address, speaks no IPv6 and answers ARP for nothing: the machine is no
neighbour of those who are connected there.
"""

from __future__ import annotations

import socket
from functools import partial
from ipaddress import IPv4Interface

from chainctl.errors import MendHost
from chainctl.host import sysctl
from chainctl.host.netns import Namespaces
from chainctl.model.parts import HOST, ClientBridge
from chainctl.net import rtnl, rtnl_read
from chainctl.net.netlink import open_netlink
from chainctl.net.rtnl import IPRoute


def ensure_bridge(namespaces: Namespaces, name: str) -> None:
    """Raises MendHost C313 when another kind of link has the name, C310 when the kernel refuses."""
    try:
        namespaces.netlink(HOST, partial(_ensure, name=name))
    except rtnl.NetlinkError as error:
        raise MendHost("C310", f"bridge {name}: {error.args[1]}", hint="run as root") from None


def read_bridge(namespaces: Namespaces, name: str) -> ClientBridge | None:
    """As it is; None when there is no bridge of that name."""
    if not namespaces.call(HOST, partial(_is_there, name)):
        return None
    return namespaces.netlink(HOST, partial(_read, name=name))


def remove_bridge(namespaces: Namespaces, name: str) -> bool:
    """False when somebody is still connected, and then nothing is done."""
    return namespaces.netlink(HOST, partial(_remove, name=name))


def _ensure(route: IPRoute, *, name: str) -> None:
    link = rtnl.read_link(route, name)
    if link is None:
        rtnl.add_bridge(route, name)
    elif link.kind != "bridge":
        raise MendHost("C313", f"the name {name} is taken by a link that is no bridge")
    for setting, value in _settings(name).items():
        if sysctl.read(setting) not in (None, value):
            sysctl.write(setting, value)
    if link is not None:
        for interface in _addresses(link.index):
            rtnl.delete_address(route, link.index, interface)
    rtnl.set_link(route, name, up=True)


def _is_there(name: str) -> bool:
    try:
        socket.if_nametoindex(name)
    except OSError:
        return False
    return True


def _read(route: IPRoute, *, name: str) -> ClientBridge | None:
    link = rtnl.read_link(route, name)
    if link is None or link.kind != "bridge":
        return None
    settled = link.up and sysctl.holds(_settings(name)) and not _addresses(link.index)
    return ClientBridge(name, settled)


def _remove(route: IPRoute, *, name: str) -> bool:
    link = rtnl.read_link(route, name)
    if link is None:
        return True
    with open_netlink() as others:
        if any(other.master == link.index for other in rtnl_read.read_links(others)):
            return False
    rtnl.delete_link(route, name)
    return True


def _addresses(index: int) -> list[IPv4Interface]:
    with open_netlink() as link:
        return [each.interface for each in rtnl_read.read_addresses(link) if each.index == index]


def _settings(name: str) -> dict[str, str]:
    return {
        f"net/ipv6/conf/{name}/disable_ipv6": "1",
        # Reply for no address whatever (Documentation/networking/ip-sysctl.rst).
        f"net/ipv4/conf/{name}/arp_ignore": "8",
        # Docker makes the machine a router. Where nothing is forwarded, nothing is answered with
        # an error either, before nft is asked ("TTL exceeded", sent by the default route).
        f"net/ipv4/conf/{name}/forwarding": "0",
    }
