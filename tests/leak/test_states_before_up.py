"""Before the first up: nothing leaves, whomever a client takes for its gateway."""

from __future__ import annotations

import pytest

from tests.leak.chain_rig import ECHO, TARGET_ADDRESS, ChainRig, Passing
from tests.leak.oracle import Oracle

pytestmark = pytest.mark.root


def test_nothing_leaves(fresh: ChainRig, oracle: Oracle) -> None:
    fresh.watch(oracle, Passing(tunnels=False))
    for mac in (fresh.host_mac(), fresh.gateway_mac()):
        fresh.aim_at(mac)
        fresh.send_everything(oracle, (TARGET_ADDRESS, ECHO), *fresh.endpoints)
    oracle.judge().assert_clean()


def test_a_host_that_forwards_would_show(fresh: ChainRig, oracle: Oracle) -> None:
    """The control: the same canaries, and a host that is a router."""
    fresh.run("host", "sysctl", "-qw", "net.ipv4.ip_forward=1")
    fresh.nft(
        "host",
        "table ip nat { chain out { type nat hook postrouting priority 100;"
        ' oifname "eth0" masquerade; }; }',
    )
    fresh.run("host", "ip", "address", "add", "192.168.10.1/24", "dev", "eth1")
    fresh.watch(oracle, Passing(tunnels=False))
    fresh.aim_at(fresh.host_mac())
    fresh.send_everything(oracle, (TARGET_ADDRESS, ECHO))
    verdict = oracle.judge()
    assert all(verdict.leaked[point] for point in ("W1", "host eth0", "X"))
