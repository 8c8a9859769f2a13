"""Who asks and who changes at the same time do not wait for each other for ever."""

from __future__ import annotations

import threading
import time
from concurrent.futures import Future
from pathlib import Path

import pytest

from chainctl.errors import MendHost
from chainctl.model.parts import PANEL, FarEnd, Leg, Namespace, NsName, Part, PortFilter, PortName
from chainctl.settings import Settings
from chainctl.supervisor.machine import Machine

pytestmark = pytest.mark.root

GATEWAY = NsName("locks.gateway")
ENDS = PortName("c7-gw"), PortName("c7-h1in")


def test_status_during_a_repair(tmp_path: Path) -> None:
    machine = Machine(Settings(run_dir=tmp_path / "run", state_dir=tmp_path / "state"))
    legs = [Leg(GATEWAY, f"leg{n}", end, 1500) for n, end in enumerate(ENDS)]
    parts: list[Part] = [Namespace(PANEL), Namespace(GATEWAY), *legs]
    try:
        for part in parts:
            machine.make(part)
        done = threading.Event()
        asking = threading.Thread(target=lambda: ask(machine, done), daemon=True)
        changing = threading.Thread(target=lambda: change(machine, done), daemon=True)
        asking.start()
        changing.start()
        changing.join(30)
        asking.join(30)
        assert not changing.is_alive()
        assert not asking.is_alive()
    finally:
        for part in reversed(parts):
            machine.remove(part)
        machine.clean("locks", 7, last=True)
        machine.close()


def test_a_client_that_fails_leaves_none_behind_in_the_middle_of_starting(tmp_path: Path) -> None:
    machine = Machine(Settings(run_dir=tmp_path / "run", state_dir=tmp_path / "state"))
    try:
        starts: dict[str, Future[int]] = {
            name: Future() for name in ("locks.one", "locks.two", "locks.three", "other.one")
        }
        starts["locks.one"].set_exception(MendHost("C300", "the first"))
        starts["locks.two"].set_exception(OSError("the second"))
        starts["locks.three"].set_result(1)
        machine._starting.update(starts)
        with pytest.raises(MendHost, match="the first"):
            machine.settle("locks")
        assert list(machine._starting) == ["other.one"]
    finally:
        machine.close()


def ask(machine: Machine, done: threading.Event) -> None:
    while not done.is_set():
        machine.gate_until(7)


def change(machine: Machine, done: threading.Event) -> None:
    until = time.monotonic() + 2
    while time.monotonic() < until:
        for part in (FarEnd(*ENDS), PortFilter(ENDS[0])):
            machine.make(part)
            machine.remove(part)
    done.set()
