"""Descriptors that are kept for long, out of the way of those who can count to 1024 only.

libnftables waits for the kernel with select(2), which ends the process when it meets a descriptor
above 1023 (measured: with 55 chains, each of which keeps some twenty). So whatever is kept goes
above that, and what is opened for a moment finds room below.
"""

from __future__ import annotations

import fcntl
import os
import resource
import socket

FIRST = 1024
"""FD_SETSIZE of glibc."""


def allow_all() -> None:
    """As many as this process may ever have, instead of the usual 1024."""
    _, most = resource.getrlimit(resource.RLIMIT_NOFILE)
    resource.setrlimit(resource.RLIMIT_NOFILE, (most, most))


def keep(descriptor: int) -> int:
    """The same open file under a number from FIRST on, closed on exec; the old one is closed.

    Where no such number may be had it stays what it was.
    """
    try:
        kept = fcntl.fcntl(descriptor, fcntl.F_DUPFD_CLOEXEC, FIRST)
    except OSError:
        return descriptor
    os.close(descriptor)
    return kept


def keep_socket(found: socket.socket) -> socket.socket:
    """The same for a socket that does not block; who calls closes the new one."""
    family, kind, protocol = found.family, found.type, found.proto
    kept = socket.socket(family, kind, protocol, fileno=keep(found.detach()))
    kept.setblocking(False)
    return kept
