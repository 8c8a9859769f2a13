"""What is no reason to change a server, and a chain that has to stand it for a while."""

from __future__ import annotations

import time
from collections.abc import Callable
from dataclasses import dataclass

from chainctl.lab.drill import Facts
from chainctl.lab.traffic import Flood, Report, new_marker
from tests.system.chain_lab import HOPS, ChainLab, chain_lab


def nothing(chain: ChainLab) -> None:
    """Some troubles need no end, or no beginning."""


def lose(chain: ChainLab) -> None:
    """10 % each way on the first line, so that every hop loses it."""
    for server in chain.pool(1):
        chain.lab.set_loss(server.name, 10.0)


def delay(chain: ChainLab) -> None:
    """Half a second more to the first server and back."""
    for server in chain.pool(1):
        chain.lab.set_delay(server.name, 500.0)


def mute(chain: ChainLab) -> None:
    """No server answers any longer what it was asked so far."""
    for hop in HOPS:
        server = chain.server(hop)
        rule = f"ip daddr {server.plan.tunnel.ip} icmp type echo-request drop"
        chain.nft(
            server.name,
            f"table ip mute {{ chain in {{ type filter hook input priority 0; {rule}; }}; }}",
        )


@dataclass(frozen=True)
class Trouble:
    name: str
    begin: Callable[[ChainLab], None]
    end: Callable[[ChainLab], None] = nothing
    from_the_start: bool = False
    rate: float = 50.0
    """Packets per second of each UDP socket."""
    busy: int = 1
    block: int = 1200
    standby: str = ""
    """The hop with a standby, which takes over on less than a certainty."""
    shortest: float = 0.0
    """Seconds that it has to last for all to happen that can come of it."""


WIREGUARD_SESSION = 180.0
"""Seconds after which a session that was not renewed is of no use (REJECT_AFTER_TIME)."""
TOGETHER = (
    Trouble("lossy", lose, rate=500.0, standby="exit"),
    Trouble("slower", delay),
    Trouble("slow", delay, from_the_start=True),
    Trouble(
        "unplugged",
        lambda chain: chain.lab.set_uplink(False),
        lambda chain: chain.lab.set_uplink(True),
        shortest=WIREGUARD_SESSION + 20.0,
    ),
    Trouble("mute", mute),
)
SATURATED = Trouble("saturated", nothing, rate=200.0, busy=40, block=60_000, standby="exit")


@dataclass(frozen=True)
class Found:
    before: dict[str, str]
    after: dict[str, str]
    """By hop, who serves it."""
    events: list[Facts]
    report: Report
    whole: bool
    """In the end it was open, and every hop answered."""

    @property
    def replaced(self) -> list[str]:
        return [each["text"] for each in self.events if each["kind"] == "server_replaced"]


def endure(trouble: Trouble, seconds: float) -> Found:
    """A chain of its own in this trouble for so long at least."""
    name, standby = f"f{trouble.name[:8]}", trouble.standby
    with chain_lab(name, spares=3, up=False, more="", standby=standby) as chain:
        if trouble.from_the_start:
            trouble.begin(chain)
        chain.up()
        before, known = chain.servers, chain.newest_event()
        with Flood(
            chain.lab, new_marker(), rate=trouble.rate, busy=trouble.busy, block=trouble.block
        ) as flood:
            flood.run(1.0)
            if not trouble.from_the_start:
                trouble.begin(chain)
            flood.run(max(seconds, trouble.shortest))
            trouble.end(chain)
            whole = chain.drill.wait_whole(time.time())
        return Found(before, chain.servers, chain.drill.events(known), flood.report, whole)
