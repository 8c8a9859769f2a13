"""How sure we are that a hop is dead, grown from the hop's own behaviour. Pure.

Phi accrual (Hayashibara et al., "The phi accrual failure detector", 2004): phi is minus the
decimal logarithm of the chance that a healthy hop would be silent for so long. A slow hop is
thus not a dead one, and a threshold means the same for a link of 2 ms and of 500 ms.
"""

from __future__ import annotations

import math
from dataclasses import dataclass

DEAD = 8.0
"""phi: one false alarm in 10^8 silences, if round-trip times were normally distributed."""
OVERDUE = 6
"""Unanswered questions, each later than this hop usually is, before it may be called dead:
at 10 % loss each way six in a row are lost once in 20 000 times."""

_LEAST_DEVIATION = 0.03
"""Seconds: schedulers and queues of a busy machine, so that 1 ms of RTT does not make a
silence of 20 ms a disaster."""
_UNKNOWN_MEAN = 0.5
"""Seconds assumed for a hop that never answered yet."""


@dataclass(frozen=True)
class Behaviour:
    """Round-trip times in seconds, smoothed as TCP does (RFC 6298, 1/8 and 1/4)."""

    mean: float = 0.0
    deviation: float = 0.0

    def after(self, rtt: float) -> Behaviour:
        if not self.mean:
            return Behaviour(rtt, rtt / 2)
        deviation = self.deviation + (abs(rtt - self.mean) - self.deviation) / 4
        return Behaviour(self.mean + (rtt - self.mean) / 8, deviation)

    @property
    def late(self) -> float:
        """Seconds after which an answer is overdue."""
        return (self.mean or _UNKNOWN_MEAN) + 4 * self._spread

    @property
    def _spread(self) -> float:
        # A quarter of the mean: what queues of other people's traffic do to a long path.
        return max(self.deviation, _LEAST_DEVIATION, (self.mean or _UNKNOWN_MEAN) / 4)

    def phi(self, silence: float) -> float:
        """Suspicion after `silence` seconds since the oldest unanswered question."""
        distance = (silence - (self.mean or _UNKNOWN_MEAN)) / self._spread
        chance = 0.5 * math.erfc(distance / math.sqrt(2))
        return -math.log10(max(chance, 1e-300))


NEVER_HEARD = Behaviour()


def is_dead(behaviour: Behaviour, *, silence: float, overdue: int) -> bool:
    """Silent for longer than this hop ever is, and not by a few lost packets."""
    return overdue >= OVERDUE and behaviour.phi(silence) >= DEAD
