"""After down: the machine forwards as little as before the first up."""

from __future__ import annotations

import pytest

from tests.leak.chain_rig import ECHO, HOPS, TARGET_ADDRESS, ChainRig, Passing
from tests.leak.oracle import Oracle

pytestmark = pytest.mark.root


def test_nothing_leaves(fresh: ChainRig, oracle: Oracle) -> None:
    fresh.up()
    mac = fresh.gateway_mac()
    fresh.down()
    for hop in range(1, HOPS + 1):
        fresh.lab.server(hop).kill()  # They would go on speaking to where the tunnels were.
    fresh.watch(oracle, Passing(tunnels=False))
    for address in (fresh.host_mac(), mac):
        fresh.aim_at(address)
        fresh.send_everything(oracle, (TARGET_ADDRESS, ECHO), *fresh.endpoints)
    oracle.judge().assert_clean()
