"""Servers that fail and servers that are replaced on purpose, with OpenVPN in every place.

What holds for any chain is asked in `test_failover`, which runs with OpenVPN hops as well; here
stands what is OpenVPN's own: mixes, TCP that does not survive another way, logins.
"""

from __future__ import annotations

import itertools
import time
from collections.abc import Iterator, Sequence
from contextlib import ExitStack
from functools import partial

import pytest

from chainctl.api.client import Reported
from chainctl.lab.faults import Kind, fault
from chainctl.lab.traffic import Flood, new_marker, wiretaps
from tests import waiting
from tests.leak.canary import Expect, Tcp, Udp
from tests.leak.fixture import roomy_oracle as oracle
from tests.leak.oracle import Oracle
from tests.system.chain_lab import ECHO, HOPS, ChainLab, chain_lab

__all__ = ["oracle"]

pytestmark = [pytest.mark.root, pytest.mark.timeout(240)]

PATIENCE = 60.0
RATE = 500.0
MIXES = ("udp,udp,udp", "wg,udp,tcp", "tcp,wg,udp")
FAULTS = (Kind.FREEZE_SERVER, Kind.KILL_SERVER, Kind.ONE_WAY)


@pytest.fixture(scope="module", params=MIXES)
def running(request: pytest.FixtureRequest) -> Iterator[ChainLab]:
    with chain_lab("fovpn", spares=9, offload=False, via=request.param) as chain:
        yield chain


@pytest.fixture
def chain(running: ChainLab) -> ChainLab:
    """Whole when a test begins."""
    assert running.drill.wait_whole(time.time())
    return running


def test_another_server_takes_over_and_nothing_leaks(chain: ChainLab, oracle: Oracle) -> None:
    """Each hop loses its server, each in another way from mix to mix, and nobody else does."""
    first = MIXES.index(chain.lab.layout.spec.via)
    faults = itertools.islice(itertools.cycle(FAULTS), first, None)
    chain.watch(oracle)
    floods(oracle)
    for hop, kind in zip(HOPS, faults, strict=False):
        known = chain.newest_event()
        with fault(chain.lab, kind, chain.drill.mark(chain.drill.status(), chain.hop(hop))):
            wait_until(lambda known=known: chain.replaced_since(known))  # type: ignore[misc]
            assert chain.drill.wait_whole(time.time())
        assert chain.replaced_since(known) == [hop], (kind, told(chain, known))
    oracle.judge().assert_clean()


def test_a_client_that_is_killed_comes_back_with_its_server(
    chain: ChainLab, oracle: Oracle
) -> None:
    """Within half a minute after it connected too, when the server would not know it again."""
    chain.watch(oracle)
    floods(oracle)
    for hop in HOPS:
        before, known = chain.servers, chain.newest_event()
        with fault(
            chain.lab, Kind.KILL_CLIENT, chain.drill.mark(chain.drill.status(), chain.hop(hop))
        ):
            wait_until(lambda hop=hop, known=known: chain.happened(known, hop, {"repaired"}))  # type: ignore[misc]
        assert chain.drill.wait_whole(time.time())
        assert chain.servers == before, told(chain, known)
    oracle.judge().assert_clean()


def test_by_hand_beside_traffic(chain: ChainLab) -> None:
    """Guard and middle: what clients have open goes on, also where a hop has to connect anew."""
    marker, before = new_marker(), chain.servers
    with (
        wiretaps(chain.lab, marker, hops=len(HOPS)) as seen,
        Flood(chain.lab, marker, rate=RATE, busy=5, idle=5) as flood,
    ):
        flood.run(0.5)
        for hop in ("guard", "middle"):
            rotate(chain, hop)
            assert chain.drill.wait_whole(time.time())
            flood.run(0.5)
        # What was sent meanwhile comes again, after as long as it was in vain.
        flood.run(5.0)
    after = chain.servers
    assert {hop for hop in HOPS if after[hop] != before[hop]} == {"guard", "middle"}
    assert seen[0].clean, seen[0]
    if not over_tcp_inside(chain):
        assert all(connection.survived for connection in flood.report.connections)


@pytest.mark.parametrize("hops", [("guard", "exit"), HOPS], ids=["two", "three"])
def test_several_at_once_recover_outer_first(chain: ChainLab, hops: Sequence[str]) -> None:
    known, marker, facts = chain.newest_event(), new_marker(), chain.drill.status()
    with (
        wiretaps(chain.lab, marker, hops=len(HOPS)) as seen,
        Flood(chain.lab, marker, rate=RATE),
        ExitStack() as faults,
    ):
        for hop in hops:
            mark = chain.drill.mark(facts, chain.hop(hop))
            faults.enter_context(fault(chain.lab, Kind.FREEZE_SERVER, mark))
        wait_until(lambda: len(chain.replaced_since(known)) >= len(hops))
        assert chain.drill.wait_whole(time.time())
    assert chain.replaced_since(known) == list(hops), told(chain, known)
    assert seen[0].clean, seen[0]


@pytest.mark.parametrize("running", ["wg,udp,tcp"], indirect=True)
def test_an_account_that_allows_one_session(chain: ChainLab, oracle: Oracle) -> None:
    """With username and password: the tunnel before is gone when the next one begins."""
    text = chain.lab.chain_file.read_text()
    chain.lab.chain_file.write_text(text.replace("name: middle,", "name: middle, sessions: 1,"))
    chain.up()
    try:
        chain.watch(oracle)
        floods(oracle)
        known, before = chain.newest_event(), chain.servers
        rotate(chain, "middle")
        wait_until(lambda: chain.drill.status()["posture"] == "open")
        mark = chain.drill.mark(chain.drill.status(), chain.hop("middle"))
        with fault(chain.lab, Kind.FREEZE_SERVER, mark):
            wait_until(lambda: len(chain.replaced_since(known)) == 2)
            assert chain.drill.wait_whole(time.time())
        oracle.judge().assert_clean()
        assert chain.replaced_since(known) == ["middle", "middle"]
        assert {hop for hop in HOPS if chain.servers[hop] != before[hop]} <= {"middle"}
        made = [each["text"] for each in chain.drill.events(known) if each["kind"] == "part_made"]
        assert not [text for text in made if "tunnel device" in text], "none came up beside it"
    finally:
        chain.lab.chain_file.write_text(text)
        chain.up()


def test_a_port_that_is_blocked() -> None:
    """The server has another one, and nobody else is left."""
    with chain_lab("fport", hops=1, spares=0, via="udp") as chain:
        (server,) = chain.lab.servers
        line = f"remote {server.plan.uplink.ip} {server.plan.port} udp"
        both = f"{line}\nremote {server.plan.uplink.ip} 443 udp"
        server.profile.write_text(server.profile.read_text().replace(line, both))
        there = "iifname eth0 udp dport"
        chain.nft(
            server.name,
            f"""
            table ip ports {{
                chain nat {{ type nat hook prerouting priority dstnat;
                    {there} 443 redirect to {server.plan.port}; }}
                chain blocked {{ type filter hook prerouting priority raw; }}
            }}
            """,
        )
        chain.up()
        assert chain.hop("")["endpoint"].endswith(f":{server.plan.port}")
        chain.nft(server.name, f"add rule ip ports blocked {there} {server.plan.port} drop")
        wait_until(lambda: chain.hop("")["endpoint"].endswith(":443"))
        assert chain.drill.wait_whole(time.time())
        assert not chain.hop("")["quarantine"]


def over_tcp_inside(chain: ChainLab) -> bool:
    """The exit has another address in its server after that, so that connections begin anew."""
    return chain.server("exit").plan.via == "tcp"


def rotate(chain: ChainLab, hop: str) -> None:
    """To whichever answers, whatever became of it in another test."""
    place = chain.hop(hop)
    others = [s.plan.label for s in chain.pool(place["number"]) if s.plan.label != place["server"]]
    for label in others:
        try:
            chain.ask({"do": "rotate", "chain": chain.lab.name, "hop": hop, "to": label})
        except Reported as refused:
            if refused.code != "C423" or label == others[-1]:
                raise
        else:
            return


def floods(oracle: Oracle) -> None:
    oracle.start(Tcp(*ECHO, count=6000, rate=100), expect=Expect.EITHER)
    for connected in (True, False):
        udp = Udp(*ECHO, count=60_000, rate=RATE, connected=connected)
        oracle.start(udp, expect=Expect.DELIVERED)


def told(chain: ChainLab, since: int) -> list[str]:
    events = [each for each in chain.drill.events(since) if not each["kind"].startswith("part_")]
    return [f"{each['at']:.1f} {each['kind']} {each['hop']} {each['text']}" for each in events]


wait_until = partial(waiting.wait_until, seconds=PATIENCE)
