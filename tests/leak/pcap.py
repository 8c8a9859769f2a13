"""Frames as a file other tools read (draft-ietf-opsawg-pcap, nanosecond variant)."""

from __future__ import annotations

import struct
from collections.abc import Iterable
from pathlib import Path

from tests.leak.frames import Frame, ethernet, parse


def write_pcap(path: Path, frames: Iterable[Frame]) -> None:
    """A packet of a TUN device gets an empty Ethernet header: a file has one kind of link."""
    with path.open("wb") as file:
        file.write(struct.pack("=IHHiIII", 0xA1B23C4D, 2, 4, 0, 0, 1 << 18, 1))
        for frame in frames:
            data = frame.data
            if not frame.ethernet:
                data = ethernet(data, parse(data, ethernet=False).ethertype)
            seconds, rest = divmod(frame.when, 1)
            file.write(struct.pack("=IIII", int(seconds), int(rest * 1e9), len(data), len(data)))
            file.write(data)
