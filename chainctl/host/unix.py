"""The door to unix sockets that are files of other programs."""

from __future__ import annotations

import os
import socket
from pathlib import Path


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
