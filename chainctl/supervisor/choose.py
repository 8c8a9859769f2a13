"""Which server comes next. Pure: clock and dice are arguments."""

from __future__ import annotations

import random
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from ipaddress import IPv4Address, IPv4Network

HALF_LIFE = 600.0
"""Seconds in which a strike loses half its weight: unreachable is true only for a time."""
QUARANTINE = 0.5
"""Weight from which a server is passed over while there is another."""


@dataclass(frozen=True)
class Candidate:
    server: str
    address: IPv4Address


@dataclass(frozen=True)
class Strike:
    """`weight` as it was at `at` (seconds since 1970); it decays since."""

    weight: float
    at: float

    def weight_at(self, now: float) -> float:
        decay: float = 0.5 ** (max(0.0, now - self.at) / HALF_LIFE)
        return self.weight * decay

    def another(self, now: float) -> Strike:
        return Strike(self.weight_at(now) + 1.0, now)

    def released_in(self, now: float) -> float:
        """Seconds until the server is no longer in quarantine; 0 when it is not."""
        left = 0.0
        weight = self.weight_at(now)
        while weight >= QUARANTINE:
            weight /= 2
            left += HALF_LIFE
        return left


def order_candidates(
    pool: Sequence[Candidate],
    *,
    taken: Iterable[IPv4Address],
    strikes: Mapping[IPv4Address, Strike],
    now: float,
    dice: random.Random,
) -> tuple[Candidate, ...]:
    """The servers a hop may use, in the order in which to try them.

    Never one of `taken` (no server sees two places of a chain). First those that lie in no
    /16 of `taken` and have no strike; equals in random order, so that nobody can know which
    is next. Those in quarantine come last, the one struck least first.
    """
    taken = set(taken)
    near = {IPv4Network((address, 16), strict=False) for address in taken}

    def rank(candidate: Candidate) -> tuple[bool, bool, float]:
        strike = strikes.get(candidate.address)
        weight = strike.weight_at(now) if strike else 0.0
        in_quarantine = weight >= QUARANTINE
        close = any(candidate.address in network for network in near)
        return (in_quarantine, close, weight if in_quarantine else 0.0)

    free = [candidate for candidate in pool if candidate.address not in taken]
    dice.shuffle(free)
    return tuple(sorted(free, key=rank))
