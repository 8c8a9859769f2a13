"""A rotation as the supervisor carries it out, in a `World`: what it plans, and what is proved.

The order of the four acts is `chainctl.supervisor.rotating`'s: the candidate comes up beside
the tunnel that carries traffic, answers a probe, carries, and the other one goes.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator
from dataclasses import dataclass, replace
from typing import Self

from chainctl.model.chain import Chain, Engine, Hop, Tunnel
from chainctl.model.parts import NsName, Part
from chainctl.net.layout import layout
from chainctl.supervisor.plan import Change, Make, Prove, Remove, Step, plan
from tests.unit.supervisor.chains import make_tunnel
from tests.unit.supervisor.checker import (
    Fault,
    Layout,
    Planner,
    WrongError,
    bad_things,
    carries,
    struck,
)
from tests.unit.supervisor.reach import LAN, Reach
from tests.unit.supervisor.world import ImpossibleError, World

NEW_SERVER = 7
"""Of the hop's pool; `chains` draws from the first three."""


@dataclass(frozen=True)
class Rotation:
    """One hop of `old` gets another server, or with `server` 1 a second client of its own."""

    old: Chain
    hop: int
    """Index of the hop."""
    server: int = NEW_SERVER

    @property
    def trial(self) -> Chain:
        """Both tunnels are there, the old one carries."""
        new = _spare_tunnel(self.old, self._hop, self.server)
        return self._with(replace(self._hop, tunnels=(self._hop.tunnel, new)))

    @property
    def switched(self) -> Chain:
        """Both are there, the new one carries."""
        hop = self.trial.hops[self.hop]
        assert hop.candidate is not None
        return self._with(replace(hop, active=hop.candidate.slot))

    @property
    def new(self) -> Chain:
        hop = self.switched.hops[self.hop]
        return self._with(replace(hop, tunnels=(hop.tunnel,)))

    @property
    def chains(self) -> tuple[Chain, Chain, Chain, Chain]:
        return self.old, self.trial, self.switched, self.new

    @property
    def tunnel(self) -> tuple[NsName, str]:
        """Where the new one is."""
        return self.old.namespace(self._hop), self.switched.hops[self.hop].tunnel.slot.link

    @property
    def _hop(self) -> Hop:
        return self.old.hops[self.hop]

    def _with(self, hop: Hop) -> Chain:
        hops = tuple(hop if each.number == hop.number else each for each in self.old.hops)
        return replace(self.old, hops=hops)


def begin(chain: Chain) -> Chain:
    """The chain with one tunnel a hop, as it is between rotations."""
    return replace(chain, hops=tuple(replace(hop, tunnels=(hop.tunnel,)) for hop in chain.hops))


def _spare_tunnel(chain: Chain, hop: Hop, server: int) -> Tunnel:
    """Of the same kind: another one would change the MTU of everything inside it."""
    spare, old = hop.active.other, hop.tunnel
    via = old.protocol if old.engine is Engine.OPENVPN else None
    return make_tunnel(
        chain.number, hop.number, server=server, slot=spare, engine=old.engine, via=via
    )


def acts(
    rotation: Rotation, *, planner: Planner = plan, lay_out: Layout = layout
) -> Iterator[Step]:
    """Every step of a rotation, with the proof between the first act and the second."""
    old, trial, switched, new = map(lay_out, rotation.chains)
    yield from planner(trial, old, beside=True)
    yield Prove(rotation.hop + 1)
    yield from planner(switched, trial, beside=True)
    yield from planner(new, switched, beside=True)


class RotatingWorld(World):
    """Knows of each tunnel whether it answered a probe since something of it was changed."""

    def __init__(self, parts: Iterable[Part] = ()) -> None:
        super().__init__(parts)
        self.answered: set[tuple[str, str]] = set()
        """(namespace, link)."""

    def copy(self) -> Self:
        other = super().copy()
        other.answered = set(self.answered)
        return other

    def opened(self, chain: Chain) -> Self:
        super().opened(chain)
        self.answered = {(chain.namespace(hop), hop.tunnel.slot.link) for hop in chain.hops}
        return self

    def take(self, step: Step) -> None:
        proved = set(self.proved)
        super().take(step)
        # A change beside the tunnels that carry traffic takes nothing from what they proved.
        self.proved |= proved
        if isinstance(step, Make | Remove | Change):
            part = step.new if isinstance(step, Change) else step.part
            self.answered.discard((getattr(part, "ns", ""), getattr(part, "link", "")))


def unproved(world: RotatingWorld, reach: Reach, *, whole: bool = True) -> frozenset[str]:
    """Traffic that gets into a tunnel of which nobody knows whether it answers.

    In a chain that is not `whole` only that of devices counts: what a VPN client sends is the
    question whether what is outside it answers.
    """
    known = {f"{link} of {ns}" for ns, link in world.answered}
    return frozenset(
        f"what {arrival.maker} sends gets into {arrival.where}, which was not proved"
        for arrival in reach.arrivals(world)
        if arrival.where.startswith("tun")
        and arrival.where not in known
        and (whole or arrival.maker == LAN)
    )


def walk_beside(
    world: RotatingWorld,
    rotation: Rotation,
    reach: Reach,
    *,
    steps: Iterable[Step],
    faults: Callable[[World], Iterable[Fault]] = lambda world: (),
    allowed: frozenset[str] = frozenset(),
    whole: bool = True,
) -> Iterator[RotatingWorld]:
    """Take the steps one by one; yields the world before each, and at the end.

    Raises WrongError when something leaks or gets into an unproved tunnel; where the chain was
    `whole` also when a step is impossible, out of order, or traffic does not pass in between.
    """
    _check(world, rotation, reach, "at first", faults, allowed, whole)
    yield world
    for number, step in enumerate(steps):
        when = f"after step {number}, {step}"
        try:
            _probe(world, rotation) if isinstance(step, Prove) else world.take(step)
        except ImpossibleError as error:
            if whole:
                raise WrongError(f"{when}: {error}") from None
            return  # The supervisor goes no further, and begins anew.
        _check(world, rotation, reach, when, faults, allowed, whole)
        yield world


def _probe(world: RotatingWorld, rotation: Rotation) -> None:
    """Raises ImpossibleError when no answer can come."""
    missing = set(layout(rotation.trial)) - set(world.parts.values())
    if missing:
        raise ImpossibleError(f"the candidate does not answer without {missing.pop()}")
    world.answered.add(rotation.tunnel)


def _check(
    world: RotatingWorld,
    rotation: Rotation,
    reach: Reach,
    when: str,
    faults: Callable[[World], Iterable[Fault]],
    allowed: frozenset[str],
    whole: bool,
) -> None:
    # What something wants that was missing before, the next look finds.
    found = bad_things(world, reach) if whole else reach.kinds(world)
    wrong = (found | unproved(world, reach, whole=whole)) - allowed
    if wrong:
        raise WrongError(f"{when}: {sorted(wrong)[0]}")
    if whole and not any(carries(world, reach, chain) for chain in rotation.chains):
        lan = [arrival for arrival in reach.arrivals(world) if arrival.maker == LAN]
        raise WrongError(f"{when}: nothing passes any more; of the LAN: {lan}")
    for fault in faults(world):
        leaks = {str(leak) for leak in reach.leaks(struck(world, fault))} - allowed
        if leaks:
            raise WrongError(f"{when}, when {fault[0]}: {sorted(leaks)[0]}")
