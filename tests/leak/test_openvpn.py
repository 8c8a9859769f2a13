"""Chains that mix WireGuard with OpenVPN: what leaves, leaves only inside all layers."""

from __future__ import annotations

from collections.abc import Iterator
from itertools import product

import pytest
from pyroute2.netlink.nfnetlink.nfctsocket import NFCTSocket

from tests.leak.canary import ODD, Expect, Frames, Tcp, Udp
from tests.leak.chain_rig import (
    ECHO,
    HOPS,
    OTHER_PROTOCOLS,
    TARGET_ADDRESS,
    ChainRig,
    Passing,
    lab_alone,
)
from tests.leak.oracle import Oracle

pytestmark = pytest.mark.root

WAYS = ("wg", "udp", "tcp")
MIXES = [
    *product(("wg", "udp"), repeat=HOPS),
    *(("tcp", "wg", "udp"), ("udp", "tcp", "wg"), ("wg", "udp", "tcp"), ("tcp", "tcp", "tcp")),
]


@pytest.fixture(scope="module")
def mixed() -> Iterator[ChainRig]:
    """A lab that has a server of each kind for every hop."""
    with lab_alone(via=",".join(["+".join(WAYS)] * HOPS), spares=2 * HOPS) as rig:
        yield rig


def _forget_connections() -> None:
    """A server that remembers a tunnel through it gives the next one another source port."""
    with NFCTSocket() as conntrack:
        conntrack.flush()


def take(rig: ChainRig, mix: tuple[str, ...]) -> None:
    """Write the chain file that uses these kinds of servers, guard first. The chain before goes
    down, or its packets would be remembered again after the servers were told to forget them.
    """
    rig.chainctl("down")
    rig.former |= {address for address, _ in rig.endpoints}
    rig.servers = [
        next(s for s in rig.lab.servers if (s.plan.hop, s.plan.via) == (hop, way))
        for hop, way in enumerate(mix, start=1)
    ]
    hops = "".join(
        f"  - {{name: hop{hop}, servers: {server.profile}}}\n"
        for hop, server in enumerate(rig.servers, start=1)
    )
    for server in rig.lab.servers:
        rig.inside(server.name, _forget_connections)
    head = rig.lab.chain_file.read_text().partition("hops:\n")[0]
    rig.lab.chain_file.write_text(f"{head}hops:\n{hops}")


@pytest.mark.parametrize("mix", MIXES, ids="-".join)
def test_each_wire_carries_its_one_tuple(
    mixed: ChainRig, oracle: Oracle, mix: tuple[str, ...]
) -> None:
    take(mixed, mix)
    mixed.up()
    mixed.wait_open()
    mixed.watch(oracle, Passing(layers=True))
    odd = tuple(kind for kind in ODD if kind not in OTHER_PROTOCOLS)
    running = [
        oracle.start(Udp(TARGET_ADDRESS, ECHO, count=500, rate=500), expect=Expect.DELIVERED),
        oracle.start(Tcp(TARGET_ADDRESS, ECHO, count=20), expect=Expect.DELIVERED),
        oracle.start(Frames(odd, TARGET_ADDRESS, ECHO)),
    ]
    for sending in running:
        sending.wait()
    verdict = oracle.judge()
    verdict.assert_clean()
    (exit_server, _) = mixed.endpoints[-1]
    assert {d.sources for d in verdict.delivered.values() if d.sources} == {(exit_server,)}
