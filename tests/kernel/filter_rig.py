"""The filter in a bpffs of the test's own, asked with BPF_PROG_TEST_RUN.

The kernel presents the loopback link to a test run, so all ports here are ifindex 1; nothing is
attached and nothing is sent.
"""

from __future__ import annotations

import contextlib
import ctypes
import os
import struct
import time
from collections.abc import Iterator, Mapping
from ipaddress import IPv4Address
from pathlib import Path

from chainctl.host.clock import boot_ns
from chainctl.model.parts import PortMode
from chainctl.net import libbpf
from chainctl.net.filter import IDENTITY_OBJECT, PanelFilter, Port, mount_bpffs
from chainctl.net.identity import FLOW_KEY, Reason

LINK = 1
SCOPE = 3
HOUR = 3600 * 10**9
REDIRECT, DROP, NEXT = 7, 2, -1
_GSO_SIZE_AT, _CONTEXT_SIZE = 176, 192  # in struct __sk_buff of linux/bpf.h


class Rig:
    """One port and its filter. `judge` says what becomes of a frame, and why."""

    def __init__(self, panel: PanelFilter) -> None:
        self.panel = panel

    def be(
        self,
        mode: PortMode,
        *,
        address: str = "0.0.0.0",
        far_mtu: int = 1500,
        scope: int = SCOPE,
        gate: int = LINK,
    ) -> None:
        """The port is of this mode from now on, whole in every other respect."""
        self.panel.put_port(LINK, Port(256, IPv4Address(address), far_mtu, mode, scope, gate))
        self.panel.put_far(LINK, LINK)
        self.panel.open_gate(LINK, boot_ns() + HOUR)

    def judge(self, frame: bytes, *, gso_size: int = 0) -> Reason:
        """The one reason that was counted; the answer of the program agrees with it."""
        before = self.panel.counters()
        context = bytearray(_CONTEXT_SIZE)
        struct.pack_into("=I", context, _GSO_SIZE_AT, gso_size)
        answer = libbpf.run_program(
            self.panel.program_fd, frame, bytes(context) if gso_size else b""
        )
        more = {
            reason: number - before.get(reason, 0)
            for reason, number in self.panel.counters().items()
            if number != before.get(reason, 0) and reason != Reason.EVENT_LOST
        }
        ((reason, number),) = more.items()
        assert number == 1
        assert answer == (REDIRECT if reason.passes else DROP)
        return reason

    def flows(self, scope: int = SCOPE) -> dict[bytes, bytes]:
        number = self.panel.flow_table(scope)
        assert number is not None
        with libbpf.map_by_id(number) as table:
            return table.rows()

    def age_flows(self, nanoseconds: int) -> None:
        """Every flow was seen that much earlier."""
        number = self.panel.flow_table(SCOPE)
        assert number is not None
        with libbpf.map_by_id(number) as table:
            for key, value in table.rows().items():
                seen = int.from_bytes(value, "little") - nanoseconds
                table.put(key, (seen % 2**64).to_bytes(8, "little"))


def flow_key(source: str, port: int, destination: str, far_port: int, protocol: int) -> bytes:
    ends = int(IPv4Address(source)), int(IPv4Address(destination))
    return FLOW_KEY.pack(*ends, port, far_port, protocol, 0, 0)


@contextlib.contextmanager
def bpffs(path: Path) -> Iterator[Path]:
    mount_bpffs(path)
    try:
        yield path
    finally:
        unmount(path)


def unmount(path: Path) -> None:
    libc = ctypes.CDLL(None, use_errno=True)
    if libc.umount2(str(path).encode(), 2) and os.path.ismount(path):
        raise OSError(ctypes.get_errno(), "umount2")


@contextlib.contextmanager
def rig(path: Path, sizes: Mapping[str, int] | None = None) -> Iterator[Rig]:
    with bpffs(path) as pins:
        panel = PanelFilter.open(IDENTITY_OBJECT, pins, sizes)
        try:
            yield Rig(panel)
        finally:
            panel.close()


def wait_until(true: object, seconds: float = 5.0) -> None:
    """Wait on a state with a deadline."""
    assert callable(true)
    end = time.monotonic() + seconds
    while not true():
        assert time.monotonic() < end, "did not come true in time"
        time.sleep(0.005)
