"""What an administrator of one network namespace can do to the one at its links' other end.

Run as: intruder.py NAMESPACE owner|host PORT. It enters NAMESPACE either with every right in
the user namespace that owns it, or as the host's root with CAP_NET_ADMIN alone, tries to see,
delete, use and replace links there (PORT above all), and prints the errno of each as JSON.
"""

from __future__ import annotations

import ctypes
import fcntl
import json
import os
import struct
import sys
from typing import Any

from pyroute2 import IPRoute
from pyroute2.netlink.exceptions import NetlinkError
from pyroute2.netlink.rtnl.ifinfmsg import ifinfmsg

_NS_GET_USERNS = 0xB701
_CAP_NET_ADMIN = 12
_NEWLINK, _DELLINK, _GETLINK = 16, 17, 18
_ASK, _CREATE, _DUMP = 0x5, 0x605, 0x301
# Numbers are given from 0.
_GUESS = 0


def main(namespace: str, rights: str, port: str) -> None:
    _enter(namespace, as_owner=rights == "owner")
    with IPRoute() as route:
        route.status["nlm_generator"] = False
        answer: dict[str, Any] = {}
        own = route.nlm_request(ifinfmsg(), _GETLINK, _DUMP)
        answer["own"] = sorted(link.get_attr("IFLA_IFNAME") for link in own)
        numbers = {link.get_attr("IFLA_LINK_NETNSID") for link in own} - {None}
        panel = numbers.pop() if numbers else _GUESS
        links = _see(route, panel)
        answer["seen"] = sorted(links)
        index = links.get(port, 2)
        home = os.open("/proc/self/ns/net", os.O_RDONLY)
        answer["macvlan"] = _try(route, _macvlan(panel, index), _NEWLINK, _CREATE)
        answer["delete"] = _try(route, _delete(panel, index), _DELLINK, _ASK)
        answer["replace"] = _try(route, _veth(panel, index, home), _NEWLINK, _CREATE)
        answer["renames its own"] = _rename(route)
    sys.stdout.write(json.dumps(answer))


def _enter(namespace: str, *, as_owner: bool) -> None:
    libc = ctypes.CDLL(None, use_errno=True)
    target = os.open(namespace, os.O_RDONLY)
    if as_owner:
        owner = fcntl.ioctl(target, _NS_GET_USERNS)
        assert libc.setns(owner, 0) == 0, os.strerror(ctypes.get_errno())
        assert libc.setns(target, 0) == 0, os.strerror(ctypes.get_errno())
        return
    assert libc.setns(target, 0) == 0, os.strerror(ctypes.get_errno())
    header = struct.pack("Ii", 0x20080522, 0)
    rights = struct.pack("6I", 1 << _CAP_NET_ADMIN, 1 << _CAP_NET_ADMIN, 0, 0, 0, 0)
    assert libc.capset(header, rights) == 0, os.strerror(ctypes.get_errno())


def _see(route: IPRoute, panel: int) -> dict[str, int]:
    message = ifinfmsg()
    message["attrs"] = [("IFLA_IF_NETNSID", panel)]
    try:
        links = route.nlm_request(message, _GETLINK, _DUMP)
    except NetlinkError:
        return {}
    mine = {link.get_attr("IFLA_IFNAME") for link in route.get_links()}
    seen = {link.get_attr("IFLA_IFNAME"): link["index"] for link in links}
    # A kernel that ignores the attribute would answer with our own links.
    return seen if set(seen) != mine else {}


def _try(route: IPRoute, message: Any, kind: int, flags: int) -> int:
    try:
        route.nlm_request(message, kind, flags)
    except NetlinkError as error:
        return int(error.code)
    return 0


def _delete(panel: int, index: int) -> Any:
    message = ifinfmsg()
    message["index"] = index
    message["attrs"] = [("IFLA_IF_NETNSID", panel)]
    return message


def _macvlan(panel: int, index: int) -> Any:
    """A link of ours on top of the port: its frames leave below the filter."""
    message = ifinfmsg()
    details = {"attrs": [("IFLA_MACVLAN_MODE", "bridge")]}
    about = {"attrs": [("IFLA_INFO_KIND", "macvlan"), ("IFLA_INFO_DATA", details)]}
    message["attrs"] = [
        ("IFLA_IFNAME", "mv0"),
        ("IFLA_LINK", index),
        ("IFLA_LINK_NETNSID", panel),
        ("IFLA_LINKINFO", about),
    ]
    return message


def _veth(panel: int, index: int, home: int) -> Any:
    """A port of our own in the panel with the number of the one that was deleted, which is
    what a filter's maps know it by; its other end is here."""
    message = ifinfmsg()
    far = {"attrs": [("IFLA_IFNAME", "steal"), ("IFLA_NET_NS_FD", home)]}
    about = {
        "attrs": [
            ("IFLA_INFO_KIND", "veth"),
            ("IFLA_INFO_DATA", {"attrs": [("VETH_INFO_PEER", far)]}),
        ]
    }
    message["index"] = index
    message["attrs"] = [
        ("IFLA_IF_NETNSID", panel),
        ("IFLA_IFNAME", "mine"),
        ("IFLA_LINKINFO", about),
    ]
    return message


def _rename(route: IPRoute) -> int:
    """The control: an administrator of this namespace may do this."""
    (link,) = [each for each in route.get_links() if each.get_attr("IFLA_IFNAME") == "in0"]
    message = ifinfmsg()
    message["index"] = link["index"]
    message["attrs"] = [("IFLA_IFNAME", "renamed")]
    return _try(route, message, _NEWLINK, _ASK)


if __name__ == "__main__":
    main(*sys.argv[1:])
