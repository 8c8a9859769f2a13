"""Every frame of a network namespace, kept as the kernel delivered it.

One packet socket (packet(7)) per namespace, bound to no interface, so that interfaces that
appear later are in it without anybody asking. The kernel fills a ring of blocks
(TPACKET_V3, Documentation/networking/packet_mmap.rst); one thread copies whole blocks to a
file and looks at nothing, which is what keeps it ahead of a flood. `frames()` takes them apart
when all is over.

An open capture keeps its namespace alive, even a deleted one, until `finish`.
"""

from __future__ import annotations

import contextlib
import ctypes
import errno
import mmap
import os
import select
import socket
import struct
import tempfile
import threading
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import TypeVar

from tests.leak.frames import Frame
from tests.leak.namespace import Link, inside, read_links

RING_BYTES = 32 << 20

_SO_ATTACH_FILTER = 26
_SO_RCVBUFFORCE = 33
_SOL_PACKET = 263  # linux/if_packet.h from here on
_PACKET_RX_RING = 5
_PACKET_STATISTICS = 6
_PACKET_VERSION = 10
_TPACKET_V3 = 2
_ETH_P_ALL = 3
_OUTGOING = 4
_STATUS_USER = 1
_STATUS_VLAN = 1 << 4
_STATUS_VLAN_PROTOCOL = 1 << 6
_BLOCK = struct.Struct("=IIII")
"""Status, number of frames, offset of the first one, length: 8 bytes into each block."""
_HEADER = struct.Struct("=IIIIIIH2x4xIH2x8x4xiHB")
"""struct tpacket3_hdr and, behind it, struct sockaddr_ll."""

_BLOCK_BYTES = 256 << 10  # Holds the largest frame there is, an aggregate of 64 KiB.
_RETIRE_MS = 100
"""After which a block with few frames counts as full: the ring holds as many times this as it has
blocks, and a machine whose other work keeps the thread waiting for that long loses frames.
"""
_ETHERNET_LIKE = (1, 772)

_RTMGRP_LINK = 1
_RTM_NEWLINK = 16
_RTM_DELLINK = 17
_IFLA_IFNAME = 3

_libc = ctypes.CDLL(None, use_errno=True)
_Result = TypeVar("_Result")


class Capture:
    """All interfaces of the namespace at `path`, from the constructor's return to `finish`."""

    def __init__(self, path: Path, directory: Path, *, ring_bytes: int = RING_BYTES) -> None:
        self.path = path
        self.frames_received = 0
        self.drops = 0
        """Frames the kernel had no room for, or that nobody collected."""
        self.truncated = 0
        """Frames that were not kept whole, known after `frames()`."""
        self.gone: list[str] = []
        """Interfaces that vanished meanwhile: their counters could not be compared."""
        self.finished = False
        self._due = 0
        self._block = 0
        self._counted: dict[int, int] = {}
        self._names: dict[int, list[tuple[float, str]]] = {}
        self._looked_at = 0.0
        self._spooled = 0
        with contextlib.ExitStack() as closing:
            self._namespace = os.open(path, os.O_RDONLY | os.O_CLOEXEC)
            closing.callback(os.close, self._namespace)
            self._events, self._socket = inside(self._namespace, _open_sockets)
            closing.enter_context(self._events)
            closing.enter_context(self._socket)
            self._ring, self._blocks = _make_ring(self._socket, ring_bytes)
            closing.enter_context(self._ring)
            self._spool = tempfile.TemporaryFile(buffering=0, dir=directory)  # noqa: SIM115
            self._begin()
            self._closing = closing.pop_all()

    @property
    def sockets(self) -> tuple[int, int]:
        """File descriptors that are readable when `drain` has something to do."""
        return self._socket.fileno(), self._events.fileno()

    def inside(self, work: Callable[[], _Result]) -> _Result:
        """What `work()` returns in this namespace, deleted or not; only before `finish`."""
        return inside(self._namespace, work)

    def drain(self) -> None:
        """Copy what the kernel handed over. One thread at a time."""
        self._read_events()
        while True:
            start = self._block * _BLOCK_BYTES
            status, frames, _, length = _BLOCK.unpack_from(self._ring, start + 8)
            if not status & _STATUS_USER:
                return
            with memoryview(self._ring)[start : start + length] as block:
                self._keep(block)
            self.frames_received += frames
            struct.pack_into("=I", self._ring, start + 8, 0)
            self._block = (self._block + 1) % self._blocks

    def finish(self) -> None:
        """Take no more frames, collect those that came, let the namespace go."""
        if self.finished:
            return
        self.finished = True
        with self._closing:
            self._end()

    def close(self) -> None:
        """Let the namespace go and forget the frames; at any time, also twice."""
        self.finished = True
        self._closing.close()
        self._spool.close()

    def frames(self) -> Iterator[Frame]:
        """What was seen, in order; only after `finish`. May be asked again."""
        self.truncated = 0
        if not self.frames_received:
            return
        with mmap.mmap(self._spool.fileno(), 0, prot=mmap.PROT_READ) as spool:
            start = 0
            while start < self._spooled:
                _, count, first, length = _BLOCK.unpack_from(spool, start + 8)
                yield from self._unpack(spool, start + first, count)
                start += length

    def missing(self, seen: dict[int, int]) -> dict[str, int]:
        """Interfaces that counted more packets than `seen` (by index) has, and how many.

        The other way round is no loss: a driver may drop a frame after the capture saw it.
        """
        short = {}
        for index, counted in self._counted.items():
            if counted > seen.get(index, 0):
                short[self.name(index, 0.0)] = counted - seen.get(index, 0)
        return short

    def name(self, index: int, when: float) -> str:
        """What the interface was called at that time (an index can be used again)."""
        known = self._names.get(index)
        if not known:
            return f"#{index}"
        for since, name in reversed(known):
            if since <= when:
                return name
        return known[0][1]

    def _begin(self) -> None:
        _bind_to_all(self._socket)
        # Read after the binding: what is counted from here on has to be captured.
        self._before = self.inside(read_links)
        for index, link in self._before.items():
            self._names[index] = [(0.0, link.name)]

    def _end(self) -> None:
        # Read before the end of the capture, for the same reason.
        links = self.inside(read_links)
        self._counted = self._new_packets(links)
        self._wait_for_backlog(sum(self._counted.values()))
        self._refuse_more()
        self._update_statistics()
        deadline = time.monotonic() + 2.0
        self.drain()
        while self.frames_received < self._due and time.monotonic() < deadline:
            select.select([self._socket], [], [], 0.05)
            self.drain()
        # Whatever the kernel handed over and nobody collected is lost, too.
        self.drops += self._due - self.frames_received

    def _new_packets(self, links: dict[int, Link]) -> dict[int, int]:
        self._read_events()
        for index, link in links.items():
            if not self._names.get(index):
                self._names[index] = [(0.0, link.name)]
        for index, link in self._before.items():
            if index not in links:
                self._note_gone(link.name)
        none = Link("", 0)
        return {
            index: link.packets - self._before.get(index, none).packets
            for index, link in links.items()
        }

    def _wait_for_backlog(self, packets: int) -> None:
        """A packet is counted when it is sent, and captured when softirqs get to it."""
        deadline = time.monotonic() + 0.2
        self._update_statistics()
        while self._due + self.drops < packets and time.monotonic() < deadline:
            time.sleep(0.001)
            self._update_statistics()

    def _refuse_more(self) -> None:
        """Attach a filter that takes nothing: `ret #0` (linux/filter.h)."""
        program = ctypes.create_string_buffer(struct.pack("=HBBI", 6, 0, 0, 0), 8)
        order = struct.pack("=H6xQ", 1, ctypes.addressof(program))
        self._socket.setsockopt(socket.SOL_SOCKET, _SO_ATTACH_FILTER, order)

    def _keep(self, block: memoryview) -> None:
        """Append a whole block, or raise and leave what is there."""
        if os.pwrite(self._spool.fileno(), block, self._spooled) != len(block):
            raise OSError(errno.ENOSPC, "the captured frames do not fit on the disk")
        self._spooled += len(block)

    def _update_statistics(self) -> None:
        """Reading resets them (packet(7)), hence the sums. `tp_packets` includes the drops."""
        offered, drops, _ = struct.unpack(
            "=III", self._socket.getsockopt(_SOL_PACKET, _PACKET_STATISTICS, 12)
        )
        self._due += offered - drops
        self.drops += drops

    def _unpack(self, spool: mmap.mmap, start: int, count: int) -> Iterator[Frame]:
        for _ in range(count):
            header = _HEADER.unpack_from(spool, start)
            following, seconds, nanoseconds, kept, length, status, mac, *rest = header
            tag, tag_protocol, index, hardware, kind = rest
            data = spool[start + mac : start + mac + kept]
            if kept < length:
                self.truncated += 1
            if status & _STATUS_VLAN:
                # The kernel took the tag out; a tagged frame must not look like a plain one.
                protocol = tag_protocol if status & _STATUS_VLAN_PROTOCOL else 0x8100
                data = data[:12] + struct.pack("!HH", protocol, tag & 0xFFFF) + data[12:]
            when = seconds + nanoseconds * 1e-9
            yield Frame(when, index, kind == _OUTGOING, hardware in _ETHERNET_LIKE, data)
            start += following

    def _read_events(self) -> None:
        """Learn names. An event has no time of its own, but lies behind the last look."""
        last_look = self._looked_at
        while True:
            now = time.time()
            try:
                messages = self._events.recv(1 << 16)
            except BlockingIOError:
                self._looked_at = now
                return
            for kind, index, name in _link_messages(messages):
                known = self._names.setdefault(index, [])
                if kind == _RTM_DELLINK:
                    self._note_gone(name)
                elif not known or known[-1][1] != name:
                    known.append((last_look, name))

    def _note_gone(self, name: str) -> None:
        if name not in self.gone:
            self.gone.append(name)


class Sniffer:
    """The thread that drains all captures. When it dies, `failure` says of what."""

    def __init__(self) -> None:
        self.failure = ""
        self._captures: dict[int, Capture] = {}
        self._lock = threading.Lock()
        self._stopping = threading.Event()
        self._epoll = select.epoll()
        self._thread = threading.Thread(target=self._run, name="sniffer", daemon=True)

    def start(self) -> None:
        self._thread.start()

    def add(self, capture: Capture) -> None:
        with self._lock:
            for descriptor in capture.sockets:
                self._captures[descriptor] = capture
                self._epoll.register(descriptor, select.EPOLLIN)

    def remove(self, capture: Capture) -> None:
        """After this no other thread touches the capture. Nothing happens the second time."""
        with self._lock:
            for descriptor in [fd for fd, held in self._captures.items() if held is capture]:
                del self._captures[descriptor]
                self._epoll.unregister(descriptor)

    @contextlib.contextmanager
    def paused(self) -> Iterator[None]:
        """Drain nothing meanwhile: a machine too busy to keep up, for tests of the oracle."""
        with self._lock:
            yield

    def stop(self) -> None:
        self._stopping.set()
        if self._thread.is_alive():
            self._thread.join()
        self._epoll.close()

    def _run(self) -> None:
        try:
            while not self._stopping.is_set():
                for descriptor, _ in self._epoll.poll(0.1):
                    with self._lock:
                        capture = self._captures.get(descriptor)
                        if capture is not None:
                            capture.drain()
        except Exception as error:
            self.failure = f"{type(error).__name__}: {error}"


def _open_sockets() -> tuple[socket.socket, socket.socket]:
    events = socket.socket(socket.AF_NETLINK, socket.SOCK_RAW | socket.SOCK_NONBLOCK, 0)
    events.setsockopt(socket.SOL_SOCKET, _SO_RCVBUFFORCE, 4 << 20)
    events.bind((0, _RTMGRP_LINK))
    # Protocol 0: nothing is captured before the ring is there.
    return events, socket.socket(socket.AF_PACKET, socket.SOCK_RAW, 0)


def _bind_to_all(packets: socket.socket) -> None:
    """By libc, since Python's `bind` insists on the name of one interface."""
    address = struct.pack("=HHiHBB8x", socket.AF_PACKET, socket.htons(_ETH_P_ALL), 0, 0, 0, 0)
    if _libc.bind(packets.fileno(), address, len(address)):
        code = ctypes.get_errno()
        raise OSError(code, f"bind: {os.strerror(code)}")


def _make_ring(packets: socket.socket, size: int) -> tuple[mmap.mmap, int]:
    blocks = max(2, size // _BLOCK_BYTES)
    frame = 2048
    request = struct.pack(
        "=7I", _BLOCK_BYTES, blocks, frame, blocks * _BLOCK_BYTES // frame, _RETIRE_MS, 0, 0
    )
    packets.setsockopt(_SOL_PACKET, _PACKET_VERSION, _TPACKET_V3)
    packets.setsockopt(_SOL_PACKET, _PACKET_RX_RING, request)
    return mmap.mmap(packets.fileno(), blocks * _BLOCK_BYTES), blocks


def _link_messages(data: bytes) -> Iterator[tuple[int, int, str]]:
    """(message type, interface index, name) of each rtnetlink(7) message."""
    start = 0
    while start + 16 <= len(data):
        length, kind = struct.unpack_from("=IH", data, start)
        if kind in (_RTM_NEWLINK, _RTM_DELLINK):
            (index,) = struct.unpack_from("=4xi", data, start + 16)
            yield kind, index, _attribute(data[start + 32 : start + length], _IFLA_IFNAME)
        start += max(16, (length + 3) & ~3)


def _attribute(data: bytes, wanted: int) -> str:
    start = 0
    while start + 4 <= len(data):
        length, kind = struct.unpack_from("=HH", data, start)
        if kind == wanted:
            return data[start + 4 : start + length].rstrip(b"\0").decode()
        start += max(4, (length + 3) & ~3)
    return ""
