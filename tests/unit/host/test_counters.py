"""Packets of a link, as the kernel prints them."""

from __future__ import annotations

import socket
from pathlib import Path

from chainctl.host.counters import Counts, LinkCounters, parse_counts

DEV = b"""\
Inter-|   Receive                                                |  Transmit
 face |bytes    packets errs drop fifo frame compressed multicast|bytes    packets errs drop
    lo:       0       0    0    0    0     0          0         0        0       0    0    0
  tunA:  123456    1500    0    0    0     0          0         0    98765     990    0   42
 xtunA:     1       2    0    0    0     0          0         0        3       4    0    0
"""


def open_files() -> int:
    return len(list(Path("/proc/self/fd").iterdir()))


def test_received_and_sent_packets_of_one_link() -> None:
    assert parse_counts(DEV, "tunA") == Counts(1500, 990)
    assert parse_counts(DEV, "lo") == Counts(0, 0)
    assert parse_counts(DEV, "unA") is None
    assert parse_counts(DEV, "tun") is None
    assert parse_counts(DEV, "tunB") is None
    assert parse_counts(DEV[:-30], "xtunA") is None
    assert parse_counts(b"", "tunA") is None


def test_the_kernels_own_counters_move() -> None:
    counters = LinkCounters()
    before, missing = counters.read("lo", "no-such-link")
    assert missing is None
    assert before is not None
    with socket.socket(socket.AF_INET, socket.SOCK_DGRAM) as one:
        one.bind(("127.0.0.1", 0))
        one.sendto(b"x", one.getsockname())
        one.settimeout(10)
        assert one.recv(1) == b"x"
    after, _ = counters.read("lo", "lo")
    assert after is not None
    assert after.sent > before.sent
    assert after.received > before.received
    counters.close()
    counters.close()


def test_closing_gives_the_descriptor_back() -> None:
    before = open_files()
    counters = LinkCounters()
    assert open_files() == before + 1
    counters.close()
    assert open_files() == before
