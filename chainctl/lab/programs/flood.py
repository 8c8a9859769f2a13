"""Traffic of a LAN client without a rest: two UDP sockets and TCP connections to an echo.

    flood.py ORDER

ORDER is JSON: {"target": ip, "marker": hex, "rate": packets per second of each UDP socket,
"busy": TCP connections that send all the time, "block": bytes each of them sends 50 times a
second, "idle": TCP connections that send one line at the end, "most": seconds}. One UDP socket
is connected, the other is not: they are not the same client (a connected one is told of errors
and keeps its route).

Prints `ready` after the first answer, `{"back": when}` each time a silence ends, and on SIGTERM
or after `most` seconds, when what is still on its way has arrived, a report:

    {"udp": {"connected": {"sent", "answered", "silences": [[begin, end or null], ...]},
             "unconnected": {...}},
     "tcp": {"busy": [{"sent", "echoed", "error", "stalled"}, ...], "idle": [...]},
     "sources": [[since, ip], ...]}

`sent` and `echoed` of TCP are bytes, `stalled` the longest wait for an echo in seconds.
`sources` are those the far end sees, as they changed. Times are seconds since 1970.
"""

from __future__ import annotations

import errno
import json
import select
import signal
import socket
import sys
import time
from dataclasses import dataclass, field
from typing import Any

ECHO = 7
_SIZE = 100
_BLOCK_EVERY = 0.02
_CONNECT_SECONDS = 5.0
_GRACE = 2.0
"""Seconds without an answer after which what is missing counts as lost."""
_TCP_GRACE = 4.0
"""The same while only connections wait: they send again, more and more rarely."""
_NO_END = 0.4
"""Seconds of silence at the end after which it is called one that did not end."""
_LONGEST_GRACE = 15.0
_MOST_UNANSWERED = 1 << 18
"""Bytes of one TCP connection: more would take its time to arrive when all else is over."""
_LEAST_SILENCE = 0.05
"""Seconds; less than that is the machine itself."""


@dataclass
class Stream:
    """One UDP socket and what came back of what it sent."""

    sock: socket.socket
    target: tuple[str, int] | None
    """None: it is connected."""
    rate: float
    sent: int = 0
    answered: int = 0
    last: float = 0.0
    silences: list[tuple[float, float | None]] = field(default_factory=list)

    @property
    def longest_pause(self) -> float:
        """Seconds between answers that are no silence yet."""
        return max(_LEAST_SILENCE, 3 / self.rate)

    def send(self, marker: bytes) -> None:
        data = (marker + b"%08d" % self.sent).ljust(_SIZE, b".")
        # An error is that of an earlier datagram; it is taken off the socket by being told.
        for _ in range(2):
            try:
                if self.target is None:
                    self.sock.send(data)
                else:
                    self.sock.sendto(data, self.target)
                self.sent += 1
                return
            except OSError as error:
                if error.errno not in (errno.ECONNREFUSED, errno.EHOSTUNREACH):
                    return

    def hear(self, now: float) -> bool:
        """Note an answer; whether it ended a silence."""
        silent = bool(self.last) and now - self.last > self.longest_pause
        if silent:
            self.silences.append((self.last, now))
        self.answered += 1
        self.last = now
        return silent

    def report(self, end: float) -> dict[str, Any]:
        never = max(self.longest_pause, _NO_END)
        open_end = [(self.last, None)] if end - self.last > never else []
        return {
            "sent": self.sent,
            "answered": self.answered,
            "silences": [*self.silences, *open_end],
        }


@dataclass
class Connection:
    """One TCP connection to the echo, which first says who it sees."""

    sock: socket.socket
    sent: int = 0
    heard: int = 0
    greeting: bytes = b""
    error: str = ""
    last: float = 0.0
    stalled: float = 0.0
    """The longest time, in seconds, that something sent was without an echo."""

    @property
    def echoed(self) -> int:
        return self.heard - len(self.greeting)

    def send(self, data: bytes) -> None:
        """As much as fits into the buffer, unless there is enough on its way."""
        if self.sent - self.echoed > _MOST_UNANSWERED:
            return
        if self.echoed >= self.sent:
            self.last = time.time()
        try:
            self.sent += self.sock.send(data)
        except BlockingIOError:
            pass
        except OSError as error:
            self.error = self.error or str(error)

    def hear(self) -> None:
        try:
            data = self.sock.recv(1 << 16)
        except BlockingIOError:
            return
        except OSError as error:
            self.error = self.error or str(error)
            return
        if not data:
            self.error = self.error or "closed by the other side"
        if not self.greeting.endswith(b"\n"):
            self.greeting += data[: data.find(b"\n") + 1]
        self.heard += len(data)
        self.note_stall()

    def note_stall(self) -> None:
        now = time.time()
        if self.last:
            self.stalled = max(self.stalled, now - self.last)
        self.last = now

    def report(self) -> dict[str, Any]:
        if self.echoed < self.sent:
            self.note_stall()
        facts = {"sent": self.sent, "echoed": self.echoed, "error": self.error}
        return {**facts, "stalled": self.stalled}


class Flood:
    def __init__(self, order: dict[str, Any]) -> None:
        self.marker = bytes.fromhex(order["marker"])
        self.rate = float(order["rate"])
        self.block = self.marker.ljust(order["block"], b".")
        self.end = time.monotonic() + order["most"]
        target = (order["target"], ECHO)
        self.streams = {
            "connected": Stream(_datagrams(target), None, self.rate),
            "unconnected": Stream(_datagrams(None), target, self.rate),
        }
        self.busy = [_connect(target) for _ in range(order["busy"])]
        self.idle = [_connect(target) for _ in range(order["idle"])]
        self.sources: list[tuple[float, str]] = []
        self.stopped = False
        self.ready = False
        self.epoll = select.epoll()
        self.by_fd: dict[int, Stream | Connection] = {}
        ends: list[Stream | Connection] = [*self.streams.values(), *self.busy, *self.idle]
        for one in ends:
            self.by_fd[one.sock.fileno()] = one
            self.epoll.register(one.sock.fileno(), select.EPOLLIN)

    def run(self) -> dict[str, Any]:
        """Send until told to stop."""
        due = block_due = time.monotonic()
        while not self.stopped and (now := time.monotonic()) < self.end:
            while due <= now:
                for stream in self.streams.values():
                    stream.send(self.marker)
                due += 1 / self.rate
            if block_due <= now:
                block_due = now + _BLOCK_EVERY
                for connection in self.busy:
                    connection.send(self.block)
            self._hear(max(0.0, min(due, block_due) - now))
        ended = time.time()
        for connection in self.idle:
            connection.send(self.marker + b"\n")
        self._hear_the_rest()
        return self._report(ended)

    def _hear_the_rest(self) -> None:
        begun = quiet_since = time.monotonic()
        while (grace := self._grace()) and (now := time.monotonic()) - quiet_since < grace:
            if self._hear(0.1):
                quiet_since = now
            if now - begun > _LONGEST_GRACE:
                return

    def _grace(self) -> float:
        """Seconds for what may still be on its way; 0: nothing is."""
        if not all(
            connection.error or connection.echoed >= connection.sent
            for connection in (*self.busy, *self.idle)
        ):
            return _TCP_GRACE
        complete = all(stream.answered >= stream.sent for stream in self.streams.values())
        return 0.0 if complete else _GRACE

    def _hear(self, seconds: float) -> bool:
        heard = self.epoll.poll(seconds)
        for fd, _ in heard:
            one = self.by_fd[fd]
            if isinstance(one, Stream):
                self._hear_datagrams(one)
            else:
                one.hear()
                if one.error:
                    self.epoll.unregister(fd)
        return bool(heard)

    def _hear_datagrams(self, stream: Stream) -> None:
        now = time.time()
        while True:
            try:
                data = stream.sock.recv(2048)
            except OSError:  # Nothing more, or the error of a datagram that was refused.
                return
            if stream.hear(now):
                _say(json.dumps({"back": now}))
            source = data.split(b" ", 2)[1].decode()
            if not self.sources or self.sources[-1][1] != source:
                self.sources.append((now, source))
            if not self.ready:
                self.ready = True
                _say("ready")

    def _report(self, ended: float) -> dict[str, Any]:
        return {
            "udp": {name: stream.report(ended) for name, stream in self.streams.items()},
            "tcp": {
                "busy": [connection.report() for connection in self.busy],
                "idle": [connection.report() for connection in self.idle],
            },
            "sources": self.sources,
        }


def main() -> None:
    flood = Flood(json.loads(sys.argv[1]))

    def stop(*_: object) -> None:
        flood.stopped = True

    signal.signal(signal.SIGTERM, stop)
    _say(json.dumps(flood.run()))


def _datagrams(target: tuple[str, int] | None) -> socket.socket:
    sock = socket.socket(socket.AF_INET, socket.SOCK_DGRAM)
    sock.setsockopt(socket.SOL_SOCKET, 33, 8 << 20)  # SO_RCVBUFFORCE
    if target is not None:
        sock.connect(target)
    sock.setblocking(False)
    return sock


def _connect(target: tuple[str, int]) -> Connection:
    try:
        sock = socket.create_connection(target, timeout=_CONNECT_SECONDS)
    except OSError as error:
        return Connection(socket.socket(), error=str(error))
    sock.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)
    sock.setblocking(False)
    return Connection(sock)


def _say(line: str) -> None:
    sys.stdout.write(line + "\n")
    sys.stdout.flush()


if __name__ == "__main__":
    main()
