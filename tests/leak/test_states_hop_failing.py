"""A hop failing: the gate shuts although packets would still get through."""

from __future__ import annotations

import time
from collections.abc import Callable, Iterator
from contextlib import AbstractContextManager, contextmanager

import pytest

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


@contextmanager
def frozen(chain: ChainRig) -> Iterator[None]:
    """The middle server takes everything and answers nothing."""
    chain.lab.server(2).freeze()
    try:
        yield
    finally:
        chain.lab.server(2).thaw()


@contextmanager
def mute_about_itself(chain: ChainRig) -> Iterator[None]:
    """The middle server forwards as before, but answers no probe."""
    chain.nft(
        "server2",
        "table ip mute { chain out {"
        " type filter hook output priority 0; ip protocol icmp drop; }; }",
    )
    try:
        yield
    finally:
        chain.nft("server2", "delete table ip mute")


def verdicts(chain: ChainRig) -> dict[str, str]:
    return {hop["hop"]: hop["verdict"] for hop in chain.status()["hops"]}


@pytest.mark.parametrize("fault", [frozen, mute_about_itself])
def test_it_shuts_in_time_and_opens_again(
    chain: ChainRig, oracle: Oracle, fault: Callable[[ChainRig], AbstractContextManager[None]]
) -> None:
    chain.watch(oracle, Passing(at_servers=True))
    flood = oracle.start(
        Udp(TARGET_ADDRESS, ECHO, count=60_000, rate=1000), expect=Expect.DELIVERED
    )
    stream = oracle.start(Tcp(TARGET_ADDRESS, ECHO, count=6000, rate=100), expect=Expect.DELIVERED)
    direct = oracle.start(as_tunnel(chain), expect=Expect.EITHER)
    began = time.time()
    with fault(chain):
        wait_until(lambda: not chain.is_open)
        # The gate shuts when the proof is old, whichever comes first: that or the verdict.
        wait_until(lambda: verdicts(chain)["middle"] == "fault")
        assert verdicts(chain)["guard"] == "ok"
        flood.stop()
        stream.stop()
        direct.stop()
        chain.send_everything(oracle, (TARGET_ADDRESS, ECHO))
    chain.wait_open()
    oracle.send(Udp(TARGET_ADDRESS, ECHO), expect=Expect.DELIVERED, name="open again")
    verdict = oracle.judge()
    verdict.assert_clean()
    if fault is frozen:
        return  # It delivers late what it had taken before.
    for sending in (flood, stream):
        assert verdict.delivered[sending.emission.name].last < began + GATE_TIMEOUT + SLACK
