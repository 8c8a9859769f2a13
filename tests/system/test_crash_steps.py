"""Killed at every step of `up` and `down`: what is run next converges, and nothing leaks.

A step is one change that the kernel shows, and before and after each stands a crash point
(`chainctl.supervisor.crash`). What is left by a crash after one step is what is left by a crash
before the next, so the sweep crashes before each and after the last. A crash during `up` is
followed by another `up`, which has to open, or by `down`, in turn; CHAINCTL_SWEEP=all does both
for both moments of every step, which takes four times as long.
"""

from __future__ import annotations

import os
import random
import re
from collections import Counter
from collections.abc import Iterator
from pathlib import Path

import pytest

from tests.leak.canary import Expect
from tests.leak.oracle import Oracle
from tests.system.crash_bench import DOWN, FLOOD, Bench, bench_of, stays_shut, watch
from tests.system.forks import Facts

pytestmark = pytest.mark.root

EVERYTHING = os.environ.get("CHAINCTL_SWEEP") == "all"
SEED = int(os.environ["CHAINCTL_SEED"])

_POINT = re.compile(r"(\d+):(before|after) (.*)")


@pytest.fixture(scope="module")
def bench() -> Iterator[Bench]:
    with bench_of(hops=2) as bench:
        yield bench


def points(log: Path) -> list[tuple[int, str, str]]:
    """(number, moment, step) of every crash point that was passed."""
    found = (_POINT.fullmatch(line) for line in log.read_text().splitlines())
    return [(int(match[1]), match[2], match[3]) for match in found if match]


def steps_of(bench: Bench, request: Facts, log: Path) -> list[str]:
    """The steps that the request takes, each of which passed its two crash points."""
    bench.forks.run(request, log=log).checked()
    passed = points(log)
    steps = [step for _, moment, step in passed if moment == "before"]
    assert passed == [
        (number, moment, step)
        for number, step in enumerate(steps)
        for moment in ("before", "after")
    ]
    return steps


def test_every_step_has_its_crash_points(bench: Bench, tmp_path: Path) -> None:
    (planned,) = bench.forks.run({**bench.up, "do": "plan"}).checked().answers
    log = tmp_path / "points"
    after = bench.journal()[-1].seq
    steps = steps_of(bench, bench.up, log)
    # What had to be made, then the two hops and the gate.
    made = [step for step in steps if step.startswith("Make(")]
    assert len(made) == len(planned["steps"]) == len(steps) - 3
    assert steps[-1] == "OpenGate()"
    # Another supervisor has not proved it yet, and makes nothing.
    assert steps_of(bench, bench.up, log) == ["Prove(hop=1)", "Prove(hop=2)", "OpenGate()"]
    taken = steps_of(bench, DOWN, log)
    assert (taken[0], taken[-1]) == ("shut", "clean")
    assert all(step.startswith("Remove(") for step in taken[1:-1])
    # What was journalled passed its points.
    assert kinds_of_events(bench, after) == {
        "part_made": len(made),
        "part_removed": len(taken) - 2,
    }


def kinds_of_events(bench: Bench, after: int) -> dict[str, int]:
    """How many parts were made and so on, of the events numbered above `after`."""
    events = bench.journal(after)
    return dict(Counter(one.event.kind for one in events if one.event.kind.startswith("part_")))


@pytest.mark.timeout(900)
@pytest.mark.parametrize("seed", [SEED])
def test_every_step(bench: Bench, tmp_path: Path, seed: int) -> None:
    log = tmp_path / "points"
    ups = moments(steps_of(bench, bench.up, log))
    downs = iter(moments(steps_of(bench, DOWN, log)))
    parity = random.Random(seed).randrange(2)
    with Oracle(tmp_path / "oracle", test="killed at every step") as oracle:
        watch(bench.lab, oracle)
        flood = oracle.start(FLOOD, expect=Expect.DELIVERED)
        for number, at in enumerate(ups):
            for goes_on in [True, False] if EVERYTHING else [number % 2 == parity]:
                when = f"after up was killed at {at}"
                assert bench.forks.run(bench.up, crash_at=at).killed, when
                if at != ups[-1]:
                    stays_shut(bench.lab, oracle, when)
                if goes_on:
                    bench.opens(when)
                    crash_down(bench, oracle, next(downs, ""))
                else:
                    bench.goes_down(when)
            if flood.process.poll() is not None:
                flood = oracle.start(FLOOD, expect=Expect.DELIVERED)
        for at in downs:
            bench.opens(f"before down is killed at {at}")
            crash_down(bench, oracle, at)
        verdict = oracle.judge()
    verdict.assert_clean()


def moments(steps: list[str]) -> list[str]:
    """As `CHAINCTL_CRASH_AT` has them."""
    every = [f"{number}:{moment}" for number in range(len(steps)) for moment in ("before", "after")]
    return every if EVERYTHING else [at for at in every if at.endswith("before") or at == every[-1]]


def crash_down(bench: Bench, oracle: Oracle, at: str) -> None:
    """Kill `down` there and run it again; "": just run it."""
    when = f"after down was killed at {at}"
    if at:
        assert bench.forks.run(DOWN, crash_at=at).killed, when
        if at != "0:before":
            stays_shut(bench.lab, oracle, when)
    bench.goes_down(when)
