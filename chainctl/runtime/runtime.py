"""What runs VPN clients, behind one face: runc by itself, or a Docker daemon.

A client is known by its name. What runs is what the kernel says: nobody has to be asked, so
that a runtime that hangs or is gone hides nothing.
"""

from __future__ import annotations

import os
import select
import time
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Protocol

from chainctl.errors import MendHost
from chainctl.host.unix import connect
from chainctl.runtime.bundle import ClientSpec

PATIENCE = 10.0
"""Seconds for a client to answer or to end; measured 60 ms."""


@dataclass(frozen=True)
class Running:
    """A client's process, as the kernel shows it."""

    pid: int
    netns_inode: int
    uid: int
    link: str
    image: str
    kind: str = "wireguard"
    config: str = ""
    """Digest of what it was told at its start; empty when it is told by its control socket."""


class Runtime(Protocol):
    """Safe to use from several threads and processes."""

    def start(self, spec: ClientSpec) -> int:
        """Have the client run as `spec` says, answering on its control socket; gives its pid.

        One that runs already and is the same is left alone, anything else of that name is
        stopped first. Raises MendHost C540 to C549, LookAgain C544 and C546.
        """

    def stop(self, name: str) -> None:
        """Kill the client and leave nothing of it; also what a crash left, or nothing at all."""

    def tidy(self) -> None:
        """With the last client what all of them share goes.

        To be called again when nothing is left: a crash may have ended `stop` in between.
        """

    def observe(self, prefix: str = "") -> dict[str, Running | None]:
        """Clients by name; None: only rests, which `start` and `stop` clean up."""

    def watch(self, name: str) -> int | None:
        """A pidfd that becomes readable when the client ends; the caller closes it."""

    def control_socket(self, spec: ClientSpec) -> Path: ...

    def control_dir(self, name: str) -> Path:
        """Where the client's control socket lies, as this machine sees it."""

    def read_log(self, name: str) -> str:
        """The last lines the client printed; empty when there is no such client."""


def watch(running: Callable[[], Running | None]) -> int | None:
    """A pidfd of the process that `running` tells; None when there is none (any more)."""
    before = running()
    if before is None:
        return None
    try:
        handle = os.pidfd_open(before.pid)
    except ProcessLookupError:
        return None
    if running() == before:
        return handle
    os.close(handle)
    return None


def wait_until_it_answers(
    name: str, running: Callable[[], Running | None], door: Path, words: Callable[[], str]
) -> int:
    """The client's pid, as soon as it takes connections on `door`.

    Raises MendHost C543 with its last `words` when it ends or does not come so far.
    """
    deadline = time.monotonic() + PATIENCE
    watched, found = watch(running), running()
    try:
        while watched is not None and found is not None:
            if _listens(door):
                return found.pid
            ended = select.select([watched], [], [], 0.002)[0]
            if ended or time.monotonic() > deadline:
                break
    finally:
        if watched is not None:
            os.close(watched)
    raise MendHost(
        "C543", f"the client {name} did not come up: {words().strip()}", hint="chainctl doctor"
    )


def start_time(pid: int) -> int | None:
    """Tells a process from a later one of its number (proc(5)); None when it has ended."""
    try:
        fields = Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()
    except OSError:
        return None
    return None if fields[0] in "ZX" else int(fields[19])


def _listens(door: Path) -> bool:
    try:
        connect(door, timeout=PATIENCE).close()
    except OSError:
        return False  # Not there yet, or bound and not listened on yet.
    return True
