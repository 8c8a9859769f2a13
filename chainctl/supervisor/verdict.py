"""Which hop is at fault, from what was asked and heard. Pure."""

from __future__ import annotations

from collections.abc import Sequence

from chainctl.supervisor.sniffer import Reading
from chainctl.supervisor.suspicion import DEAD, is_dead


def outermost_dead(
    readings: Sequence[Reading], now: float, *, threshold: float = DEAD
) -> int | None:
    """Index of the hop to blame, `readings` being outside-in; None: nobody, or not yet.

    A hop that falls silent silences every hop inside it, at about the same moment. So a hop is
    blamed only when each one outside it was heard after it fell silent itself; otherwise one
    waits until it is clear which of them it is.
    """
    for index, reading in enumerate(readings):
        if not reading.silent_since:
            continue
        if is_dead(
            reading.behaviour,
            silence=now - reading.silent_since,
            overdue=reading.overdue(now),
            threshold=threshold,
        ):
            heard = [outer.last_heard > reading.silent_since for outer in readings[:index]]
            return index if all(heard) else None
        if reading.overdue(now):
            return None
    return None
