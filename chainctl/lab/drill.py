"""Breaks one thing in a lab whose chain is up, under traffic, and says what came of it.

    result = Drill(lab, ask).run(Kind.FREEZE_SERVER, "middle")

A client floods the target over UDP and TCP, the internet's wires are watched, and the
supervisor, which `ask` speaks to, is asked what it did. What was broken is mended before `run`
returns.
"""

from __future__ import annotations

import time
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any, TypeAlias

from chainctl.errors import LookAgain, MendFile
from chainctl.lab.faults import Kind, Mark, fault
from chainctl.lab.lab import Lab, Server
from chainctl.lab.traffic import RATE, Flood, Report, Seen, new_marker, wiretaps

Facts: TypeAlias = dict[str, Any]
Ask = Callable[[Facts], Any]
"""Puts a request to the supervisor inside the lab and returns its answer."""

SECONDS = 4.0
"""How long a fault lasts at most."""

_SETTLED = 0.5
"""Seconds of traffic before the fault, and after all is well again."""
_PATIENCE = 20.0
"""Seconds for a chain to be whole again after mending."""
_STEPS = frozenset({"part_made", "part_changed", "part_removed", "hop_proved", "lan_note"})
"""Kinds of events that say how, or nothing about a fault."""


@dataclass(frozen=True)
class Result:
    """One drill. Times are seconds since the fault."""

    kind: Kind
    hop: str
    server: str
    """The one that served the hop, by its provider's name for it."""
    successor: str
    """The one that served it in the end."""
    detected: float | None
    """Until the supervisor's first word about it; None: there was none."""
    recovered: float | None
    """Until the end of the longest silence a client had; None: none of note, or no end of it."""
    outage: float
    """The length of that silence; 0: none of note, inf: it did not end."""
    lasted: float
    """Until it was mended. Only silences that began before that count."""
    whole: bool
    """After mending the chain was open, and every hop answered."""
    report: Report
    seen: Seen
    events: tuple[Facts, ...]
    """What the supervisor did, in its own words."""

    @property
    def replaced(self) -> tuple[str, ...]:
        """Hops that got another server, in that order."""
        return tuple(each["hop"] for each in self.events if each["kind"] == "server_replaced")

    @property
    def connections_broken(self) -> int:
        return sum(not connection.survived for connection in self.report.connections)


class Drill:
    """For a lab whose chain is up and open."""

    def __init__(self, lab: Lab, ask: Ask) -> None:
        self.lab = lab
        self.ask = ask

    def run(
        self, kind: Kind, hop: str = "", *, seconds: float = SECONDS, rate: float = RATE
    ) -> Result:
        """Break `hop` (by default the second one) for `seconds` at most, and mend it.

        A server that cannot serve is mended half a second after it was replaced. Raises
        LookAgain C621 when no chain is open in the lab, MendFile C622 when it has no such hop,
        LookAgain C623 when traffic does not pass in the first place.
        """
        facts = self.status()
        if facts["posture"] != "open":
            why = facts["why_closed"]["text"]
            raise LookAgain("C621", f"the chain is shut: {why}", hint="chainctl status")
        place = find_hop(facts, hop)
        mark, marker, known = self.mark(facts, place), new_marker(), self._newest_event()
        with (
            wiretaps(self.lab, marker, hops=len(facts["hops"])) as seen,
            Flood(self.lab, marker, rate=rate) as flood,
        ):
            flood.run(_SETTLED)
            with fault(self.lab, kind, mark) as begun:
                if flood.run(seconds, until=lambda: self._is_over(kind, known, place, flood)):
                    flood.run(_SETTLED)
            mended = time.time()
            whole = self.wait_whole(mended)
            flood.run(_SETTLED)
        events = tuple(
            {**event, "after": max(0.0, round(event["at"] - begun, 3))}
            for event in self.events(known)
            if event["kind"] not in _STEPS
        )
        outage, recovered = flood.report.outage(begun, mended)
        return Result(
            kind=kind,
            hop=place["hop"],
            server=place["server"],
            successor=find_hop(self.status(), place["hop"])["server"],
            detected=min((event["after"] for event in events), default=None),
            recovered=recovered,
            outage=outage,
            lasted=mended - begun,
            whole=whole,
            report=flood.report,
            seen=seen[0],
            events=events,
        )

    def status(self) -> Facts:
        """Of the chain in the lab. Raises LookAgain C621 when there is none."""
        try:
            chains: list[Facts] = self.ask({"do": "status", "chain": ""})
        except LookAgain:  # No supervisor runs.
            chains = []
        if not chains:
            name = self.lab.name
            up = f"chainctl lab run --on host {name} -- chainctl up {self.lab.chain_file}"
            raise LookAgain("C621", f"no chain is up in the lab {name!r}", hint=up)
        return chains[0]

    def events(self, after: int) -> list[Facts]:
        """What happened after the event of that number."""
        found = self.ask({"do": "events", "chain": "", "limit": 500})
        return [event for event in found if event["seq"] > after]

    def mark(self, facts: Facts, place: Facts) -> Mark:
        """Who serves a hop of the status now, and with what."""
        pin = self.lab.home / "run/netns" / f"{facts['chain']}.hop{place['number']}"
        return Mark(self.server_at(place["endpoint"]), pin, place["link"])

    def server_at(self, endpoint: str) -> Server:
        address, _, _ = endpoint.rpartition(":")
        return next(one for one in self.lab.servers if str(one.plan.uplink.ip) == address)

    def wait_whole(self, since: float) -> bool:
        """Until the chain is open and every hop was heard after `since` (seconds since 1970);
        False when that takes too long.
        """
        while not self._is_whole(since):
            if time.time() - since > _PATIENCE:
                return False
            time.sleep(0.05)
        return True

    def _is_whole(self, since: float) -> bool:
        now, facts = time.time(), self.status()
        heard = [now - (hop["heard_seconds_ago"] or now) for hop in facts["hops"]]
        return facts["posture"] == "open" and min(heard) > since

    def _is_over(self, kind: Kind, known: int, place: Facts, flood: Flood) -> bool:
        """Nothing more will come of this fault."""
        done = {event["kind"] for event in self.events(known) if event["hop"] == place["hop"]}
        if kind is Kind.KILL_CLIENT:
            return bool(flood.back_at) and not done.isdisjoint({"repaired", "server_replaced"})
        return kind.ends_service and "server_replaced" in done

    def _newest_event(self) -> int:
        found = self.ask({"do": "events", "chain": "", "limit": 1})
        return int(found[-1]["seq"]) if found else 0


def find_hop(facts: Facts, name: str) -> Facts:
    """The hop of that name in a chain's status; by default the second one, or the only one.

    Raises MendFile C622.
    """
    hops: list[Facts] = facts["hops"]
    if not name:
        return hops[min(1, len(hops) - 1)]
    for place in hops:
        if place["hop"] == name:
            return place
    known = ", ".join(place["hop"] for place in hops)
    raise MendFile("C622", f"there is no hop {name!r}: this chain has {known}")
