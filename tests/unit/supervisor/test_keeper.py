"""Whose gate is prolonged: that of a worker at rest, and nobody's who has something to do."""

from __future__ import annotations

import threading
from collections.abc import Callable, Sequence
from contextlib import closing
from dataclasses import dataclass, field
from typing import cast

from chainctl.errors import ChainctlError, MendHost
from chainctl.store.journal import Journal, Wanted
from chainctl.supervisor.keeper import Keeper
from chainctl.supervisor.machine import Machine, Prolonging
from chainctl.supervisor.worker import Worker


@dataclass
class Resting:
    """Stands in for a worker; `busy`: it has got something to do since it was asked."""

    name: str
    busy: bool = False
    shut: bool = False
    held: bool = False
    wants: bool = True
    told: list[str] = field(default_factory=list)

    def hold(self) -> bool:
        self.held = not self.busy
        return self.held

    def release(self) -> None:
        self.held = False

    def due(self, _gate_until: Callable[[int], int], _wanted: Wanted | None) -> Prolonging | None:
        assert self.held
        return None if self.shut else Prolonging(self.name, 0, 1.0, 5)

    def kept(self, _prolonged: Prolonging, _wanted: Wanted | None) -> None:
        assert self.held
        self.told.append("kept")

    def wake(self) -> None:
        self.told.append("woken")


class Gates:
    """Stands in for the machine, the first `failures` times for one that cannot."""

    def __init__(self, failures: int = 0, refused: Sequence[str] = ()) -> None:
        self.failures = failures
        self.refused = refused
        self.opened: list[str] = []
        self.turns = 0
        self.enough = threading.Event()

    def prolong(
        self, due: Callable[[Callable[[int], int]], Sequence[Prolonging]]
    ) -> list[tuple[Prolonging, ChainctlError | None]]:
        self.turns += 1
        if self.turns > 2:
            self.enough.set()
        if self.turns <= self.failures:
            raise MendHost("C322", "not now")
        error = MendHost("C305", "refused")
        found = list(due(lambda _number: 0))
        self.opened += [one.name for one in found if one.name not in self.refused]
        return [(one, error if one.name in self.refused else None) for one in found]


class NothingWanted:
    def chains(self) -> list[Wanted]:
        return []


def keep(gates: Gates, *workers: Resting) -> None:
    by_name = {worker.name: cast(Worker, worker) for worker in workers}
    journal, answers = cast(Journal, NothingWanted()), threading.Event()
    answers.set()
    with closing(Keeper(cast(Machine, gates), journal, lambda: by_name, answers=answers)):
        assert gates.enough.wait(30)
        assert not answers.is_set(), "it was not waited for"
    assert not any(worker.held for worker in workers)


def test_only_who_rests_is_kept() -> None:
    gates, calm, other = Gates(), Resting("calm"), Resting("other", wants=False)
    busy, shut = Resting("busy", busy=True), Resting("shut", shut=True)
    keep(gates, calm, other, busy, shut)
    assert set(gates.opened) == {"calm"}
    assert set(calm.told) == {"kept"}
    assert not other.told
    assert not busy.told
    assert not shut.told


def test_who_cannot_be_kept_finds_out_why_and_no_other() -> None:
    gates, calm, refused = Gates(refused=["gone"]), Resting("calm"), Resting("gone")
    keep(gates, calm, refused)
    assert set(gates.opened) == {"calm"}
    assert set(refused.told) == {"woken"}
    assert set(calm.told) == {"kept"}


def test_when_nobody_can_be_kept_all_find_out_and_it_goes_on() -> None:
    gates, calm = Gates(failures=1), Resting("calm")
    keep(gates, calm)
    assert calm.told[:2] == ["woken", "kept"]
