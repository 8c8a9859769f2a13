"""What `chainctl status` says, as plain facts (docs/json.md lists them)."""

from __future__ import annotations

from collections.abc import Callable
from functools import partial
from typing import Any

from chainctl.host import clock
from chainctl.model.chain import Chain, Engine, Hop
from chainctl.store.journal import Wanted
from chainctl.supervisor.clients import (
    describe_clients,
    describe_published,
    notes_on_containers,
)
from chainctl.supervisor.machine import Machine
from chainctl.supervisor.sniffer import Reading
from chainctl.supervisor.verdict import Verdict, is_failing, outermost_failing
from chainctl.supervisor.worker import GATE_TIMEOUT, Outlook, State, Worker

_NOTHING_KNOWN = Outlook(
    since=0.0, candidates=0, quarantine={}, standby=None, rotates=None, draining=None
)
"""Of a hop of a chain that goes down, or is another one, while one looks."""

_VIA = {
    Engine.USERSPACE: "wireguard-go",
    Engine.KERNEL: "wireguard (kernel)",
    Engine.OPENVPN: "openvpn",
}


def describe(wanted: Wanted, worker: Worker | None, machine: Machine) -> dict[str, Any]:
    """Times are seconds; `null` where something was never seen."""
    state = worker.state if worker else State()
    readings = worker.readings() if worker else {}
    now = clock.boot_seconds()
    open_until = machine.gate_until(wanted.number) / 1e9
    is_open = open_until > now
    # A gate that an earlier supervisor left open says itself when the last proof was.
    if worker and worker.rests and state.chain:
        # Its gate is prolonged now and then, and its hops are heard meanwhile.
        proved_at = max(state.proved_at, readings[state.chain.exit.name].answered)
    else:
        proved_at = state.proved_at
    proved_at = proved_at or (open_until - GATE_TIMEOUT if is_open else 0.0)
    chain, shut = state.chain, state.closed_since
    facts: dict[str, Any] = {
        "chain": wanted.name,
        "file": str(wanted.file),
        "posture": "open" if is_open else "closed",
        "proved_seconds_ago": round(now - proved_at, 3) if proved_at else None,
        "closed_seconds": None if is_open or not shut else round(now - shut, 1),
        "why_closed": None if is_open else _why(wanted, worker, state, readings, now),
        "mtu": chain.mtu if chain else None,
        "hops": (
            _hops(chain, readings, worker.outlook(), partial(worker.verdict, chain), now)
            if chain and worker
            else []
        ),
        "repairs": [
            {"text": text, "seconds_ago": round(now - at, 1)} for at, text in state.repairs
        ],
        "clients": [],
        "published": describe_published(chain) if chain else [],
        "notes": list(state.notes),
    }
    gathered = worker.gathered if worker else None
    if chain is not None and gathered is not None:
        docker = gathered.facts.docker
        facts["clients"] = describe_clients(
            chain, gathered.spec.clients, docker, machine.neighbours(chain)
        )
        facts["notes"] += notes_on_containers(chain, docker)
        if state.containers is not None:
            facts["notes"].append(f"{state.containers}; containers wait for it.")
    return facts


def _why(
    wanted: Wanted,
    worker: Worker | None,
    state: State,
    readings: dict[str, Reading],
    now: float,
) -> dict[str, Any]:
    """The one reason that has to go first."""
    if wanted.closed:
        return {"code": "N502", "text": "shut by hand", "hint": f"chainctl open {wanted.name}"}
    if state.problem is not None:
        problem = state.problem
        return {"code": problem.code, "text": str(problem), "hint": problem.hint}
    if worker and worker.uplink_fault:
        return {"code": "C425", "text": worker.uplink_fault, "hint": "connect the uplink"}
    failing = _failing(state.chain, readings, now) if state.chain else None
    if failing is not None:
        text = f"nothing leaves until {failing.name} answers"
        return {"code": "C410", "text": text, "hint": f"chainctl explain {wanted.name}"}
    return {"code": "N503", "text": "not proved yet", "hint": ""}


def _failing(chain: Chain, readings: dict[str, Reading], now: float) -> Hop | None:
    known = ((hop, readings.get(hop.name, Reading())) for hop in chain.hops)
    return outermost_failing(known, now)


def _hops(
    chain: Chain,
    readings: dict[str, Reading],
    outlook: dict[str, Outlook],
    judge: Callable[[Hop, bool], Verdict | None],
    now: float,
) -> list[dict[str, Any]]:
    """Outside-in: the lowest-numbered silent hop is at fault, the ones inside it wait. `judge`
    is told whether the hop is that one.
    """
    entries, failing = [], _failing(chain, readings, now)
    for hop in chain.hops:
        reading = readings.get(hop.name, Reading())
        entry = _hop(chain, hop, reading, now)
        if failing and hop != failing and is_failing(reading, now):
            entry |= {"verdict": "waiting", "evidence": f"on {failing.name}"}
        elif found := judge(hop, hop == failing):
            entry |= {"fault": found.fault.value, "code": found.code, "evidence": found.text}
            if hop == failing:
                entry["verdict"] = "fault"
        entries.append(entry | _ahead(outlook.get(hop.name, _NOTHING_KNOWN)))
    return entries


def _hop(chain: Chain, hop: Hop, reading: Reading, now: float) -> dict[str, Any]:
    asked, heard = reading.recent
    since = reading.silent_since
    return {
        "hop": hop.name,
        "number": hop.number,
        "server": hop.tunnel.server,
        "endpoint": f"{hop.tunnel.endpoint}:{hop.tunnel.endpoint_port}",
        "via": _VIA[hop.tunnel.engine],
        "link": hop.tunnel.slot.link,
        "verdict": "ok",
        "fault": None,
        "code": "",
        "evidence": "",
        "rtt_ms": round(reading.rtt * 1000, 1) if reading.rtt else None,
        "sent": reading.sent,
        "heard": reading.heard,
        "unanswered": reading.unanswered,
        "silent_seconds": round(now - since, 3) if since else None,
        "loss_percent": _loss(asked, heard),
        "heard_seconds_ago": round(now - reading.last_heard, 3) if reading.last_heard else None,
        "mtu": chain.tunnel_mtu(hop, hop.tunnel),
    }


def _loss(asked: int, heard: int) -> float | None:
    """In percent. The newest question has no answer yet; a handful says nothing."""
    return round(100 * max(0, asked - 1 - heard) / (asked - 1), 1) if asked > 20 else None


def _ahead(outlook: Outlook) -> dict[str, Any]:
    """What may come of a hop."""
    return {
        "since_seconds": round(outlook.since),
        "candidates": outlook.candidates,
        "quarantine": [
            {"server": server, "seconds": rest.seconds, "why": rest.why}
            for server, rest in outlook.quarantine.items()
        ],
        "standby": outlook.standby,
        "rotates_in_seconds": outlook.rotates and round(outlook.rotates),
        "draining_seconds": outlook.draining and round(outlook.draining),
    }
