"""Open: what a client sends leaves only inside all layers, and comes out at the last server."""

from __future__ import annotations

import pytest

from tests.leak.canary import Dns, Expect, Frames, Tcp, Udp
from tests.leak.chain_rig import ECHO, HOPS, TARGET_ADDRESS, ChainRig, Passing
from tests.leak.oracle import Oracle

pytestmark = pytest.mark.root


def test_each_wire_carries_its_one_tuple(chain: ChainRig, oracle: Oracle) -> None:
    chain.watch(oracle, Passing(layers=True))
    flood = oracle.start(Udp(TARGET_ADDRESS, ECHO, count=3000, rate=1000), expect=Expect.DELIVERED)
    oracle.send(Tcp(TARGET_ADDRESS, ECHO, count=50), expect=Expect.DELIVERED)
    chain.send_everything(oracle, (TARGET_ADDRESS, ECHO), expect=Expect.DELIVERED)
    flood.wait()
    verdict = oracle.judge()
    verdict.assert_clean()
    (exit_server, _) = chain.endpoints[-1]
    assert {d.sources for d in verdict.delivered.values() if d.sources} == {(exit_server,)}
    assert verdict.delivered[flood.emission.name].count > 2700


def test_what_is_aimed_at_servers_goes_through_all_layers(chain: ChainRig, oracle: Oracle) -> None:
    """A packet to a server's own endpoint looks like the tunnel's, but for its source port."""
    chain.watch(oracle, Passing(at_servers=True))
    chain.send_everything(oracle, *chain.endpoints, expect=Expect.EITHER)
    for hop in range(1, HOPS + 1):
        server, port = chain.endpoints[hop - 1]
        own = 20_000 + 2 * (hop - 1)
        oracle.send(Udp(server, port, source_port=own), expect=Expect.EITHER, name=f"as hop {hop}")
    verdict = oracle.judge()
    verdict.assert_clean()
    (exit_server, _) = chain.endpoints[-1]
    arrived = {d.sources for d in verdict.delivered.values() if d.sources}
    assert arrived == {(exit_server,)}


def test_inner_addresses_and_other_resolvers_are_refused(chain: ChainRig, oracle: Oracle) -> None:
    chain.watch(oracle)
    for address in ("10.64.0.1", "10.2.0.1", "198.19.0.3", "192.168.99.1", "169.254.1.1"):
        oracle.send(Udp(address, ECHO), name=f"udp to {address}")
        oracle.send(Frames(("icmp", "tcp-syn"), address, ECHO), name=f"frames to {address}")
    oracle.send(Dns(TARGET_ADDRESS), name="another resolver")
    oracle.send(Udp(TARGET_ADDRESS, 853), name="dns over tls")
    oracle.judge().assert_clean()
