"""What one chain remembers and decides about its servers: who may come next, and when.

The worker asks and acts; the rules themselves are pure and stand in `choose`, `guards` and
`schedule`. What has to outlive the supervisor is kept in the journal.
"""

from __future__ import annotations

import random
from collections.abc import Mapping, Sequence
from contextlib import suppress
from dataclasses import dataclass, replace
from ipaddress import IPv4Address

from chainctl.host import clock
from chainctl.model.chain import Chain, Hop
from chainctl.model.fault import Fault
from chainctl.spec.model import ChainSpec, HopSpec
from chainctl.store.journal import Journal
from chainctl.supervisor.choose import (
    FORGOTTEN,
    QUARANTINE,
    Candidate,
    NoCandidate,
    Strike,
    admissible,
    rank_servers,
)
from chainctl.supervisor.guards import (
    AsListed,
    Guards,
    GuardState,
    choose_guards,
    confirmed,
    failed,
    retired,
    tried,
)
from chainctl.supervisor.resolve import candidates
from chainctl.supervisor.schedule import Quiet, due, may_rotate, next_rotation, pause

_GUARD_KEEP = 60 * 86400.0
"""Seconds a guard stays unless the chain file says otherwise (Tor guard-spec: 60 days)."""
_FAIL_BACK_AFTER = 600.0
"""Seconds a hop stays with a server before it returns to the preferred one."""
_POSTPONED = 600.0
"""Seconds by which a planned rotation is put off that found nobody to go to."""
_HISTORY = 3600.0


@dataclass(frozen=True)
class Options:
    """Servers to try, in this order; `why` tells why there are no more of them."""

    order: tuple[Candidate, ...]
    why: str = ""


class Rotations:
    """For one chain; used by its worker's thread only, but for `strikes`."""

    def __init__(self, name: str, journal: Journal) -> None:
        self._name = name
        self._journal = journal
        self._dice = random.SystemRandom()
        self._attempt = 0
        self.held_until = 0.0
        """Boot time before which nothing is tried again."""

    def options(
        self,
        spec: ChainSpec,
        names: Mapping[str, IPv4Address],
        hop: Hop,
        chain: Chain,
        *,
        to: str = "",
        any_port: bool = False,
    ) -> Options:
        """Whom this hop could use instead of the servers it has; only `to`, if it is given.

        `any_port`: in the end also other ports of the address it uses now. Whoever is dead is so
        on each of them, but somebody may block one.
        """
        pools = {each.number: candidates(spec.hops[each.number - 1], names) for each in chain.hops}
        pool = pools[hop.number]
        path = [
            candidate
            for each in chain.hops
            if each.number != hop.number
            for candidate in pools[each.number]
            if candidate.address in {tunnel.endpoint for tunnel in each.tunnels}
        ]
        own = {tunnel.endpoint for tunnel in hop.tunnels}
        elsewhere = admissible(pool, path, own=own, rules=spec.independent)
        serving = {tunnel.server for tunnel in hop.tunnels}
        ports = [
            candidate
            for candidate in pool
            if candidate.address == hop.tunnel.endpoint and candidate.server not in serving
        ]
        here = admissible(ports if any_port else [], path, rules=spec.independent)
        last = () if isinstance(here, NoCandidate) else here
        if isinstance(elsewhere, NoCandidate):
            found = Options((), elsewhere.detail)
        elif to:
            found = Options(elsewhere)
        elif hop.number == 1:
            found = self._guard_options(spec, pool, elsewhere, clock.wall_seconds())
        else:
            found = Options(self._ranked(spec, elsewhere, path))
        found = replace(found, order=(*found.order, *last))
        if to:
            chosen = tuple(candidate for candidate in found.order if candidate.server == to)
            why = found.why or f"{to} is not a server it may use now"
            return Options(chosen, "" if chosen else why)
        return found

    def _ranked(
        self, spec: ChainSpec, allowed: Sequence[Candidate], path: Sequence[Candidate]
    ) -> tuple[Candidate, ...]:
        ranked = rank_servers(
            allowed,
            path,
            rules=spec.independent,
            strikes=self.strikes(),
            now=clock.wall_seconds(),
            dice=self._dice,
        )
        return () if isinstance(ranked, NoCandidate) else ranked

    def _guard_options(
        self,
        spec: ChainSpec,
        pool: tuple[Candidate, ...],
        allowed: tuple[Candidate, ...],
        now: float,
    ) -> Options:
        """Of the kept sample; drawn from the whole pool, whatever is allowed at the moment."""
        guards = self._sample(spec, pool, now)
        order = tuple(candidate for candidate in guards.order if candidate in allowed)
        if guards.spent is not None:
            return Options(order, guards.spent.detail)
        return Options(order, "" if order else "no other server of its pool may be tried now")

    def first_guards(
        self, spec: ChainSpec, names: Mapping[str, IPv4Address]
    ) -> tuple[IPv4Address, ...]:
        """Whom a chain may use that has no guard at the moment, in this order: those it had
        before, else those it draws now. Others only while the budget is not spent.
        """
        pool = candidates(spec.hops[0], names)
        guards = self._sample(spec, pool, clock.wall_seconds())
        order = tuple(candidate.address for candidate in guards.order)
        others = (each.address for each in pool if each.address not in order)
        return order if guards.spent else (*order, *others)

    def _sample(self, spec: ChainSpec, pool: tuple[Candidate, ...], now: float) -> Guards:
        guards, state = choose_guards(
            self._guards(),
            pool,
            budget=spec.rotation.guard_budget,
            prefer=self._preferred(spec.hops[0], pool),
            now=now,
            dice=AsListed(pool) if spec.hops[0].listed else self._dice,
        )
        self._keep_guards(state)
        return guards

    def calm(self) -> None:
        """Every hop answers again: the next fault is acted on at once."""
        self._attempt = 0
        self.held_until = 0.0

    def will_try(self, hop: Hop, server: IPv4Address) -> None:
        """Counted before the first packet: whoever sees it has seen a guard of this chain."""
        if hop.number == 1:
            self._keep_guards(tried(self._guards(), server, clock.wall_seconds()))

    def carries(self, hop: Hop, spec: HopSpec, *, by_hand: bool = False) -> None:
        """The hop's server carries proved traffic."""
        if hop.number == 1:
            keep = spec.keep or (spec.rotate[1] if spec.rotate else _GUARD_KEEP)
            self._keep_guards(
                confirmed(
                    self._guards(),
                    hop.tunnel.endpoint,
                    keep=keep,
                    first=by_hand,
                    now=clock.wall_seconds(),
                    dice=self._dice,
                )
            )

    def blame(self, hop: Hop, server: IPv4Address, fault: Fault) -> None:
        """It was silent while others answered."""
        now = clock.wall_seconds()
        strikes = self.strikes()
        strikes[server] = strikes.get(server, Strike(0.0, now)).another(now, fault.value)
        values = {
            str(at): [strike.weight, strike.at, strike.why]
            for at, strike in strikes.items()
            if strike.weight_at(now) >= FORGOTTEN
        }
        self._journal.remember("", "strikes", values)
        if hop.number == 1:
            self._keep_guards(failed(self._guards(), server, now))

    def strikes(self) -> dict[IPv4Address, Strike]:
        """Shared by all chains of this machine."""
        kept = self._journal.recall("", "strikes", {})
        return {IPv4Address(at): Strike(*values) for at, values in kept.items()}

    def changed(self, hop: Hop) -> None:
        """The hop has another server: one more in the hour's count."""
        now = clock.wall_seconds()
        kept = [entry for entry in self._history() if entry[0] > now - _HISTORY]
        self._journal.remember(self._name, "changes", [*kept, (now, hop.name)])
        self._attempt = 0

    def may_change(self, spec: ChainSpec, hop: Hop, *, share: int = 1) -> bool:
        """Only a part of what an hour allows, with a `share` of 2 half of it: what is done on
        a mere doubt leaves the rest to those that are dead.
        """
        return may_rotate(
            self._history(),
            hop.name,
            now=clock.wall_seconds(),
            per_hop=spec.rotation.per_hop_hour // share,
            per_chain=spec.rotation.per_chain_hour // share,
        )

    def hold(self) -> float:
        """Nothing came of it: wait, at random more and more rarely. Returns the seconds."""
        self._attempt += 1
        seconds = pause(self._attempt, self._dice)
        self.held_until = clock.boot_seconds() + seconds
        return seconds

    def plan(self, spec: ChainSpec, chain: Chain) -> dict[str, float]:
        """When each hop's server is to be replaced (seconds since 1970), drawn once a server."""
        kept = self._journal.recall(self._name, "planned", {})
        since = self._journal.recall(self._name, "since", {})
        planned: dict[str, list[object]] = {}
        for hop, wish in zip(chain.hops, spec.hops, strict=True):
            terms = [hop.tunnel.server, wish.rotate and list(wish.rotate), wish.keep]
            known = kept.get(hop.name)
            if known and known[:3] == terms:
                planned[hop.name] = known
                continue
            at = next_rotation(
                rotate=wish.rotate,
                keep=wish.keep,
                since=float(since.get(hop.name, ["", clock.wall_seconds()])[1]),
                quiet=_quiet(spec),
                dice=self._dice,
            )
            planned[hop.name] = [*terms, at]
        if planned != kept:
            self._journal.remember(self._name, "planned", planned)
        return {
            name: float(entry[3])  # type: ignore[arg-type]
            for name, entry in planned.items()
            if entry[3] is not None
        }

    def postpone(self, hop: Hop) -> None:
        """Its planned rotation found nobody to go to."""
        kept = self._journal.recall(self._name, "planned", {})
        if hop.name in kept:
            kept[hop.name][3] = clock.wall_seconds() + _POSTPONED
            self._journal.remember(self._name, "planned", kept)

    def due(self, spec: ChainSpec, chain: Chain, *, busy: bool) -> str | None:
        """The hop whose server is to be replaced now, by plan."""
        history = self._history()
        return due(
            self.plan(spec, chain),
            now=clock.wall_seconds(),
            last_change=max((at for at, _ in history), default=0.0),
            busy=busy,
            quiet=_quiet(spec),
        )

    def retire_guard(self, server: IPv4Address) -> None:
        """Its time as guard is over."""
        self._keep_guards(retired(self._guards(), server))

    def fail_back(
        self, spec: ChainSpec, names: Mapping[str, IPv4Address], chain: Chain
    ) -> tuple[Hop, Candidate] | None:
        """A hop that should return to its preferred server, or to its first guard, now that
        it has stayed with another one for a while.
        """
        now = clock.wall_seconds()
        since = self._journal.recall(self._name, "since", {})
        for hop, wish in zip(chain.hops, spec.hops, strict=True):
            if now - float(since.get(hop.name, ["", now])[1]) < _FAIL_BACK_AFTER:
                continue
            server = wish.prefer
            if server is None and hop.number == 1:
                server = self._earlier_guard(hop, candidates(wish, names), now)
            if server is None or server == hop.tunnel.server:
                continue
            back = self.options(spec, names, hop, chain, to=server).order
            if back and self._is_rested(back[0].address, now):
                return hop, back[0]
        return None

    def _earlier_guard(self, hop: Hop, pool: tuple[Candidate, ...], now: float) -> str | None:
        """One that carried traffic before the present one and may be tried again: to stay with
        few guards means to return to the first of them.
        """
        there = {candidate.address: candidate.server for candidate in pool}
        for guard in self._guards().sample:
            if guard.address == hop.tunnel.endpoint:
                return None
            if guard.address in there and guard.since is not None and guard.retry_at() <= now:
                return there[guard.address]
        return None

    def _is_rested(self, server: IPv4Address, now: float) -> bool:
        strike = self.strikes().get(server)
        return strike is None or strike.weight_at(now) < QUARANTINE

    def _preferred(self, hop: HopSpec, pool: tuple[Candidate, ...]) -> IPv4Address | None:
        return next((one.address for one in pool if one.server == hop.prefer), None)

    def _history(self) -> list[tuple[float, str]]:
        kept = self._journal.recall(self._name, "changes", [])
        return [(float(at), str(hop)) for at, hop in kept]

    def _guards(self) -> GuardState:
        with suppress(KeyError, TypeError, ValueError):
            return GuardState.from_json(self._journal.recall("", f"guards {self._name}", []))
        return GuardState()

    def _keep_guards(self, state: GuardState) -> None:
        """Not with what `down` forgets: else each `up` would show the chain to another one."""
        if state != self._guards():
            self._journal.remember("", f"guards {self._name}", state.to_json())


def _quiet(spec: ChainSpec) -> Quiet | None:
    hours = spec.rotation.quiet
    return Quiet(*hours, zone=None) if hours else None
