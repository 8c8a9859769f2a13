"""Set times: kept, replaced, forgotten; a tick is called once for each."""

from __future__ import annotations

import threading
import time
from collections.abc import Iterator

import pytest

from chainctl.supervisor.ticks import Ticks

PATIENCE = 10.0


@pytest.fixture
def ticks() -> Iterator[Ticks]:
    ticks = Ticks()
    yield ticks
    ticks.close()


def test_what_is_past_is_due_at_once(ticks: Ticks) -> None:
    done = threading.Event()
    ticks.once("home/rotate", time.time() - 3600, done.set)
    assert done.wait(PATIENCE)


def test_it_comes_again_and_again(ticks: Ticks) -> None:
    times = threading.Semaphore(0)
    ticks.every("home/sweep", 0.02, times.release)
    for _ in range(3):
        assert times.acquire(timeout=PATIENCE)


def test_what_is_set_again_replaces_what_was_set(ticks: Ticks) -> None:
    wrong, right = threading.Event(), threading.Event()
    at = time.time() + 3600
    ticks.once("home/rotate", at, wrong.set)
    assert ticks.due_at("home/rotate") == pytest.approx(at, abs=0.001)
    ticks.once("home/rotate", 0.0, right.set)
    assert right.wait(PATIENCE)
    assert not wrong.is_set()


def test_what_is_forgotten_does_not_come(ticks: Ticks) -> None:
    ticks.every("home/sweep", 3600, _never)
    ticks.once("home/rotate", time.time() + 3600, _never)
    for key in ("home/sweep", "home/rotate", "home/rotate", "nobody/sweep"):
        ticks.forget(key)
    assert ticks.due_at("home/sweep") is None
    assert ticks.due_at("home/rotate") is None


def test_chains_take_turns(ticks: Ticks) -> None:
    for number in range(8):
        ticks.every(f"c{number}/sweep", 3600, _never)
    firsts = {ticks.due_at(f"c{number}/sweep") for number in range(8)}
    assert len(firsts) == 8
    assert all(first is not None and first <= time.time() + 3600 for first in firsts)


def _never() -> None:
    raise AssertionError("it is not time")
