"""When servers are replaced that nothing is wrong with, and how often any may be. Pure.

Times are seconds since 1970. The worker draws a time when a server begins to carry traffic,
keeps it over restarts, and asks at each look what is due.
"""

from __future__ import annotations

import random
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from datetime import datetime, time, timedelta, tzinfo

SPACING = 60.0
"""Seconds between planned rotations of one chain: each is to be told apart from a failure of
what it touches.
"""
_HOUR = 3600.0
_AFTER_QUIET = 1800.0
"""Seconds after the end of quiet hours over which what was due in them is spread."""
_LONGEST_PAUSE = 60.0
_LEAST_PAUSE = 0.5


@dataclass(frozen=True)
class Quiet:
    """Hours without planned rotations, by the clock of `zone`; may go past midnight."""

    begin: time
    end: time
    zone: tzinfo | None
    """None: the machine's own."""

    def ends(self, at: float) -> float:
        """When the quiet hours end that `at` lies in; `at` itself when it lies in none."""
        moment = datetime.fromtimestamp(at, self.zone)
        clock = moment.time()
        overnight = self.begin > self.end
        if overnight:
            inside = clock >= self.begin or clock < self.end
        else:
            inside = self.begin <= clock < self.end
        if not inside:
            return at
        tomorrow = overnight and clock >= self.begin
        day = moment.date() + timedelta(days=int(tomorrow))
        end = datetime.combine(day, self.end, self.zone)
        # Where the clock is changed, an hour comes twice or not at all: the later reading.
        return max(end.timestamp(), end.replace(fold=1).timestamp())


def next_rotation(
    *,
    rotate: tuple[float, float] | None,
    keep: float | None,
    since: float,
    quiet: Quiet | None,
    dice: random.Random,
) -> float | None:
    """When to replace a server that carries traffic since `since`; None: only when it fails.

    Of `rotate` the larger of two draws (Tor proposal 292): most servers stay long, and still
    nobody knows when one goes. Quiet hours put it off.
    """
    if rotate is not None:
        at = since + max(dice.uniform(*rotate), dice.uniform(*rotate))
    elif keep is not None:
        at = since + keep
    else:
        return None
    if quiet is None:
        return at
    end = quiet.ends(at)
    return at if end == at else quiet.ends(end + dice.uniform(0.0, _AFTER_QUIET))


def due(
    planned: Mapping[str, float],
    *,
    now: float,
    last_change: float,
    busy: bool,
    quiet: Quiet | None,
) -> str | None:
    """The hop to rotate now, the one longest due first; None: nothing, or not yet.

    `last_change` is when the chain last changed any server; `busy`: some hop is failing, or
    its servers are being changed.
    """
    if busy or 0 <= now - last_change < SPACING:
        return None
    if quiet is not None and quiet.ends(now) != now:
        return None
    waiting = [(at, hop) for hop, at in planned.items() if at <= now]
    return min(waiting)[1] if waiting else None


def may_rotate(
    history: Sequence[tuple[float, str]], hop: str, *, now: float, per_hop: int, per_chain: int
) -> bool:
    """Whether one more server of `hop` may be replaced within an hour.

    `history` are the chain's changes as (when, hop). Whoever can make servers fail must not
    choose the next one (Tor proposal 241).
    """
    recent = [name for at, name in history if at > now - _HOUR]
    return recent.count(hop) < per_hop and len(recent) < per_chain


def pause(attempt: int, dice: random.Random) -> float:
    """Seconds to wait after `attempt` (1, 2, …) rounds in vain: anything up to twice as much
    each time, at most a minute, so that many chains do not come back at once (full jitter).
    """
    return dice.uniform(_LEAST_PAUSE, min(_LONGEST_PAUSE, 2.0 ** min(attempt, 10)))
