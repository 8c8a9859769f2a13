"""What a client notices of servers that fail, and of servers that are replaced on purpose."""

from __future__ import annotations

import time
from collections.abc import Iterator
from contextlib import ExitStack
from functools import partial
from pathlib import Path
from typing import TypeVar

import pytest

from chainctl.lab.faults import Kind, fault
from chainctl.lab.traffic import Flood, new_marker, wiretaps
from tests import waiting
from tests.leak.canary import Expect, Tcp, Udp
from tests.leak.oracle import Oracle
from tests.system.chain_lab import ECHO, HOPS, ChainLab, chain_lab

pytestmark = pytest.mark.root

T = TypeVar("T")

RECOVERED = 15.0
"""Seconds in which traffic passes again, however busy the machine; about half of one on a machine
that has time, which `bench` measures."""
PATIENCE = 20.0
_GOES = 3
RATE = 500.0
"""Packets per second of each of two sockets."""
VIAS = ("wg,wg,wg", "udp,udp,udp")
FAULTS = (Kind.KILL_SERVER, Kind.FREEZE_SERVER, Kind.ONE_WAY)


@pytest.fixture(scope="module")
def running() -> Iterator[ChainLab]:
    with chain_lab("ffail", spares=12, offload=False) as chain:
        yield chain


@pytest.fixture
def chain(running: ChainLab) -> ChainLab:
    """The chain that the tests share, whole when a test begins."""
    assert running.drill.wait_whole(time.time())
    return running


@pytest.fixture(scope="module", params=VIAS)
def slow(request: pytest.FixtureRequest) -> Iterator[ChainLab]:
    """Every server is 40 ms away, so that whatever is on its way to one can get lost."""
    with chain_lab("fslow", spares=6, rtt_ms=40.0, via=request.param) as chain:
        yield chain


@pytest.fixture
def oracle(request: pytest.FixtureRequest, tmp_path: Path) -> Iterator[Oracle]:
    """With room for the frames of 17 places while the machine does something else."""
    with Oracle(tmp_path / "oracle", test=request.node.nodeid) as one:
        yield one


@pytest.mark.parametrize("hop", HOPS)
def test_another_server_takes_over_and_nothing_leaks(
    chain: ChainLab, oracle: Oracle, hop: str
) -> None:
    chain.watch(oracle)
    floods = [
        oracle.start(
            Udp(*ECHO, count=60_000, rate=RATE, connected=connected), expect=Expect.DELIVERED
        )
        for connected in (True, False)
    ]
    oracle.start(Tcp(*ECHO, count=6000, rate=100), expect=Expect.EITHER)
    for kind in FAULTS:
        before, known = chain.servers, chain.newest_event()
        mark = chain.drill.mark(chain.drill.status(), chain.hop(hop))
        with fault(chain.lab, kind, mark):
            wait_until(lambda known=known: chain.replaced_since(known))  # type: ignore[misc]
        assert chain.drill.wait_whole(time.time())
        after = chain.servers
        assert chain.replaced_since(known) == [hop], kind
        assert {each for each in HOPS if after[each] != before[each]} == {hop}, kind
    verdict = oracle.judge()
    verdict.assert_clean()
    for flood in floods:
        assert verdict.delivered[flood.emission.name].longest_gap < RECOVERED


def test_a_client_that_is_killed_comes_back(chain: ChainLab) -> None:
    result = chain.drill.run(Kind.KILL_CLIENT, "middle")
    assert result.whole
    assert result.seen.clean, result.seen
    assert result.recovered is None or result.recovered < RECOVERED
    assert result.report.busy[0].survived


@pytest.mark.parametrize("hops", [("guard", "exit"), HOPS], ids=["two", "three"])
def test_several_at_once_recover_outer_first(chain: ChainLab, hops: tuple[str, ...]) -> None:
    known, marker = chain.newest_event(), new_marker()
    facts = chain.drill.status()
    with (
        wiretaps(chain.lab, marker, hops=len(HOPS)) as seen,
        Flood(chain.lab, marker, rate=RATE) as flood,
        ExitStack() as faults,
    ):
        for hop in hops:
            mark = chain.drill.mark(facts, chain.hop(hop))
            faults.enter_context(fault(chain.lab, Kind.FREEZE_SERVER, mark))
        assert flood.run(PATIENCE, until=lambda: len(chain.replaced_since(known)) >= len(hops))
        assert chain.drill.wait_whole(time.time())
        flood.run(0.5)
    assert chain.replaced_since(known) == list(hops)
    assert seen[0].clean, seen[0]


def test_an_exhausted_pool_keeps_it_shut_until_a_server_returns(chain: ChainLab) -> None:
    known, marker = chain.newest_event(), new_marker()
    pool = chain.pool(2)
    with (
        wiretaps(chain.lab, marker, hops=len(HOPS)) as seen,
        Flood(chain.lab, marker, rate=RATE) as flood,
    ):
        flood.run(0.3)
        try:
            for server in pool:
                server.freeze()
            flood.run(PATIENCE, until=lambda: chain.drill.status()["posture"] == "closed")
            why = chain.drill.status()["why_closed"]
            assert why["code"] == "C410"
            assert "middle" in why["text"]
            flood.run(PATIENCE, until=lambda: "rotation_held" in kinds_since(chain, known))
            assert "rotation_held" in kinds_since(chain, known)
            pool[-1].thaw()
            assert chain.drill.wait_whole(time.time())
            assert chain.servers["middle"] == pool[-1].plan.label
            flood.run(0.5)
        finally:
            for server in pool:
                server.thaw()
    outage, recovered = flood.report.outage(0.0, float("inf"))
    assert outage > 1.0
    assert recovered is not None
    assert seen[0].clean, seen[0]


@pytest.mark.parametrize("via", VIAS)
def test_a_standby_takes_over_at_once(via: str) -> None:
    with chain_lab("fstand", spares=3, standby="middle", via=via) as chain:
        wait_until(lambda: chain.hop("middle").get("standby"))
        standby = chain.hop("middle")["standby"]
        result = chain.drill.run(Kind.FREEZE_SERVER, "middle")
        assert result.successor == standby
        assert result.replaced == ("middle",)
        assert result.recovered is not None
        assert result.recovered < RECOVERED
        assert result.seen.clean, result.seen
        wait_until(lambda: chain.hop("middle").get("standby") not in (None, standby))


def bearable(chain: ChainLab) -> float:
    """Packets a second of which this machine loses none while nothing happens."""
    rates = [RATE / 2.0**step for step in range(4)]
    for rate in rates:
        with Flood(chain.lab, new_marker(), rate=rate, busy=5, idle=5) as flood:
            flood.run(1.0)
        if flood.report.lost == 0:
            return rate
    return rates[-1]


def test_a_planned_change_of_guard_and_middle_loses_nothing(slow: ChainLab) -> None:
    """A switch that loses packets loses them each time; a busy machine does not."""
    lost = []
    for _ in range(_GOES):
        marker, before, rate = new_marker(), slow.servers, bearable(slow)
        with (
            wiretaps(slow.lab, marker, hops=len(HOPS)) as seen,
            Flood(slow.lab, marker, rate=rate, busy=5, idle=5) as flood,
        ):
            flood.run(0.5)
            for hop in ("guard", "middle"):
                slow.rotate(hop)
                flood.run(0.5)
        after = slow.servers
        assert {hop for hop in HOPS if after[hop] != before[hop]} == {"guard", "middle"}
        assert all(connection.survived for connection in flood.report.connections)
        assert len({source for _, source in flood.report.sources}) == 1
        assert seen[0].clean, seen[0]
        lost.append(flood.report.lost)
        if lost[-1] == 0:
            return
    pytest.fail(f"lost each time: {lost}")


def test_what_began_over_an_exit_drains_there(slow: ChainLab) -> None:
    """Here too a busy machine does not lose packets each time."""
    lost = []
    for _ in range(_GOES):
        old, rate = str(slow.server("exit").plan.uplink.ip), bearable(slow)
        with Flood(slow.lab, new_marker(), rate=rate, busy=5, idle=5) as flood:
            flood.run(0.5)
            slow.rotate("exit")
            new = str(slow.server("exit").plan.uplink.ip)
            assert slow.source() == new != old
            flood.run(3.0)
        assert all(connection.survived for connection in flood.report.connections)
        assert [source for _, source in flood.report.sources] == [old]
        lost.append(flood.report.lost)
        if lost[-1] == 0:
            return
    pytest.fail(f"lost each time: {lost}")


def kinds_since(chain: ChainLab, event: int) -> set[str]:
    return {each["kind"] for each in chain.drill.events(event)}


wait_until = partial(waiting.wait_until, seconds=PATIENCE)
