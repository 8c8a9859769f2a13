"""Which server is the guard: the one your provider of internet sees, and that sees you. Pure.

Changing it often means that sooner or later a hostile one is among those used, so it stays: a
small sample is drawn once and kept, the first of it that answers is used, and only so many are
ever tried within `PERIOD` (Tor guard-spec, proposal 241). Whoever can make guards fail thus
cannot lead a chain to the guard they want; the chain stays shut instead and says so.
"""

from __future__ import annotations

import random
from collections.abc import Sequence
from dataclasses import asdict, dataclass, replace
from enum import Enum
from ipaddress import IPv4Address
from typing import Any

from chainctl.supervisor.choose import Candidate

_MINUTE, _HOUR, _DAY = 60.0, 3600.0, 86400.0

PERIOD = 60 * _DAY
"""Seconds over which the distinct guards are counted."""
_RETRIES = (
    (6 * _HOUR, 10 * _MINUTE),
    (4 * _DAY, 90 * _MINUTE),
    (7 * _DAY, 4 * _HOUR),
)
_LAST_RETRY = 9 * _HOUR
"""A guard that has failed for less than the first is tried again after the second (Tor
guard-spec, Appendix A.2); so nobody returns to one within 10 minutes of its failure.
"""
_GIVEN_UP = 30 * _DAY
"""Seconds of failing after which a guard is no longer tried where there are other servers, so
that it leaves the budget `PERIOD` later and another may be drawn.
"""


class Uplink(Enum):
    """What is known of the way to the first server while the guard is silent."""

    FAULTY = "faulty"
    """Something is seen to be wrong with it."""
    UNKNOWN = "unknown"
    """Nothing is seen to be wrong, and nobody out there has answered."""
    PROVED = "proved"
    """Another server has answered since the guard fell silent."""

    @property
    def may_try(self) -> bool:
        """Another guard may be asked. Over a dead line that would only show it to the line."""
        return self is not Uplink.FAULTY

    @property
    def may_blame(self) -> bool:
        """A silent guard may be struck and passed over: its silence is its own."""
        return self is Uplink.PROVED


@dataclass(frozen=True)
class Guard:
    """One of the sample. All times are seconds since 1970."""

    address: IPv4Address
    used: float | None = None
    """When it was last tried or in use; None: never."""
    since: float | None = None
    """When it first carried proved traffic, up to a tenth of its time too early so that nobody
    can foretell its end; None: it never did.
    """
    failing_since: float | None = None
    failed: float | None = None
    """When it was last tried in vain."""

    @property
    def given_up(self) -> bool:
        if self.failed is None or self.failing_since is None:
            return False
        return self.failed - self.failing_since >= _GIVEN_UP

    def counts_until(self) -> float:
        """When it leaves the budget if it does not answer any more."""
        if self.failing_since is not None and not self.given_up:
            return self.failing_since + _GIVEN_UP + PERIOD
        return (self.used or 0.0) + PERIOD

    def retry_at(self) -> float:
        """From when it may take its place again; 0 when it does not fail."""
        if self.failed is None or self.failing_since is None:
            return 0.0
        failing = self.failed - self.failing_since
        pauses = (pause for limit, pause in _RETRIES if failing < limit)
        return self.failed + next(pauses, _LAST_RETRY)


@dataclass(frozen=True)
class GuardState:
    """To be kept over restarts. `sample` is in the order of preference."""

    sample: tuple[Guard, ...] = ()

    def guard(self, address: IPv4Address) -> Guard:
        """As it is in the sample, or as one that was never used."""
        known = (guard for guard in self.sample if guard.address == address)
        return next(known, Guard(address))

    def used(self, now: float) -> tuple[Guard, ...]:
        """Those that count against the budget."""
        return tuple(g for g in self.sample if g.used is not None and g.used > now - PERIOD)

    def to_json(self) -> list[dict[str, Any]]:
        return [asdict(guard) | {"address": str(guard.address)} for guard in self.sample]

    @classmethod
    def from_json(cls, value: Any) -> GuardState:
        """Raises KeyError, TypeError or ValueError for anything `to_json` did not write."""
        return cls(
            tuple(Guard(**{**kept, "address": IPv4Address(kept["address"])}) for kept in value)
        )


@dataclass(frozen=True)
class GuardBudgetSpent:
    """No server may be tried that was not tried before."""

    used: int
    withheld: int
    """Servers of the pool that are not tried for this reason."""
    until: float
    """Seconds since 1970: when the next one may be, if none of those used answers."""

    @property
    def detail(self) -> str:
        servers = "server was" if self.used == 1 else "servers were"
        return (
            f"{self.used} {servers} tried as guard within {PERIOD / _DAY:.0f} days, which is the"
            f" budget; {self.withheld} more are not tried"
        )


class AsListed(random.Random):
    """Dice for `choose_guards` where a person has put the servers into an order."""

    def __init__(self, pool: Sequence[Candidate]) -> None:
        super().__init__()
        self._place = {candidate.address: place for place, candidate in enumerate(pool)}

    def sample(self, population: Any, k: int, *, counts: Any = None) -> list[Any]:
        return sorted(population, key=lambda address: self._place[address])[:k]


@dataclass(frozen=True)
class Guards:
    """`order` is what to try, in this order; `spent` tells why there is no more of it."""

    order: tuple[Candidate, ...]
    spent: GuardBudgetSpent | None


def choose_guards(
    state: GuardState,
    pool: Sequence[Candidate],
    *,
    budget: int,
    prefer: IPv4Address | None = None,
    now: float,
    dice: random.Random,
) -> tuple[Guards, GuardState]:
    """The guards to try and the state to keep; the first is the one to use if it answers.

    `pool` is the whole one, also what the other hops make inadmissible at the moment: else
    their servers would decide which guard is taken. `prefer` comes from the user, hence is
    first and may always be used. Guards that fail come last, the one longest untried first.
    """
    state = _drawn(state, pool, size=budget, now=now, dice=dice)
    # Of several on one address the first.
    there = {candidate.address: candidate for candidate in reversed(pool)}
    counted = state.used(now)
    used = {guard.address for guard in counted}
    others = there.keys() - {guard.address for guard in state.sample}
    left = budget - len(used)
    allowed = []
    for guard in _preferred_first(state, prefer):
        if guard.address not in there:
            continue
        if guard.given_up and others and guard.address != prefer:
            continue
        new = guard.address not in used and guard.address != prefer
        if not new or left > 0:
            allowed.append(guard)
            left -= new
    ready = [guard for guard in allowed if guard.retry_at() <= now]
    failing = [guard for guard in allowed if guard.retry_at() > now]
    failing.sort(key=lambda guard: guard.failed or 0.0)
    order = tuple(there[guard.address] for guard in (*ready, *failing))
    withheld = len(there) - len(order)
    spent = None
    if withheld and len(counted) >= budget:
        until = min(guard.counts_until() for guard in counted)
        spent = GuardBudgetSpent(len(counted), withheld, until)
    return Guards(order, spent), state


def tried(state: GuardState, address: IPv4Address, now: float) -> GuardState:
    """To be kept before the first packet goes to `address`: that is what the budget counts."""
    return _with(state, replace(state.guard(address), used=now))


def failed(state: GuardState, address: IPv4Address, now: float) -> GuardState:
    """It was silent, and only if `Uplink.may_blame`."""
    guard = state.guard(address)
    since = guard.failing_since if guard.failing_since is not None else now
    return _with(state, replace(guard, used=now, failing_since=since, failed=now))


def confirmed(
    state: GuardState,
    address: IPv4Address,
    *,
    keep: float,
    first: bool = False,
    now: float,
    dice: random.Random,
) -> GuardState:
    """It carries proved traffic, and stays for `keep` seconds. May be called again and again.

    Comes before all that never did so, and with `first` (somebody chose it by hand) before all.
    """
    guard = state.guard(address)
    since = guard.since if guard.since is not None else now - dice.uniform(0.0, keep / 10)
    proved = replace(guard, used=now, since=since, failing_since=None, failed=None)
    if guard.since is not None and not first:
        return _with(state, proved)
    others = [other for other in state.sample if other.address != address]
    place = 0 if first else sum(other.since is not None for other in others)
    return GuardState((*others[:place], proved, *others[place:]))


def retired(state: GuardState, address: IPv4Address) -> GuardState:
    """Its time is over: the next of the sample takes its place, and it goes to the end."""
    others = tuple(other for other in state.sample if other.address != address)
    return GuardState((*others, replace(state.guard(address), since=None)))


def _drawn(
    state: GuardState, pool: Sequence[Candidate], *, size: int, now: float, dice: random.Random
) -> GuardState:
    """The sample, filled up from the pool where it has become too small.

    What is no longer in the pool is remembered for as long as it counts against the budget,
    and has its place again if it comes back.
    """
    there = {candidate.address for candidate in pool}
    counted = {guard.address for guard in state.used(now)}
    kept = [
        guard
        for guard in state.sample
        if guard.address in counted or (guard.address in there and not guard.given_up)
    ]
    known = {guard.address for guard in kept}
    missing = max(0, size - len(known & there))
    others = sorted(there - known)
    drawn = dice.sample(others, min(missing, len(others)))
    return GuardState((*kept, *(Guard(address) for address in drawn)))


def _preferred_first(state: GuardState, prefer: IPv4Address | None) -> tuple[Guard, ...]:
    if prefer is None:
        return state.sample
    others = tuple(guard for guard in state.sample if guard.address != prefer)
    return (state.guard(prefer), *others)


def _with(state: GuardState, guard: Guard) -> GuardState:
    """In its place, or at the end."""
    if all(other.address != guard.address for other in state.sample):
        return GuardState((*state.sample, guard))
    return GuardState(
        tuple(guard if other.address == guard.address else other for other in state.sample)
    )
