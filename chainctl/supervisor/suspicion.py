"""How sure we are that a hop is dead, grown from the hop's own behaviour. Pure.

Phi accrual (Hayashibara et al., "The phi accrual failure detector", 2004): phi is minus the
decimal logarithm of the chance that a healthy hop would be silent for so long. A slow hop is
thus not a dead one, and a threshold means the same for a link of 2 ms and of 500 ms.
"""

from __future__ import annotations

import math
from typing import NamedTuple

DEAD = 8.0
"""phi: one false alarm in 10^8 silences, if round-trip times were normally distributed."""
OVERDUE = 6
"""Unanswered questions, each later than this hop usually is, before it may be called dead. As
more are under way by then, some ten in a row have to be lost."""
LOOKS_DEAD = 3
"""Overdue questions that are doubt enough to use a standby, while traffic goes out as well and
nothing comes back."""
_UNRETURNED = 10
"""Packets of others that have to be among what did not come back: fewer may be a flow that
nobody answers."""
_LEAST_SILENCE = 0.4
"""Seconds since the first question in vain: routes that change and machines that stall take so
long, however short the round trip and however many questions were asked."""
_LUCK = 5.0
"""Minus the decimal logarithm of the chance that a lossy hop loses so many in a row."""
_WORST_LOSS = 0.7
"""What is lost beyond this share is no path to keep."""

_LEAST_DEVIATION = 0.03
"""Seconds: schedulers and queues of a busy machine, so that 1 ms of RTT does not make a
silence of 20 ms a disaster."""
_SLOW_TIMES, _SLOW_BY = 3.0, 0.2
"""So many times, and seconds, above what is usual a person notices."""
_UNKNOWN_MEAN = 0.5
"""Seconds assumed for a hop that never answered yet."""


class Behaviour(NamedTuple):
    """Round-trip times in seconds, smoothed as TCP does (RFC 6298, 1/8 and 1/4), and the share
    of questions that were not answered, over some 32 of them.
    """

    mean: float = 0.0
    deviation: float = 0.0
    loss: float = 0.0
    usual: float = 0.0
    """Round-trip time in seconds as it has been for the last minute or so."""

    def after(self, rtt: float, lost: int = 0) -> Behaviour:
        """An answer came after `rtt` seconds, and `lost` questions between it and the answer
        before had none.
        """
        loss = self.loss
        # More in a row are an outage, which says nothing of what the path loses otherwise.
        for _ in range(min(lost, OVERDUE)):
            loss += (1.0 - loss) / 32
        loss -= loss / 32
        if not self.mean:
            return Behaviour(rtt, rtt / 2, loss, rtt)
        deviation = self.deviation + (abs(rtt - self.mean) - self.deviation) / 4
        usual = self.usual + (rtt - self.usual) / 256
        return Behaviour(self.mean + (rtt - self.mean) / 8, deviation, loss, usual)

    def at_most(self, rtt: float) -> Behaviour:
        """An answer came after `rtt` seconds, of which it waited nobody knows how many for the
        tunnel to be there.
        """
        if self.mean and self.mean <= rtt:
            return self
        return Behaviour(rtt, rtt / 2, usual=rtt)

    @property
    def one_way_loss(self) -> float:
        return one_way(self.loss)

    @property
    def is_slow(self) -> bool:
        """Answers take much longer than they used to."""
        return self.mean > max(_SLOW_TIMES * self.usual, self.usual + _SLOW_BY)

    @property
    def late(self) -> float:
        """Seconds after which an answer is overdue."""
        return (self.mean or _UNKNOWN_MEAN) + 4 * self._spread

    @property
    def overdue(self) -> int:
        """Overdue questions that mean more than this hop's usual loss."""
        return self._in_a_row(OVERDUE, _LUCK)

    @property
    def doubtful(self) -> int:
        """Overdue questions that are reason for doubt, in the same proportion."""
        return self._in_a_row(LOOKS_DEAD, _LUCK * LOOKS_DEAD / OVERDUE)

    def _in_a_row(self, least: int, luck: float) -> int:
        share = min(self.loss, _WORST_LOSS)
        return max(least, math.ceil(luck / -math.log10(share))) if share > 0 else least

    @property
    def _spread(self) -> float:
        # A quarter of the mean: what queues of other people's traffic do to a long path.
        return max(self.deviation, _LEAST_DEVIATION, (self.mean or _UNKNOWN_MEAN) / 4)

    def phi(self, silence: float) -> float:
        """Suspicion after `silence` seconds since the oldest unanswered question."""
        distance = (silence - (self.mean or _UNKNOWN_MEAN)) / self._spread
        chance = 0.5 * math.erfc(distance / math.sqrt(2))
        return -math.log10(max(chance, 1e-300))


def one_way(loss: float) -> float:
    """Each way, of a share of questions: a question and its answer are two packets."""
    return 1.0 - math.sqrt(1.0 - min(loss, 1.0))


NEVER_HEARD = Behaviour()


def is_dead(behaviour: Behaviour, *, silence: float, overdue: int, threshold: float = DEAD) -> bool:
    """Silent for longer than this hop ever is, and not by a few lost packets."""
    return (
        silence >= _LEAST_SILENCE
        and overdue >= behaviour.overdue
        and behaviour.phi(silence) >= threshold
    )


def looks_dead(behaviour: Behaviour, *, silence: float, unreturned: int, overdue: int) -> bool:
    """Doubt enough to go over to a tunnel that is up and answers, and to blame nobody.

    `silence` are the seconds for which `unreturned` packets of others went out and nothing at
    all came back: busy tunnels are never silent for long, so little more is needed.
    """
    return (
        behaviour != NEVER_HEARD
        and unreturned >= _UNRETURNED
        and silence >= behaviour.late
        and overdue >= behaviour.doubtful
    )
