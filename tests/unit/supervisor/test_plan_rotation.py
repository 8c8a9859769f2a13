"""Another server for one hop, beside running traffic: killed before every step, with every fault.

Nothing gets into a tunnel that was not proved, nothing leaks, traffic passes all along, and
of the old server nothing is left.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator, Sequence
from typing import Any

import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from chainctl.model.chain import Chain, Engine
from chainctl.model.parts import (
    TCP,
    UDP,
    Client,
    NftTable,
    Part,
    Route,
    TunFilter,
    TunnelConfig,
    WireTuple,
)
from chainctl.net.layout import layout
from chainctl.supervisor.plan import Change, CloseGate, Make, OpenGate, Prove, Remove, Step, plan
from tests.unit.supervisor.bugs import table_replaced_in_two_steps
from tests.unit.supervisor.chains import chains, make_chain
from tests.unit.supervisor.checker import (
    Layout,
    Planner,
    WrongError,
    check_converges,
    check_goes_down,
    check_is_up,
    hop_numbers,
    single_faults,
    walk,
)
from tests.unit.supervisor.debris import Found, debris
from tests.unit.supervisor.reach import Reach
from tests.unit.supervisor.rotation import (
    RotatingWorld,
    Rotation,
    acts,
    begin,
    unproved,
    walk_beside,
)
from tests.unit.supervisor.world import World

_MANY = settings(max_examples=40, deadline=None, suppress_health_check=list(HealthCheck))
KINDS: dict[str, dict[str, Any]] = {
    "kernel": {"engine": Engine.KERNEL},
    "wireguard-go": {"engine": Engine.USERSPACE},
    "openvpn": {"vias": (UDP, TCP, UDP)},
}
PLACES = [(hops, hop) for hops in (1, 2, 3) for hop in range(hops)]


def _running(chain: Chain) -> RotatingWorld:
    return RotatingWorld(layout(chain)).opened(chain)


@pytest.mark.parametrize(("hops", "hop"), PLACES)
@pytest.mark.parametrize("kind", KINDS)
def test_every_crash_and_single_fault(hops: int, hop: int, kind: str) -> None:
    rotation = Rotation(make_chain(hops, **KINDS[kind]), hop)
    reach = Reach(*rotation.chains)
    ends = [(chain, Reach(chain, *rotation.chains)) for chain in rotation.chains]
    steps = list(acts(rotation))
    states = 0
    begun = _running(rotation.old)
    for world in walk_beside(begun, rotation, reach, steps=steps, faults=single_faults):
        # Killed here, the journal knows the chain before or the one after this act.
        plain = _forgetful(world)
        for chain, known in ends:
            check_converges(plain, chain, known)
        check_goes_down(plain, reach)
        states += 1
    assert states == len(steps) + 1 > 20
    check_is_up(world, rotation.new, layout(rotation.new), reach)


@pytest.mark.parametrize("hop", [0, 1])
@pytest.mark.parametrize("via", [UDP, TCP])
def test_a_second_client_of_the_same_server_takes_over(hop: int, via: int) -> None:
    """Killed at any step; meanwhile there are two tunnels with one server and one address."""
    rotation = Rotation(make_chain(2, vias=(via, via)), hop, server=1)
    reach = Reach(*rotation.chains)
    ends = [(chain, Reach(chain, *rotation.chains)) for chain in rotation.chains]
    begun = _running(rotation.old)
    for world in walk_beside(begun, rotation, reach, steps=acts(rotation), faults=single_faults):
        for chain, known in ends:
            check_converges(_forgetful(world), chain, known)
    check_is_up(world, rotation.new, layout(rotation.new), reach)


def _forgetful(world: World) -> World:
    """What a new supervisor finds: the parts and the gate, and that nothing is proved."""
    plain = World(world.parts.values())
    plain.filter_gate_open, plain.table_gate_open = world.filter_gate_open, world.table_gate_open
    plain.proved = set(world.proved)
    return plain


@given(chain=chains(3).map(begin), data=st.data())
@_MANY
def test_any_hop_of_any_chain(chain: Chain, data: st.DataObject) -> None:
    rotation = Rotation(chain, data.draw(st.integers(0, len(chain.hops) - 1)))
    reach = Reach(*rotation.chains)
    *_, end = walk_beside(_running(chain), rotation, reach, steps=acts(rotation))
    check_is_up(end, rotation.new, layout(rotation.new), reach)
    assert not _naming_old_server(end, rotation)
    check_converges(_forgetful(end), rotation.new, Reach(rotation.new))


def _naming_old_server(world: World, rotation: Rotation) -> list[Part]:
    """Anything that still allows the server that was replaced, or leads to it."""
    hop = rotation.old.hops[rotation.hop]
    server = str(hop.tunnel.endpoint)
    client = rotation.old.client_name(hop, hop.tunnel.slot)
    found: list[Part] = []
    for part in world.parts.values():
        match part:
            case NftTable(rules=rules) if server in rules:
                found.append(part)
            case WireTuple() if server in (str(part.source), str(part.destination)):
                found.append(part)
            case Route() if str(part.to) == f"{server}/32":
                found.append(part)
            case Client(name) | TunnelConfig(name) if name == client:
                found.append(part)
    return found


@given(chain=chains(3).map(begin), data=st.data())
@_MANY
def test_what_carries_traffic_is_not_touched(chain: Chain, data: st.DataObject) -> None:
    """But for the tables, which are swapped whole, and the switch is one transaction."""
    rotation = Rotation(chain, data.draw(st.integers(0, len(chain.hops) - 1)))
    old, trial, switched, new = map(layout, rotation.chains)
    for before, after in ((old, trial), (trial, switched), (switched, new)):
        kept = {part.key for part in before} & {part.key for part in after}
        for step in plan(after, before, beside=True):
            assert isinstance(step, Make | Change | Remove)
            if isinstance(step, Change):
                assert isinstance(step.new, NftTable)
            else:
                assert step.part.key not in kept
    assert len(plan(switched, trial, beside=True)) == 1


@given(found=debris(), data=st.data())
@_MANY
def test_no_step_opens_what_was_shut(found: Found, data: st.DataObject) -> None:
    """The plan is made from what should be there; what is there may be anything."""
    chain = begin(found.chain)
    rotation = Rotation(chain, data.draw(st.integers(0, len(chain.hops) - 1)))
    reach = Reach(*rotation.chains, found.chain, found.older)
    world = RotatingWorld(found.world.parts.values())
    world.filter_gate_open = found.world.filter_gate_open
    world.table_gate_open = found.world.table_gate_open
    world.proved = set(found.world.proved)
    if world.proved:
        world.answered = {
            (one.namespace(hop), tunnel.slot.link)
            for one in (found.chain, found.older)
            for hop in one.hops
            for tunnel in hop.tunnels
        }
    allowed = reach.kinds(_with_clients(world, chain)) | unproved(world, reach, whole=False)
    steps = list(acts(rotation))
    walked = walk_beside(world, rotation, reach, steps=steps, allowed=allowed, whole=False)
    *_, end = walked
    check_converges(_forgetful(end), rotation.new, Reach(rotation.new, *reach.chains))


def _with_clients(world: RotatingWorld, chain: Chain) -> RotatingWorld:
    """What nobody is there to send is not shut for that."""
    sent = world.copy()
    for part in layout(chain):
        if isinstance(part, Client):
            sent.parts.setdefault(part.key, part)
    return sent


@pytest.mark.parametrize(("hops", "hop"), PLACES)
def test_remove_first_shuts_the_gate(hops: int, hop: int) -> None:
    """For an account that allows one session: nothing of the old server when the new one comes."""
    rotation = Rotation(make_chain(hops), hop)
    servers = tuple(7 if index == hop else 1 for index in range(hops))
    new = make_chain(hops, servers=servers)
    begun = World(layout(rotation.old)).opened(rotation.old)
    reach = Reach(new, rotation.old)
    steps = plan(layout(new), begun.parts.values(), hops=hop_numbers(new), gate_open=True)
    assert isinstance(steps[0], CloseGate)
    assert isinstance(steps[-1], OpenGate)
    for world in walk(begun, steps, reach, faults=single_faults):
        check_converges(world, new, reach)
        check_goes_down(world, reach)
    check_is_up(world, new, layout(new), reach)


# Seeded bugs: each is found by what the real plan and layout pass.


def _planned(change: Callable[[list[Step]], Iterable[Step]]) -> Planner:
    def planner(want: Sequence[Part], have: Iterable[Part], **more: Any) -> tuple[Step, ...]:
        return tuple(change(list(plan(want, have, **more))))

    return planner


def _without_removal_of(*kinds: type) -> Planner:
    return _planned(
        lambda steps: [
            step
            for step in steps
            if not (isinstance(step, Remove) and isinstance(step.part, kinds))
        ]
    )


def _source_filter_last(steps: list[Step]) -> Iterable[Step]:
    return sorted(
        steps, key=lambda step: isinstance(step, Make) and isinstance(step.part, TunFilter)
    )


def _unreachable_last(steps: list[Step]) -> Iterable[Step]:
    def is_last_resort(step: Step) -> bool:
        return isinstance(step, Make) and isinstance(step.part, Route) and step.part.link is None

    return sorted(steps, key=is_last_resort)


def _forgets_the_old_tables(
    want: Sequence[Part], have: Iterable[Part], **more: Any
) -> tuple[Step, ...]:
    """Connectivity goes, what allowed it stays."""
    steps = plan(want, have, **more)
    goes = any(isinstance(step, Remove) for step in steps)
    return tuple(step for step in steps if not (goes and isinstance(step, Change)))


def _switched_at_once(rotation: Rotation) -> Iterator[Step]:
    old, _, switched, new = map(layout, rotation.chains)
    yield from plan(switched, old, beside=True)
    yield Prove(rotation.hop + 1)
    yield from plan(new, switched, beside=True)


def _switched_before_the_proof(rotation: Rotation) -> Iterator[Step]:
    steps = list(acts(rotation))
    proof = next(step for step in steps if isinstance(step, Prove))
    steps.remove(proof)
    yield from (*steps, proof)


def _old_one_goes_before_the_switch(rotation: Rotation) -> Iterator[Step]:
    old, trial, _, new = map(layout, rotation.chains)
    yield from plan(trial, old, beside=True)
    yield Prove(rotation.hop + 1)
    yield from plan(new, trial, beside=True)


def _old_one_goes_first(rotation: Rotation) -> Iterator[Step]:
    """The same slot, and the gate stays open meanwhile."""
    servers = tuple(7 if index == rotation.hop else 1 for index in range(len(rotation.old.hops)))
    new = make_chain(len(servers), servers=servers)
    yield from plan(layout(new), layout(rotation.old), beside=True)


Acts = Callable[[Rotation], Iterable[Step]]


def _by(planner: Planner = plan, lay_out: Layout = layout) -> Acts:
    return lambda rotation: acts(rotation, planner=planner, lay_out=lay_out)


BUGS: dict[str, Acts] = {
    "old tuples stay": _by(_without_removal_of(WireTuple)),
    "old client stays": _by(_without_removal_of(Client, TunnelConfig)),
    "old route stays": _by(_without_removal_of(Route)),
    "old tables stay": _by(_forgets_the_old_tables),
    "table replaced in two steps": _by(_planned(table_replaced_in_two_steps)),
    "source filter last": _by(_planned(_source_filter_last)),
    "unreachable routes last": _by(_planned(_unreachable_last)),
    "carries at once": _switched_at_once,
    "carries before the proof": _switched_before_the_proof,
    "old one goes before the new one carries": _old_one_goes_before_the_switch,
    "old one goes first, the gate stays open": _old_one_goes_first,
}


def _examine(how: Acts) -> None:
    for hops, hop in ((2, 0), (2, 1)):
        rotation = Rotation(make_chain(hops), hop)
        reach = Reach(*rotation.chains)
        *_, end = walk_beside(_running(rotation.old), rotation, reach, steps=how(rotation))
        check_is_up(end, rotation.new, layout(rotation.new), reach)
        left = _naming_old_server(end, rotation)
        if left:
            raise WrongError(f"of the old server is left: {left}")


def test_the_examination_is_passed_without_a_bug() -> None:
    _examine(acts)


@pytest.mark.parametrize("name", BUGS)
def test_a_seeded_bug_is_found(name: str) -> None:
    with pytest.raises(WrongError):
        _examine(BUGS[name])
