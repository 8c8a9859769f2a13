"""What `chainctl status` says, as plain facts (docs/json.md lists them)."""

from __future__ import annotations

from typing import Any

from chainctl.host import clock
from chainctl.model.chain import Chain, Engine, Hop
from chainctl.store.journal import Wanted
from chainctl.supervisor.machine import Machine
from chainctl.supervisor.sniffer import Reading
from chainctl.supervisor.worker import FRESH, GATE_TIMEOUT, Outlook, State, Worker

_VIA = {Engine.USERSPACE: "wireguard-go", Engine.KERNEL: "wireguard (kernel)"}


def describe(wanted: Wanted, worker: Worker | None, machine: Machine) -> dict[str, Any]:
    """Times are seconds; `null` where something was never seen."""
    state = worker.state if worker else State()
    readings = worker.readings() if worker else {}
    now = clock.boot_seconds()
    open_until = machine.gate_until(wanted.number) / 1e9
    is_open = open_until > now
    # A gate that an earlier supervisor left open says itself when the last proof was.
    proved_at = state.proved_at or (open_until - GATE_TIMEOUT if is_open else 0.0)
    chain = state.chain
    facts: dict[str, Any] = {
        "chain": wanted.name,
        "file": str(wanted.file),
        "posture": "open" if is_open else "closed",
        "proved_seconds_ago": round(now - proved_at, 3) if proved_at else None,
        "why_closed": None if is_open else _why(wanted, worker, readings, now),
        "mtu": chain.mtu if chain else None,
        "hops": _hops(chain, readings, worker.outlook(), now) if chain and worker else [],
        "repairs": [
            {"text": text, "seconds_ago": round(now - at, 1)} for at, text in state.repairs
        ],
        "notes": list(state.notes),
    }
    return facts


def _why(
    wanted: Wanted, worker: Worker | None, readings: dict[str, Reading], now: float
) -> dict[str, Any]:
    """The one reason that has to go first."""
    state = worker.state if worker else State()
    if wanted.closed:
        return {"code": "N502", "text": "shut by hand", "hint": f"chainctl open {wanted.name}"}
    if state.problem is not None:
        problem = state.problem
        return {"code": problem.code, "text": str(problem), "hint": problem.hint}
    if worker and worker.uplink_fault:
        return {"code": "C425", "text": worker.uplink_fault, "hint": "connect the uplink"}
    for hop in state.chain.hops if state.chain else ():
        reading = readings.get(hop.name, Reading())
        if now - reading.last_heard >= FRESH:
            text = f"nothing leaves until {hop.name} answers"
            return {"code": "C410", "text": text, "hint": "chainctl doctor"}
    return {"code": "N503", "text": "not proved yet", "hint": ""}


def _hops(
    chain: Chain, readings: dict[str, Reading], outlook: dict[str, Outlook], now: float
) -> list[dict[str, Any]]:
    """Outside-in: the lowest-numbered silent hop is at fault, the ones inside it wait."""
    entries, fault = [], None
    for hop in chain.hops:
        reading = readings.get(hop.name, Reading())
        silent = now - reading.last_heard >= FRESH
        verdict = "ok" if not silent else "fault" if fault is None else "waiting"
        entry = _hop(chain, hop, reading, verdict, now)
        ahead = outlook[hop.name]
        entry["since_seconds"] = round(ahead.since)
        entry["candidates"] = ahead.candidates
        entry["quarantine"] = [
            {"server": server, "seconds": seconds} for server, seconds in ahead.quarantine.items()
        ]
        entry["standby"] = ahead.standby
        entry["rotates_in_seconds"] = ahead.rotates and round(ahead.rotates)
        entry["draining_seconds"] = ahead.draining and round(ahead.draining)
        if silent and fault is None:
            fault = hop
            outer = chain.hops[hop.number - 2].name if hop.number > 1 else ""
            entry["evidence"] = _silence(reading, now) + (f"; {outer} is fine" if outer else "")
        elif silent and fault is not None:
            entry["evidence"] = f"on {fault.name}"
        entries.append(entry)
    return entries


def _silence(reading: Reading, now: float) -> str:
    if not reading.last_heard:
        return f"{reading.unanswered} sent, nothing heard yet"
    return f"{reading.unanswered} sent, 0 heard for {now - reading.last_heard:.1f} s"


def _hop(chain: Chain, hop: Hop, reading: Reading, verdict: str, now: float) -> dict[str, Any]:
    lost = reading.sent - reading.heard
    return {
        "hop": hop.name,
        "number": hop.number,
        "server": hop.tunnel.server,
        "endpoint": f"{hop.tunnel.endpoint}:{hop.tunnel.endpoint_port}",
        "via": _VIA[hop.tunnel.engine],
        "link": hop.tunnel.slot.link,
        "verdict": verdict,
        "evidence": "",
        "rtt_ms": round(reading.rtt * 1000, 1) if reading.rtt else None,
        "sent": reading.sent,
        "heard": reading.heard,
        "loss_percent": round(100 * lost / reading.sent, 1) if reading.sent > 20 else None,
        "heard_seconds_ago": round(now - reading.last_heard, 3) if reading.last_heard else None,
        "mtu": chain.tunnel_mtu(hop, hop.tunnel),
    }
