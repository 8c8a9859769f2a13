"""One place at which traffic is judged: an interface, or what is left of a namespace.

Points see frames only after the run, one by one and in order.
"""

from __future__ import annotations

from collections import Counter, defaultdict
from collections.abc import Sequence
from enum import Enum, auto
from ipaddress import IPv4Address
from itertools import pairwise

from tests.leak.allow import Allowed, Hidden, Layer, legal
from tests.leak.canary import CUT, Emission, Expect, Family
from tests.leak.capture import Capture
from tests.leak.frames import IPV4, TCP, Frame, Packet, describe, parse
from tests.leak.streams import Streams
from tests.leak.verdict import Delivery, Leak

_KEPT_OF_A_KIND = 5


class Role(Enum):
    CLIENT = auto()
    """The sender's own link: counts what went out, judges nothing."""
    WIRE = auto()
    """No canary may be seen here."""
    BEYOND = auto()
    """Behind the exit: canaries may be seen, except those that were to be stopped."""


class Point:
    """Judges the frames of `interface` in the namespace of `capture`; None is any other."""

    def __init__(
        self,
        name: str,
        capture: Capture,
        interface: str | None,
        role: Role,
        *,
        allow: Sequence[Allowed] = (),
        hides: Sequence[Hidden] = (),
        shows: Sequence[Layer] = (),
    ) -> None:
        self.name = name
        self.capture = capture
        self.interface = interface
        self.role = role
        self.frames = 0
        self.illegal = 0
        self.leaked = 0
        self.leaks: list[Leak] = []
        self.seen: dict[str, dict[int, float]] = defaultdict(dict)
        """Of each emission the numbers that were seen, and when first."""
        self._allow = allow
        self._hides = hides
        self._unseen = list(shows)
        self._sources: dict[str, set[int]] = defaultdict(set)
        self._streams = Streams()
        self._kinds: Counter[str] = Counter()

    @property
    def not_shown(self) -> list[str]:
        """Layers that had to be on this wire and were not."""
        return [layer.name for layer in self._unseen]

    def examine(self, frame: Frame, link: str, family: Family, sent: dict[str, Emission]) -> None:
        data = frame.data
        packet = parse(data, ethernet=frame.ethernet)
        if self.role is Role.CLIENT:
            if not frame.outgoing:
                return
        else:
            self.frames += 1
            self._judge(frame, packet, link)
        for name, number in family.sightings(data):
            self._sighted(frame.when, link, describe(packet), name, number, sent)
            if number != CUT and name in sent:
                self._note_source(name, packet, sent[name])
        if packet.ethertype == IPV4 and (packet.fragment or packet.protocol == TCP):
            self._streams.add(frame.when, data, packet)

    def conclude(self, family: Family, sent: dict[str, Emission]) -> None:
        """Look into the payloads put together, for canaries no single frame carried whole."""
        for when, data in self._streams.joined():
            for name, number in family.sightings(data):
                if number != CUT and number not in self.seen[name]:
                    self._sighted(when, "", "cut into several packets", name, number, sent)

    def delivery(self, name: str) -> Delivery:
        times = sorted(self.seen[name].values())
        if not times:
            return Delivery()
        gaps = (after - before for before, after in pairwise(times))
        sources = tuple(str(IPv4Address(address)) for address in sorted(self._sources[name]))
        return Delivery(len(times), times[0], times[-1], max(gaps, default=0.0), sources)

    def _judge(self, frame: Frame, packet: Packet, link: str) -> None:
        if not legal(frame.data, packet, self._allow):
            self.illegal += 1
            self._keep(frame.when, link, describe(packet), "not in the allow-list")
        for hidden in self._hides:
            betrayal = hidden.betrayed_by(frame.data, packet)
            if betrayal:
                self.leaked += 1
                self._keep(frame.when, link, describe(packet), betrayal)
        if self._unseen:
            self._unseen = [layer for layer in self._unseen if layer.mark not in frame.data]

    def _sighted(
        self,
        when: float,
        link: str,
        what: str,
        name: str,
        number: int,
        sent: dict[str, Emission],
    ) -> None:
        if number != CUT:
            self.seen[name].setdefault(number, when)
        stopped = name in sent and sent[name].expect is Expect.STOPPED
        if self.role is Role.WIRE or (self.role is Role.BEYOND and stopped):
            self.leaked += 1
            kind = name if number == CUT else f"canary {name}"
            why = kind if number == CUT else f"{kind} number {number}"
            why += "" if self.role is Role.WIRE else " came out"
            self._keep(when, link, what, why, kind)

    def _note_source(self, name: str, packet: Packet, emission: Emission) -> None:
        aimed_at = int(IPv4Address(emission.destination))
        if packet.ethertype == IPV4 and packet.destination == aimed_at:
            self._sources[name].add(packet.source)

    def _keep(self, when: float, link: str, what: str, why: str, kind: str = "") -> None:
        """A flood of one kind must not crowd out the others."""
        kind = kind or why
        self._kinds[kind] += 1
        if self._kinds[kind] <= _KEPT_OF_A_KIND:
            self.leaks.append(Leak(self.name, link, when, what, why))
