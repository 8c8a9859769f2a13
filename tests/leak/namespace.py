"""Work inside another network namespace.

Used by the captures and the controls. Nothing here belongs to the product: what judges it
should not share its way into a namespace.
"""

from __future__ import annotations

import ctypes
import errno
import os
import socket
import time
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import NamedTuple, TypeVar

_CLONE_NEWNET = 0x40000000
_ETHERNET_LIKE = (1, 772)  # ARPHRD_ETHER, ARPHRD_LOOPBACK of linux/if_arp.h
_GONE_OR_DOWN = (errno.ENETDOWN, errno.ENODEV, errno.ENXIO)
_LINK_WATCHED = 2.0
"""Seconds after which the kernel has looked at a link whose carrier came or went."""

_libc = ctypes.CDLL(None, use_errno=True)
_Result = TypeVar("_Result")


class Link(NamedTuple):
    """An interface and how many packets it counted in both directions."""

    name: str
    packets: int


def inside(namespace: int, work: Callable[[], _Result]) -> _Result:
    """What `work()` returns when called in the network namespace of this file descriptor.

    It runs on a thread that ends with it, so that no thread is left in a foreign namespace.
    """

    def enter() -> _Result:
        if _libc.setns(namespace, _CLONE_NEWNET):
            code = ctypes.get_errno()
            raise OSError(code, f"setns: {os.strerror(code)}")
        return work()

    with ThreadPoolExecutor(max_workers=1) as thread:
        return thread.submit(enter).result()


def read_links() -> dict[int, Link]:
    """The interfaces of the calling thread's namespace by index (proc_net(5))."""
    links = {}
    for line in Path("/proc/thread-self/net/dev").read_text().splitlines()[2:]:
        name, _, numbers = line.strip().partition(":")
        counts = numbers.split()
        try:
            index = socket.if_nametoindex(name)
        except OSError:  # It went away between the two readings.
            continue
        links[index] = Link(name, int(counts[1]) + int(counts[9]))
    return links


def send_frame(interface: str, frame: bytes) -> bool:
    """Send one Ethernet frame from the calling thread's namespace.

    False when nothing can be sent: no such interface, it is down, or it has no Ethernet header.
    """
    with socket.socket(socket.AF_PACKET, socket.SOCK_RAW, 0) as sender:
        try:
            sender.bind((interface, 0))
            if sender.getsockname()[3] not in _ETHERNET_LIKE:
                return False
            return _send_surely(sender, interface, frame)
        except OSError as error:
            if error.errno in _GONE_OR_DOWN:
                return False
            raise


def _send_surely(sender: socket.socket, interface: str, frame: bytes) -> bool:
    """A link that came up an instant ago takes frames and drops them without a word.

    The kernel gives it a queue only when its link watcher gets to it, which it does once a second
    (net/core/link_watch.c); hence the look at the counter. One whose other end went down an
    instant ago still has its queue, and says ENOBUFS until the watcher has taken it away.
    """
    index = socket.if_nametoindex(interface)
    nothing = Link(interface, 0)
    before = read_links().get(index, nothing).packets
    deadline = time.monotonic() + _LINK_WATCHED
    while time.monotonic() < deadline:
        try:
            sender.send(frame)
        except OSError as error:
            if error.errno != errno.ENOBUFS:
                raise
        if read_links().get(index, nothing).packets > before:
            return True
        time.sleep(0.005)
    return False
