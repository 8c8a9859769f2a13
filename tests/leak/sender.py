"""Send canaries from the namespace this program is started in.

Reads one order (JSON, one line) from standard input, prints `started` once the first packet is
about to go out, and a report as its last line. SIGTERM ends it early, with a report. Runs alone
(`python -I sender.py`): nothing but the standard library, nothing of the project.
"""

from __future__ import annotations

import contextlib
import ctypes
import errno
import fcntl
import json
import signal
import socket
import struct
import sys
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

_LONGEST = 600.0
_SIOCOUTQNSD = 0x894B  # tcp(7): bytes not yet sent
_PR_SET_PDEATHSIG = 1

_stopped = False


def main() -> None:
    ctypes.CDLL(None).prctl(_PR_SET_PDEATHSIG, signal.SIGKILL)
    signal.signal(signal.SIGTERM, _stop)
    order = json.loads(sys.stdin.readline())
    errors: list[str] = []
    send = {"udp": _udp, "dns": _dns, "tcp": _tcp, "frames": _frames}[order["kind"]]
    try:
        sent = send(order, errors)
    except OSError as error:
        sent = 0
        errors.append(str(error))
    _say(json.dumps({"sent": sent, "errors": sorted(set(errors))[:10]}))


def _stop(_number: int, _frame: object) -> None:
    global _stopped
    _stopped = True


def _say(line: str) -> None:
    sys.stdout.write(line + "\n")
    sys.stdout.flush()


def _ticks(count: int, rate: float) -> Iterator[int]:
    """0, 1, 2 … at `rate` per second, until `count`, SIGTERM or the longest time there is."""
    _say("started")
    begin = time.monotonic()
    for number in range(count):
        due = begin + (number / rate if rate else 0)
        while (left := due - time.monotonic()) > 0 and not _stopped:
            time.sleep(min(left, 0.1))
        if _stopped or time.monotonic() - begin > _LONGEST:
            return
        yield number


def _numbered(order: dict[str, Any], number: int) -> bytes:
    return b"%s-%08d" % (order["mark"].encode(), number)


def _udp(order: dict[str, Any], errors: list[str]) -> int:
    with socket.socket(socket.AF_INET, socket.SOCK_DGRAM) as client:
        client.bind(("", order["source_port"]))
        to = (order["destination"], order["port"])
        if order["connected"]:
            client.connect(to)
        sent = 0
        for number in _ticks(order["count"], order["rate"]):
            data = _numbered(order, number).ljust(order["size"], b".")
            sent += _send(client, data, None if order["connected"] else to, errors)
        return sent


def _dns(order: dict[str, Any], errors: list[str]) -> int:
    with socket.socket(socket.AF_INET, socket.SOCK_DGRAM) as client:
        sent = 0
        for number in _ticks(order["count"], order["rate"]):
            labels = (_numbered(order, number), order["suffix"].encode())
            name = b"".join(bytes((len(label),)) + label for label in labels) + b"\0"
            question = struct.pack("!6H", number & 0xFFFF, 0x100, 1, 0, 0, 0) + name + b"\0\1\0\1"
            sent += _send(client, question, (order["destination"], order["port"]), errors)
        return sent


def _send(client: socket.socket, data: bytes, to: tuple[str, int] | None, errors: list[str]) -> int:
    """1 when the datagram went out. An error of an earlier one is taken off the socket first."""
    for _ in range(2):
        try:
            if to is None:
                client.send(data)
            else:
                client.sendto(data, to)
            return 1
        except OSError as error:
            errors.append(str(error))
            if error.errno not in (errno.ECONNREFUSED, errno.EHOSTUNREACH):
                break
    return 0


def _tcp(order: dict[str, Any], errors: list[str]) -> int:
    with socket.socket(socket.AF_INET, socket.SOCK_STREAM) as client:
        client.bind(("", order["source_port"]))
        client.settimeout(order["timeout"])
        client.connect((order["destination"], order["port"]))
        client.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)
        client.setblocking(False)
        line = len(_numbered(order, 0)) + 1
        written = 0
        rest = b""
        try:
            for _ in _ticks(order["count"], order["rate"]):
                # A full buffer delays lines, it never leaves one out or cuts it.
                rest = rest or _numbered(order, written // line) + b"\n"
                with contextlib.suppress(BlockingIOError):
                    taken = client.send(rest)
                    written += taken
                    rest = rest[taken:]
                _discard_answers(client)
        except OSError as error:
            errors.append(str(error))
        waiting = _settle(client)
        # Close by a reset: a line that is still in the buffer must not go out uncounted.
        client.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, struct.pack("ii", 1, 0))
        return (written - waiting) // line


def _discard_answers(client: socket.socket) -> None:
    with contextlib.suppress(BlockingIOError):
        while client.recv(1 << 16):
            pass


def _settle(client: socket.socket) -> int:
    """Bytes that were not sent, after the kernel had half a second to send them."""
    deadline = time.monotonic() + 0.5
    while (waiting := _unsent(client)) and time.monotonic() < deadline:
        time.sleep(0.005)
    return waiting


def _unsent(client: socket.socket) -> int:
    answer = fcntl.ioctl(client.fileno(), _SIOCOUTQNSD, struct.pack("i", 0))
    return int(struct.unpack("i", answer)[0])


def _frames(order: dict[str, Any], errors: list[str]) -> int:
    gateway = _hardware_address(order["gateway"])
    with socket.socket(socket.AF_PACKET, socket.SOCK_RAW, 0) as client:
        client.bind((order["interface"], 0))
        own = client.getsockname()[4]
        sent = 0
        for number in _ticks(len(order["packets"]), order["rate"]):
            try:
                for piece in order["packets"][number]:
                    client.send(_addressed(bytes.fromhex(piece), own, gateway))
                sent += 1
            except OSError as error:
                errors.append(str(error))
        return sent


def _addressed(frame: bytes, own: bytes, gateway: bytes) -> bytes:
    return (gateway if frame[:6] == bytes(6) else frame[:6]) + own + frame[12:]


def _hardware_address(gateway: str) -> bytes:
    """Of the gateway, asked for if need be; broadcast when nobody answers within a second."""
    with socket.socket(socket.AF_INET, socket.SOCK_DGRAM) as asking:
        deadline = time.monotonic() + 1.0
        asked = False
        while time.monotonic() < deadline:
            for line in Path("/proc/thread-self/net/arp").read_text().splitlines()[1:]:
                address, _, flags, hardware, *_ = line.split()
                if address == gateway and int(flags, 16) & 2:
                    return bytes.fromhex(hardware.replace(":", ""))
            if not asked:
                # Where nothing may leave by sockets nobody can be asked.
                with contextlib.suppress(OSError):
                    asking.sendto(b"", (gateway, 9))
                asked = True
            time.sleep(0.01)
    return b"\xff" * 6


if __name__ == "__main__":
    main()
