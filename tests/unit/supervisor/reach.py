"""Where packets get in a `World`: which of them leave it that should not.

Two layers judge independently, the identity filter by its rows and each namespace's nft table
by its text. A table is understood only as `chainctl.net.guard` writes it; one that is missing
or says anything else lets everything pass and rewrites nothing. A port that is up without a
filter hands its packets to the panel's own stack, and where the panel's table is missing too
they come out of every other port: worse than the kernel is.

Each packet is followed until it enters a tunnel or reaches the uplink. What a tunnel makes of
it needs no following: a VPN client counts as an attacker that sends what it likes, so also
what it should.
"""

from __future__ import annotations

import functools
from collections.abc import Iterable, Iterator
from dataclasses import dataclass, replace
from ipaddress import IPv4Address, IPv4Network

from chainctl.model.chain import WAN_LINK, Chain, Hop
from chainctl.model.parts import (
    HOST,
    PANEL,
    Address,
    Client,
    ClientPolicy,
    FarEnd,
    ForeignLink,
    LanLeg,
    Leg,
    NftTable,
    NsName,
    PortMode,
    PortName,
    PortRow,
    Route,
    Rule,
    TunFilter,
    WireTuple,
)
from chainctl.net import guard
from chainctl.net.layout import layout
from tests.unit.supervisor.world import World

_WEB = IPv4Address("9.9.9.8")
_PRIVATE = IPv4Address("10.1.1.1")
_STRANGER = IPv4Address("203.0.113.200")
_LOCAL_TABLE = 255
LAN, UPLINK = "a LAN device", "the uplink"


Ends = tuple[int, int, int, int]


@dataclass(frozen=True)
class Packet:
    """`maker`: a LAN device, or the VPN client of a hop (its number)."""

    maker: str | int
    source: IPv4Address
    source_port: int
    destination: IPv4Address
    destination_port: int

    @functools.cached_property
    def ends(self) -> Ends:
        return int(self.source), self.source_port, int(self.destination), self.destination_port


@dataclass(frozen=True)
class Leak:
    packet: Packet
    where: str

    def __str__(self) -> str:
        p = self.packet
        return self.said_of(f"{p.source}:{p.source_port} to {p.destination}:{p.destination_port}")

    def said_of(self, what: str) -> str:
        maker = self.packet.maker
        by = maker if isinstance(maker, str) else f"the client of hop {maker}"
        return f"{what}, made by {by}, gets into {self.where}"


@dataclass(frozen=True)
class Arrival:
    """What `maker` sends gets, as it should, into this tunnel or to the uplink."""

    maker: str | int
    where: str


class Reach:
    """`chains`: the one that should be, and older ones of which something may be left."""

    def __init__(self, *chains: Chain) -> None:
        self.chains = chains
        self.tables: dict[NftTable, Chain] = {}
        for chain in chains:
            for part in layout(chain):
                if isinstance(part, NftTable):
                    self.tables.setdefault(part, chain)
        self._flows: dict[tuple[int, int], dict[Ends, int]] = {
            (id(chain), hop.number): _flows(chain, hop) for chain in chains for hop in chain.hops
        }
        self.from_lan: dict[NsName, tuple[Packet, ...]] = {}
        self.from_clients: dict[NsName, tuple[Packet, ...]] = {}
        for chain in chains:
            sent = _tried(chain, LAN, (chain.clients[0][7], 40000))
            self.from_lan[chain.gateway] = (*self.from_lan.get(chain.gateway, ()), *sent)
            for hop in chain.hops:
                known = self.from_clients.get(chain.namespace(hop), ())
                packets = (*known, *_sent_by_client(chain, hop))
                self.from_clients[chain.namespace(hop)] = tuple(dict.fromkeys(packets))

    def uid_of(self, packet: Packet, chain: Chain, hop: Hop) -> int | None:
        """The uid of the tunnel whose exact tuple this is; None: it is of none of the hop's."""
        return self._flows[id(chain), hop.number].get(packet.ends)

    def leaks(self, world: World) -> set[Leak]:
        return _Look(self, world).leaks()

    def kinds(self, world: World) -> frozenset[str]:
        """Leaks without the difference between tunnels of one hop: who can forge the tuple of
        the one gets no further with that of the other.
        """
        return frozenset(map(self._kind, self.leaks(world)))

    def _kind(self, leak: Leak) -> str:
        for (_, hop), flows in self._flows.items():
            if leak.packet.ends in flows:
                return leak.said_of(f"a tuple of hop {hop}")
        return str(leak)

    def arrivals(self, world: World) -> set[Arrival]:
        """The control: what gets to where it belongs."""
        look = _Look(self, world)
        look.leaks()
        return look.arrived


class _Look:
    """One look at one world."""

    def __init__(self, reach: Reach, world: World) -> None:
        self._reach = reach
        self._chains = reach.chains
        self._world = world
        self._parts = world.parts
        self._legs: dict[PortName, Leg] = {}
        self._routes: dict[NsName, list[Route]] = {}
        self._rules: dict[NsName, list[Rule]] = {}
        self._tuples: dict[PortName, list[WireTuple]] = {}
        self._addresses: dict[tuple[NsName, str], IPv4Address] = {}
        self._clients: list[Client] = []
        self._foreign: list[ForeignLink] = []
        self._known: dict[tuple[NsName, str], Chain | None] = {}
        for part in self._parts.values():
            if isinstance(part, Route):
                self._routes.setdefault(part.ns, []).append(part)
            elif isinstance(part, WireTuple):
                self._tuples.setdefault(part.port, []).append(part)
            elif isinstance(part, Rule):
                self._rules.setdefault(part.ns, []).append(part)
            elif isinstance(part, Leg):
                self._legs[part.port] = part
            elif isinstance(part, Address):
                self._addresses.setdefault((part.ns, part.link), part.interface.ip)
            elif isinstance(part, Client):
                self._clients.append(part)
            elif isinstance(part, ForeignLink):
                self._foreign.append(part)
        for rules in self._rules.values():
            rules.sort(key=lambda rule: rule.priority)
        self._found: set[Leak] = set()
        self.arrived: set[Arrival] = set()
        self._seen: set[tuple[Packet, NsName, str]] = set()

    def leaks(self) -> set[Leak]:
        for ns, packets in self._reach.from_lan.items():
            lan = self._parts.get(("link", ns, "lan0"))
            if isinstance(lan, LanLeg) and ("up", ns, "lan0") in self._parts:
                for packet in packets:
                    self._arrive(packet, ns, "lan0")
        for client in self._clients:
            for packet in self._reach.from_clients.get(client.ns, ()):
                self._send(packet, client)
        return self._found

    def _send(self, packet: Packet, client: Client) -> None:
        """Bound to a link, a client does not need a route."""
        for link in ("out0", "in0"):
            if self._output_lets(packet, client, link):
                self._leave(packet, client.ns, link)
        if self._table(client.ns) is None:
            for foreign in self._foreign:
                if foreign.ns == client.ns:
                    self._note(packet, f"the foreign link {foreign.link}")

    # The second layer.

    def _table(self, ns: NsName, name: str = guard.TABLE) -> Chain | None:
        """The chain these rules were written for; None: no table, or one nobody knows."""
        if (ns, name) not in self._known:
            part = self._parts.get(("nft", ns, name))
            written = self._reach.tables.get(part) if isinstance(part, NftTable) else None
            self._known[ns, name] = written
        return self._known[ns, name]

    def _output_lets(self, packet: Packet, client: Client, link: str) -> bool:
        chain = self._table(client.ns)
        if chain is None:
            return True
        hop = _hop_in(chain, client.ns)
        return link == "out0" and self._reach.uid_of(packet, chain, hop) == client.uid

    def _arrive(self, packet: Packet, ns: NsName, link: str) -> None:
        if (packet, ns, link) in self._seen:
            return
        self._seen.add((packet, ns, link))
        if ns == HOST:
            self._arrive_at_host(packet, link)
            return
        chain = self._table(ns)
        mark: int | None = None
        tuns: tuple[str, ...] | None = None
        if chain is not None:
            if ns == chain.gateway:
                if link != "lan0" or not self._gateway_lets(packet, chain):
                    return
            elif ns == chain.uplink_namespace:
                if link != "in0" or self._reach.uid_of(packet, chain, chain.hops[0]) is None:
                    return
            else:
                hop = _hop_in(chain, ns)
                if link != "in0" or not self._hop_lets(packet, chain, hop):
                    return
                mark = hop.active.table
                tuns = tuple(tunnel.slot.link for tunnel in hop.tunnels)
        out = self._route(packet, ns, link, mark)
        if out is None or (tuns is not None and out not in tuns):
            return
        if out.startswith("tun"):
            self._enter_tunnel(packet, ns, out, chain)
        elif isinstance(self._parts.get(("link", ns, out)), ForeignLink):
            self._note(packet, f"the foreign link {out}")
        else:
            self._leave(packet, ns, out)

    def _gateway_lets(self, packet: Packet, chain: Chain) -> bool:
        return (
            self._world.table_gate_open
            and packet.source in chain.clients[0]
            and not _refused(packet, chain.resolver, guard.UNREACHABLE_FOR_CLIENTS)
        )

    def _hop_lets(self, packet: Packet, chain: Chain, hop: Hop) -> bool:
        if hop is chain.exit:
            return packet.source in chain.clients[0] and not _refused(
                packet, chain.resolver, guard.UNREACHABLE_FOR_CLIENTS
            )
        return self._reach.uid_of(packet, chain, chain.hops[hop.number]) is not None

    def _arrive_at_host(self, packet: Packet, link: str) -> None:
        if ("forwarding", link) not in self._parts:
            return
        for chain in self._chains:
            if chain.host_link != link:
                continue
            owner = self._table(HOST, f"{guard.TABLE}-{chain.name}")
            # Without a table of ours the host forwards everything.
            if owner is None or self._reach.uid_of(packet, owner, owner.hops[0]) is not None:
                self._reach_uplink(packet)

    # Routing.

    def _route(self, packet: Packet, ns: NsName, link: str, mark: int | None) -> str | None:
        for rule in self._rules.get(ns, ()):
            if rule.table == _LOCAL_TABLE or not _rule_matches(rule, link, mark):
                continue
            if rule.table is None:
                return None
            route = self._best(ns, rule.table, packet.destination)
            if route is not None:
                return route.link
        return None

    def _best(self, ns: NsName, table: int, destination: IPv4Address) -> Route | None:
        matching = [
            route
            for route in self._routes.get(ns, ())
            if route.table == table and destination in route.to
        ]
        return max(matching, key=lambda r: (r.to.prefixlen, -r.metric), default=None)

    # The wires.

    def _leave(self, packet: Packet, ns: NsName, link: str) -> None:
        leg = self._parts.get(("link", ns, link))
        if ("up", ns, link) not in self._parts:
            return
        if isinstance(leg, Leg):
            self._enter_port(packet, leg.port)
        elif isinstance(leg, LanLeg) and link == WAN_LINK:
            self._reach_uplink(packet)

    def _enter_port(self, packet: Packet, port: PortName) -> None:
        if ("up", PANEL, port) not in self._parts:
            return
        if ("filter", port) not in self._parts:
            if self._table(PANEL) is None:
                for other in self._legs:
                    if other != port:
                        self._come_out(packet, other)
            return
        if port in self._world.passing or self._filter_lets(packet, port):
            far = self._parts.get(("far", port))
            if isinstance(far, FarEnd):
                self._come_out(packet, far.far)

    def _filter_lets(self, packet: Packet, port: PortName) -> bool:
        row = self._parts.get(("port", port))
        if not isinstance(row, PortRow):
            return False
        if row.gate is not None and not self._world.filter_gate_open:
            return False
        if int(row.address) and packet.source != row.address:
            return False
        match row.mode:
            case PortMode.TUPLE:
                return any(
                    (wire.source, wire.source_port) == (packet.source, packet.source_port)
                    and (wire.destination, wire.destination_port)
                    == (packet.destination, packet.destination_port)
                    for wire in self._tuples.get(port, ())
                )
            case PortMode.CLIENT:
                policy = self._parts.get(("policy", str(row.scope)))
                return (
                    isinstance(policy, ClientPolicy)
                    and any(packet.source in network for network in policy.clients)
                    and not any(
                        _refused(packet, dns, policy.refused) for dns in policy.dns or (None,)
                    )
                )
            case PortMode.REPLY:
                return False

    def _come_out(self, packet: Packet, port: PortName) -> None:
        leg = self._legs.get(port)
        if leg is not None and ("up", leg.ns, leg.link) in self._parts:
            self._arrive(packet, leg.ns, leg.link)

    # What is judged.

    def _enter_tunnel(self, packet: Packet, ns: NsName, link: str, written: Chain | None) -> None:
        if ("up", ns, link) not in self._parts:
            return
        source: IPv4Address | None = packet.source
        if written is not None:
            # The exit masquerades with what the link has, the others write what the table says.
            hop = _hop_in(written, ns)
            told = {tunnel.slot.link: tunnel.address for tunnel in hop.tunnels}[link]
            source = self._addresses.get((ns, link)) if hop is written.exit else told
        if source is None:
            return
        judge = self._parts.get(("tunfilter", ns, link))
        if isinstance(judge, TunFilter) and source != judge.address:
            return
        for chain in self._chains:
            for hop in chain.hops:
                own = {tunnel.address for tunnel in hop.tunnels}
                here = chain.namespace(hop) == ns and source in own
                if here and self._belongs_into(packet, chain, hop):
                    self.arrived.add(Arrival(packet.maker, f"{link} of {ns}"))
                    return
        self._note(replace(packet, source=source), f"{link} of {ns}")

    def _belongs_into(self, packet: Packet, chain: Chain, hop: Hop) -> bool:
        if hop is chain.exit:
            proved = {hop.number for hop in chain.hops} <= self._world.proved
            return (
                packet.maker == LAN
                and proved
                and packet.source in chain.clients[0]
                and not _refused(packet, chain.resolver, guard.UNREACHABLE_FOR_CLIENTS)
            )
        inner = chain.hops[hop.number]
        return packet.maker == inner.number and self._reach.uid_of(packet, chain, inner) is not None

    def _reach_uplink(self, packet: Packet) -> None:
        allowed = packet.maker == 1 and any(
            self._reach.uid_of(packet, chain, chain.hops[0]) is not None for chain in self._chains
        )
        if allowed:
            self.arrived.add(Arrival(packet.maker, UPLINK))
        else:
            self._note(packet, UPLINK)

    def _note(self, packet: Packet, where: str) -> None:
        self._found.add(Leak(packet, where))


def _tried(chain: Chain, maker: str | int, source: tuple[IPv4Address, int]) -> Iterator[Packet]:
    """To anybody, and to each server: by the maker's own address and by a stolen tuple."""
    for destination in (_WEB, _PRIVATE, _STRANGER):
        yield Packet(maker, *source, destination, 443)
    for hop in chain.hops:
        for tunnel in hop.tunnels:
            server = tunnel.endpoint, tunnel.endpoint_port
            port = chain.source_port(hop, tunnel.slot)
            yield Packet(maker, source[0], port, *server)
            yield Packet(maker, chain.out_leg(hop), port, *server)


def _sent_by_client(chain: Chain, hop: Hop) -> Iterator[Packet]:
    for tunnel in hop.tunnels:
        port = chain.source_port(hop, tunnel.slot)
        yield from _tried(chain, hop.number, (chain.out_leg(hop), port))
        yield Packet(hop.number, chain.clients[0][7], port, _WEB, 443)


def _flows(chain: Chain, hop: Hop) -> dict[Ends, int]:
    """Each tunnel's exact tuple, and the uid it belongs to."""
    leg = int(chain.out_leg(hop))
    return {
        (
            leg,
            chain.source_port(hop, tunnel.slot),
            int(tunnel.endpoint),
            tunnel.endpoint_port,
        ): chain.uid(hop, tunnel.slot)
        for tunnel in hop.tunnels
    }


def _hop_in(chain: Chain, ns: NsName) -> Hop:
    return next(hop for hop in chain.hops if chain.namespace(hop) == ns)


def _refused(packet: Packet, resolver: IPv4Address | None, networks: Iterable[IPv4Network]) -> bool:
    if packet.destination == resolver:
        return packet.destination_port != 53
    return any(packet.destination in network for network in networks)


def _rule_matches(rule: Rule, link: str, mark: int | None) -> bool:
    return rule.iif in ("", link) and rule.mark in (None, mark)
