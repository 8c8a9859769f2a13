"""Supervisor dead: the kernel shuts the gate by itself; started again, nothing is rebuilt."""

from __future__ import annotations

import os
import signal
import time

import pytest

from chainctl.host import clock
from tests.leak.canary import Expect, Tcp, Udp
from tests.leak.chain_rig import (
    ECHO,
    GATE_TIMEOUT,
    TARGET_ADDRESS,
    ChainRig,
    Passing,
    as_tunnel,
)
from tests.leak.oracle import Oracle
from tests.waiting import wait_until

pytestmark = pytest.mark.root

SLACK = 1.0
"""Seconds by which a busy machine may be late."""


@pytest.mark.parametrize("number", [signal.SIGKILL, signal.SIGSTOP], ids=["killed", "stopped"])
def test_the_gate_shuts_by_itself(chain: ChainRig, oracle: Oracle, number: signal.Signals) -> None:
    before = chain.fingerprint()
    chain.watch(oracle, Passing(at_servers=True))
    flood = oracle.start(
        Udp(TARGET_ADDRESS, ECHO, count=60_000, rate=1000), expect=Expect.DELIVERED
    )
    stream = oracle.start(Tcp(TARGET_ADDRESS, ECHO, count=6000, rate=100), expect=Expect.DELIVERED)
    direct = oracle.start(as_tunnel(chain), expect=Expect.EITHER)
    (last, _, _), *_ = chain.events()
    gone = time.time()
    os.kill(chain.supervisor, number)
    wait_until(lambda: clock.boot_ns() > gate_until(chain))
    shut = time.time()
    for sending in (flood, stream, direct):
        sending.stop()
    chain.send_everything(oracle, (TARGET_ADDRESS, ECHO), *chain.endpoints)
    if number is signal.SIGSTOP:
        os.kill(chain.supervisor, signal.SIGCONT)
        # Opened on an old proof it would shut again at once.
        wait_until(lambda: told_of_the_gate(chain, last) == ["gate_closed", "gate_opened"])
    else:
        assert chain.status()["why_closed"]["code"] == "C502"
        chain.up()
    chain.wait_open()
    oracle.send(Udp(TARGET_ADDRESS, ECHO), expect=Expect.DELIVERED, name="open again")
    verdict = oracle.judge()
    verdict.assert_clean()
    assert shut < gone + GATE_TIMEOUT + SLACK
    for sending in (flood, stream):
        assert verdict.delivered[sending.emission.name].last < shut + 0.5
    assert chain.fingerprint() == before


def test_an_answer_that_waited_is_no_proof(chain: ChainRig, oracle: Oracle) -> None:
    """It is stopped with questions out. They are answered meanwhile, and later ones are not."""
    chain.watch(oracle, Passing(at_servers=True))
    pid, server = chain.supervisor, chain.lab.server(2)
    server.freeze()
    try:
        wait_until(lambda: chain.status()["hops"][1]["unanswered"])
        os.kill(pid, signal.SIGSTOP)
        server.thaw()
        # Also for what was asked after the gate was refreshed for the last time.
        wait_until(lambda: clock.boot_ns() > gate_until(chain) + 3_000_000_000)
        server.freeze()
        (last, _, _), *_ = chain.events()
        os.kill(pid, signal.SIGCONT)
        wait_until(lambda: chain.status()["hops"][1]["verdict"] != "ok")
        assert "gate_opened" not in [kind for seq, kind, _ in chain.events() if seq > last]
        assert clock.boot_ns() > gate_until(chain)
        oracle.send(Udp(TARGET_ADDRESS, ECHO), name="not proved")
    finally:
        os.kill(pid, signal.SIGCONT)
        server.thaw()
    chain.wait_open()
    oracle.send(Udp(TARGET_ADDRESS, ECHO), expect=Expect.DELIVERED, name="open again")
    oracle.judge().assert_clean()


def told_of_the_gate(chain: ChainRig, since: int) -> list[str]:
    """The first two kinds of events about it that the journal has after this one."""
    kinds = [kind for seq, kind, _ in reversed(chain.events()) if seq > since]
    return [kind for kind in kinds if kind.startswith("gate_")][:2]


def gate_until(chain: ChainRig) -> int:
    """Boot time in nanoseconds until which the filter lets clients pass."""
    with chain.maps() as maps:
        return max(maps.gates().values(), default=0)
