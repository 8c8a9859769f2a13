"""A network namespace behind a chain for one program, made around the calling thread.

The caller becomes the program (exec), so that nobody of ours stays: with its last process the
namespace goes, and with it the link.
"""

from __future__ import annotations

import ctypes
import fcntl
import os
import socket
from collections.abc import Iterator
from ipaddress import IPv4Address, IPv4Interface
from pathlib import Path

from chainctl.errors import LookAgain, MendHost
from chainctl.host import sysctl
from chainctl.host.netns import SETTINGS, Namespaces
from chainctl.model.parts import HOST
from chainctl.net import rtnl

_CLONE_NEWNS, _CLONE_NEWNET = 0x00020000, 0x40000000
_MS_BIND, _MS_REC, _MS_PRIVATE = 0x1000, 0x4000, 0x40000
_RESOLVERS = (Path("/run/systemd/resolve"), Path("/run/nscd"), Path("/run/avahi-daemon"))
"""Sockets of programs that look names up for others, outside the chain."""

_libc = ctypes.CDLL(None, use_errno=True)


def take_address(folder: Path, lan: IPv4Interface) -> IPv4Interface:
    """One of the upper half of the network that no other program has.

    The lock on it is inherited by the program and freed with its last process. Raises LookAgain
    C562 when all are taken.
    """
    folder.mkdir(mode=0o700, parents=True, exist_ok=True)
    for address in _upper_half(lan):
        handle = os.open(folder / str(address), os.O_CREAT | os.O_RDWR, 0o600)
        try:
            fcntl.flock(handle, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError:
            os.close(handle)
            continue
        os.set_inheritable(handle, True)
        return IPv4Interface((address, lan.network.prefixlen))
    raise LookAgain("C562", f"every address for programs in {lan.network} is taken")


def enter(bridge: str, address: IPv4Interface, gateway: IPv4Address, mtu: int) -> None:
    """Put the calling thread into a new namespace whose only way out is `gateway`.

    Raises MendHost C563 when the bridge is missing or the kernel refuses.
    """
    with Namespaces(Path("/nonexistent")) as namespaces:
        try:
            parent = namespaces.netlink(HOST, lambda r: rtnl.read_link(r, bridge))
            if parent is None:
                raise MendHost("C563", f"there is no network {bridge}", hint="chainctl up")
            _unshare(_CLONE_NEWNET)
            for name, value in SETTINGS.items():
                if sysctl.read(name) is not None:
                    sysctl.write(name, value)
            _plug(namespaces, parent.index, f"chp{int(address.ip):08x}", mtu)
            _configure(address, gateway)
        except (OSError, rtnl.NetlinkError) as error:
            raise MendHost(
                "C563", f"cannot make a namespace: {error}", hint="run as root"
            ) from None


def ask_only(resolver: IPv4Address, folder: Path) -> None:
    """From now on names are looked up at `resolver`, in a mount namespace of the caller's own."""
    _unshare(_CLONE_NEWNS)
    _mount("none", Path("/"), _MS_REC | _MS_PRIVATE)
    for place in _RESOLVERS:
        if place.is_dir():
            _mount("tmpfs", place, 0, "tmpfs")
    wanted = folder / "resolv.conf"
    wanted.write_text(f"nameserver {resolver}\n")
    wanted.chmod(0o644)
    place = Path(os.path.realpath("/etc/resolv.conf"))
    if not place.exists():
        place.parent.mkdir(parents=True, exist_ok=True)
        place.touch()
    _mount(str(wanted), place, _MS_BIND)


def _upper_half(lan: IPv4Interface) -> Iterator[IPv4Address]:
    *_, upper = lan.network.subnets(1)
    last = lan.network.broadcast_address
    return (address for address in upper if address not in (lan.ip, last))


def _plug(namespaces: Namespaces, bridge: int, port: str, mtu: int) -> None:
    own = os.open("/proc/thread-self/ns/net", os.O_RDONLY | os.O_CLOEXEC)
    try:
        namespaces.netlink(
            HOST,
            lambda r: rtnl.add_veth(
                r, port, peer="eth0", peer_namespace=own, mtu=mtu, master=bridge
            ),
        )
    finally:
        os.close(own)
    ipv6 = f"net/ipv6/conf/{port}/disable_ipv6"
    if namespaces.call(HOST, lambda: sysctl.read(ipv6)) is not None:
        namespaces.call(HOST, lambda: sysctl.write(ipv6, "1"))
    namespaces.netlink(HOST, lambda r: rtnl.set_link(r, port, up=True))


def _configure(address: IPv4Interface, gateway: IPv4Address) -> None:
    with rtnl.IPRoute() as route:
        # IPRoute forgets to say whether nlm_request answers with a generator.
        route.status["nlm_generator"] = False
        rtnl.set_link(route, "lo", up=True)
        rtnl.add_address(route, socket.if_nametoindex("eth0"), address)
        rtnl.set_link(route, "eth0", up=True)
        route.route("add", dst="default", gateway=str(gateway))


def _unshare(flags: int) -> None:
    if _libc.unshare(flags):
        raise OSError(ctypes.get_errno(), os.strerror(ctypes.get_errno()))


def _mount(source: str, target: Path, flags: int, kind: str = "none") -> None:
    if _libc.mount(source.encode(), bytes(target), kind.encode(), flags, None):
        number = ctypes.get_errno()
        raise MendHost("C563", f"cannot mount {target}: {os.strerror(number)}", hint="run as root")
