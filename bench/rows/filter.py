"""What the identity filter costs per packet, by how many rules there are (BPF_PROG_TEST_RUN).

What a test run itself costs is measured with a program that does nothing, and taken off.
"""

from __future__ import annotations

import ctypes
import os
import random
import socket
import struct
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from ipaddress import IPv4Address

from bench import panel
from bench.harness import Result, compare, interleave, ratio_at_most, row
from chainctl.model.parts import PortMode
from chainctl.net import libbpf_abi as abi
from chainctl.net.filter import PanelFilter
from chainctl.net.identity import Reason

_LOOPBACK = 1
"""The link that the kernel shows to a test run."""
_MANY = 65_536
_REPEATS = 300_000
_FLOWS = 10_000
"""Fewer than a scope remembers, so that it is the rules that are many."""


@row("filter_65536_vs_10", unit="ns", target=ratio_at_most(1.05))
def one_flow() -> Result:
    """The same packet again and again."""
    with panel.panel(_MANY) as many, panel.panel(10) as few, _nothing() as nothing:
        frames = [frame(*panel.pair(0, 10), 1)]

        def cost(opened: PanelFilter) -> float:
            _prepare(opened, frames)
            spent = run_ns(opened.program_fd, frames[0], _REPEATS)
            return spent - run_ns(nothing, frames[0], _REPEATS)

        return compare(interleave(lambda: cost(many), lambda: cost(few)))


@row("filter_65536_vs_10_spread", unit="ns", target=ratio_at_most(1.6))
def spread() -> Result:
    """Packets of 10 000 flows in any order, whose rules are all over the table."""
    with panel.panel(_MANY) as many, panel.panel(10) as few, _nothing() as nothing:
        rng = random.Random(1)
        over_all = [frame(*panel.pair(n, _MANY), 1) for n in rng.sample(range(_MANY), _FLOWS)]
        over_ten = [frame(*panel.pair(n % 10, 10), n // 10 + 1) for n in range(_FLOWS)]

        def cost(opened: PanelFilter, frames: Sequence[bytes]) -> float:
            _prepare(opened, frames)
            order = rng.sample(frames, len(frames))
            spent = sum(run_ns(opened.program_fd, each, 1) for each in order)
            return (spent - sum(run_ns(nothing, each, 1) for each in order)) / len(order)

        return compare(interleave(lambda: cost(many, over_all), lambda: cost(few, over_ten)))


def _prepare(opened: PanelFilter, frames: Sequence[bytes]) -> None:
    """Whole port, open gate; every flow is known, and really passes."""
    panel.join(opened, _LOOPBACK, _LOOPBACK)
    opened.put_port(_LOOPBACK, opened.ports()[_LOOPBACK]._replace(mode=PortMode.CLIENT))
    for each in frames:
        run_ns(opened.program_fd, each, 1)
    before = opened.counters().get(Reason.PASS_KNOWN, 0)
    for each in frames:
        run_ns(opened.program_fd, each, 1)
    passed = opened.counters().get(Reason.PASS_KNOWN, 0) - before
    if passed != len(frames):
        raise RuntimeError(f"{passed} of {len(frames)} packets passed: {opened.counters()}")


def run_ns(program: int, data: bytes, repeats: int) -> int:
    """Nanoseconds of one run, in the mean over `repeats` of them."""
    buffer = ctypes.create_string_buffer(data, len(data))
    options = abi.RunOptions.new(
        data_in=ctypes.addressof(buffer), data_size_in=len(data), repeat=repeats
    )
    abi.lib().bpf_prog_test_run_opts(program, ctypes.byref(options))
    return int(options.duration)


@contextmanager
def _nothing() -> Iterator[int]:
    """The descriptor of a program that says 0 and ends: `r0 = 0; exit`."""
    code = struct.pack("=BBhi", 0xB7, 0, 0, 0) + struct.pack("=BBhi", 0x95, 0, 0, 0)
    buffer = ctypes.create_string_buffer(code, len(code))
    load = abi.lib().bpf_prog_load
    load.argtypes = [ctypes.c_int, ctypes.c_char_p, ctypes.c_char_p, ctypes.c_void_p]
    load.argtypes += [ctypes.c_size_t, ctypes.c_void_p]
    program = load(3, b"nothing", b"GPL", ctypes.addressof(buffer), 2, None)  # SCHED_CLS
    if program < 0:
        raise OSError(-program, "the kernel refused an empty program")
    try:
        yield program
    finally:
        os.close(program)


def frame(source: IPv4Address, destination: IPv4Address, port: int) -> bytes:
    """A UDP packet with 32 bytes, from source port 10 000 + `port`."""
    udp = struct.pack("!HHHH", 10_000 + port, 443, 40, 0) + bytes(32)
    total = 20 + len(udp)
    ip = struct.pack("!BBHHHBBH", 0x45, 0, total, 1, 0, 64, socket.IPPROTO_UDP, 0)
    return bytes(12) + b"\x08\x00" + ip + source.packed + destination.packed + udp
