"""WireGuard devices of the kernel, by generic netlink (include/uapi/linux/wireguard.h)."""

from __future__ import annotations

import base64
import ctypes
import errno
import functools
import os
import threading
from collections.abc import Callable, Sequence
from typing import Any, Protocol, TypeVar

from pyroute2 import IPRoute, NetlinkError, WireGuard

from chainctl.errors import MendHost
from chainctl.model.chain import Engine
from chainctl.model.wireguard import WireGuardConfig, clamped, key_bytes
from chainctl.runtime.wireguard import EVERYTHING, NO_KEY, Reading, WireGuardStatus

T = TypeVar("T")

_CLONE_NEWNET = 0x40000000


class Inside(Protocol):
    """Runs work in the device's namespace, such as `partial(namespaces.call, ns)`."""

    def __call__(self, work: Callable[[], T], /) -> T: ...


class KernelWireGuard:
    """A device that exists already. Methods raise MendHost C552 with the kernel's words."""

    engine = Engine.KERNEL

    def __init__(self, link: str, inside: Inside) -> None:
        self._link = link
        self._inside = inside

    def configure(self, config: WireGuardConfig) -> None:
        self._ask(lambda netlink: self._set(netlink, config))

    def shake_anew(self, config: WireGuardConfig) -> None:
        self._ask(lambda netlink: self._set(netlink, config, anew=True))

    def read(self) -> WireGuardStatus:
        return self._ask(lambda netlink: parse_info(list(netlink.info(self._link)))).status()

    def _set(self, netlink: Any, config: WireGuardConfig, *, anew: bool = False) -> None:
        for other in _peer_keys(list(netlink.info(self._link))):
            if anew or key_bytes(other) != key_bytes(config.peer_public_key):
                netlink.set(self._link, peer={"public_key": other, "remove": True})
        # A key that differs from the one it shows, if only by clamping, ends all sessions.
        private_key = clamped(key_bytes(config.private_key.reveal()))
        netlink.set(
            self._link,
            private_key=base64.b64encode(private_key).decode(),
            listen_port=config.listen_port,
            peer={
                "public_key": config.peer_public_key,
                "preshared_key": config.preshared.reveal() if config.preshared else NO_KEY,
                "endpoint_addr": str(config.endpoint),
                "endpoint_port": config.endpoint_port,
                "persistent_keepalive": config.keepalive,
                "replace_allowed_ips": True,
                "allowed_ips": [EVERYTHING],
            },
        )

    def _ask(self, work: Callable[[Any], T]) -> T:
        def in_namespace() -> T:
            # A socket of its own each time: it belongs to the namespace it was opened in.
            with WireGuard() as netlink:
                return work(netlink)

        try:
            return self._inside(in_namespace)
        except NetlinkError as error:
            raise MendHost(
                "C552", f"the kernel's WireGuard refuses {self._link}: {os.strerror(error.code)}"
            ) from None


def create_device(link: str, mtu: int) -> None:
    """Have a device with this MTU in the namespace the calling thread is in.

    Raises MendHost C552 when the kernel makes none.
    """
    try:
        _ensure(link, mtu)
    except NetlinkError as error:
        raise MendHost(
            "C552", f"the kernel makes no WireGuard device {link}: {os.strerror(error.code)}"
        ) from None


@functools.cache
def kernel_wireguard_available() -> bool:
    """Found out by making a device, once; 20 ms.

    In a namespace that belongs to a thread alone and goes with it, and not by a look at what
    modules are loaded: the attempt itself loads the module.
    """
    made: list[bool] = []
    thread = threading.Thread(target=lambda: made.append(_try_device()))
    thread.start()
    thread.join()
    return made == [True]


def _try_device() -> bool:
    if ctypes.CDLL(None).unshare(_CLONE_NEWNET):
        return False
    try:
        _ensure("wg0", 1420)
    except NetlinkError:
        return False
    return True


def _ensure(link: str, mtu: int) -> None:
    with IPRoute() as netlink:
        try:
            netlink.link("add", ifname=link, kind="wireguard", mtu=mtu)
        except NetlinkError as error:
            if error.code != errno.EEXIST:
                raise
            (index,) = netlink.link_lookup(ifname=link)
            netlink.link("set", index=index, mtu=mtu)


def parse_info(messages: Sequence[Any]) -> Reading:
    """WG_CMD_GET_DEVICE's answer. Of a device with several peers only its own part is told."""
    device = messages[0]
    peers = _peers(messages)
    if len(peers) != 1:
        return Reading(listen_port=device.get_attr("WGDEVICE_A_LISTEN_PORT") or 0)
    peer = peers[0]
    endpoint = peer.get_attr("WGPEER_A_ENDPOINT") or {}
    handshake = peer.get_attr("WGPEER_A_LAST_HANDSHAKE_TIME") or {}
    return Reading(
        private_key=_text(device.get_attr("WGDEVICE_A_PRIVATE_KEY")),
        listen_port=device.get_attr("WGDEVICE_A_LISTEN_PORT") or 0,
        public_key=_text(peer.get_attr("WGPEER_A_PUBLIC_KEY")),
        preshared=_text(peer.get_attr("WGPEER_A_PRESHARED_KEY")),
        host=endpoint.get("addr", ""),
        port=endpoint.get("port", 0),
        keepalive=peer.get_attr("WGPEER_A_PERSISTENT_KEEPALIVE_INTERVAL") or 0,
        allowed=[ip["addr"] for ip in peer.get_attr("WGPEER_A_ALLOWEDIPS") or ()],
        handshake_seconds=handshake.get("tv_sec", 0),
        handshake_nanoseconds=handshake.get("tv_nsec", 0),
        received=peer.get_attr("WGPEER_A_RX_BYTES") or 0,
        sent=peer.get_attr("WGPEER_A_TX_BYTES") or 0,
    )


def _peers(messages: Sequence[Any]) -> list[Any]:
    return [peer for message in messages for peer in message.get_attr("WGDEVICE_A_PEERS") or ()]


def _peer_keys(messages: Sequence[Any]) -> list[str]:
    return [_text(peer.get_attr("WGPEER_A_PUBLIC_KEY")) for peer in _peers(messages)]


def _text(key: bytes | None) -> str:
    return (key or b"").decode()
