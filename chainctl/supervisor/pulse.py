"""Tells the workers when to look at their chains, so that they need not look all the time.

One thread for all chains. The kernel tells of most changes at once; what it does not tell is
counted every second or two, for all chains together; and now and then one chain after the other is
looked at without trusting any of that.
"""

from __future__ import annotations

import os
import select
import threading
import traceback
from collections.abc import Callable, Mapping
from contextlib import suppress

from chainctl.errors import ChainctlError
from chainctl.host import clock
from chainctl.host.memory import give_back
from chainctl.supervisor.machine import Machine
from chainctl.supervisor.pacing import Pace
from chainctl.supervisor.worker import THOROUGH, Worker

_COUNTS = Pace(1.0, 50, 4.0)
"""Seconds between two counts of the filter's rows, by how many chains there are."""
_QUIET = 0.2
"""Seconds of silence after a change before it is looked at: changes come in crowds, and what is
mended in the middle of one is broken again."""
_WAIT = 1.0
"""Seconds for which a crowd is waited for at most."""
_STEP = 0.1
_GIVE_BACK_EVERY = 30.0
"""Seconds after which memory that was needed to look at chains goes back to the kernel."""
_THOROUGH_LOOKS = Pace(2.0, 20, 10.0)
"""At one chain after the other: each costs 12 ms of a core."""
REFRESHES = Pace(0.5, 100, 1.0)
"""Of a gate, which stays open for 4 s after a proof."""


class Pulse:
    """Runs from when it is made until `close`."""

    def __init__(self, machine: Machine, workers: Callable[[], Mapping[str, Worker]]) -> None:
        self._machine = machine
        self._workers = workers
        self._wake, self._bell = os.pipe2(os.O_CLOEXEC)
        self._halt = threading.Event()
        self._crowds: dict[str, tuple[float, float]] = {}
        """By chain, when the first and the last of its changes were heard of."""
        self._looked: dict[str, float] = {}
        """By chain, boot time of the last thorough look."""
        self._thread = threading.Thread(target=self._run, name="pulse", daemon=True)
        self._thread.start()

    def close(self) -> None:
        self._halt.set()
        os.write(self._bell, b"x")
        self._thread.join()
        for descriptor in (self._wake, self._bell):
            os.close(descriptor)

    def _run(self) -> None:
        # Becomes "readable" whenever something is mounted or unmounted (proc(5), mountinfo).
        with open("/proc/self/mountinfo", "rb") as mounts:  # noqa: PTH123 (never read)
            poll = select.poll()
            poll.register(mounts, select.POLLERR | select.POLLPRI)
            for descriptor in (self._wake, *self._machine.heard):
                poll.register(descriptor, select.POLLIN)
            counted_at, tidied_at, pins = 0.0, clock.boot_seconds(), True
            while not self._halt.is_set():
                every = _COUNTS.of(len(self._workers()))
                due = counted_at + every - clock.boot_seconds()
                wait = min(due, _STEP) if self._crowds else due
                ready = {descriptor for descriptor, _ in poll.poll(max(0.0, wait) * 1000)}
                pins = pins or mounts.fileno() in ready
                if ready and self._halt.wait(_STEP):
                    return
                rows = clock.boot_seconds() >= counted_at + every
                try:
                    # What could not be asked this time is asked the next time.
                    with suppress(ChainctlError):
                        self._listen(rows=rows, pins=pins)
                        pins = False
                    self._tell(clock.boot_seconds())
                except Exception as error:
                    # Without this thread nothing would be mended for no reason anybody sees.
                    traceback.print_exception(error)
                if rows:
                    counted_at = clock.boot_seconds()
                    if counted_at >= tidied_at + _GIVE_BACK_EVERY:
                        give_back()
                        tidied_at = counted_at

    def _listen(self, *, rows: bool, pins: bool) -> None:
        news = self._machine.news(rows=rows, pins=pins)
        now = clock.boot_seconds()
        for name in self._workers() if news is None else news:
            first, _ = self._crowds.get(name, (now, now))
            self._crowds[name] = first, now

    def _tell(self, now: float) -> None:
        workers = self._workers()
        for name, (first, last) in list(self._crowds.items()):
            if now - last >= _QUIET or now - first >= _WAIT:
                del self._crowds[name]
                if name in workers:
                    workers[name].disturb()
        self._look_thoroughly_at_one(workers, now)

    def _look_thoroughly_at_one(self, workers: Mapping[str, Worker], now: float) -> None:
        self._looked = {name: self._looked.get(name, now) for name in workers}
        last = max(self._looked.values(), default=now)
        longest_ago = min(self._looked, key=self._looked.__getitem__, default="")
        between = _THOROUGH_LOOKS.of(len(workers))
        if (
            longest_ago
            and now - self._looked[longest_ago] >= THOROUGH
            and (last == self._looked[longest_ago] or now - last >= between)
        ):
            self._looked[longest_ago] = now
            workers[longest_ago].look_thoroughly()
