"""What is kept goes above what select(2) can take, and stays usable where it cannot."""

from __future__ import annotations

import os
import resource
import socket
from collections.abc import Iterator

import pytest

from chainctl.host import descriptors


@pytest.fixture(autouse=True)
def limit() -> Iterator[tuple[int, int]]:
    before = resource.getrlimit(resource.RLIMIT_NOFILE)
    descriptors.allow_all()
    yield before
    resource.setrlimit(resource.RLIMIT_NOFILE, before)


def test_a_kept_descriptor_is_out_of_the_way_and_ends_at_exec() -> None:
    read, write = os.pipe()
    kept = descriptors.keep(read)
    os.write(write, b"x")
    assert kept >= descriptors.FIRST
    assert not os.get_inheritable(kept)
    assert os.read(kept, 1) == b"x"
    with pytest.raises(OSError, match="Bad file descriptor"):
        os.fstat(read)
    os.close(kept)
    os.close(write)


def test_a_kept_socket_still_does_not_block() -> None:
    ours, theirs = socket.socketpair(socket.AF_UNIX, socket.SOCK_DGRAM)
    with descriptors.keep_socket(ours) as kept, theirs:
        assert kept.fileno() >= descriptors.FIRST
        with pytest.raises(BlockingIOError):
            kept.recv(1)
        theirs.send(b"x")
        assert kept.recv(1) == b"x"
        assert (kept.family, kept.getblocking()) == (socket.AF_UNIX, False)


def test_where_there_is_no_room_above_it_stays_where_it_is(limit: tuple[int, int]) -> None:
    read, write = os.pipe()
    resource.setrlimit(resource.RLIMIT_NOFILE, (descriptors.FIRST, limit[1]))
    assert descriptors.keep(read) == read
    os.fstat(read)
    os.close(read)
    os.close(write)
