"""What a client notices of servers that fail, and of those that are changed on purpose.

All in labs of their own: a chain of three hops with spare servers, a client that floods over
UDP and TCP, taps on every wire of the lab's internet. What is measured is void, and the run
ends, when a tap saw anything that must not be there or could not look at everything.
"""

from __future__ import annotations

import functools
import itertools
import random
import statistics
import time
from collections.abc import Callable, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass

from bench.harness import Result, at_least, at_most, row
from chainctl.lab.faults import Kind, fault
from chainctl.lab.traffic import RATE, Flood, Report, new_marker, wiretaps
from tests.system.chain_lab import HOPS, ChainLab, chain_lab
from tests.system.troubles import SATURATED, TOGETHER, endure

_KINDS = (
    Kind.KILL_SERVER,
    Kind.CUT_SERVER,
    Kind.FREEZE_SERVER,
    Kind.ONE_WAY,
    Kind.KILL_CLIENT,
)
_BATCHES = 7
"""Each has every kind at every hop once, in an order of its own."""
_FEW_BATCHES = 2
"""For OpenVPN, where one is 15 draws of about five seconds."""
_OPENVPN = "udp,udp,udp"
_SPARES = 15
_IDLE_RATE = 10.0
"""Packets per second: as good as no traffic, and enough to see when it passes again."""
_NOTICED = 0.05
"""Seconds of silence that a flood notes, or three packets; what was shorter counts as so much."""
_PATIENCE = 20.0
"""Seconds for anything to come of a fault; whatever takes longer counts as so much."""
_TRIES = 3

_SWITCHES = 20
_CONNECTIONS = 5
_EXIT_SWITCHES = 10
_BLOCK = 6000
"""Bytes that a busy connection gets back 50 times a second: a download of 2.4 Mbit/s."""
_RTT_MS = 40.0
_TROUBLE_SECONDS = 600.0


@dataclass(frozen=True)
class Draw:
    kind: Kind
    hop: str
    phase: float
    """Seconds by which it comes later, so that it meets the supervisor at any moment."""


@dataclass(frozen=True)
class Outage:
    draw: Draw
    seconds: float
    """From the fault to the first answer after it."""


@row("failover_active", unit="s", target=at_most(1.0))
def failover_active() -> Result:
    """From a fault to the first answer after it, 2000 packets/s, median over all draws."""
    return _distributed(_outages(RATE, ""), statistics.median)


@row("failover_active_max", unit="s", target=at_most(5.0))
def failover_active_max() -> Result:
    """The longest of the same draws."""
    return Result(max(taken := _seconds(_outages(RATE, ""))), samples=taken)


@row("failover_idle", unit="s", target=at_most(3.0))
def failover_idle() -> Result:
    """The longest over all draws when nearly nothing is sent."""
    return _distributed(_outages(_IDLE_RATE, ""), max)


@row("failover_standby", unit="s", target=at_most(0.3))
def failover_standby() -> Result:
    """As `failover_active`, for servers of a hop that keeps a standby."""
    return _distributed(
        [outage for hop in HOPS for outage in _outages(RATE, hop)], statistics.median
    )


@row("failover_openvpn", unit="s", target=at_most(1.0))
def failover_openvpn() -> Result:
    """As `failover_active`, every hop by OpenVPN over UDP, with fewer draws."""
    outages = _outages(RATE, "", via=_OPENVPN, batches=_FEW_BATCHES)
    return _distributed(outages, statistics.median)


@row("planned_rotation_lost", unit="packets", target=at_most(0))
def planned_rotation_lost() -> Result:
    """Of 1000 a second, over 20 changes of guard and middle; every server is 40 ms away."""
    lost = [report.lost for report in _switches(HOPS[:2], _SWITCHES)]
    return Result(sum(lost), samples=lost)


@row("tcp_survival", unit="%", target=at_least(100))
def tcp_survival() -> Result:
    """Connections that were whole after the same changes: 20 that send, 80 that are idle."""
    kept = [c.survived for report in _switches(HOPS[:2], _SWITCHES) for c in report.connections]
    return Result(100 * sum(kept) / len(kept), samples=[float(each) for each in kept])


@row("exit_drain_broken", unit="connections", target=at_most(0))
def exit_drain_broken() -> Result:
    """Of 50 that began over an exit which was then changed on purpose. One that begins right
    after and has not the new exit's address makes the row fail.
    """
    reports = _switches(HOPS[2:], _EXIT_SWITCHES)
    broken = [sum(not each.survived for each in report.connections) for report in reports]
    return Result(sum(broken), samples=broken)


@row("false_rotations", unit="changes", target=at_most(0))
def false_rotations() -> Result:
    """In six kinds of trouble that are no server's fault, ten minutes each."""
    with ThreadPoolExecutor(len(TOGETHER)) as pool:
        found = list(pool.map(lambda trouble: endure(trouble, _TROUBLE_SECONDS), TOGETHER))
    found.append(endure(SATURATED, _TROUBLE_SECONDS))
    if not all(each.whole for each in found):
        raise RuntimeError("a chain did not open again after the trouble was over")
    changes = [len(each.replaced) for each in found]
    return Result(sum(changes), samples=changes)


@functools.cache
def _outages(rate: float, standby: str, *, via: str = "", batches: int = _BATCHES) -> list[Outage]:
    """Of faults of the hop `standby` alone, or of all hops. `via`: as in the lab's spec."""
    dice = random.Random(f"{rate} {standby}")
    hops = (standby,) if standby else HOPS
    drawn = [_draw_batch(dice, hops) for _ in range(batches)]
    found: list[Outage] = []
    with chain_lab("fbench", spares=_SPARES, standby=standby, via=via) as chain:
        for batch in drawn:
            found += _run_batch(chain, batch, rate, standby)
            # What it remembers of guards that failed, it would hold against them for minutes.
            _begin_anew(chain)
    return found


def _draw_batch(dice: random.Random, hops: Sequence[str]) -> list[Draw]:
    cases = list(itertools.product(_KINDS, hops))
    dice.shuffle(cases)
    return [Draw(kind, hop, dice.uniform(0.0, 0.5)) for kind, hop in cases]


def _begin_anew(chain: ChainLab) -> None:
    chain.down()
    chain.up()


def _run_batch(chain: ChainLab, batch: Sequence[Draw], rate: float, standby: str) -> list[Outage]:
    """Once more when too much came at once to look at all of it."""
    for _ in range(_TRIES):
        marker = new_marker()
        times = []
        with (
            wiretaps(chain.lab, marker, hops=len(HOPS)) as seen,
            Flood(chain.lab, marker, rate=rate) as flood,
        ):
            for draw in batch:
                _wait_for_standby(chain, standby)
                flood.run(0.3 + draw.phase)
                times.append(_break(chain, flood, draw))
            flood.run(0.5)
        if seen[0].leaked or seen[0].foreign:
            raise RuntimeError(f"a leak: {seen[0]}")
        if seen[0].clean:
            return [
                Outage(draw, _taken(flood.report, *between, rate))
                for draw, between in zip(batch, times, strict=True)
            ]
        _begin_anew(chain)
    raise RuntimeError(f"the wires could not be watched: {seen[0]}")


def _taken(report: Report, begun: float, mended: float, rate: float) -> float:
    outage, recovered = report.outage(begun, mended)
    if outage == float("inf"):
        return _PATIENCE
    return min(_PATIENCE, recovered or max(_NOTICED, 3 / rate))


def _break(chain: ChainLab, flood: Flood, draw: Draw) -> tuple[float, float]:
    """Break and mend; when, in seconds since 1970."""
    known = chain.newest_event()
    mark = chain.drill.mark(chain.drill.status(), chain.hop(draw.hop))
    with fault(chain.lab, draw.kind, mark) as begun:
        done = {"server_replaced"} | ({"repaired"} if draw.kind is Kind.KILL_CLIENT else set())
        flood.run(_PATIENCE, until=lambda: chain.happened(known, draw.hop, done))
        flood.run(0.3)
        mended = time.time()
    if not chain.drill.wait_whole(mended):
        raise RuntimeError(f"not whole after {draw}, although it was mended")
    return begun, time.time()


def _wait_for_standby(chain: ChainLab, hop: str) -> None:
    deadline = time.monotonic() + _PATIENCE
    while hop and not chain.hop(hop)["standby"]:
        if time.monotonic() > deadline:
            raise RuntimeError(f"no standby for {hop}")
        time.sleep(0.05)


@functools.cache
def _switches(hops: tuple[str, ...], count: int) -> list[Report]:
    """What a client saw of each change on purpose, of these hops in turn."""
    reports = []
    with chain_lab("fplan", spares=6, rtt_ms=_RTT_MS) as chain:
        for hop in itertools.islice(itertools.cycle(hops), count):
            with Flood(
                chain.lab, new_marker(), rate=RATE / 2, busy=1, idle=_CONNECTIONS - 1, block=_BLOCK
            ) as flood:
                flood.run(0.5)
                chain.rotate(hop)
                if hop == "exit":
                    _check_source(chain)
                flood.run(0.5)
            reports.append(flood.report)
    return reports


def _check_source(chain: ChainLab) -> None:
    """What begins now is seen as the exit that serves now; a busy machine may be too slow."""
    serves, seen = str(chain.server("exit").plan.uplink.ip), ""
    for _ in range(_TRIES):
        seen = seen or chain.source()
    if seen != serves:
        raise RuntimeError(f"a new connection is seen as {seen or 'nobody'}, not as {serves}")


def _seconds(outages: Sequence[Outage]) -> list[float]:
    return [outage.seconds for outage in outages]


def _distributed(outages: Sequence[Outage], value: Callable[[Sequence[float]], float]) -> Result:
    """With all draws, those of each hop, and those of each fault."""
    classes: dict[str, list[float]] = {"all": _seconds(outages)}
    for name in HOPS:
        classes[name] = _seconds([each for each in outages if each.draw.hop == name])
    for kind in _KINDS:
        classes[kind.value] = _seconds([each for each in outages if each.draw.kind is kind])
    found = {name: taken for name, taken in classes.items() if taken}
    return Result(value(found["all"]), samples=found["all"], classes=found)
