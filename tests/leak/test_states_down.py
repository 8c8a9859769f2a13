"""Down: the gate goes first, and nothing passes while the rest is taken away."""

from __future__ import annotations

import time

import pytest

from tests.leak.canary import Expect, Udp
from tests.leak.chain_rig import ECHO, TARGET_ADDRESS, ChainRig, Passing, as_tunnel
from tests.leak.oracle import Oracle

pytestmark = pytest.mark.root


def test_nothing_comes_out_once_it_began(fresh: ChainRig, oracle: Oracle) -> None:
    fresh.up()
    fresh.aim_at(fresh.gateway_mac())
    fresh.watch(oracle, Passing(at_servers=True))
    flood = oracle.start(
        Udp(TARGET_ADDRESS, ECHO, count=60_000, rate=1000), expect=Expect.DELIVERED
    )
    direct = oracle.start(as_tunnel(fresh), expect=Expect.EITHER)
    fresh.down()
    gone = time.time()
    fresh.aim_at(fresh.host_mac())
    flood.stop()
    direct.stop()
    verdict = oracle.judge()
    verdict.assert_clean()
    assert verdict.delivered[flood.emission.name].last < gone
