"""Processes inside a lab: started, signalled, and found again by who they are.

A process is a pid with its start time, so that a number used again is never signalled. What
a dead lab left running is found by the network namespace it lives in, not by a list.
"""

from __future__ import annotations

import contextlib
import os
import select
import signal
import socket
import time
from collections.abc import Callable, Collection, Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path

from chainctl.errors import MendHost

HELPS = "CHAINCTL_LAB"
"""The variable by which a program that works for `up`, outside of the lab, is found again."""

READY = 3
"""The descriptor number for `spawn_and_wait`."""

_START_SECONDS = 10.0
_END_SECONDS = 10.0

_children: set[Process] = set()
"""Whose end this process has to take note of. Others are the business of who started them."""


@dataclass(frozen=True)
class Process:
    pid: int
    started: int
    """Clock ticks after boot, field 22 of proc_pid_stat(5)."""

    @property
    def alive(self) -> bool:
        return not self.wait(0.0)

    @property
    def frozen(self) -> bool:
        return self.alive and _stat_of(self.pid)[:1] == ["T"]

    def wait(self, seconds: float) -> bool:
        """Whether it ended within this time, all its threads and with them its devices."""
        with self._pidfd() as pidfd:
            if pidfd is None:
                return True
            poll = select.poll()
            poll.register(pidfd, select.POLLIN)
            return bool(poll.poll(1000 * seconds))

    def signal(self, number: signal.Signals) -> None:
        """Send it; nothing happens when the process is gone."""
        with self._pidfd() as pidfd, contextlib.suppress(ProcessLookupError):
            if pidfd is not None:
                signal.pidfd_send_signal(pidfd, number)

    def freeze(self) -> None:
        """SIGSTOP, and wait until it stands. Raises MendHost C606 if it does not."""
        self.signal(signal.SIGSTOP)
        deadline = time.monotonic() + _END_SECONDS
        while not self.frozen:
            if not self.alive or time.monotonic() > deadline:
                raise MendHost("C606", f"process {self.pid} cannot be frozen")
            time.sleep(0.001)

    def thaw(self) -> None:
        self.signal(signal.SIGCONT)

    def kill(self) -> None:
        """SIGKILL, and wait for the end. Raises MendHost C606 if it does not come."""
        self.signal(signal.SIGKILL)
        if not self.wait(_END_SECONDS):
            raise MendHost("C606", f"process {self.pid} does not end")
        if self in _children:
            _children.discard(self)
            os.waitpid(self.pid, 0)

    @contextlib.contextmanager
    def _pidfd(self) -> Iterator[int | None]:
        """None when this process is gone, whoever has its number now."""
        try:
            pidfd = os.pidfd_open(self.pid)
        except ProcessLookupError:
            yield None
            return
        try:
            yield pidfd if _start_of(self.pid) == self.started else None
        finally:
            os.close(pidfd)


def spawn(argv: Sequence[str], log_path: Path, *, ready: int | None = None) -> Process:
    """Start a process that outlives this one, in a session of its own, output to `log_path`.

    `ready` is a descriptor of this process that the new one has as number READY.
    """
    log_flags = os.O_WRONLY | os.O_CREAT | os.O_APPEND
    pid = os.posix_spawnp(
        argv[0],
        list(argv),
        os.environ | {"LOG_LEVEL": "error", "WG_PROCESS_FOREGROUND": "1"},
        file_actions=[
            (os.POSIX_SPAWN_OPEN, 0, "/dev/null", os.O_RDONLY, 0),
            (os.POSIX_SPAWN_OPEN, 1, str(log_path), log_flags, 0o600),
            (os.POSIX_SPAWN_DUP2, 1, 2),
            *([] if ready is None else [(os.POSIX_SPAWN_DUP2, ready, READY)]),
        ],
        setsid=True,
        setsigdef=[signal.SIGPIPE, signal.SIGINT],
        setsigmask=[],
    )
    process = Process(pid, _start_of(pid) or 0)
    _children.add(process)
    return process


def spawn_and_wait(what: str, argv: Sequence[str], log_path: Path) -> Process:
    """Start a program that writes a byte to the descriptor READY when it is.

    Raises MendHost C606, with what it said last, if it ends instead.
    """
    read_end, write_end = os.pipe()
    try:
        try:
            process = spawn(argv, log_path, ready=write_end)
        finally:
            os.close(write_end)
        # A program that ends closes the pipe, so this ends too.
        if os.read(read_end, 1):
            return process
    finally:
        os.close(read_end)
    raise _not_started(what, log_path)


def wait_for_socket(what: str, path: Path, process: Process, log_path: Path) -> None:
    """Until somebody listens there. Raises MendHost C606 if the process ends or takes too long."""
    deadline = time.monotonic() + _START_SECONDS
    while not _listens(path):
        if not process.alive or time.monotonic() > deadline:
            raise _not_started(what, log_path)
        time.sleep(0.002)


def wait_for_words(what: str, words: str, process: Process, log_path: Path) -> None:
    """Until it has said them. Raises MendHost C606 if the process ends or takes too long."""
    deadline = time.monotonic() + _START_SECONDS
    while words not in log_path.read_text(errors="replace"):
        if not process.alive or time.monotonic() > deadline:
            raise _not_started(what, log_path)
        time.sleep(0.002)


def kill_all_in(namespaces: Collection[int]) -> None:
    """End every process that `all_in` finds."""
    _kill_while_found(lambda: all_in(namespaces))


def kill_helpers(lab: str) -> None:
    """End every process with HELPS=lab in its environment."""
    mark = f"{HELPS}={lab}".encode()
    _kill_while_found(
        lambda: [one for one in _all_processes() if mark in _environ_of(str(one.pid))]
    )


def _kill_while_found(find: Callable[[], list[Process]]) -> None:
    while found := find():
        for process in found:
            process.signal(signal.SIGKILL)
        for process in found:
            process.kill()


def all_in(namespaces: Collection[int]) -> list[Process]:
    """Every process one of whose network, mount or user namespaces is one of these."""
    return [
        process
        for process in _all_processes()
        if not namespaces_of(str(process.pid)).isdisjoint(namespaces)
    ]


def arguments_of(pid: int) -> list[str]:
    """Its command line; empty when it is gone."""
    try:
        line = Path(f"/proc/{pid}/cmdline").read_text(errors="replace")
    except (FileNotFoundError, ProcessLookupError):
        return []
    return line.removesuffix("\0").split("\0")


def _all_processes() -> Iterator[Process]:
    for entry in Path("/proc").glob("[1-9]*"):
        started = _start_of(int(entry.name))
        if started is not None:
            yield Process(int(entry.name), started)


def _environ_of(pid: str) -> list[bytes]:
    try:
        return Path(f"/proc/{pid}/environ").read_bytes().split(b"\0")
    except (FileNotFoundError, ProcessLookupError, PermissionError):
        return []


def namespaces_of(pid: str) -> set[int]:
    """Inodes of the namespaces of a process; `pid` may be "self".

    Empty when it is gone, or guarded even from root: then no lab started it.
    """
    try:
        return {Path(f"/proc/{pid}/ns/{kind}").stat().st_ino for kind in ("net", "mnt", "user")}
    except (FileNotFoundError, ProcessLookupError, PermissionError):
        return set()


def _listens(path: Path) -> bool:
    with socket.socket(socket.AF_UNIX, socket.SOCK_STREAM) as probe:
        return probe.connect_ex(str(path)) == 0


def _not_started(what: str, log_path: Path) -> MendHost:
    said = log_path.read_text(errors="replace").strip() if log_path.exists() else ""
    return MendHost("C606", f"{what} did not start: {said[-400:] or 'it said nothing'}")


def _start_of(pid: int) -> int | None:
    fields = _stat_of(pid)
    return int(fields[19]) if fields else None


def _stat_of(pid: int) -> list[str]:
    """The fields of proc_pid_stat(5) from the state on; empty when there is no such process."""
    try:
        return Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()
    except (FileNotFoundError, ProcessLookupError):
        return []
