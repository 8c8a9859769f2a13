"""Which server comes next. Pure: clock and dice are arguments."""

from __future__ import annotations

import math
import random
from collections.abc import Collection, Hashable, Mapping, Sequence
from dataclasses import dataclass
from ipaddress import IPv4Address

from chainctl.model.independence import Independence, Trait

HALF_LIFE = 600.0
"""Seconds in which a strike loses half its weight: unreachable is true only for a time."""
QUARANTINE = 0.5
"""Weight from which a server is passed over while there is another."""

FORGOTTEN = 0.01
"""Weight below which a strike is not worth keeping: an hour and some after it."""

_UNMET = {
    Trait.SERVER: "already serves another place of this chain",
    Trait.NETWORK: "lies in the /16 network of another hop's server",
    Trait.OPERATOR: "belongs to the operator of another hop's server",
    Trait.COUNTRY: "stands in the country of another hop's server",
    Trait.ASN: "stands in the autonomous system of another hop's server",
}


@dataclass(frozen=True)
class Candidate:
    """A server with its labels; a label that is not known (None) is shared with nobody."""

    server: str
    address: IPv4Address
    operator: str | None = None
    country: str | None = None
    asn: int | None = None

    def value(self, trait: Trait) -> Hashable:
        """What it would have to share; None: unknown."""
        match trait:
            case Trait.SERVER:
                return self.address
            case Trait.NETWORK:
                return int(self.address) >> 16
            case Trait.OPERATOR:
                return self.operator
            case Trait.COUNTRY:
                return self.country
            case Trait.ASN:
                return self.asn


@dataclass(frozen=True)
class Strike:
    """`weight` as it was at `at` (seconds since 1970); it decays since."""

    weight: float
    at: float
    why: str = ""
    """The class of the last fault."""

    def weight_at(self, now: float) -> float:
        decay: float = 0.5 ** (max(0.0, now - self.at) / HALF_LIFE)
        return self.weight * decay

    def another(self, now: float, why: str = "") -> Strike:
        return Strike(self.weight_at(now) + 1.0, now, why)

    def released_in(self, now: float) -> float:
        """Seconds until the server is no longer in quarantine; 0 when it is not."""
        weight = self.weight_at(now)
        return HALF_LIFE * math.log2(weight / QUARANTINE) if weight > QUARANTINE else 0.0


@dataclass(frozen=True)
class NoCandidate:
    """Nothing may be used. `rule` is the first that cannot be met; None: there is no server."""

    rule: Trait | None
    detail: str
    """The rest of a sentence that begins with the hop's name and a colon."""


def admissible(
    pool: Sequence[Candidate],
    path: Sequence[Candidate],
    *,
    own: Collection[IPv4Address] = (),
    rules: Independence,
) -> tuple[Candidate, ...] | NoCandidate:
    """Those of `pool` that break no rule with `path`, the servers of the chain's other hops.

    `own` are the servers this hop has already: another one is looked for.
    """
    left = tuple(candidate for candidate in pool if candidate.address not in own)
    if not left:
        return NoCandidate(None, "its pool has no other server" if pool else "its pool is empty")
    for trait in Trait:
        if trait not in rules.require:
            continue
        taken = _taken(trait, path)
        kept = tuple(candidate for candidate in left if candidate.value(trait) not in taken)
        if not kept:
            which = "the only server left" if len(left) == 1 else f"each of {len(left)} servers"
            return NoCandidate(trait, f"{which} {_UNMET[trait]}")
        left = kept
    return left


def rank_servers(
    pool: Sequence[Candidate],
    path: Sequence[Candidate],
    *,
    own: Collection[IPv4Address] = (),
    rules: Independence,
    strikes: Mapping[IPv4Address, Strike],
    now: float,
    dice: random.Random,
) -> tuple[Candidate, ...] | NoCandidate:
    """The servers a hop may use, in the order in which to try them.

    First those that share least of what `rules` would rather not have shared; equals in random
    order, so that nobody can know which is next. Those in quarantine come last, the one struck
    least first.
    """
    left = admissible(pool, path, own=own, rules=rules)
    if isinstance(left, NoCandidate):
        return left

    taken = {trait: _taken(trait, path) for trait in rules.prefer}

    def rank(candidate: Candidate) -> tuple[float, int]:
        strike = strikes.get(candidate.address)
        weight = strike.weight_at(now) if strike else 0.0
        shared = sum(candidate.value(trait) in values for trait, values in taken.items())
        return (weight if weight >= QUARANTINE else 0.0, shared)

    return tuple(sorted(dice.sample(left, len(left)), key=rank))


def _taken(trait: Trait, path: Sequence[Candidate]) -> set[Hashable]:
    return {value for other in path if (value := other.value(trait)) is not None}
