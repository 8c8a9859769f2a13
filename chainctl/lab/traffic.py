"""Traffic of a lab's client, and what is seen of it on the wires of the lab's internet."""

from __future__ import annotations

import json
import secrets
import select
import signal
import socket
import subprocess
import sys
import time
from collections import Counter
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Any, NamedTuple

from chainctl.errors import LookAgain
from chainctl.lab.lab import Lab
from chainctl.lab.layout import HOST, TARGET
from chainctl.lab.making import PROGRAMS
from chainctl.lab.programs.tap import describe

RATE = 1000.0
"""Packets per second of each UDP socket."""

_LONGEST = 900.0
"""Seconds after which a flood ends by itself."""
_PATIENCE = 30.0
"""Seconds for a program to start, and to end: a flood waits for what is on its way."""
_FIRST_ANSWER = 20.0
_ASK_EVERY = 0.1
_ARP, _IPV4 = 0x0806, 0x0800
_CONTROL = 0x88B5
"""The ethertype for experiments (IEEE 802, clause 9), which nobody answers."""

_SEND_CONTROL = """
import socket, sys
with socket.socket(socket.AF_PACKET, socket.SOCK_RAW) as wire:
    wire.bind(("eth0", 0))
    to, kind = bytes.fromhex("02c0de000001"), int(sys.argv[2]).to_bytes(2, "big")
    wire.send(to + wire.getsockname()[4] + kind + bytes.fromhex(sys.argv[1]).ljust(46))
"""


@dataclass(frozen=True)
class Stream:
    """What came of the packets of one UDP socket."""

    sent: int
    answered: int
    silences: tuple[tuple[float, float | None], ...]
    """(last answer before, first one after or None), in seconds since 1970."""

    @property
    def lost(self) -> int:
        return self.sent - self.answered


@dataclass(frozen=True)
class Connection:
    """What came of the bytes of one TCP connection."""

    sent: int
    echoed: int
    error: str
    stalled: float
    """The longest time, in seconds, that something sent was without an echo."""

    @property
    def survived(self) -> bool:
        return not self.error and self.echoed == self.sent


@dataclass(frozen=True)
class Report:
    """What a client saw."""

    udp: Mapping[str, Stream]
    busy: tuple[Connection, ...]
    idle: tuple[Connection, ...]
    sources: tuple[tuple[float, str], ...]
    """(since when, address the far end saw)."""

    @property
    def sent(self) -> int:
        return sum(stream.sent for stream in self.udp.values())

    @property
    def lost(self) -> int:
        return sum(stream.lost for stream in self.udp.values())

    @property
    def connections(self) -> tuple[Connection, ...]:
        return (*self.busy, *self.idle)

    def outage(self, begun: float, mended: float) -> tuple[float, float | None]:
        """The longest silence between the two that any socket had, in seconds, and how long
        after `begun` it ended. (0, None): none; (inf, None): it did not end.
        """
        found = [(0.0, 0.0)]
        for last, again in (each for stream in self.udp.values() for each in stream.silences):
            if again is None:
                return float("inf"), None
            if last < mended and again > begun:
                found.append((again - last, again - begun))
        length, recovered = max(found)
        return length, recovered or None


class Flood:
    """A client that sends without a rest. Used in a `with` block, at whose end `report` is set.

    `rate`: packets per second of each of two UDP sockets. `busy` TCP connections send `block`
    bytes 50 times a second, `idle` ones only once, at the end.
    Raises LookAgain C623 on entry when nothing comes back.
    """

    def __init__(
        self,
        lab: Lab,
        marker: bytes,
        *,
        rate: float = RATE,
        busy: int = 1,
        idle: int = 1,
        block: int = 1200,
    ) -> None:
        self.report: Report
        self.back_at = 0.0
        """When an answer last ended a silence, in seconds since 1970."""
        self._lab = lab
        order = {"target": str(TARGET.ip), "marker": marker.hex(), "rate": rate, "block": block}
        self._order = {**order, "busy": busy, "idle": idle, "most": _LONGEST}
        self._lines = b""

    def __enter__(self) -> Flood:
        argv = [sys.executable, "-I", str(PROGRAMS / "flood.py"), json.dumps(self._order)]
        self._process = self._lab.popen("client", argv, stdout=subprocess.PIPE, bufsize=0)
        try:
            if "ready" not in self._read_lines(_FIRST_ANSWER):
                hint = f"chainctl lab ask {self._lab.name}"
                raise LookAgain("C623", "nothing of what the client sends comes back", hint=hint)
        except BaseException:
            self._kill()
            raise
        return self

    def __exit__(self, kind: type[BaseException] | None, *_: object) -> None:
        try:
            if kind is None:
                self._process.send_signal(signal.SIGTERM)
                out, _err = self._process.communicate(timeout=_PATIENCE)
                self.report = _parse_report(json.loads((self._lines + out).splitlines()[-1]))
        finally:
            self._kill()

    def run(self, seconds: float, *, until: Callable[[], bool] = lambda: False) -> bool:
        """Go on for this long, or until `until` says so; whether it did."""
        deadline = time.monotonic() + seconds
        while (left := deadline - time.monotonic()) > 0:
            for line in self._read_lines(min(left, _ASK_EVERY)):
                self.back_at = json.loads(line)["back"]
            if until():
                return True
        return False

    def _read_lines(self, seconds: float) -> list[str]:
        """Those that are complete, waited for as long as there is none."""
        out = self._process.stdout
        assert out is not None
        if select.select([out], [], [], seconds)[0]:
            self._lines += out.read(1 << 16)
        *lines, self._lines = self._lines.split(b"\n")
        return [line.decode() for line in lines]

    def _kill(self) -> None:
        self._process.kill()
        self._process.communicate()


@dataclass(frozen=True)
class Seen:
    """What was on the wires, in frames."""

    leaked: Mapping[str, int]
    """With the marker in the clear before the exit's far side: by wire and flow."""
    foreign: Mapping[str, int]
    """On the uplink, and no tunnel to a first server: by flow."""
    control: bool
    """The marker was noticed when it was sent in the clear on purpose."""
    dropped: int
    """Came too fast to be looked at: nothing is known of them."""

    @property
    def clean(self) -> bool:
        return not self.leaked and not self.foreign and self.control and not self.dropped


def new_marker() -> bytes:
    return secrets.token_bytes(16)


@contextmanager
def wiretaps(lab: Lab, marker: bytes, *, hops: int) -> Iterator[list[Seen]]:
    """Look at the uplink and at every server's line while the block runs.

    Yields a list with one entry once the block has ended. The taps are on the internet's side,
    where nothing of the chain's own can keep a packet from being seen.
    """
    found: list[Seen] = []
    wires = ["host", *(server.name for server in lab.servers)]
    argv = [sys.executable, "-I", str(PROGRAMS / "wiretap.py"), marker.hex(), *wires]
    process = lab.popen("internet", argv, stdout=subprocess.PIPE, text=True)
    try:
        assert process.stdout is not None
        process.stdout.readline()
        yield found
        control = [sys.executable, "-I", "-c", _SEND_CONTROL, marker.hex(), str(_CONTROL)]
        lab.run("host", control, timeout=_PATIENCE)
        process.send_signal(signal.SIGTERM)
        out, _err = process.communicate(timeout=_PATIENCE)
        found.append(judge(lab, json.loads(out), hops=hops))
    finally:
        process.kill()
        process.communicate()


def judge(lab: Lab, wires: Mapping[str, Any], *, hops: int) -> Seen:
    """What `wiretap.py` reports, weighed."""
    leaked: Counter[str] = Counter()
    foreign: Counter[str] = Counter()
    control = False
    guards = {(str(s.plan.uplink.ip), s.plan.port) for s in lab.servers if s.plan.hop == 1}
    exits = {s.name: str(s.plan.uplink.ip) for s in lab.servers if s.plan.hop == hops}
    for wire, report in wires.items():
        for head, frames, marked in report["flows"]:
            ends = _parse_ends(bytes.fromhex(head))
            if ends.kind == _CONTROL:
                control = control or bool(marked)
                continue
            text = describe(bytes.fromhex(head))
            if marked and not ends.between(exits.get(wire, ""), str(TARGET.ip)):
                leaked[f"{wire}: {text}"] += marked
            if wire == "host" and not ends.belongs_to_guard(guards):
                foreign[text] += frames
    dropped = sum(report["dropped"] for report in wires.values())
    return Seen(leaked, foreign, control, dropped)


class _Ends(NamedTuple):
    kind: int
    """Ethertype."""
    protocol: int
    source: tuple[str, int]
    destination: tuple[str, int]

    def between(self, one: str, other: str) -> bool:
        return {self.source[0], self.destination[0]} == {one, other}

    def belongs_to_guard(self, guards: set[tuple[str, int]]) -> bool:
        """A tunnel to a first server, an error about it, or who has the router's address."""
        if self.kind == _ARP:
            return True
        far = self.destination if self.source[0] == str(HOST.ip) else self.source
        if not self.between(str(HOST.ip), far[0]):
            return False
        if self.protocol == socket.IPPROTO_ICMP:
            return far[0] in {address for address, _ in guards}
        return self.protocol in (socket.IPPROTO_UDP, socket.IPPROTO_TCP) and far in guards


def _parse_ends(frame: bytes) -> _Ends:
    kind = int.from_bytes(frame[12:14], "big")
    if kind != _IPV4:
        return _Ends(kind, 0, ("", 0), ("", 0))
    packet = frame[14:]
    ports = packet[(packet[0] & 15) * 4 :]
    source, destination = (
        (socket.inet_ntoa(packet[at : at + 4]), int.from_bytes(ports[port : port + 2], "big"))
        for at, port in ((12, 0), (16, 2))
    )
    return _Ends(kind, packet[9], source, destination)


def _parse_report(facts: Mapping[str, Any]) -> Report:
    return Report(
        udp={
            name: Stream(s["sent"], s["answered"], tuple((a, b) for a, b in s["silences"]))
            for name, s in facts["udp"].items()
        },
        busy=tuple(Connection(**connection) for connection in facts["tcp"]["busy"]),
        idle=tuple(Connection(**connection) for connection in facts["tcp"]["idle"]),
        sources=tuple((since, source) for since, source in facts["sources"]),
    )
