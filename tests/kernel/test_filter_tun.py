"""The filter on the way into a tunnel: its own address, and nothing else."""

from __future__ import annotations

import contextlib
import os
import subprocess
import sys
from collections.abc import Iterator
from ipaddress import IPv4Address

import pytest

from chainctl.net import clsact, libbpf
from chainctl.net.filter import TUN_OBJECT, attach_tun, tun_attached
from tests.kernel.filter_wires import Namespaces, make_tun
from tests.kernel.open_wire import attach_pass_all
from tests.kernel.packets import ipv4, udp

pytestmark = pytest.mark.root

TUNNEL, CLIENT, SERVER = IPv4Address("10.64.0.2"), IPv4Address("192.168.1.5"), "198.51.100.9"
FLOOD = """
import contextlib, socket, sys
sender = socket.socket(socket.AF_INET, socket.SOCK_DGRAM)
sender.bind((sys.argv[1], 7))
for number in range(int(sys.argv[2])):
    with contextlib.suppress(OSError):
        sender.sendto(b"flood", (sys.argv[3], 9))
print("done")
"""


class Tunnel:
    """A TUN device and its reading end."""

    def __init__(self) -> None:
        self.namespaces = Namespaces()
        self.namespaces.make("hop")
        self.fd = self.namespaces.inside("hop", lambda: make_tun("tun0"))
        spaces = self.namespaces
        spaces.ip("hop", "link", "set", "tun0", "addrgenmode", "none", "up")
        spaces.ip("hop", "link", "set", "lo", "up")
        spaces.ip("hop", "address", "add", f"{TUNNEL}/32", "dev", "tun0")
        spaces.ip("hop", "address", "add", f"{CLIENT}/32", "dev", "lo")
        spaces.ip("hop", "route", "add", "default", "dev", "tun0")
        self.ifindex = spaces.ifindex("hop", "tun0")

    def close(self) -> None:
        os.close(self.fd)
        self.namespaces.close()

    def read(self) -> list[bytes]:
        """The packets that have come out."""
        packets = []
        while True:
            try:
                packets.append(os.read(self.fd, 2000))
            except BlockingIOError:
                return packets

    def attach(self) -> None:
        self.namespaces.inside("hop", lambda: attach_tun(TUN_OBJECT, self.ifindex, TUNNEL))

    def attached(self) -> IPv4Address | None:
        return self.namespaces.inside("hop", lambda: tun_attached(self.ifindex))

    def lets_pass(self, source: IPv4Address) -> bool:
        with self.namespaces.udp("hop", source, 0) as sender:
            sender.sendto(b"x", (SERVER, 9))
        return [packet[12:16] for packet in self.read()] == [source.packed]


@pytest.fixture
def tunnel() -> Iterator[Tunnel]:
    made = Tunnel()
    yield made
    made.close()


def test_only_its_own_address_goes_in(tunnel: Tunnel) -> None:
    assert tunnel.attached() is None
    assert tunnel.lets_pass(CLIENT), "the control"
    tunnel.attach()
    assert tunnel.attached() == TUNNEL
    assert tunnel.lets_pass(TUNNEL)
    assert not tunnel.lets_pass(CLIENT)


def test_what_is_no_ipv4_does_not_go_in(tunnel: Tunnel) -> None:
    good = ipv4(TUNNEL, SERVER, 17, udp(7, 9))
    bad = [b"\x60" + good[1:], b"\x60" + bytes(50), *(good[:size] for size in range(1, 20))]
    with tunnel.namespaces.raw("hop", "tun0") as sender:
        for data in (*bad, good):
            sender.sendto(data, ("tun0", 0x0800))
        assert tunnel.read() == [*bad, good], "the control"
        tunnel.attach()
        for data in (*bad, good):
            for kind in (0x0800, 0x86DD):
                with contextlib.suppress(OSError):  # ENOBUFS: dropped on the way out
                    sender.sendto(data, ("tun0", kind))
        assert tunnel.read() == [good]


def test_another_program_in_the_way_shows(tunnel: Tunnel) -> None:
    tunnel.attach()
    inside = tunnel.namespaces.inside
    inside("hop", lambda: attach_pass_all(tunnel.ifindex))
    assert tunnel.attached() is None
    assert tunnel.lets_pass(CLIENT)
    tunnel.attach()
    assert tunnel.attached() == TUNNEL
    assert not tunnel.lets_pass(CLIENT)
    inside("hop", lambda: clsact.detach(tunnel.ifindex, libbpf.EGRESS))
    assert tunnel.attached() is None


def _leaks_while_swapping(tunnel: Tunnel, *, remove_first: bool) -> tuple[int, int]:
    """Clients' packets that got in during a flood, and how often the program was swapped."""
    leaked, swaps = 0, 0
    space = f"--net=/run/netns/{tunnel.namespaces.full('hop')}"
    words = [str(CLIENT), "60000", SERVER]
    with subprocess.Popen(
        ["nsenter", space, sys.executable, "-I", "-S", "-c", FLOOD, *words],
        stdout=subprocess.PIPE,
        text=True,
    ) as flood:

        def swap_until_end() -> None:
            nonlocal leaked, swaps
            while flood.poll() is None:
                if remove_first:
                    clsact.detach(tunnel.ifindex, libbpf.EGRESS)
                attach_tun(TUN_OBJECT, tunnel.ifindex, TUNNEL)
                leaked += len(tunnel.read())
                swaps += 1

        tunnel.namespaces.inside("hop", swap_until_end)
        assert flood.communicate(timeout=60)[0] == "done\n"
    return leaked + len(tunnel.read()), swaps


def test_a_swap_lets_nothing_in(tunnel: Tunnel) -> None:
    tunnel.attach()
    leaked, swaps = _leaks_while_swapping(tunnel, remove_first=False)
    assert (leaked, swaps > 50) == (0, True)
    leaked, _ = _leaks_while_swapping(tunnel, remove_first=True)
    assert leaked > 0, "the control: removed and added again, it lets packets in"
