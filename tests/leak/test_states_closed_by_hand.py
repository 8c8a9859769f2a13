"""Closed by hand: shut when the command returns, and for as long as nobody opens it."""

from __future__ import annotations

import json
import os
import signal
import time
from collections.abc import Iterator

import pytest

from tests.leak.canary import Expect, Tcp, Udp
from tests.leak.chain_rig import ECHO, TARGET_ADDRESS, ChainRig
from tests.leak.oracle import Oracle
from tests.waiting import wait_until

pytestmark = pytest.mark.root


@pytest.fixture
def chain(chain: ChainRig) -> Iterator[ChainRig]:
    yield chain
    chain.chainctl("open", ok=False)


def test_it_is_shut_without_a_supervisor_that_answers(chain: ChainRig, oracle: Oracle) -> None:
    """It is stopped; continued, it reads what was written down."""
    chain.watch(oracle)
    flood = oracle.start(
        Udp(TARGET_ADDRESS, ECHO, count=60_000, rate=1000), expect=Expect.DELIVERED
    )
    pid = chain.supervisor
    os.kill(pid, signal.SIGSTOP)
    try:
        said = chain.chainctl("close", chain.lab.name)
        shut = time.time()
        assert f"[C508] the supervisor (process {pid}) does not answer" in said.stdout
        chain.send_everything(oracle, (TARGET_ADDRESS, ECHO), *chain.endpoints)
        facts = json.loads(chain.chainctl("status", "--json", ok=False).stdout)["chains"][0]
        assert (facts["posture"], facts["why_closed"]["code"]) == ("closed", "N502")
    finally:
        os.kill(pid, signal.SIGCONT)
    wait_until(lambda: all(hop["verdict"] == "ok" for hop in chain.status()["hops"]))
    oracle.send(Udp(TARGET_ADDRESS, ECHO), name="still shut")
    flood.stop()
    assert not chain.is_open
    chain.chainctl("open")
    oracle.send(Udp(TARGET_ADDRESS, ECHO), expect=Expect.DELIVERED, name="opened")
    verdict = oracle.judge()
    verdict.assert_clean()
    assert verdict.delivered[flood.emission.name].last < shut + 0.5


def test_it_is_shut_over_kills_and_ups(chain: ChainRig, oracle: Oracle) -> None:
    chain.watch(oracle)
    flood = oracle.start(
        Udp(TARGET_ADDRESS, ECHO, count=60_000, rate=1000), expect=Expect.DELIVERED
    )
    stream = oracle.start(Tcp(TARGET_ADDRESS, ECHO, count=6000, rate=100), expect=Expect.DELIVERED)
    chain.chainctl("close")
    shut = time.time()
    chain.send_everything(oracle, (TARGET_ADDRESS, ECHO), *chain.endpoints)
    os.kill(chain.supervisor, signal.SIGKILL)
    chain.chainctl("up", str(chain.lab.chain_file), ok=False)
    wait_until(lambda: all(hop["verdict"] == "ok" for hop in chain.status()["hops"]))
    facts = chain.status()
    assert (facts["posture"], facts["why_closed"]["code"]) == ("closed", "N502")
    oracle.send(Udp(TARGET_ADDRESS, ECHO), name="still shut")
    flood.stop()
    stream.stop()
    chain.chainctl("open")
    oracle.send(Udp(TARGET_ADDRESS, ECHO), expect=Expect.DELIVERED, name="opened")
    verdict = oracle.judge()
    verdict.assert_clean()
    for sending in (flood, stream):
        # What was under way when the gate shut may still arrive.
        assert verdict.delivered[sending.emission.name].last < shut + 0.5
