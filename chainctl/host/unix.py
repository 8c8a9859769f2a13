"""The door to unix sockets that are files of other programs."""

from __future__ import annotations

import os
import socket
import struct
import time
from pathlib import Path
from typing import NamedTuple

_UCRED = struct.Struct("3i")
_TIMEVAL = struct.Struct("@ll")


def connect(path: Path, *, timeout: float) -> socket.socket:
    """A stream connected to `path`, which the caller closes; `timeout` seconds for each call.

    Raises OSError: FileNotFoundError when there is no such file, ConnectionRefusedError when
    nobody listens, which is so also between another program's bind and its listen.
    """
    # By way of the directory: an address of a unix socket has at most 107 bytes (unix(7)).
    folder = os.open(path.parent, os.O_PATH | os.O_DIRECTORY | os.O_CLOEXEC)
    stream = socket.socket(socket.AF_UNIX, socket.SOCK_STREAM | socket.SOCK_CLOEXEC)
    try:
        stream.settimeout(timeout)
        stream.connect(f"/proc/self/fd/{folder}/{path.name}")
    except BaseException:
        stream.close()
        raise
    finally:
        os.close(folder)
    return stream


def limit_sending(stream: socket.socket, seconds: float) -> None:
    """Have the kernel wait for room at the other end for so long only, also in connect. What takes
    longer raises BlockingIOError; Python's own time limit does not do (EAGAIN at once).
    """
    limit = _TIMEVAL.pack(*divmod(int(seconds * 1e6), 1_000_000))
    stream.setsockopt(socket.SOL_SOCKET, socket.SO_SNDTIMEO, limit)


class Peer(NamedTuple):
    """struct ucred of unix(7), by this process's own namespaces; pid 0: not in them."""

    pid: int
    uid: int
    gid: int


def peer_of(stream: socket.socket) -> Peer:
    """Who connected, or who listens where this end did."""
    ucred = stream.getsockopt(socket.SOL_SOCKET, socket.SO_PEERCRED, _UCRED.size)
    return Peer(*_UCRED.unpack(ucred))


class Answers:
    """What the other end of `stream` says. All of it together is bounded, in seconds and bytes:
    who says a byte now and then, or never stops, keeps nobody waiting.
    """

    def __init__(self, stream: socket.socket, *, seconds: float, most: int) -> None:
        self._stream = stream
        self._deadline = time.monotonic() + seconds
        self._left = most

    def send(self, text: bytes) -> None:
        """Raises OSError, TimeoutError when the time is over."""
        self._wait()
        self._stream.sendall(text)

    def more(self) -> bytes:
        """At least one byte. Raises OSError: ConnectionResetError at the end, TimeoutError when
        the time is over, and another one when there was too much.
        """
        self._wait()
        more = self._stream.recv(65536)
        if not more:
            raise ConnectionResetError("it hung up")
        self._left -= len(more)
        if self._left < 0:
            raise OSError("it does not stop talking")
        return more

    def _wait(self) -> None:
        left = self._deadline - time.monotonic()
        if left <= 0:
            raise TimeoutError("timed out")
        self._stream.settimeout(left)
