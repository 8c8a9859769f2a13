"""Payloads put together again, so that nothing hides in a cut between two packets.

TCP by sequence number, IPv4 fragments by offset. What is missing stays a gap: pieces on its
two sides are never joined.
"""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Iterable, Iterator
from typing import NamedTuple

from tests.leak.frames import TCP, Packet

_Key = tuple[int, ...]


class Piece(NamedTuple):
    place: int
    when: float
    data: bytes


class Streams:
    """Collects the pieces of every flow of one wire."""

    def __init__(self) -> None:
        self._pieces: dict[_Key, list[Piece]] = defaultdict(list)

    def add(self, when: float, data: bytes, packet: Packet) -> None:
        """Take in one packet of IPv4; those that come whole are of no interest here."""
        body = data[packet.body : packet.end]
        ends = (packet.source, packet.destination, packet.protocol)
        if packet.fragment:
            key: _Key = (*ends, packet.identification)
            self._pieces[key].append(Piece(packet.offset, when, body))
        elif packet.protocol == TCP and len(body) > 20:
            payload = body[(body[12] >> 4) * 4 :]
            if payload:
                key = (*ends, packet.source_port, packet.destination_port)
                self._pieces[key].append(Piece(int.from_bytes(body[4:8], "big"), when, payload))

    def joined(self) -> Iterator[tuple[float, bytes]]:
        """Every run without a gap that was sent in more than one piece, and when it began."""
        for pieces in self._pieces.values():
            if len(pieces) > 1:
                yield from _runs(pieces)


def _runs(pieces: Iterable[Piece]) -> Iterator[tuple[float, bytes]]:
    unique = list(dict.fromkeys(pieces))
    origin = unique[0].place
    # Sequence numbers wrap; a piece may be older than the first one that was seen.
    ordered = sorted(((p.place - origin + (1 << 31)) % (1 << 32), p) for p in unique)
    run = bytearray()
    begin, expected = 0.0, -1
    for place, piece in ordered:
        if place > expected:
            if run:
                yield begin, bytes(run)
            run, begin, expected = bytearray(), piece.when, place
        fresh = piece.data[expected - place :]
        run += fresh
        expected += len(fresh)
    if run:
        yield begin, bytes(run)
