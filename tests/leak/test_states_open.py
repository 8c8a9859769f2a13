"""Open: what a client sends leaves only inside all layers, and comes out at the last server."""

from __future__ import annotations

import socket
from contextlib import ExitStack

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


def test_a_client_hears_nothing_that_is_meant_for_another(chain: ChainRig) -> None:
    """Protocols without ports: what a second client sends to the same end goes nowhere."""
    first, second = (f"192.168.10.{last}" for last in (201, 202))
    for address in (first, second):
        chain.run("client", "ip", "addr", "add", f"{address}/32", "dev", "eth0")
    with ExitStack() as opened:
        one, two = (opened.enter_context(raw(chain, "client", a)) for a in (first, second))
        target = opened.enter_context(raw(chain, "target", TARGET_ADDRESS))
        one.sendto(b"from one", (TARGET_ADDRESS, 0))
        packet, (source, _) = target.recvfrom(4096)
        assert packet.endswith(b"from one")
        assert source == chain.endpoints[-1][0]
        two.sendto(b"from two", (TARGET_ADDRESS, 0))
        # Sent later, so that it comes later: nothing of the second client is under way any more.
        one.sendto(b"again", (TARGET_ADDRESS, 0))
        assert target.recv(4096).endswith(b"again")
        target.sendto(b"answer", (source, 0))
        assert one.recv(4096).endswith(b"answer")
        two.setblocking(False)
        with pytest.raises(BlockingIOError):
            two.recv(4096)
    for address in (first, second):
        chain.run("client", "ip", "addr", "del", f"{address}/32", "dev", "eth0")


def raw(chain: ChainRig, place: str, address: str) -> socket.socket:
    """For a protocol of nobody's (RFC 3692), at one address of a place."""

    def open_() -> socket.socket:
        sock = socket.socket(socket.AF_INET, socket.SOCK_RAW, 253)
        sock.bind((address, 0))
        sock.settimeout(30)
        return sock

    return chain.inside(place, open_)
