"""Control groups, of version 1 or 2, wherever this machine has them mounted (cgroups(7)).

The client's group is what finds its processes again: a process that runc began to make is in
it before it does anything, whatever became of runc.
"""

from __future__ import annotations

import contextlib
import errno
import os
import re
import select
import signal
import time
from collections.abc import Iterable
from dataclasses import dataclass
from pathlib import Path

from chainctl.errors import LookAgain, MendHost

_NEEDED = {"memory", "pids"}
_WEIGHTS = (("cpu.shares", 1024, 1 << 18), ("cpu.weight", 100, 10_000))
"""Of version 1 and 2: what a group begins with, and the most there is (cgroup-v2.rst)."""
_PATIENCE = 5.0
"""Seconds for killed processes to be gone; measured 1 to 30 ms."""


@dataclass(frozen=True)
class Hierarchies:
    """Mount points of the groups: one of version 2, or one for each controller of version 1."""

    roots: tuple[Path, ...]
    devices: tuple[int | None, ...]
    """What was mounted on each when they were read."""

    @property
    def still_there(self) -> bool:
        """Where 200 chains are up there are 2000 mounts, and reading them takes 20 ms."""
        return self.devices == _devices(self.roots)


def parse_mounts(mountinfo: str) -> dict[Path, set[str] | None]:
    """Writable cgroup mounts of /proc/PID/mountinfo (proc(5)): controllers, None: version 2."""
    found: dict[Path, set[str] | None] = {}
    for line in mountinfo.splitlines():
        before, _, after = line.partition(" - ")
        place, options = before.split()[4:6]
        kind, _, own = after.split()[:3]
        if "ro" in options.split(","):
            continue
        if kind == "cgroup2":
            found[Path(place)] = None
        elif kind == "cgroup":
            found[Path(place)] = set(own.split(","))
    return found


def read_hierarchies() -> Hierarchies:
    """Raises MendHost C541 when there is no way to limit memory and processes."""
    mounts = parse_mounts(Path("/proc/self/mountinfo").read_text())
    first = {place: names for place, names in mounts.items() if names is not None}
    if set().union(*first.values()) >= _NEEDED:
        return Hierarchies(tuple(mounts), _devices(mounts))
    for place, names in mounts.items():
        if names is None and set((place / "cgroup.controllers").read_text().split()) >= _NEEDED:
            return Hierarchies((place,), _devices((place,)))
    raise MendHost(
        "C541",
        "clients need the cgroup controllers memory and pids, and there is no writable mount "
        "of cgroups that has both",
        hint="mount cgroup2 at /sys/fs/cgroup; in a container, give it a writable cgroup mount",
    )


def _devices(places: Iterable[Path]) -> tuple[int | None, ...]:
    found: list[int | None] = []
    for place in places:
        try:
            found.append(place.stat().st_dev)
        except OSError:
            found.append(None)
    return tuple(found)


def kill(hierarchies: Hierarchies, group: str) -> None:
    """Kill every process of `group`, in all hierarchies, and wait until they are gone.

    Raises LookAgain C544 when they do not end.
    """
    deadline = time.monotonic() + _PATIENCE
    for place in _places(hierarchies, group):
        for pid in _members(place):
            with contextlib.suppress(ProcessLookupError):
                _kill(pid, group, deadline)


def remove(hierarchies: Hierarchies, group: str) -> bool:
    """Remove the group if nobody is in it; True when it is gone."""
    return all(_removed(place) for place in _places(hierarchies, group))


def weigh(hierarchies: Hierarchies, group: str) -> None:
    """Give `group` the CPU time that the groups in it would have side by side.

    The kernel divides it between what stands on one level (sched-design-CFS.rst, "group
    scheduler"): left alone, all clients together count as much as one other process, and three
    hops carried 5 % less on a busy machine than with groups at the top (measured).
    """
    for place in _places(hierarchies, group):
        for name, each, most in _WEIGHTS:
            # Only speed depends on it: the group may be gone, or not ours to write, as in a
            # container.
            with contextlib.suppress(OSError):
                if (place / name).exists() and (inside := _groups_in(place)):
                    (place / name).write_text(str(min(most, each * inside)))


def _groups_in(place: Path) -> int:
    with os.scandir(place) as entries:
        return sum(entry.is_dir() for entry in entries)


def _places(hierarchies: Hierarchies, group: str) -> list[Path]:
    return [root / group.strip("/") for root in hierarchies.roots]


def _members(place: Path) -> list[int]:
    try:
        return [int(pid) for pid in (place / "cgroup.procs").read_text().split()]
    except OSError as error:
        # ENODEV: a dying runc removed the group while it was read.
        if error.errno in (errno.ENOENT, errno.ENODEV):
            return []
        raise


def _kill(pid: int, group: str, deadline: float) -> None:
    handle = os.pidfd_open(pid)
    try:
        # The number may belong to somebody else by now; the handle stays with who it was.
        if not re.search(rf":{re.escape(group)}$", _groups(pid), re.M):
            return
        signal.pidfd_send_signal(handle, signal.SIGKILL)
        if not select.select([handle], [], [], max(0.0, deadline - time.monotonic()))[0]:
            raise LookAgain("C544", f"process {pid} of {group} does not end")
    finally:
        os.close(handle)


def _groups(pid: int) -> str:
    try:
        return Path(f"/proc/{pid}/cgroup").read_text()
    except FileNotFoundError:
        raise ProcessLookupError from None


def _removed(place: Path) -> bool:
    try:
        place.rmdir()
    except OSError as error:
        return error.errno == errno.ENOENT
    return True
