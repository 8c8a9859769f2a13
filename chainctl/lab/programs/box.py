"""The lab's delaying box: holds packets back, or loses them, per server.

    box.py CONTROL_SOCKET READY_FD

Runs in the internet's namespace. Policy routing there sends it, through the TUN device
`box`, the packets that come from or go to a server whose line is not plain; it writes them
back into the same device when they are due, and the router carries them on. Plain lines
never see it. (The kernels we test on have no netem.)

A client of the control socket writes one JSON object, {"5.1": [delay, to, from], ...}: the
first two octets of a server's address, the delay of one way in seconds, and the share of
packets lost on the way to and from it; the box answers b"ok" when that is in force. A packet
from one server to another is delayed by both. Losses are the same in every run with the same
packets. Beyond 100 000 packets held, new ones are dropped.
"""

from __future__ import annotations

import fcntl
import heapq
import json
import os
import random
import select
import socket
import struct
import sys
import time

DEVICE = "box"
_TUNSETIFF = 0x400454CA
_IFF_TUN_NO_PI = 0x1001
_MOST_HELD = 100_000
_BATCH = 64
_PLAIN = (0.0, 0.0, 0.0)

Line = tuple[float, float, float]
Held = tuple[float, int, bytes]


def main() -> None:
    control_path, ready = sys.argv[1], int(sys.argv[2])
    tun = _open_tun()
    control = socket.socket(socket.AF_UNIX, socket.SOCK_STREAM)
    control.bind(control_path)
    control.listen()
    os.write(ready, b"1")
    os.close(ready)
    carry(tun, control)


def carry(tun: int, control: socket.socket) -> None:
    """Hold and release packets for ever."""
    lines: dict[bytes, Line] = {}
    held: list[Held] = []
    chance = random.Random(1)  # noqa: S311 (losses are to be the same in every run)
    number = 0
    while True:
        wait = max(0.0, held[0][0] - time.monotonic()) if held else None
        readable, _, _ = select.select([tun, control.fileno()], [], [], wait)
        if control.fileno() in readable:
            lines = _take_orders(control, lines)
        if tun in readable:
            for packet in _read_batch(tun):
                number += 1
                due = due_time(packet, lines, chance)
                if due is not None and len(held) < _MOST_HELD:
                    heapq.heappush(held, (due, number, packet))
        _release(tun, held)


def due_time(packet: bytes, lines: dict[bytes, Line], chance: random.Random) -> float | None:
    """When the packet may go on (monotonic clock); None if it gets lost."""
    delay_from, _, lost_from = lines.get(packet[12:14], _PLAIN)
    delay_to, lost_to, _ = lines.get(packet[16:18], _PLAIN)
    for share in (lost_from, lost_to):
        if share and chance.random() < share:
            return None
    return time.monotonic() + delay_from + delay_to


def _read_batch(tun: int) -> list[bytes]:
    out: list[bytes] = []
    try:
        while len(out) < _BATCH:
            out.append(os.read(tun, 65536))
    except BlockingIOError:
        pass
    return out


def _release(tun: int, held: list[Held]) -> None:
    now = time.monotonic()
    while held and held[0][0] <= now:
        try:
            os.write(tun, heapq.heappop(held)[2])
        except OSError:
            return  # The device is down: what it cannot carry is lost, as on a wire.


def _take_orders(control: socket.socket, lines: dict[bytes, Line]) -> dict[bytes, Line]:
    """The new lines; the old ones when the order is not understood."""
    peer, _ = control.accept()
    with peer:
        peer.settimeout(1.0)
        try:
            orders = json.loads(peer.makefile("rb").readline())
            lines = {bytes(map(int, net.split("."))): _line(v) for net, v in orders.items()}
            peer.sendall(b"ok")
        except (OSError, ValueError):
            pass
    return lines


def _line(values: list[float]) -> Line:
    delay, lost_to, lost_from = values
    return (float(delay), float(lost_to), float(lost_from))


def _open_tun() -> int:
    tun = os.open("/dev/net/tun", os.O_RDWR | os.O_NONBLOCK)
    fcntl.ioctl(tun, _TUNSETIFF, struct.pack("16sH22x", DEVICE.encode(), _IFF_TUN_NO_PI))
    return tun


if __name__ == "__main__":
    main()
