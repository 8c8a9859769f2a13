"""Persistent TUN devices in the namespace the calling thread is in (tun.c of the kernel)."""

from __future__ import annotations

import ctypes
import errno
import fcntl
import os
import socket
import struct

from chainctl.errors import MendHost

_TUNSETIFF = 0x400454CA
_TUNSETPERSIST = 0x400454CB
_TUNSETOWNER = 0x400454CC
_SIOCSIFMTU = 0x8922

_IFF_TUN = 0x0001
_IFF_NO_PI = 0x1000
_IFF_VNET_HDR = 0x4000
_IFF_TUN_EXCL = 0x8000


def create(name: str, *, uid: int, mtu: int) -> None:
    """Make a TUN device that only processes of `uid` may attach to without CAP_NET_ADMIN.

    All or nothing: the device becomes persistent with the last call, until then it goes
    away with the descriptor. The owner is set before, because a TUN without one can be
    attached by anybody, and so is the MTU, because a client without capabilities cannot.
    Offloads are left to the client: one that attaches without IFF_VNET_HDR would otherwise
    be handed packets larger than the MTU.

    Raises FileExistsError when the name is taken, MendHost C318 when there is no
    /dev/net/tun.
    """
    try:
        device = os.open("/dev/net/tun", os.O_RDWR | os.O_CLOEXEC)
    except OSError as error:
        raise MendHost(
            "C318", f"cannot open /dev/net/tun: {error.strerror}", hint="modprobe tun"
        ) from error
    try:
        _set_interface(device, name)
        # fcntl takes a signed number; the kernel reads the same 32 bits as a uid.
        fcntl.ioctl(device, _TUNSETOWNER, ctypes.c_int(uid).value)
        with socket.socket(socket.AF_INET, socket.SOCK_DGRAM) as any_socket:
            request = struct.pack("16si20x", name.encode(), mtu)
            fcntl.ioctl(any_socket, _SIOCSIFMTU, request)
        fcntl.ioctl(device, _TUNSETPERSIST, 1)
    finally:
        os.close(device)


def _set_interface(device: int, name: str) -> None:
    flags = _IFF_TUN | _IFF_NO_PI | _IFF_VNET_HDR | _IFF_TUN_EXCL
    try:
        fcntl.ioctl(device, _TUNSETIFF, struct.pack("16sH22x", name.encode(), flags))
    except OSError as error:
        # The kernel answers EBUSY to IFF_TUN_EXCL for a name that exists.
        if error.errno == errno.EBUSY:
            raise FileExistsError(errno.EEXIST, f"{name} exists") from error
        raise
