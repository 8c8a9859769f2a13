"""Interfaces with an address, as candidates for the LAN side of a chain.

By ioctl (netdevice(7)), which answers for the network namespace of the caller and needs no
library; /sys/class/net shows the namespace it was mounted in.
"""

from __future__ import annotations

import fcntl
import socket
import struct
from ipaddress import IPv4Interface, IPv4Network

_SIOCGIFADDR = 0x8915
_SIOCGIFNETMASK = 0x891B
_SIOCGIFHWADDR = 0x8927
_ARPHRD_ETHER = 1
_PRIVATE = tuple(map(IPv4Network, ("10.0.0.0/8", "172.16.0.0/12", "192.168.0.0/16")))
"""RFC 1918; `IPv4Address.is_private` is true for documentation addresses, too."""


def read_lan_candidates() -> tuple[tuple[str, IPv4Interface], ...]:
    """Ethernet interfaces with a private IPv4 address, in the order of their index."""
    found = []
    with socket.socket(socket.AF_INET, socket.SOCK_DGRAM) as sock:
        for _, name in socket.if_nameindex():
            try:
                (kind,) = struct.unpack_from("=H", _ask(sock, _SIOCGIFHWADDR, name))
                address = socket.inet_ntoa(_ask(sock, _SIOCGIFADDR, name)[4:8])
                mask = socket.inet_ntoa(_ask(sock, _SIOCGIFNETMASK, name)[4:8])
            except OSError:
                continue  # No IPv4 address, or gone meanwhile.
            interface = IPv4Interface(f"{address}/{mask}")
            if kind == _ARPHRD_ETHER and any(interface.ip in network for network in _PRIVATE):
                found.append((name, interface))
    return tuple(found)


def _ask(sock: socket.socket, request: int, name: str) -> bytes:
    """The 16 bytes of `struct ifreq` that follow the name."""
    answer: bytes = fcntl.ioctl(sock, request, struct.pack("16s24x", name.encode()))
    return answer[16:32]
