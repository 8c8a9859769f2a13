"""A panel and legs in namespaces of the test's own, for the filter on real links."""

from __future__ import annotations

import contextlib
import ctypes
import fcntl
import os
import socket
import struct
import subprocess
import threading
from collections.abc import Callable, Iterator
from ipaddress import IPv4Address
from pathlib import Path
from typing import TypeVar

from chainctl.model.parts import UDP, PortMode
from chainctl.net.filter import IDENTITY_OBJECT, PanelFilter, Port, WireRow
from tests.kernel.filter_rig import bpffs

T = TypeVar("T")
A, B = IPv4Address("198.19.0.1"), IPv4Address("198.19.0.2")
LEFT, RIGHT = 40001, 51820
SILENCE = 0.25
"""Seconds after which a datagram that did not arrive will not: they take microseconds here."""
_NEWNET = 0x40000000


def ip(*words: str) -> str:
    done = subprocess.run(["ip", *words], capture_output=True, text=True, check=False, timeout=20)
    assert not done.returncode, (words, done.stderr)
    return done.stdout


class Namespaces:
    """Namespaces with names of this process, gone after the test."""

    def __init__(self) -> None:
        self._made: list[str] = []

    def make(self, name: str) -> None:
        ip("netns", "add", self.full(name))
        self._made.append(name)
        self.inside(name, _no_ipv6)

    def remove(self, name: str) -> None:
        ip("netns", "del", self.full(name))
        self._made.remove(name)

    def close(self) -> None:
        for name in self._made[:]:
            self.remove(name)

    def full(self, name: str) -> str:
        return f"filter{os.getpid()}-{name}"

    def ip(self, name: str, *words: str) -> str:
        return ip("-n", self.full(name), *words)

    def inside(self, name: str, do: Callable[[], T]) -> T:
        """Run on a thread that goes into the namespace and ends there."""
        answers: list[T] = []
        errors: list[BaseException] = []

        def work() -> None:
            try:
                libc = ctypes.CDLL(None, use_errno=True)
                with Path(f"/run/netns/{self.full(name)}").open() as pin:
                    assert not libc.setns(pin.fileno(), _NEWNET)
                answers.append(do())
            except BaseException as error:
                errors.append(error)

        thread = threading.Thread(target=work)
        thread.start()
        thread.join()
        if errors:
            raise errors[0]
        return answers[0]

    def udp(self, name: str, address: IPv4Address, port: int) -> socket.socket:
        def bind() -> socket.socket:
            made = socket.socket(socket.AF_INET, socket.SOCK_DGRAM)
            made.bind((str(address), port))
            made.settimeout(SILENCE)
            return made

        return self.inside(name, bind)

    def raw(self, name: str, link: str) -> socket.socket:
        """Whole frames, out of this link and into it."""

        def bind() -> socket.socket:
            made = socket.socket(socket.AF_PACKET, socket.SOCK_RAW, socket.htons(3))
            made.bind((link, 3))
            made.settimeout(SILENCE)
            return made

        return self.inside(name, bind)

    def ifindex(self, name: str, link: str) -> int:
        return self.inside(name, lambda: socket.if_nametoindex(link))

    def received(self, name: str, link: str) -> int:
        """Packets that came in on the link."""
        text = self.ip(name, "-s", "link", "show", link)
        return int(text[text.index("RX:") :].splitlines()[1].split()[1])


def _no_ipv6() -> int:
    for which in ("all", "default"):
        Path(f"/proc/sys/net/ipv6/conf/{which}/disable_ipv6").write_text("1")
    return 0


class Wire:
    """Legs `a` and `b`, joined by rows for one tuple and its reverse, not yet attached."""

    def __init__(self, namespaces: Namespaces, panel: PanelFilter, pins: Path) -> None:
        self.namespaces = namespaces
        self.panel = panel
        self.pins = pins
        for name in ("panel", "a", "b"):
            namespaces.make(name)
        self.a = self.leg("a", A)
        self.b = self.leg("b", B)
        self.left = namespaces.udp("a", A, LEFT)
        self.right = namespaces.udp("b", B, RIGHT)
        self._number = 0

    def leg(self, name: str, address: IPv4Address, *index: str) -> int:
        """A port p<name> whose leg is up0 in the namespace; neither knows ARP."""
        spaces = self.namespaces
        peer = ["peer", "name", "up0", "netns", spaces.full(name)]
        spaces.ip("panel", "link", "add", f"p{name}", *index, "type", "veth", *peer)
        for space, link in (("panel", f"p{name}"), (name, "up0")):
            spaces.ip(space, "link", "set", link, "arp", "off", "addrgenmode", "none", "up")
        spaces.ip(name, "address", "add", f"{address}/32", "dev", "up0")
        spaces.ip(name, "route", "add", "default", "dev", "up0", "scope", "link")
        return spaces.ifindex("panel", f"p{name}")

    def close(self) -> None:
        self.left.close()
        self.right.close()

    def in_panel(self, do: Callable[[], T]) -> T:
        return self.namespaces.inside("panel", do)

    def fill(self, panel: PanelFilter | None = None, protocol: int = UDP) -> None:
        """All rows that the wire needs."""
        rows = panel or self.panel
        for port, address in ((self.a, A), (self.b, B)):
            rows.put_port(port, Port(256, address, 1500, PortMode.TUPLE, 0, 0))
        there = WireRow(self.a, A, LEFT, B, RIGHT, protocol)
        rows.put_wires([there, WireRow(self.b, B, RIGHT, A, LEFT, protocol)])
        self.join(rows)

    def join(self, panel: PanelFilter | None = None) -> None:
        rows = panel or self.panel
        self.in_panel(lambda: rows.put_far(self.a, self.b))
        self.in_panel(lambda: rows.put_far(self.b, self.a))

    def attach(self, panel: PanelFilter | None = None) -> None:
        for port in (self.a, self.b):
            self.in_panel(lambda port=port: (panel or self.panel).attach(port))  # type: ignore[misc]

    def attached(self, panel: PanelFilter | None = None) -> bool:
        return self.in_panel(lambda: (panel or self.panel).attached(self.a))

    def carries(self, *, back: bool = False, size: int = 32) -> bool:
        """A marked datagram arrives whole. False only after it has surely been judged."""
        sender, receiver = (self.right, self.left) if back else (self.left, self.right)
        to = (str(A), LEFT) if back else (str(B), RIGHT)
        self._number += 1
        return crosses(sender, receiver, to, self._number.to_bytes(8, "big").ljust(size, b"."))


def crosses(
    sender: socket.socket, receiver: socket.socket, to: tuple[str, int], mark: bytes
) -> bool:
    sender.sendto(mark, to)
    try:
        while True:
            if receiver.recv(65535) == mark:
                return True
    except TimeoutError:
        return False


@contextlib.contextmanager
def wire(path: Path) -> Iterator[Wire]:
    namespaces = Namespaces()
    with bpffs(path) as pins, contextlib.closing(PanelFilter.open(IDENTITY_OBJECT, pins)) as panel:
        try:
            with contextlib.closing(Wire(namespaces, panel, pins)) as made:
                yield made
        finally:
            namespaces.close()


def make_tun(name: str) -> int:
    """A TUN device in the caller's namespace; gone with the descriptor."""
    fd = os.open("/dev/net/tun", os.O_RDWR | os.O_NONBLOCK | os.O_CLOEXEC)
    fcntl.ioctl(fd, 0x400454CA, struct.pack("16sH22x", name.encode(), 0x1001))  # IFF_TUN | NO_PI
    return fd
