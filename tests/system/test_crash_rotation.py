"""Killed at every step of a rotation: what runs next converges, and nothing leaks.

Each kind of rotation is carried out once to learn its steps, then killed before some of them
(the switch is always among them; which others, chance decides), each time beginning with a
whole chain. CHAINCTL_SWEEP=all kills before and after every step. The next supervisor has to
open the chain by itself: also when the server that was to be replaced stays silent. Then no
table, route, row of the filter or client may know any server but those that serve.
"""

from __future__ import annotations

import os
import random
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

import pytest

from tests.leak.canary import Expect, Udp
from tests.leak.fixture import ROOMY
from tests.leak.oracle import Oracle
from tests.system.chain_lab import ECHO, MANY_CHANGES, ChainLab
from tests.system.crash_bench import Bench, bench_of
from tests.system.forks import Facts, Ran
from tests.system.remains import clients_running, servers_allowed
from tests.system.test_crash_steps import points

pytestmark = [
    pytest.mark.root,
    pytest.mark.timeout(3600 if "CHAINCTL_SWEEP" in os.environ else 300),
]

EVERYTHING = os.environ.get("CHAINCTL_SWEEP") == "all"
SEED = int(os.environ["CHAINCTL_SEED"])
KILLS = 2
"""Beside the one at the switch, where not everything is killed."""
FLOOD = Udp(*ECHO, count=80_000, rate=200)
FRESH_AFTER = 3
"""Guards that failed are not asked for minutes, unless the chain is a new one."""
_TRIES = 4


@dataclass(frozen=True)
class Kind:
    name: str
    hop: str
    fails: bool = False
    """The server stops answering; otherwise it is replaced by hand."""
    option: str = ""
    """Of the hop, in the chain file."""

    @property
    def standby(self) -> str:
        return self.hop if "standby" in self.option else ""


KINDS = (
    Kind("planned guard", "guard"),
    Kind("planned exit", "exit"),
    Kind("failed guard", "guard", fails=True),
    Kind("failed exit", "exit", fails=True),
    Kind("one session", "exit", option="sessions: 1"),
    Kind("standby", "exit", fails=True, option="standby: true"),
)


@pytest.fixture(scope="module")
def bench() -> Iterator[Bench]:
    more = MANY_CHANGES.replace("{", "{drain: 1s, ")
    with bench_of(hops=2, spares=6, more=more) as bench:
        yield bench


@pytest.mark.parametrize("seed", [SEED])
@pytest.mark.parametrize("kind", KINDS, ids=lambda kind: str(kind.name))
def test_every_step(bench: Bench, tmp_path: Path, kind: Kind, seed: int) -> None:
    sweep = Sweep(bench, kind, tmp_path / "points")
    with (
        sweep.chain_file(),
        Oracle(tmp_path / "oracle", test=kind.name, ring_bytes=ROOMY) as oracle,
    ):
        sweep.begin()
        ChainLab(bench.lab).watch(oracle)
        flood = oracle.start(FLOOD, expect=Expect.DELIVERED)
        steps = sweep.steps()
        for number, moment in moments(steps, random.Random(seed)):
            sweep.crash(number, moment, f"killed {moment} step {number}, {steps[number][:60]}")
            if flood.process.poll() is not None:
                flood = oracle.start(FLOOD, expect=Expect.DELIVERED)
        oracle.judge().assert_clean()


def moments(steps: list[str], dice: random.Random) -> list[tuple[int, str]]:
    every = [(number, moment) for number in range(len(steps)) for moment in ("before", "after")]
    if EVERYTHING:
        return every
    # Right after a step is right before the next.
    switches = [number for number, step in enumerate(steps) if "Change(" in step]
    chosen = {dice.choice(switches or range(len(steps)))}
    chosen.update(dice.sample(range(len(steps)), KILLS))
    return [(number, "before") for number in sorted(chosen)]


class Sweep:
    """One kind of rotation, again and again."""

    def __init__(self, bench: Bench, kind: Kind, log: Path) -> None:
        self.bench = bench
        self.kind = kind
        self.log = log
        self.crashes = 0
        self.facts: Facts = {}
        """The last known status of a whole chain."""

    def chain_file(self) -> ChainFile:
        return ChainFile(self.bench.lab.chain_file, self.kind)

    def begin(self) -> None:
        """A whole chain."""
        self.facts = self.bench.forks.run(self.bench.up, self.settle()).checked().answers[-1]

    def settle(self, away_from: str = "") -> Facts:
        return {"do": "settle", "away_from": away_from, "standby": self.kind.standby}

    def rotation(self, serving: str) -> list[Facts]:
        """What makes the supervisor replace that server."""
        lab = self.bench.lab
        if self.kind.fails:
            name = next(one.name for one in lab.servers if one.plan.label == serving)
            return [{"do": "freeze", "lab": lab.name, "server": name}, self.settle(serving)]
        by_hand = {"do": "rotate", "chain": lab.name, "hop": self.kind.hop, "to": ""}
        return [by_hand, self.settle(serving)]

    def steps(self) -> list[str]:
        """Those that one rotation takes."""
        never = {"do": "crash_in", "steps": 1 << 30, "moment": "before"}
        ran = self.rotate(never)
        assert ran.error is None, ran.error
        before = sum(ran.steps[:3])
        steps = [step for _, moment, step in points(self.log) if moment == "before"][before:]
        assert len(steps) == sum(ran.steps[3:]) > 5
        return steps

    def crash(self, number: int, moment: str, when: str) -> None:
        if self.kind.fails and self.crashes % FRESH_AFTER == 0:
            self.bench.goes_down(f"before it is {when}")
            self.begin()
        self.crashes += 1
        try:
            ran = self.rotate({"do": "crash_in", "steps": number, "moment": moment})
            assert ran.killed, f"not {when}: {ran.error or ran.died or ran.answers[-1:]}"
            self.converges(when)
        finally:
            self.thaw()

    def rotate(self, crash: Facts) -> Ran:
        """Once; a candidate that is too slow for a busy machine is not one that crashes."""
        for _ in range(_TRIES):
            serving = self.serving
            ran = self.bench.forks.run(
                *(self.bench.up, self.settle(), crash, *self.rotation(serving)), log=self.log
            )
            if not ran.killed:
                self.thaw()
                self.begin()
            if not (ran.error and ran.error["code"] == "C423"):
                break
        assert not ran.died, ran.died
        return ran

    def converges(self, when: str) -> None:
        """Also while the server that failed still does."""
        ran = self.bench.forks.run({"do": "adopt"}, self.settle())
        assert not ran.died, f"{when}: {ran.died}"
        assert ran.error is None, f"{when}: {ran.error}"
        self.facts = ran.answers[-1]
        hops = self.facts["hops"]
        serving = {hop["server"] for hop in hops} | {
            hop["standby"] for hop in hops if hop["standby"]
        }
        allowed = servers_allowed(self.bench.lab)
        assert set(allowed) == serving, f"{when}: {allowed}"
        assert len(clients_running(self.bench.lab)) == len(serving), when

    def thaw(self) -> None:
        for server in self.bench.lab.servers:
            server.thaw()

    @property
    def serving(self) -> str:
        hops = self.facts["hops"]
        return next(str(hop["server"]) for hop in hops if hop["hop"] == self.kind.hop)


class ChainFile:
    """The chain file with the hop's option, for the length of a block."""

    def __init__(self, path: Path, kind: Kind) -> None:
        self._path = path
        self._kind = kind

    def __enter__(self) -> None:
        self._before = self._path.read_text()
        name = f"name: {self._kind.hop},"
        option = f"{self._kind.option}, " if self._kind.option else ""
        self._path.write_text(self._before.replace(name, f"{name} {option}"))

    def __exit__(self, *_: object) -> None:
        self._path.write_text(self._before)
