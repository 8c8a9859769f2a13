"""Kill `Namespaces.create` or `.remove` before every line it runs, and mend after each.

A program of its own, because it forks a process per crash point and takes over the
processes these leave behind. Run as: crash_netns.py create|remove DIRECTORY; prints how many
points there were.
"""

from __future__ import annotations

import ctypes
import os
import signal
import sys
import threading
import time
from collections import Counter
from pathlib import Path
from types import FrameType
from typing import Any

from chainctl.host import netns, sysctl
from chainctl.host.netns import FORWARDING, Namespaces

_PR_SET_CHILD_SUBREAPER = 36
_WATCHED = {netns.__file__, sysctl.__file__}


def main(verb: str, directory: Path) -> None:
    ctypes.CDLL(None).prctl(_PR_SET_CHILD_SUBREAPER, 1, 0, 0, 0)
    point = 0
    while True:
        pins = directory / f"pins{point}"
        if verb == "remove":
            with Namespaces(pins) as namespaces:
                namespaces.create("victim")
        killed = _run_until(point, verb, pins)
        _expect_no_children()
        _expect_mended(pins)
        if not killed:
            break
        point += 1
    print(point)  # noqa: T201


def _run_until(point: int, verb: str, pins: Path) -> bool:
    pid = os.fork()
    if pid == 0:
        namespaces = Namespaces(pins)
        threading.settrace(_Killer(point))
        getattr(namespaces, verb)("victim")
        os._exit(0)
    _, status = os.waitpid(pid, 0)
    assert os.WIFSIGNALED(status) or os.waitstatus_to_exitcode(status) == 0
    return os.WIFSIGNALED(status)


class _Killer:
    """A trace function that kills the process before the line with the given number.

    Of a loop the first two rounds count: what the settings of all rounds leave is alike.
    """

    def __init__(self, lines: int) -> None:
        self._left = lines
        self._seen: Counter[tuple[str, int]] = Counter()

    def __call__(self, frame: FrameType, event: str, _: Any) -> Any:
        if frame.f_code.co_filename not in _WATCHED:
            return None
        where = (frame.f_code.co_filename, frame.f_lineno)
        if event == "line" and self._seen[where] < 2:
            self._seen[where] += 1
            if self._left == 0:
                os.kill(os.getpid(), signal.SIGKILL)
            self._left -= 1
        return self


def _expect_no_children() -> None:
    """Whatever the killed process had started ends by itself."""
    deadline = time.monotonic() + 10
    while True:
        try:
            pid, _ = os.waitpid(-1, os.WNOHANG)
        except ChildProcessError:
            return
        assert time.monotonic() < deadline, "a process stays behind"
        if pid == 0:
            time.sleep(0.001)


def _expect_mended(pins: Path) -> None:
    with Namespaces(pins) as namespaces:
        for name in namespaces.names():
            # What can be seen is whole: its settings came before its pin.
            assert namespaces.holds(name, {}), name
        namespaces.create("victim", FORWARDING)
        assert namespaces.names() == ["victim"]
        assert namespaces.holds("victim", FORWARDING)
        namespaces.remove("victim")
    assert list(pins.iterdir()) == []
    assert str(pins) not in Path("/proc/self/mountinfo").read_text()


if __name__ == "__main__":
    main(sys.argv[1], Path(sys.argv[2]))
