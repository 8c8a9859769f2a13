"""From a chain to the parts it is made of, in the order in which they may come into being.

The order is the promise: a namespace exists with its guard table before it has a link, a port
has its rows and its filter before it is up, and a client starts in a namespace that is wired
and guarded. `chainctl.supervisor.plan` takes it from here; taking down is the reverse.
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator
from ipaddress import IPv4Address, IPv4Interface, IPv4Network

from chainctl.model.chain import Chain, Engine, Hop, Tunnel, docker_network
from chainctl.model.parts import (
    HOST,
    NOBODY,
    PANEL,
    TCP,
    Address,
    Client,
    ClientBridge,
    ClientPolicy,
    DockerNetwork,
    DockerRule,
    FarEnd,
    Forwarding,
    KernelWireGuard,
    LanLeg,
    LanMode,
    Leg,
    Namespace,
    NftTable,
    NsName,
    Part,
    PortFilter,
    PortMode,
    PortName,
    PortRow,
    Route,
    Rule,
    Tun,
    TunFilter,
    TunnelConfig,
    Up,
    WireTuple,
)
from chainctl.net import guard

MAIN_TABLE = 254
_LOCAL_TABLE = 255
ANYWHERE = IPv4Network("0.0.0.0/0")
_ANY_SOURCE = IPv4Address(0)
"""Servers and clients send here too: the tuples or the policy say who may."""
_LAST_METRIC = 4_000_000_000
_FROM_INSIDE = 1000
"""Priority of the first `ip rule` for what comes from further inside."""


def layout(chain: Chain) -> tuple[Part, ...]:
    """Every part of `chain`, policy before connectivity."""
    return (
        Namespace(PANEL),
        NftTable(PANEL, guard.TABLE, guard.render_panel()),
        *_guarded_namespaces(chain),
        *_legs(chain),
        *_filter_rows(chain),
        *_filters(chain),
        *_tunnel_devices(chain),
        *_addresses(chain),
        *_routing(chain),
        *_links_up(chain),
        *_clients(chain),
        *_lan_legs(chain),
    )


def _lan_legs(chain: Chain) -> Iterator[Part]:
    for lan in chain.lans:
        mode = LanMode.BRIDGE if lan.mode.own else lan.mode
        yield LanLeg(chain.gateway, lan.link, lan.interface, mode)
        yield Address(chain.gateway, lan.link, lan.address)
        yield Up(chain.gateway, lan.link)
        # The kernel's own route by the address does not come back when somebody flushes it.
        yield Route(chain.gateway, MAIN_TABLE, lan.address.network, lan.link, metric=1)
        if lan.mode is LanMode.DOCKER and lan.joined:
            name, at = docker_network(chain.name), lan.address
            yield DockerNetwork(name, lan.interface, at.network, at.ip)


def _guarded_namespaces(chain: Chain) -> Iterator[Part]:
    yield Namespace(chain.gateway, forwarding=True)
    yield NftTable(chain.gateway, guard.TABLE, guard.render_gateway(chain))
    if chain.published:
        yield NftTable(chain.gateway, guard.PUBLISHED_TABLE, guard.render_published(chain))
    for hop in chain.hops:
        ns = chain.namespace(hop)
        rules = guard.render_exit(chain) if hop is chain.exit else guard.render_hop(chain, hop)
        yield Namespace(ns, forwarding=True, runtime=chain.runtime)
        yield NftTable(ns, guard.TABLE, rules)
    if chain.uplink.place:
        yield Namespace(chain.uplink_namespace, forwarding=True)
        yield NftTable(chain.uplink_namespace, guard.TABLE, guard.render_uplink(chain))
    else:
        yield NftTable(HOST, f"{guard.TABLE}-{chain.name}", guard.render_host(chain))
        if chain.uplink.docker_user:
            yield DockerRule(chain.host_link)
    own = chain.own_network
    if own is not None:
        rules = guard.render_own_network(own.interface)
        yield NftTable(HOST, guard.own_network_table(chain.name), rules)
        yield ClientBridge(own.interface)


def _legs(chain: Chain) -> Iterator[Part]:
    ns = chain.uplink_namespace
    yield Leg(ns, chain.uplink_link, chain.uplink_port, chain.uplink.mtu)
    for hop in chain.hops:
        ns = chain.namespace(hop)
        yield Leg(ns, "out0", chain.out_port(hop), chain.uplink.mtu)
        yield Leg(ns, "in0", chain.in_port(hop), chain.uplink.mtu)
    # The gateway alone tells the LAN how much fits, so its leg alone has the chain's MTU.
    yield Leg(chain.gateway, "up0", chain.gateway_port, chain.mtu)


def _wires(chain: Chain) -> Iterator[tuple[PortName, PortName]]:
    """(inner port, outer port) of each wire, the gateway's first."""
    yield chain.gateway_port, chain.in_port(chain.exit)
    for hop in reversed(chain.hops):
        outer = chain.hops[hop.number - 2] if hop.number > 1 else None
        yield chain.out_port(hop), chain.in_port(outer) if outer else chain.uplink_port


def _filter_rows(chain: Chain) -> Iterator[Part]:
    scope = chain.number + 1
    yield ClientPolicy(
        scope=scope,
        clients=chain.clients,
        refused=guard.UNREACHABLE_FOR_CLIENTS,
        dns=(chain.resolver,) if chain.resolver else (),
    )
    mtu, gate = chain.uplink.mtu, chain.gateway_port
    yield PortRow(gate, PortMode.CLIENT, _ANY_SOURCE, mtu, scope, gate)
    yield PortRow(chain.in_port(chain.exit), PortMode.REPLY, _ANY_SOURCE, mtu, scope, gate)
    yield PortRow(chain.uplink_port, PortMode.TUPLE, _ANY_SOURCE, mtu, scope)
    for hop in chain.hops:
        yield PortRow(chain.out_port(hop), PortMode.TUPLE, chain.out_leg(hop), mtu, scope)
        if hop is not chain.exit:
            yield PortRow(chain.in_port(hop), PortMode.TUPLE, _ANY_SOURCE, mtu, scope)
    for inner, outer in _wires(chain):
        yield FarEnd(inner, outer)
        yield FarEnd(outer, inner)
    for hop in chain.hops:
        back = chain.in_port(chain.hops[hop.number - 2]) if hop.number > 1 else chain.uplink_port
        for tunnel in hop.tunnels:
            yield from _tuples(chain, hop, tunnel, back)


def _tuples(chain: Chain, hop: Hop, tunnel: Tunnel, back: PortName) -> Iterator[Part]:
    leg, port = chain.out_leg(hop), chain.source_port(hop, tunnel.slot)
    server, server_port = tunnel.endpoint, tunnel.endpoint_port
    out = chain.out_port(hop)
    yield WireTuple(out, leg, port, server, server_port, tunnel.protocol)
    # A tunnel further out may have to cut what a server sends to fit.
    yield WireTuple(back, server, server_port, leg, port, tunnel.protocol, fragments=True)


def _ports(chain: Chain) -> Iterator[PortName]:
    yield chain.uplink_port
    for hop in chain.hops:
        yield chain.out_port(hop)
        yield chain.in_port(hop)
    yield chain.gateway_port


def _filters(chain: Chain) -> Iterator[Part]:
    for port in _ports(chain):
        yield PortFilter(port)


def _tunnel_devices(chain: Chain) -> Iterator[Part]:
    for hop in chain.hops:
        for tunnel in hop.tunnels:
            ns, link = chain.namespace(hop), tunnel.slot.link
            mtu = chain.tunnel_mtu(hop, tunnel)
            if tunnel.engine is Engine.KERNEL:
                yield KernelWireGuard(ns, link, mtu)
            else:
                yield Tun(ns, link, chain.uid(hop, tunnel.slot), mtu)
            yield TunFilter(ns, link, tunnel.address or NOBODY)


def _addresses(chain: Chain) -> Iterator[Part]:
    yield _address(chain.uplink_namespace, chain.uplink_link, chain.uplink_leg)
    for hop in chain.hops:
        ns = chain.namespace(hop)
        yield _address(ns, "out0", chain.out_leg(hop))
        yield _address(ns, "in0", chain.in_leg(hop))
        for tunnel in hop.tunnels:
            if tunnel.address is not None:
                yield _address(ns, tunnel.slot.link, tunnel.address)
    yield _address(chain.gateway, "up0", chain.gateway_leg)


def _address(ns: NsName, link: str, address: IPv4Address) -> Address:
    return Address(ns, link, IPv4Interface((address, 32)))


def _links_up(chain: Chain) -> Iterator[Part]:
    for hop in chain.hops:
        for tunnel in hop.tunnels:
            yield Up(chain.namespace(hop), tunnel.slot.link)
        yield Up(chain.namespace(hop), "out0")
        yield Up(chain.namespace(hop), "in0")
    yield Up(chain.gateway, "up0")
    yield Up(chain.uplink_namespace, chain.uplink_link)


def _routing(chain: Chain) -> Iterator[Part]:
    """Unreachable defaults come first; routes by a link follow when that link is up."""
    yield from _kernel_rules(chain.gateway)
    if chain.uplink.place:
        yield from _kernel_rules(chain.uplink_namespace)
        yield Route(chain.uplink_namespace, MAIN_TABLE, ANYWHERE, metric=_LAST_METRIC)
    for hop in chain.hops:
        ns = chain.namespace(hop)
        yield from _kernel_rules(ns)
        yield Route(ns, MAIN_TABLE, ANYWHERE, metric=_LAST_METRIC)
        for slot in (tunnel.slot for tunnel in hop.tunnels):
            yield Route(ns, slot.table, ANYWHERE, metric=_LAST_METRIC)
            yield Rule(ns, _FROM_INSIDE + slot.value, "in0", slot.table, slot.table)
        yield Rule(ns, _FROM_INSIDE + 50, "in0")
    yield Route(chain.gateway, MAIN_TABLE, ANYWHERE, metric=_LAST_METRIC)


def _kernel_rules(ns: NsName) -> Iterator[Part]:
    """Every namespace is born with them; they are listed because somebody may flush them."""
    yield Rule(ns, 0, "", None, _LOCAL_TABLE)
    yield Rule(ns, 32766, "", None, MAIN_TABLE)


def _routes_by_link(chain: Chain) -> Iterator[Part]:
    for hop in chain.hops:
        ns = chain.namespace(hop)
        # Both tunnels may end at one address, on two ports or with two clients.
        for server in dict.fromkeys(tunnel.endpoint for tunnel in hop.tunnels):
            over_tcp = any(each.protocol == TCP for each in hop.tunnels if each.endpoint == server)
            yield Route(
                ns,
                MAIN_TABLE,
                IPv4Network(server),
                "out0",
                source=chain.out_leg(hop),
                # A TCP tunnel's segments have to fit, since nobody on the way may say they do not.
                mtu=chain.outer_mtu(hop) if over_tcp else None,
            )
        for tunnel in hop.tunnels:
            yield Route(ns, tunnel.slot.table, ANYWHERE, tunnel.slot.link)
        if hop is chain.exit:
            yield from _by_neighbour(ns, chain.clients, "in0", chain.gateway_leg)
        else:
            inner = chain.hops[hop.number]
            yield Route(ns, MAIN_TABLE, IPv4Network(chain.out_leg(inner)), "in0")
    yield from _by_neighbour(chain.gateway, [ANYWHERE], "up0", chain.in_leg(chain.exit))
    first = IPv4Network(chain.out_leg(chain.hops[0]))
    yield Route(chain.uplink_namespace, MAIN_TABLE, first, chain.uplink_link)


def _by_neighbour(
    ns: NsName, networks: Iterable[IPv4Network], link: str, via: IPv4Address
) -> Iterator[Part]:
    """Also without ARP the kernel keeps an entry for every address that is sent to by itself, in
    a table of 1024 for all namespaces of the machine, where the network's own are: so whoever
    scans the internet would fill it.
    """
    yield Route(ns, MAIN_TABLE, IPv4Network(via), link)
    for network in networks:
        yield Route(ns, MAIN_TABLE, network, link, via=via)


def _way_out(chain: Chain) -> Iterator[Part]:
    place = chain.uplink.place
    if place is None:
        yield Forwarding(chain.host_link)
        if not chain.uplink.forwarded_before:
            yield Forwarding(chain.uplink.interface)
        return
    ns, link = chain.uplink_namespace, chain.wan_link
    yield LanLeg(ns, link, chain.uplink.interface, place.mode)
    yield Address(ns, link, place.address)
    yield Up(ns, link)
    yield Route(ns, MAIN_TABLE, place.address.network, link, metric=1)
    yield Route(ns, MAIN_TABLE, ANYWHERE, link, via=place.router)


def _clients(chain: Chain) -> Iterator[Part]:
    """What carries traffic: ports up, routes, forwarding, and the VPN clients."""
    yield from (Up(PANEL, port) for port in _ports(chain))
    yield from _routes_by_link(chain)
    yield from _way_out(chain)
    tunnels = [(hop, tunnel) for hop in chain.hops for tunnel in hop.tunnels]
    # All are begun before the first one is waited for: that is what a configuration does.
    for hop, tunnel in tunnels:
        if tunnel.engine is not Engine.KERNEL:
            name, ns = chain.client_name(hop, tunnel.slot), chain.namespace(hop)
            uid = chain.uid(hop, tunnel.slot)
            link = tunnel.slot.link
            yield Client(name, ns, link, uid, tunnel.image, chain.runtime)
    for hop, tunnel in tunnels:
        name, ns = chain.client_name(hop, tunnel.slot), chain.namespace(hop)
        yield TunnelConfig(name, ns, tunnel.slot.link, tunnel.config.digest)
