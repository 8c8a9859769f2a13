"""During up: only tunnels speak, and a client not before every hop is proved."""

from __future__ import annotations

import json
import time

import pytest

from tests.leak.canary import Expect, Udp
from tests.leak.chain_rig import ECHO, TARGET_ADDRESS, ChainRig, Passing, as_tunnel
from tests.leak.oracle import Oracle

pytestmark = pytest.mark.root


def test_nothing_comes_out_before_every_hop_is_proved(fresh: ChainRig, oracle: Oracle) -> None:
    fresh.watch(oracle, Passing(layers=True))
    fresh.aim_at(fresh.gateway_mac())
    flood = oracle.start(
        Udp(TARGET_ADDRESS, ECHO, count=60_000, rate=1000), expect=Expect.DELIVERED
    )
    direct = oracle.start(as_tunnel(fresh))
    fresh.send_everything(oracle, *fresh.endpoints)
    direct.stop()
    fresh.up()
    flood.stop()
    verdict = oracle.judge()
    verdict.assert_clean()
    opened = fresh.event("gate_opened")
    proved = fresh.event("hop_proved")
    assert proved < opened
    assert verdict.delivered[flood.emission.name].first > proved


def test_a_dead_server_leaves_it_shut(fresh: ChainRig, oracle: Oracle) -> None:
    fresh.lab.server(3).freeze()
    fresh.watch(oracle)
    fresh.aim_at(fresh.gateway_mac())
    flood = oracle.start(Udp(TARGET_ADDRESS, ECHO, count=60_000, rate=1000))
    begun = time.monotonic()
    done = fresh.chainctl("up", "--json", str(fresh.lab.chain_file), ok=False)
    assert done.returncode == 5, done.stdout
    error = json.loads(done.stdout)["error"]
    assert (error["code"], error["still_blocked"]) == ("C410", True)
    assert time.monotonic() - begun < 30
    fresh.send_everything(oracle, (TARGET_ADDRESS, ECHO), *fresh.endpoints)
    flood.stop()
    oracle.judge().assert_clean()
