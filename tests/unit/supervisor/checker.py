"""Finds what is wrong with a plan: walks it through a `World`, and breaks things on the way.

Used by the property tests, by the exhaustive ones, and with seeded bugs, which it has to find.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator, Sequence

from chainctl.model.chain import Chain, Engine, Hop
from chainctl.model.parts import (
    HOST,
    PANEL,
    Client,
    Forwarding,
    KernelWireGuard,
    LanLeg,
    Leg,
    Part,
    PortFilter,
    PortName,
    Route,
    Rule,
    Tun,
    TunnelConfig,
    Up,
)
from chainctl.net.guard import TABLE
from chainctl.net.layout import layout
from chainctl.supervisor.plan import Make, OpenGate, Prove, Step, plan
from tests.unit.supervisor.reach import UPLINK, Arrival, Reach
from tests.unit.supervisor.world import ImpossibleError, World

Planner = Callable[..., tuple[Step, ...]]
Layout = Callable[[Chain], tuple[Part, ...]]
Fault = tuple[str, Callable[[World], None]]


class WrongError(AssertionError):
    """The plan broke a promise."""


def hop_numbers(chain: Chain) -> list[int]:
    return [hop.number for hop in chain.hops]


def walk(
    world: World,
    steps: Sequence[Step],
    reach: Reach,
    *,
    faults: Callable[[World], Iterable[Fault]] = lambda world: (),
    allowed: frozenset[str] = frozenset(),
    by_leaks_alone: bool = False,
) -> Iterator[World]:
    """Take the steps one by one; yields the world before each, and at the end.

    Raises WrongError when a step is impossible, something leaks or is out of order, also when
    any of `faults(world)` strikes at that moment. `allowed`: what was so before the plan.
    `by_leaks_alone`: do not look at the order, and let the gate open when it will.
    """
    wrong = _leaks if by_leaks_alone else bad_things
    _check(world, reach, wrong, allowed, "at first", faults)
    yield world
    for number, step in enumerate(steps):
        if isinstance(step, Prove):
            _check_proof(world, reach, step.hop)
        early = isinstance(step, OpenGate) and not _all_proved(world, steps)
        if early and not by_leaks_alone:
            raise WrongError("the gate opens before every hop is proved")
        if isinstance(step, Make) and not by_leaks_alone:
            _check_wired(world, step.part)
        try:
            world.take(step)
        except ImpossibleError as error:
            raise WrongError(f"step {number}, {step}: {error}") from None
        _check(world, reach, wrong, allowed, f"after step {number}, {step}", faults)
        yield world


def go(world: World, steps: Sequence[Step], reach: Reach) -> World:
    """The whole plan, without looking for leaks; raises WrongError for an impossible step."""
    for number, step in enumerate(steps):
        if isinstance(step, Prove):
            _check_proof(world, reach, step.hop)
        try:
            world.take(step)
        except ImpossibleError as error:
            raise WrongError(f"step {number}, {step}: {error}") from None
    return world


def bad_things(world: World, reach: Reach) -> frozenset[str]:
    return _leaks(world, reach) | frozenset(disorder(world))


def _leaks(world: World, reach: Reach) -> frozenset[str]:
    return frozenset(str(leak) for leak in reach.leaks(world))


def single_faults(world: World) -> Iterator[Fault]:
    """Each part lost, each port's filter replaced by one that lets everything cross."""
    for part in list(world.parts.values()):
        yield f"{part.key} is lost", lambda world, key=part.key: world.lose(key)  # type: ignore[misc]
        if isinstance(part, PortFilter):
            yield (
                f"the filter of {part.port} lets all pass",
                lambda world, port=part.port: world.passing.add(port),  # type: ignore[misc]
            )


def struck(world: World, fault: Fault) -> World:
    broken = world.copy()
    fault[1](broken)
    return broken


def check_converges(
    world: World,
    chain: Chain,
    reach: Reach,
    *,
    planner: Planner = plan,
    lay_out: Layout = layout,
) -> None:
    """From what is there the chain comes up, and then there is nothing left to do."""
    want = lay_out(chain)
    arguments = {"hops": hop_numbers(chain), "gate_open": world.filter_gate_open}
    end = go(world.copy(), planner(want, world.parts.values(), **arguments), reach)
    check_is_up(end, chain, want, reach)
    again = planner(want, end.parts.values(), hops=hop_numbers(chain), gate_open=True)
    if again:
        raise WrongError(f"a second plan finds more to do: {again[0]}")


def check_is_up(world: World, chain: Chain, want: Sequence[Part], reach: Reach) -> None:
    missing = set(want) - set(world.parts.values())
    surplus = set(world.parts.values()) - set(want)
    if missing or surplus:
        raise WrongError(f"does not converge: missing {missing}, surplus {surplus}")
    if not world.filter_gate_open or not world.table_gate_open:
        raise WrongError("the gate stays shut")
    if not carries(world, reach, chain):
        raise WrongError("it is up, and carries nothing")


def check_goes_down(world: World, reach: Reach, *, planner: Planner = plan) -> None:
    steps = planner((), world.parts.values(), gate_open=world.filter_gate_open)
    end = go(world.copy(), steps, reach)
    if end.parts:
        raise WrongError(f"left behind: {list(end.parts)}")


def carries(world: World, reach: Reach, chain: Chain) -> bool:
    """A LAN device's packets get into every tunnel and to the uplink."""
    expected = {_next_place(chain, hop) for hop in _with_process(chain)}
    expected.add(Arrival("a LAN device", f"{chain.exit.tunnel.slot.link} of {_exit_ns(chain)}"))
    return expected <= reach.arrivals(world)


# What has to hold between parts, whatever is on its way.


def disorder(world: World) -> Iterator[str]:
    """Connectivity without its policy. What a crash may leave, and no step may make."""
    parts = world.parts
    for part in parts.values():
        for key in _demanded(part, world):
            if key not in parts:
                yield f"{part.key} without {key}"


def _demanded(part: Part, world: World) -> Iterator[tuple[str, ...]]:
    match part:
        case Leg(ns) if ns == HOST:
            name = part.port
            if not any(key[0] == "nft" and key[1] == HOST for key in world.parts):
                yield ("nft", HOST, f"a table for {name}")
        case Leg(ns) | LanLeg(ns) | Tun(ns) | KernelWireGuard(ns):
            yield ("nft", ns, TABLE)
        case Up(ns, link) if ns == PANEL:
            port = PortName(link)
            yield from (("filter", port), ("port", port))
        case Forwarding():
            if not any(key[0] == "nft" and key[1] == HOST for key in world.parts):
                yield ("nft", HOST, "a table")
        case Route(ns, table, link=str()) if ns != HOST:
            if not any(_is_unreachable_default(other, ns, table) for other in world.parts.values()):
                yield ("route", ns, str(table), "unreachable default")
        case Client(name, ns, link):
            yield from _demanded_by_client(ns, link, world)
        case TunnelConfig(name, ns, link):
            yield from _demanded_by_client(ns, link, world)
        case _:
            return


def _demanded_by_client(ns: str, link: str, world: World) -> Iterator[tuple[str, ...]]:
    if ("namespace", ns) not in world.parts:
        return
    yield ("nft", ns, TABLE)
    yield ("tunfilter", ns, link)
    if not any(
        isinstance(rule, Rule) and rule.ns == ns and rule.iif == "in0" and rule.table is None
        for rule in world.parts.values()
    ):
        yield ("rule", ns, "in0 unreachable")


def _is_unreachable_default(part: Part, ns: str, table: int) -> bool:
    return (
        isinstance(part, Route)
        and part.link is None
        and part.to.prefixlen == 0
        and part.metric > 0
        and (part.ns, part.table) == (ns, table)
    )


def _check(
    world: World,
    reach: Reach,
    find: Callable[[World, Reach], frozenset[str]],
    allowed: frozenset[str],
    when: str,
    faults: Callable[[World], Iterable[Fault]],
) -> None:
    wrong = find(world, reach) - allowed
    if wrong:
        raise WrongError(f"{when}: {sorted(wrong)[0]}")
    for fault in faults(world):
        leaks = _leaks(struck(world, fault), reach) - allowed
        if leaks:
            raise WrongError(f"{when}, when {fault[0]}: {sorted(leaks)[0]}")


def _check_proof(world: World, reach: Reach, number: int) -> None:
    """A probe comes back only when every hop out to this one carries packets."""
    chain = reach.chains[0]
    arrived = reach.arrivals(world)
    for hop in chain.hops[:number]:
        name = chain.client_name(hop, hop.tunnel.slot)
        config = world.parts.get(("config", name))
        digest = config.digest if isinstance(config, TunnelConfig) else None
        if digest != hop.tunnel.config.digest:
            raise WrongError(f"hop {number} is proved, but hop {hop.number} is not configured")
        if hop in _with_process(chain) and _next_place(chain, hop) not in arrived:
            raise WrongError(f"hop {number} is proved, but hop {hop.number} carries nothing")


def _check_wired(world: World, part: Part) -> None:
    """What carries traffic begins last, on a whole wire."""
    match part:
        case Up(ns, link) if ns == PANEL:
            if ("far", link) not in world.parts:
                raise WrongError(f"{link} goes up before its wire has another end")
        case Client(name, ns, link) | TunnelConfig(name, ns, link):
            for end in (link, "out0", "in0"):
                leg = world.parts.get(("link", ns, end))
                sides = [("up", ns, end)]
                sides += [("up", PANEL, leg.port)] if isinstance(leg, Leg) else []
                if any(side not in world.parts for side in sides):
                    raise WrongError(f"{name} begins before {end} is up on both sides")
        case _:
            return


def _all_proved(world: World, steps: Sequence[Step]) -> bool:
    return {step.hop for step in steps if isinstance(step, Prove)} <= world.proved != set()


def _with_process(chain: Chain) -> list[Hop]:
    """Only a client in a process is an attacker whose packets are followed."""
    return [hop for hop in chain.hops if hop.tunnel.engine is not Engine.KERNEL]


def _next_place(chain: Chain, hop: Hop) -> Arrival:
    if hop.number == 1:
        return Arrival(1, UPLINK)
    outer = chain.hops[hop.number - 2]
    return Arrival(hop.number, f"{outer.tunnel.slot.link} of {chain.namespace(outer)}")


def _exit_ns(chain: Chain) -> str:
    return chain.namespace(chain.exit)
