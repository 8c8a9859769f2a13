"""What a supervisor may find: part of a chain, parts of an older one, and what others left."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, replace
from enum import Enum
from ipaddress import IPv4Address, IPv4Interface

from hypothesis import strategies as st

from chainctl.model.chain import Chain
from chainctl.model.parts import (
    PANEL,
    Address,
    Client,
    ClientPolicy,
    FarEnd,
    ForeignLink,
    LanLeg,
    Leg,
    Namespace,
    NftTable,
    NsName,
    Part,
    PortName,
    PortRow,
    Route,
    Rule,
    Tun,
    TunFilter,
    TunnelConfig,
    WireTuple,
)
from chainctl.net.guard import TABLE
from chainctl.net.layout import layout
from chainctl.net.tables import CHANGED
from tests.unit.supervisor.chains import chains
from tests.unit.supervisor.world import World


class Fate(Enum):
    KEPT = 1
    LOST = 2
    OLDER = 3
    CHANGED = 4


@dataclass(frozen=True)
class Found:
    """`chain` should be; `older` was once; `world` is what there is."""

    chain: Chain
    older: Chain
    world: World


_FATES = st.sampled_from([Fate.KEPT] * 9 + [Fate.LOST, Fate.OLDER, Fate.CHANGED])


@st.composite
def debris(draw: st.DrawFn, max_hops: int = 3) -> Found:
    """A random part of a chain, with parts of an older one, changed parts, foreign links."""
    chain = draw(chains(max_hops, number=0))
    older = draw(chains(max_hops, number=0))
    new, old = ({part.key: part for part in layout(one)} for one in (chain, older))
    keys = list({**new, **old})
    fates = draw(st.lists(_FATES, min_size=len(keys), max_size=len(keys)))
    parts: list[Part] = []
    for key, fate in zip(keys, fates, strict=True):
        match fate:
            case Fate.KEPT if key in new:
                parts.append(new[key])
            case Fate.OLDER if key in old:
                parts.append(old[key])
            case Fate.CHANGED:
                parts += changed(new.get(key) or old[key])
    parts += draw(st.lists(_foreign_links(chain), max_size=2))
    world = World(_each_port_once(parts))
    if ("port", chain.gateway_port) in world.parts and draw(st.booleans()):
        world.filter_gate_open = True
        world.table_gate_open = ("nft", chain.gateway, TABLE) in world.parts
        world.proved = {hop.number for hop in (*chain.hops, *older.hops)}
    return Found(chain, older, world)


def _foreign_links(chain: Chain) -> st.SearchStrategy[ForeignLink]:
    places = [PANEL, chain.gateway, *(chain.namespace(hop) for hop in chain.hops)]
    return st.builds(
        ForeignLink,
        ns=st.sampled_from(places),
        link=st.sampled_from(("evil0", "tunA", "in0", "lan0")),
        kind=st.sampled_from(("veth", "")),
    )


def _each_port_once(parts: Sequence[Part]) -> list[Part]:
    """A name is there once in a namespace, and a key once in a world."""
    names: set[PortName] = set()
    found: dict[tuple[str, ...], Part] = {}
    for part in parts:
        if isinstance(part, Leg):
            if part.port in names:
                continue
            names.add(part.port)
        found.setdefault(part.key, part)
    return list(found.values())


def changed(part: Part) -> list[Part]:
    """The same thing with another content, as an administrator or an accident leaves it."""
    match part:
        case Namespace():
            return [replace(part, forwarding=not part.forwarding)]
        case NftTable():
            return [replace(part, rules=CHANGED)]
        case Leg(port=port):
            return [replace(part, mtu=part.mtu - 100, port=PortName(f"{port}x"))]
        case LanLeg(ns, link):
            return [ForeignLink(ns, link, "dummy")]
        case Tun(uid=uid):
            return [replace(part, uid=uid + 1)]
        case Address(ns, link):
            return [part, Address(ns, link, IPv4Interface("203.0.113.77/32"))]
        case Route():
            return [replace(part, link=None, source=None)]
        case Rule():
            return [replace(part, iif="", mark=None, table=254)]
        case PortRow():
            return [replace(part, address=IPv4Address("203.0.113.77"))]
        case FarEnd(port):
            return [replace(part, far=port)]
        case WireTuple(fragments=fragments):
            return [replace(part, fragments=not fragments), replace(part, source_port=1)]
        case ClientPolicy(scope):
            return [ClientPolicy(scope, (), (), ())]
        case TunFilter():
            return [replace(part, address=IPv4Address("203.0.113.77"))]
        case Client():
            return [Client(part.name, NsName("?"), "?", -1, "?")]
        case TunnelConfig():
            return [replace(part, digest="another")]
        case _:
            return [part]
