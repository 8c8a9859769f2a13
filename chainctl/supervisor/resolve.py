"""What should be: from the chain file and the facts to a chain with every number in it. Pure."""

from __future__ import annotations

import random
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, field, replace
from ipaddress import IPv4Address
from typing import Any

from chainctl.errors import ChangeServer, MendHost
from chainctl.model.chain import (
    LEGS_PER_CHAIN,
    MINIMUM_MTU,
    WIREGUARD_OVERHEAD,
    Chain,
    Engine,
    Hop,
    Lan,
    Place,
    Slot,
    Tunnel,
    Uplink,
    source_port,
)
from chainctl.model.clients import NO_DOCKER, DockerSeen, Published, find_member
from chainctl.model.facts import Known, LinkFacts, NetworkFacts
from chainctl.model.independence import Independence
from chainctl.model.openvpn import OpenVpnConfig
from chainctl.model.parts import LanMode, RuntimeKind
from chainctl.model.pushed import Pushed
from chainctl.model.selection import HopSelection
from chainctl.model.wireguard import WireGuardConfig
from chainctl.spec.model import ChainSpec, HopSpec, LanSpec, OpenVpnServer, ServerProfile
from chainctl.spec.pins import address_of, usable
from chainctl.supervisor.choose import Candidate, NoCandidate, admissible
from chainctl.supervisor.path import NoPath, choose_path


@dataclass(frozen=True)
class Facts:
    """What `resolve` has to know beside the chain file."""

    number: int
    network: NetworkFacts
    selection: Mapping[str, HopSelection]
    """By hop name, as chosen earlier. A hop or server that is no more is passed over."""
    names: Mapping[str, IPv4Address]
    """Host names of endpoints -> the addresses they are pinned to."""
    engine: Engine
    image: str
    """Digest of the image clients run from."""
    forwarded_before: bool
    runtime: RuntimeKind = RuntimeKind.EMBEDDED
    guards: tuple[IPv4Address, ...] = ()
    """Whom to use as guard, in this order, while none was chosen; empty: as the file has them."""
    path_mtus: Mapping[str, int] = field(default_factory=dict)
    """`Chain.path` -> bytes, as measured; on other paths the interface's own MTU counts."""
    openvpn_image: str = ""
    """Digest as `image`, for OpenVPN."""
    pushed: Mapping[tuple[str, Slot], Pushed] = field(default_factory=dict)
    """What OpenVPN servers said, by hop name and slot."""
    docker: DockerSeen = NO_DOCKER


def resolve(spec: ChainSpec, facts: Facts) -> Chain:
    """Raises MendHost when the machine lacks a named interface, ChangeServer C403 when no
    server is left for a hop.
    """
    if (facts.number + 1) * LEGS_PER_CHAIN > spec.wires.num_addresses:
        raise MendHost(
            "C401",
            f"{spec.wires} has no room for the addresses of chain number {facts.number + 1}",
            hint=f"take a larger network for wires: each chain needs {LEGS_PER_CHAIN} addresses",
        )
    uplink = _uplink(spec, facts)
    selection = settle(spec, facts.selection, facts.names, facts.guards)
    hops = tuple(
        _hop(facts, number, hop, selection[hop.name])
        for number, hop in enumerate(spec.hops, start=1)
    )
    chain = Chain(
        name=spec.name,
        number=facts.number,
        lans=tuple(
            _lan(f"lan{number}", lan, facts.network) for number, lan in enumerate(spec.lans)
        ),
        uplink=uplink,
        hops=hops,
        wires=spec.wires,
        resolver=spec.dns_upstream or hops[-1].tunnel.resolver,
        path_mtu=uplink.mtu,
        runtime=facts.runtime,
    )
    chain = with_containers(chain, spec, facts.docker)
    return with_path_mtu(chain, min(_path_mtu(chain, facts.path_mtus), uplink.mtu))


def with_containers(chain: Chain, spec: ChainSpec, docker: DockerSeen) -> Chain:
    """The chain as it is with these containers in its network.

    Without a daemon that answers it comes up all the same, and its network for containers when
    there is one.
    """
    joined = docker.answers or docker.made
    lans = tuple(
        replace(lan, joined=joined) if lan.mode is LanMode.DOCKER else lan for lan in chain.lans
    )
    return replace(chain, lans=lans, published=tuple(_published(chain, spec, docker)))


def _published(chain: Chain, spec: ChainSpec, docker: DockerSeen) -> Iterator[Published]:
    own = chain.own_network
    for wish in spec.publish:
        gateways = tuple(lan.address.ip for lan in chain.devices)
        found = find_member(wish.client, docker.members, spec.clients)
        # Docker says the address, and what it says leads nowhere else than to its network.
        to = found.address if found and own and found.address in own.address.network else None
        yield Published(wish, (wish.at,) if wish.at else gateways, to)


def _path_mtu(chain: Chain, known: Mapping[str, int]) -> int:
    """As measured on this path; else the smallest of the same uplink, where PPPoE and the like
    take their share of every path.
    """
    uplink = chain.path.rpartition(" ")[0]
    alike = [mtu for path, mtu in known.items() if path.rpartition(" ")[0] == uplink]
    return known.get(chain.path, min(alike, default=chain.uplink.mtu))


def with_path_mtu(chain: Chain, path_mtu: int) -> Chain:
    """The chain as it is when packets of so many bytes reach its first server.

    Raises MendHost C402 when the hops leave too little of them.
    """
    chain = replace(chain, path_mtu=path_mtu)
    if chain.mtu < MINIMUM_MTU:
        raise MendHost(
            "C402",
            f"{len(chain.hops)} hops leave packets of {chain.mtu} bytes, less than the"
            f" {MINIMUM_MTU} that IPv4 needs",
            hint=f"each hop takes {WIREGUARD_OVERHEAD} bytes or more: use fewer hops",
        )
    return chain


def settle(
    spec: ChainSpec,
    selection: Mapping[str, HopSelection],
    names: Mapping[str, IPv4Address],
    guards: Sequence[IPv4Address] = (),
) -> dict[str, HopSelection]:
    """The selection as far as pools and rules still allow it, filled up with the first of
    `guards` that leaves servers for all hops, preferred servers, and in the file's order.

    Raises ChangeServer C403 with the first rule that cannot be met.
    """
    pools = [_preferred_first(hop, candidates(hop, names)) for hop in spec.hops]
    earlier = [selection.get(hop.name, HopSelection()) for hop in spec.hops]
    kept = {
        number: candidate
        for number, (pool, chosen) in enumerate(zip(pools, earlier, strict=True))
        for candidate in pool
        if candidate.server == chosen.server
    }
    path = _choose(pools, kept, guards, spec.independent)
    if isinstance(path, NoPath):
        raise ChangeServer(
            "C403",
            path.reason.detail,
            hint="add a server to this hop's pool, or relax independent: in the chain file",
            where=f"hop {spec.hops[path.hop].name}",
        )
    settled = {}
    used = dict(enumerate(path))
    spares: dict[int, Candidate] = {}
    for number, (hop, pool, chosen) in enumerate(zip(spec.hops, pools, earlier, strict=True)):
        servers = {chosen.active: used[number].server}
        spare = [each for each in pool if each.server == chosen.servers.get(chosen.spare)]
        if used[number] in spare and not chosen.is_twice:
            spare = []
        others = [each for taken in (used, spares) for at, each in taken.items() if at != number]
        left = admissible(spare, others, rules=spec.independent)
        if not isinstance(left, NoCandidate):
            spares[number] = left[0]
            servers[chosen.spare] = left[0].server
        settled[hop.name] = HopSelection(chosen.active, servers)
    return settled


def _choose(
    pools: Sequence[tuple[Candidate, ...]],
    kept: Mapping[int, Candidate],
    guards: Sequence[IPv4Address],
    rules: Independence,
) -> tuple[Candidate, ...] | NoPath:
    def among(first: tuple[Candidate, ...]) -> tuple[Candidate, ...] | NoPath:
        return choose_path(
            [first, *pools[1:]], kept=kept, rules=rules, strikes={}, now=0.0, dice=_FileOrder()
        )

    # Of several on one address the first.
    there = {candidate.address: candidate for candidate in reversed(pools[0])}
    order = tuple(there[address] for address in guards if address in there)
    if 0 in kept or not order:
        return among(pools[0])
    # The guard is the hop that is to change least, so the others fit themselves to it.
    for guard in order:
        path = among((guard,))
        if not isinstance(path, NoPath):
            return path
    return among(order)


def _preferred_first(hop: HopSpec, pool: tuple[Candidate, ...]) -> tuple[Candidate, ...]:
    return tuple(sorted(pool, key=lambda candidate: candidate.server != hop.prefer))


class _FileOrder(random.Random):
    """Dice that leave equals in the order they are in: what is listed first is used first."""

    def sample(self, population: Any, k: int, *, counts: Any = None) -> list[Any]:
        return list(population)[:k]


def candidates(hop: HopSpec, names: Mapping[str, IPv4Address]) -> tuple[Candidate, ...]:
    """What a hop may choose from, as `choose` wants it."""
    return tuple(
        Candidate(
            profile.name,
            address,
            operator=profile.labels.operator,
            country=profile.labels.country,
            asn=profile.labels.asn or hop.asns.lookup(address),
        )
        for profile, address in usable(hop, names)
    )


def _hop(facts: Facts, number: int, spec: HopSpec, chosen: HopSelection) -> Hop:
    profiles = {profile.name: profile for profile in spec.pool}
    tunnels = tuple(
        _tunnel(facts, number, spec.name, profiles[server], slot)
        for slot, server in sorted(chosen.servers.items(), key=lambda pair: pair[0].value)
    )
    return Hop(number, spec.name, tunnels, chosen.active)


def _tunnel(facts: Facts, number: int, hop: str, profile: ServerProfile, slot: Slot) -> Tunnel:
    server = address_of(profile, facts.names)
    assert server is not None, "settle passes over servers without an address"
    port = source_port(facts.number, number, slot)
    if isinstance(profile, OpenVpnServer):
        pushed = facts.pushed.get((hop, slot))
        return _openvpn(profile, server, port, slot, pushed, facts.openvpn_image)
    config = WireGuardConfig(
        private_key=profile.private_key,
        listen_port=port,
        peer_public_key=profile.peer_public_key,
        preshared=profile.preshared,
        endpoint=server,
        endpoint_port=profile.endpoint.port,
        keepalive=profile.keepalive or _KEEPALIVE,
    )
    return Tunnel(
        server=profile.name,
        slot=slot,
        address=profile.addresses[0].ip,
        resolver=profile.dns[0] if profile.dns else None,
        config=config,
        engine=facts.engine,
        image=facts.image,
        mtu_limit=profile.mtu,
    )


def _openvpn(
    profile: OpenVpnServer,
    server: IPv4Address,
    port: int,
    slot: Slot,
    pushed: Pushed | None,
    image: str,
) -> Tunnel:
    # What another server said says nothing about this one.
    said = pushed if pushed and pushed.server == profile.name else None
    resolver = profile.dns[0] if profile.dns else said.resolver if said else None
    return Tunnel(
        server=profile.name,
        slot=slot,
        address=said.address if said else None,
        resolver=resolver,
        config=OpenVpnConfig(
            endpoint=server,
            endpoint_port=profile.endpoint.port,
            protocol=profile.protocol,
            source_port=port,
            profile=profile.profile,
        ),
        engine=Engine.OPENVPN,
        image=image,
        mtu_limit=profile.mtu,
    )


_KEEPALIVE = 25
"""Seconds; what wg(8) recommends behind NAT, and what starts the handshake at once."""


def _uplink(spec: ChainSpec, facts: Facts) -> Uplink:
    network = facts.network
    route = network.default_route
    name = spec.wan.interface or (route.link if route else None)
    if name is None:
        raise MendHost(
            "C330",
            "this machine has no IPv4 default route, so there is no way to the first server",
            hint="connect it, or name the interface: wan: {interface: …}",
        )
    link = network.link(name)
    if link is None:
        raise MendHost(
            "C331",
            f"there is no interface {name!r} for the uplink",
            hint=f"this machine has: {_names(network)}",
        )
    if spec.wan.mode is not None:
        return Uplink(name, link.mtu, True, False, _place(spec, link, network))
    firewall = network.firewall
    if firewall.forward_drops and not firewall.docker_user:
        raise MendHost(
            "C332",
            f"{', '.join(firewall.forward_drops)} drops forwarded packets, and no rule of ours"
            " can undo that",
            hint=f"let it accept what comes from and goes to the interface chain{facts.number}",
        )
    return Uplink(name, link.mtu, facts.forwarded_before, firewall.docker_user)


def _place(spec: ChainSpec, link: LinkFacts, network: NetworkFacts) -> Place:
    mode, own = spec.wan.mode, spec.wan.address
    assert mode is not None, "asked for with a mode alone"
    assert own is not None, "the chain file was refused without"
    if mode is LanMode.BRIDGE and link.kind != "bridge":
        raise MendHost(
            "C331",
            f"{link.name} is no bridge",
            hint="name the bridge: wan: {interface: …}, or take mode: macvlan",
        )
    firewall = network.firewall
    if mode is LanMode.BRIDGE and firewall.bridge_calls_iptables and firewall.forward_drops:
        raise MendHost(
            "C336",
            f"{', '.join(firewall.forward_drops)} drops forwarded packets, and this machine has it"
            f" judge also what passes the bridge {link.name}",
            hint="sysctl -w net.bridge.bridge-nf-call-iptables=0, or take mode: macvlan",
        )
    if mode is LanMode.MACVLAN and link.wireless.known is Known.YES:
        raise MendHost(
            "C334",
            f"{link.name} is a Wi-Fi interface: its access point takes frames from one address"
            " only, so the chain cannot have one of its own there",
            hint="take mode: nat",
        )
    route = network.default_route
    theirs = route.gateway if route and route.link == link.name else None
    router = spec.wan.router or theirs
    if not isinstance(router, IPv4Address) or router not in own.network:
        raise MendHost(
            "C335",
            f"nobody says who leads from {own.network} to the internet",
            hint="name the router: wan: {router: …}",
        )
    return Place(mode, own, router)


def _lan(name: str, lan: LanSpec, network: NetworkFacts) -> Lan:
    if lan.mode is not None and lan.mode.own:
        return Lan(name, lan.interface, lan.address, lan.mode)
    link = network.link(lan.interface)
    if link is None:
        raise MendHost(
            "C333",
            f"there is no interface {lan.interface!r} for the LAN",
            hint=f"this machine has: {_names(network)}",
        )
    mode = lan.mode or (LanMode.BRIDGE if link.kind == "bridge" else LanMode.MACVLAN)
    if mode is LanMode.MACVLAN and link.wireless.known is Known.YES:
        raise MendHost(
            "C334",
            f"{lan.interface} is a Wi-Fi interface: its access point takes frames from one"
            " address only, so the gateway cannot have one of its own there",
            hint="connect the LAN by cable",
        )
    return Lan(name, lan.interface, lan.address, mode)


def _names(network: NetworkFacts) -> str:
    return ", ".join(sorted(link.name for link in network.links if link.name != "lo"))
