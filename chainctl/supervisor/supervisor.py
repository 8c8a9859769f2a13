"""All chains of this machine: one worker each, and what they share."""

from __future__ import annotations

import threading
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from chainctl.errors import RefusedByPolicy
from chainctl.settings import Settings
from chainctl.spec.chain_file import load_chain_file
from chainctl.store.journal import Journal
from chainctl.supervisor.crash import CrashPoints
from chainctl.supervisor.execute import Progress
from chainctl.supervisor.keeper import Keeper
from chainctl.supervisor.machine import Machine
from chainctl.supervisor.pulse import REFRESHES, Pulse
from chainctl.supervisor.sniffer import Sniffer
from chainctl.supervisor.status import describe
from chainctl.supervisor.ticks import Ticks
from chainctl.supervisor.verdict import FRESH
from chainctl.supervisor.worker import Worker


class Supervisor:
    """Safe to call from several threads. `close` leaves every chain as it is."""

    def __init__(self, settings: Settings) -> None:
        self._journal = Journal(settings.journal_path)
        self._machine = Machine(settings, self._look_at_containers)
        self._machine.take_over()
        self._sniffer = Sniffer(self._machine.namespaces)
        self._ticks = Ticks()
        self._crash = CrashPoints()
        self._workers: dict[str, Worker] = {}
        self._lock = threading.Lock()
        self._pulse = Pulse(self._machine, self._running)
        self._keeper = Keeper(
            self._machine, self._journal, self._running, answers=self._sniffer.taken
        )

    def adopt_all(self) -> None:
        """Take over the chains that were wanted when the last supervisor ended."""
        for wanted in self._journal.chains():
            if wanted.up:
                self._worker(wanted.name).adopt()

    def close(self) -> None:
        self._ticks.close()
        self._pulse.close()
        self._keeper.close()
        for worker in self._workers.values():
            worker.stop()
        self._sniffer.close()
        self._machine.close()
        self._journal.close()

    def up(self, file: Path, progress: Progress) -> str:
        """Bring the chain of `file` up; returns its name."""
        name = load_chain_file(file).name
        self._worker(name).up(file, progress)
        self._journal.flush()
        return name

    def down(self, name: str, progress: Progress) -> None:
        """Idempotent: a chain that is not there leaves nothing to do."""
        try:
            self._worker(name).down(progress)
        finally:
            self._journal.flush()

    def clear(self) -> None:
        """What a lost journal left of nobody's, once there is no chain any more."""
        if not self.names():
            self._machine.clear()

    def close_gate(self, name: str) -> None:
        self._existing(name).close()

    def open_gate(self, name: str, progress: Progress) -> None:
        self._existing(name).open(progress)

    def rotate(self, name: str, hop: str, to: str, progress: Progress) -> None:
        self._existing(name).rotate(hop, to, progress)

    def sweep(self, name: str) -> None:
        """Ask every hop of a chain now, or of all: ""."""
        if name:
            self._existing(name).sweep()
            return
        watched = [key for worker in self._running().values() for key in worker.watched]
        self._sniffer.sweep(watched, patience=FRESH)

    def events(self, name: str, limit: int) -> list[dict[str, Any]]:
        """The newest events of a chain (of all: ""), oldest first."""
        self._journal.flush()
        return [
            {
                "seq": recorded.seq,
                "at": recorded.at,
                "kind": recorded.event.kind,
                "chain": recorded.event.chain,
                "hop": recorded.event.hop,
                "code": recorded.event.code,
                "text": recorded.event.text,
            }
            for recorded in self._journal.events(name, limit=limit)
        ]

    @property
    def idle(self) -> bool:
        """No chain is wanted."""
        return not any(chain.up for chain in self._journal.chains())

    def plan(self, file: Path) -> dict[str, Any]:
        """What `up` would do with `file`; nothing is changed."""
        spec = load_chain_file(file)
        return self._worker(spec.name).preview(file)

    def names(self) -> list[str]:
        """Chains that are wanted or were not taken down to the end, and debris of others."""
        known = [chain.name for chain in self._journal.chains()]
        return sorted({*known, *self._machine.chains_found()})

    def found(self, asked: Sequence[str]) -> list[str]:
        """The chains to take down: those asked for, or all when none is.

        Raises RefusedByPolicy C501, before anything is touched, when something else is asked for:
        a file, a pattern or a mistyped name.
        """
        there = self.names()
        for name in asked:
            if name not in there:
                raise RefusedByPolicy("C501", f"there is no chain {name!r}", hint="chainctl status")
        return list(asked) or there

    def status(self, name: str = "") -> list[dict[str, Any]]:
        """The facts `chainctl status` prints, one entry a chain."""
        entries = []
        for wanted in self._journal.chains():
            if wanted.up and name in ("", wanted.name):
                worker = self._workers.get(wanted.name)
                entries.append(describe(wanted, worker, self._machine))
        return entries

    def _existing(self, name: str) -> Worker:
        wanted = self._journal.chain(name)
        if wanted is None or not wanted.up:
            raise RefusedByPolicy("C501", f"the chain {name} is not up", hint="chainctl up")
        return self._worker(name)

    def _worker(self, name: str) -> Worker:
        with self._lock:
            if name not in self._workers:
                self._workers[name] = Worker(
                    name,
                    machine=self._machine,
                    journal=self._journal,
                    sniffer=self._sniffer,
                    ticks=self._ticks,
                    crash=self._crash,
                    tick=lambda: REFRESHES.of(len(self._workers)),
                )
            return self._workers[name]

    def _look_at_containers(self, name: str) -> None:
        worker = self._running().get(name)
        if worker is not None:
            worker.disturb()

    def _running(self) -> dict[str, Worker]:
        with self._lock:
            return dict(self._workers)
