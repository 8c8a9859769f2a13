"""What to do so that the parts that exist become the parts that should.

Pure. The supervisor hands in what `layout` wants and what the drivers saw, and executes the
steps one by one; killed after any of them, the next plan starts from what is there then.
Three rules order every plan: the gate is shut before anything is touched that carries or judges
what leaves, and opened after everything is proved; what carries traffic is taken away before what
judges it; parts come into being in the order of the layout, policy before connectivity.
"""

from __future__ import annotations

from collections.abc import Collection, Iterable, Mapping, Sequence
from dataclasses import dataclass, replace
from typing import TypeAlias, assert_never

from chainctl.model.parts import (
    HOST,
    PANEL,
    Address,
    Client,
    ClientBridge,
    ClientPolicy,
    DockerNetwork,
    DockerRule,
    FarEnd,
    ForeignLink,
    Forwarding,
    KernelWireGuard,
    Key,
    LanLeg,
    Leg,
    Namespace,
    NftTable,
    NsName,
    Part,
    PortFilter,
    PortName,
    PortRow,
    Route,
    Rule,
    RuntimeKind,
    Tun,
    TunFilter,
    TunnelConfig,
    Up,
    WireTuple,
    client_key,
)
from chainctl.net.guard import PUBLISHED_TABLE


@dataclass(frozen=True)
class CloseGate:
    """Nothing passes from the LAN from here on."""


@dataclass(frozen=True)
class Make:
    part: Part


@dataclass(frozen=True)
class Change:
    """In place, without a moment in which neither the old nor the new is in force."""

    old: Part
    new: Part


@dataclass(frozen=True)
class Remove:
    part: Part


@dataclass(frozen=True)
class Prove:
    """The hop answered a two-way probe through its tunnel."""

    hop: int


@dataclass(frozen=True)
class OpenGate:
    """Traffic may pass for as long as the proof is fresh."""


Step: TypeAlias = CloseGate | Make | Change | Remove | Prove | OpenGate


def plan(
    want: Sequence[Part],
    have: Iterable[Part],
    *,
    hops: Sequence[int] = (),
    shared: Collection[Key] = (),
    gate_open: bool = False,
    open_wanted: bool = True,
    proved: bool = True,
    beside: bool = False,
) -> tuple[Step, ...]:
    """The steps from `have` to `want`; empty when there is nothing to do.

    `hops`: numbers to prove, outside-in, before the gate opens (none: it stays shut).
    `shared`: keys that other chains need too; they are made, changed, never removed.
    `beside`: the change does not touch what carries traffic (a tunnel comes up or goes in the
    other slot, or traffic is sent to it in one transaction), so the gate stays as it is.
    `gate_open`: the gate lets traffic pass now. `open_wanted`: it should. `proved`: it does so
    for a while yet, and on a proof of whoever asks.
    """
    have = tuple(have)
    steps = _repairs(want, have, shared)
    if beside:
        return tuple(steps)
    opens = bool(hops) and open_wanted
    disturbs = not all(map(_is_beside_traffic, steps))
    closing: list[Step] = [CloseGate()] if gate_open and (disturbs or not opens) else []
    proving: list[Step] = []
    if opens and (disturbs or not (gate_open and proved)):
        proving = [*(Prove(number) for number in sorted(hops)), OpenGate()]
    return (*closing, *steps, *proving)


def _is_beside_traffic(step: Step) -> bool:
    """It is about containers and devices of the LAN alone, and nobody's way out."""
    if not isinstance(step, Make | Change | Remove):
        return False
    part = step.new if isinstance(step, Change) else step.part
    return isinstance(part, DockerNetwork) or (
        isinstance(part, NftTable) and part.table == PUBLISHED_TABLE
    )


def _repairs(want: Sequence[Part], have: Sequence[Part], shared: Collection[Key]) -> list[Step]:
    """Removals, connectivity first; then what is missing or different, policy first."""
    wanted = {part.key: part for part in want}
    ports = _ports(have)
    doomed = {
        part.key
        for part in have
        if part.key not in shared
        and (part.key not in wanted or _must_be_replaced(part, wanted[part.key]))
    }
    # A namespace that is replaced may live on for a moment, and its links with it.
    doomed |= {
        part.key for part in have if isinstance(part, Leg) and _goes_with(part, ports) & doomed
    }
    doomed |= _orphaned_clients(have, doomed)
    removed = [part for part in have if part.key in doomed]
    # What goes with its namespace or link needs no step, unless it lets traffic pass.
    steps: list[Step] = [
        Remove(part)
        for part in sorted(removed, key=_removal_rank)
        if _carries_traffic(part) or not _goes_with(part, ports) & doomed
    ]
    dropped = _dropped_routes(have, doomed)
    standing = {
        part.key: part
        for part in have
        if part.key not in doomed | dropped and not _goes_with(part, ports) & doomed
    }
    for part in want:
        current = standing.get(part.key)
        if current is None:
            steps.append(Make(part))
        elif current != part:
            steps.append(Change(current, part))
    return steps


def _dropped_routes(have: Sequence[Part], doomed: Collection[Key]) -> set[Key]:
    """What the kernel drops with addresses: with the last one of a link every route by the link
    (fib_disable_ip), with any the routes that prefer it as source (fib_sync_down_addr).
    """
    addresses = [part for part in have if isinstance(part, Address)]
    kept = {(part.ns, part.link) for part in addresses if part.key not in doomed}
    removed = [part for part in addresses if part.key in doomed]
    bare = {(part.ns, part.link) for part in removed} - kept
    sources = {(part.ns, part.interface.ip) for part in removed}
    return {
        part.key
        for part in have
        if isinstance(part, Route)
        and ((part.ns, part.link) in bare or (part.ns, part.source) in sources)
    }


def _ports(have: Iterable[Part]) -> dict[PortName, Key]:
    """The part with which each port goes; one whose leg is lost is a foreign link itself."""
    ports: dict[PortName, Key] = {}
    for part in have:
        if isinstance(part, Leg):
            ports[part.port] = part.key
        elif isinstance(part, ForeignLink) and part.ns == PANEL:
            ports[PortName(part.link)] = part.key
    return ports


def _orphaned_clients(have: Sequence[Part], doomed: Collection[Key]) -> set[Key]:
    """Clients whose TUN is gone or goes: they hold a descriptor of a device nobody sees."""
    links = {
        part.key
        for part in have
        if isinstance(part, Tun) and not {part.key, *_namespace(part.ns)} & set(doomed)
    }
    return {
        part.key
        for part in have
        if isinstance(part, Client) and ("link", part.ns, part.link) not in links
    }


def _must_be_replaced(old: Part, new: Part) -> bool:
    """There is no way to change it in place."""
    if old == new:
        return False
    if type(old) is not type(new):
        return True
    match old, new:
        case Leg(), Leg():
            return old.port != new.port
        case Tun(), Tun():
            return old.uid != new.uid
        case Namespace(), Namespace():
            return old.runtime is not new.runtime
        case Route(), Route():
            return replace(old, mtu=new.mtu) != new
        case ((LanLeg() | Address() | Up() | Rule() | Client() | ForeignLink()), _):
            return True
        case _:
            return False


def _goes_with(part: Part, ports: Mapping[PortName, Key]) -> set[Key]:
    """Keys of the parts with which the kernel takes this one away."""
    match part:
        case (
            Namespace()
            | DockerRule()
            | ClientPolicy()
            | Client()
            | ClientBridge()
            | DockerNetwork()
        ):
            return set()
        case Forwarding(link):
            return {("link", HOST, link)}
        case PortFilter(port) | PortRow(port=port) | WireTuple(port=port):
            return {ports[port]} if port in ports else set()
        case FarEnd(port, far):
            return {ports[end] for end in (port, far) if end in ports}
        case Up(ns, link) if ns == PANEL:
            port = PortName(link)
            return {ports[port]} if port in ports else set()
        case Leg() | NftTable() | Tun() | LanLeg() | KernelWireGuard() | ForeignLink() | Rule():
            return _namespace(part.ns)
        case Address() | Up() | TunFilter():
            return _namespace(part.ns) | {("link", part.ns, part.link)}
        case Route():
            return _namespace(part.ns) | ({("link", part.ns, part.link)} if part.link else set())
        case TunnelConfig():
            clients = {client_key(part.name, runtime) for runtime in RuntimeKind}
            return clients | {("link", part.ns, part.link)}
        case _:
            assert_never(part)


def _namespace(ns: NsName) -> set[Key]:
    return set() if ns == HOST else {("namespace", ns)}


def _carries_traffic(part: Part) -> bool:
    return isinstance(part, Client | Leg | LanLeg | ForeignLink) or (
        isinstance(part, Up) and part.ns == PANEL
    )


_REMOVAL_ORDER: tuple[type, ...] = (
    Up,
    Client,
    ForeignLink,
    LanLeg,
    Forwarding,
    TunnelConfig,
    DockerNetwork,
    ClientBridge,
    Leg,
    Route,
    Address,
    Tun,
    KernelWireGuard,
    TunFilter,
    PortFilter,
    WireTuple,
    FarEnd,
    PortRow,
    ClientPolicy,
    Rule,
    DockerRule,
    Namespace,
    NftTable,
)


def _removal_rank(part: Part) -> tuple[int, int]:
    """Connectivity first, policy last; the panel after everything that ends in it."""
    # "Unreachable" outlives what it stands behind, like the rules.
    kind = Rule if isinstance(part, Route) and part.link is None else type(part)
    return (_REMOVAL_ORDER.index(kind), isinstance(part, Namespace) and part.name == PANEL)
