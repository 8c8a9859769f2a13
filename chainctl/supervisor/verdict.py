"""Which hop is at fault, and what is wrong with it, from what was asked and heard. Pure."""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from typing import TypeVar

from chainctl.model.fault import Fault, Said
from chainctl.supervisor.sniffer import Reading
from chainctl.supervisor.suspicion import DEAD, is_dead

T = TypeVar("T")

FRESH = 2.0
"""Seconds after which a hop that was asked and did not answer counts as failing."""
RECEIVES = 3.0
"""Seconds for which a hop is spared that receives while its own questions go unanswered: then
only one direction works."""


def is_failing(reading: Reading, now: float) -> bool:
    """It was never heard, or was asked and has not answered. One that is not asked because the
    hops inside it answer is not silent, also for a moment after they stop.
    """
    return reading.asked_in_vain(now) >= FRESH


def outermost_failing(readings: Iterable[tuple[T, Reading]], now: float) -> T | None:
    """The hop to name when nothing may pass, of hops outside-in with their readings; None: all
    is well.

    The hops outside one that falls silent are asked only then. When they are silent too, the one
    to name is the outermost of them, although it was not yet asked for as long.
    """
    known = list(readings)
    if not any(is_failing(reading, now) for _, reading in known):
        return None
    return next(hop for hop, reading in known if is_failing(reading, now) or reading.is_away(now))


def outermost_dead(
    readings: Sequence[Reading], now: float, *, threshold: float = DEAD
) -> int | None:
    """Index of the hop to blame, `readings` being outside-in; None: nobody, or not yet.

    A hop that falls silent silences every hop inside it, at about the same moment. So a hop is
    blamed only when each one outside it was heard after it fell silent itself; otherwise one
    waits until it is clear which of them it is. What was asked before a hop outside it came back,
    or got another server, nobody could answer: its silence counts from then. Whatever is received
    through the tunnel is a sign of life, also if it answers nobody's question, but not for ever.
    """
    reachable_since = 0.0
    for index, reading in enumerate(readings):
        since = max(reading.silent_since, reachable_since)
        reachable_since = max(reachable_since, reading.back_since)
        if not reading.silent_since:
            continue
        silence = now - since
        if is_dead(
            reading.behaviour,
            silence=silence,
            overdue=reading.overdue(now, since),
            threshold=threshold,
        ):
            if silence < RECEIVES and reading.receives(now):
                return None
            heard = [outer.last_heard > reading.silent_since for outer in readings[:index]]
            return index if all(heard) else None
        if reading.overdue(now):
            return None
    return None


@dataclass(frozen=True)
class Evidence:
    """What is known of one hop, once it is the one to look at."""

    reading: Reading
    now: float
    """Seconds since boot, as in `reading`."""
    outer: str = ""
    """Name of the hop outside it, which is fine; "" for the guard."""
    uplink: str = ""
    """What is wrong with the way to the guard; "" when nothing is seen to be."""
    handshake_age: float | None = None
    """Seconds; None: there never was one, or the client does not say."""
    says_handshakes: bool = False
    """The client would know of a handshake."""
    said: Said | None = None
    """What the client itself says is wrong."""
    shares_link: bool = False
    """A second tunnel of the hop uses the same link to the outside."""
    loss_allowed: float = 1.0
    """A share of 1, each way."""

    @property
    def silence(self) -> float:
        """Seconds since the oldest question that nothing has answered; 0: none."""
        since = self.reading.silent_since
        return self.now - since if since else 0.0


@dataclass(frozen=True)
class Verdict:
    fault: Fault
    text: str
    """A sentence without its subject, the hop: `41 sent, 0 heard for 1.8 s; guard is fine`."""

    @property
    def code(self) -> str:
        return self.fault.code


def judge_silent(evidence: Evidence) -> Verdict:
    """Why a hop that does not answer does not.

    What the client says outranks what can be concluded, the uplink outranks both. A WireGuard
    server that does not know our key is as silent as one that is gone, by design (WireGuard
    paper, 5.1): the text says so instead of guessing.
    """
    if evidence.uplink:
        return Verdict(Fault.UPLINK, evidence.uplink)
    counted = _counted(evidence)
    if evidence.said is not None:
        return Verdict(evidence.said.fault, f"{evidence.said.text}; {counted}")
    reading, passage = evidence.reading, evidence.reading.passage
    silence = evidence.silence
    if silence >= RECEIVES and reading.receives(evidence.now):
        return Verdict(Fault.ONE_WAY, f"packets come in but none gets out: {counted}")
    shaken = evidence.handshake_age is not None and evidence.handshake_age < silence
    answered = not evidence.shares_link and passage.outer_received >= max(3, reading.unanswered)
    if shaken or answered:
        what = "shakes hands" if shaken else "its server sends something"
        return Verdict(Fault.PAYLOAD, f"{what} but carries no packets: {counted}")
    # One that was begun anew after an outage has none either.
    if evidence.says_handshakes and evidence.handshake_age is None and not reading.last_heard:
        unknown = "; never shook hands: no server there, or not with this key"
        return Verdict(Fault.DEAD, counted + unknown)
    return Verdict(Fault.DEAD, counted)


def judge_answering(evidence: Evidence) -> Verdict | None:
    """What is wrong with a hop that answers; None: nothing."""
    behaviour = evidence.reading.behaviour
    loss = behaviour.one_way_loss
    if loss > evidence.loss_allowed:
        return Verdict(Fault.LOSSY, f"loses {100 * loss:.0f} % of its packets each way")
    if behaviour.is_slow:
        now, usual = behaviour.mean * 1000, behaviour.usual * 1000
        return Verdict(Fault.SLOW, f"answers take {now:.0f} ms instead of {usual:.0f} ms")
    return None


def _counted(evidence: Evidence) -> str:
    reading = evidence.reading
    fine = f"; {evidence.outer} is fine" if evidence.outer else ""
    if not reading.last_heard:
        return f"{reading.unanswered} sent, nothing heard yet{fine}"
    silence = evidence.now - reading.last_heard
    return f"{reading.unanswered} sent, 0 heard for {silence:.1f} s{fine}"
