"""Another server for a hop: by hand or because it fails, while clients send all along.

Each pool has two servers, so that it is known which one comes next and the wires of all others
have to be silent. Clients send 1000 packets/s from a connected and from an unconnected UDP
socket, and over TCP.
"""

from __future__ import annotations

import time
from collections.abc import Iterator, Sequence
from contextlib import ExitStack

import pytest

from chainctl.api.client import Reported
from chainctl.lab.faults import Kind, fault
from tests.leak.canary import Expect, Tcp, Udp
from tests.leak.fixture import roomy_oracle as oracle
from tests.leak.oracle import Oracle, Sending
from tests.leak.verdict import Verdict
from tests.system.chain_lab import ECHO, HOPS, MANY_CHANGES, ChainLab, chain_lab
from tests.system.remains import servers_allowed
from tests.waiting import wait_until

__all__ = ["oracle"]

pytestmark = [pytest.mark.root, pytest.mark.timeout(240)]

RATE = 1000.0
RECOVERED = 5.0
"""Seconds without an answer at most; about one on a machine that has time."""
_TRIES = 5


@pytest.fixture(scope="module")
def running() -> Iterator[ChainLab]:
    more = MANY_CHANGES.replace("{", "{drain: 8s, ")
    with chain_lab("lrot", spares=3, offload=False, more=more) as chain:
        yield chain


@pytest.fixture
def chain(running: ChainLab) -> ChainLab:
    """Whole, and nobody remembers what was before: neither who failed, nor the servers whom
    they served, which would go on greeting them.
    """
    running.down()
    for server in running.lab.servers:
        server.restart()
    running.up()
    assert running.drill.wait_whole(time.time())
    return running


@pytest.mark.parametrize("hop", HOPS)
def test_replaced_by_hand(chain: ChainLab, oracle: Oracle, hop: str) -> None:
    before = chain.servers
    after = {**before, hop: other(chain, hop)}
    chain.watch(oracle, among={*before.values(), *after.values()})
    floods = flood(oracle)
    rotate(chain, hop, after[hop])
    if hop == "exit":
        drains(chain, oracle, before[hop], after[hop])
    wait_until(lambda: drained(chain))
    assert chain.servers == after
    assert set(servers_allowed(chain.lab)) == set(after.values())
    verdict = clean(oracle)
    sources = {address(chain, before["exit"]), address(chain, after["exit"])}
    for sending in floods:
        delivered = verdict.delivered[sending.emission.name]
        assert set(delivered.sources) <= sources
        assert delivered.longest_gap < RECOVERED


def drains(chain: ChainLab, oracle: Oracle, old: str, new: str) -> None:
    """What begins now has the new address, what began before keeps the old one meanwhile."""
    begun = oracle.start(Udp(*ECHO, count=100, rate=100), expect=Expect.DELIVERED, name="begun now")
    assert chain.source() == address(chain, new)
    begun.wait()
    assert not drained(chain), "too slow to tell: the drain is over"


@pytest.mark.parametrize(
    ("hop", "kind"),
    list(zip(HOPS, (Kind.KILL_SERVER, Kind.FREEZE_SERVER, Kind.ONE_WAY), strict=True)),
)
def test_failing(chain: ChainLab, oracle: Oracle, hop: str, kind: Kind) -> None:
    fails(chain, oracle, [hop], kind)


@pytest.mark.parametrize("hops", [("guard", "exit"), HOPS], ids=["two", "three"])
def test_failing_together(chain: ChainLab, oracle: Oracle, hops: Sequence[str]) -> None:
    """They come back outer first."""
    fails(chain, oracle, hops, Kind.FREEZE_SERVER)


def fails(chain: ChainLab, oracle: Oracle, hops: Sequence[str], kind: Kind) -> None:
    before, known = chain.servers, chain.newest_event()
    after = {**before, **{hop: other(chain, hop) for hop in hops}}
    chain.watch(oracle, among={*before.values(), *after.values()})
    floods = flood(oracle)
    with ExitStack() as faults:
        marks = [chain.drill.mark(chain.drill.status(), chain.hop(hop)) for hop in hops]
        for mark in marks:
            faults.enter_context(fault(chain.lab, kind, mark))
        wait_until(lambda: len(chain.replaced_since(known)) >= len(hops))
        assert chain.drill.wait_whole(time.time())
        wait_until(lambda: set(servers_allowed(chain.lab)) == set(after.values()))
    assert chain.replaced_since(known) == list(hops)
    assert chain.servers == after
    wait_until(lambda: chain.source() == address(chain, after["exit"]))
    verdict = clean(oracle)
    sources = {address(chain, before["exit"]), address(chain, after["exit"])}
    for sending in floods:
        delivered = verdict.delivered[sending.emission.name]
        assert set(delivered.sources) <= sources
        assert delivered.longest_gap < RECOVERED * len(hops)


def flood(oracle: Oracle) -> list[Sending]:
    """The UDP floods. A connection breaks where the exit changes, and may not come back."""
    oracle.start(Tcp(*ECHO, count=6000, rate=100), expect=Expect.EITHER)
    return [
        oracle.start(
            Udp(*ECHO, count=60_000, rate=RATE, connected=connected), expect=Expect.DELIVERED
        )
        for connected in (True, False)
    ]


def clean(oracle: Oracle) -> Verdict:
    verdict = oracle.judge()
    verdict.assert_clean()
    return verdict


def rotate(chain: ChainLab, hop: str, to: str) -> None:
    """A candidate that is too slow to answer on a busy machine is asked again."""
    for attempt in range(_TRIES):
        try:
            chain.ask({"do": "rotate", "chain": chain.lab.name, "hop": hop, "to": to})
        except Reported as refused:
            if refused.code != "C423" or attempt == _TRIES - 1:
                raise
        else:
            return


def drained(chain: ChainLab) -> bool:
    return all(hop["draining_seconds"] is None for hop in chain.drill.status()["hops"])


def other(chain: ChainLab, hop: str) -> str:
    """The server of the hop's pool that does not serve."""
    now, number = chain.servers[hop], chain.hop(hop)["number"]
    return next(one.plan.label for one in chain.pool(number) if one.plan.label != now)


def address(chain: ChainLab, label: str) -> str:
    return next(str(one.plan.uplink.ip) for one in chain.lab.servers if one.plan.label == label)


def test_a_server_that_nobody_named_is_noticed(chain: ChainLab, oracle: Oracle) -> None:
    """The control: the wires of the servers that are not to serve are watched."""
    chain.watch(oracle, among=set(chain.servers.values()))
    flood(oracle)
    rotate(chain, "middle", other(chain, "middle"))
    verdict = oracle.judge()
    new = next(one for one in chain.lab.servers if one.plan.label == chain.servers["middle"])
    assert verdict.illegal[new.name]
