"""Servers for all hops of a chain at once, where one after the other could end in a dead end.

A guard that takes the only server its exit could have used leaves a chain without an exit.
Pure; used when a chain comes up and when its file or its rules changed.
"""

from __future__ import annotations

import random
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, replace
from ipaddress import IPv4Address

from chainctl.model.independence import Independence, Trait
from chainctl.supervisor.choose import Candidate, NoCandidate, Strike, admissible, rank_servers

_STEPS = 300
"""Servers put in place before a search is given up. Real pools need a few per hop; only ones
made for it need more.
"""

_TOO_LONG = "no servers for all hops were found in time"

_Path = dict[int, Candidate]


@dataclass(frozen=True)
class NoPath:
    """`hop` (an index) has no server left, because of `reason`, whatever the others use."""

    hop: int
    reason: NoCandidate


@dataclass(frozen=True)
class _Search:
    pools: Sequence[Sequence[Candidate]]
    rules: Independence
    strikes: Mapping[IPv4Address, Strike]
    now: float
    dice: random.Random

    def complete(self, fixed: _Path) -> _Path | NoPath:
        """`fixed` with a server for every other hop."""
        steps = iter(range(_STEPS))
        return self._extend(fixed, steps)

    def _extend(self, path: _Path, steps: Iterator[int]) -> _Path | NoPath:
        options = {}
        for hop in range(len(self.pools)):
            if hop in path:
                continue
            ranked = rank_servers(
                self.pools[hop],
                tuple(path.values()),
                rules=self.rules,
                strikes=self.strikes,
                now=self.now,
                dice=self.dice,
            )
            if isinstance(ranked, NoCandidate):
                return NoPath(hop, ranked)
            options[hop] = ranked
        if not options:
            return path
        # The hop that has least to choose from chooses first: else the others take it away.
        hop = min(options, key=lambda each: len(options[each]))
        rivals = [one for other in options if other != hop for one in options[other]]
        taken = {trait: {one.value(trait) for one in rivals} for trait in self.rules.require}
        seen = set()
        outcome = NoPath(hop, NoCandidate(None, _TOO_LONG))
        for candidate in options[hop]:
            # Two that take the same from the others fail for the same reason.
            takes = frozenset(
                (trait, value)
                for trait, values in taken.items()
                if (value := candidate.value(trait)) in values and value is not None
            )
            if takes in seen:
                continue
            seen.add(takes)
            if next(steps, None) is None:
                break
            found = self._extend({**path, hop: candidate}, steps)
            if not isinstance(found, NoPath):
                return found
            outcome = found
        return outcome


def choose_path(
    pools: Sequence[Sequence[Candidate]],
    *,
    kept: Mapping[int, Candidate],
    rules: Independence,
    strikes: Mapping[IPv4Address, Strike],
    now: float,
    dice: random.Random,
) -> tuple[Candidate, ...] | NoPath:
    """One server per pool, guard first, no rule broken.

    `kept` are the servers that hops (by index) have already. They stay as far as the rules
    allow it; when they make a path impossible, first the inner ones give way, then the guard.
    When there is no path, the first rule is named without which there would be one.
    """
    whole = _Search(pools, rules, strikes, now, dice)
    for number in sorted({0, *(hop + 1 for hop in kept)}, reverse=True):
        path = whole.complete(_compatible(kept, number, rules))
        if not isinstance(path, NoPath):
            return tuple(path[hop] for hop in range(len(pools)))
    return _first_unmet(whole)


def _first_unmet(whole: _Search) -> NoPath:
    """For a search that finds nothing: with one rule more each time, until there is no path."""
    required = [trait for trait in Trait if trait in whole.rules.require]
    for count, trait in enumerate(required, start=1):
        some = Independence(frozenset(required[:count]), frozenset())
        path = replace(whole, rules=some).complete({})
        if isinstance(path, NoPath):
            if path.reason.rule is None:
                return path
            detail = f"there are no servers for all hops that share no {trait.value}"
            return NoPath(path.hop, NoCandidate(trait, detail))
    # The dice found with the last of them what they had not found before: chance, not a rule.
    return NoPath(0, NoCandidate(None, _TOO_LONG))


def _compatible(kept: Mapping[int, Candidate], number: int, rules: Independence) -> _Path:
    """Those of `kept` on the `number` outermost hops that break no rule with one further out."""
    path: _Path = {}
    for hop in sorted(hop for hop in kept if hop < number):
        if not isinstance(admissible([kept[hop]], tuple(path.values()), rules=rules), NoCandidate):
            path[hop] = kept[hop]
    return path
