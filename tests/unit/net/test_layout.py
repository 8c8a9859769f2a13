"""What a chain is made of, in which order: golden lists, and what holds for any chain."""

from __future__ import annotations

from dataclasses import replace
from itertools import pairwise
from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st

from chainctl.model.chain import (
    MAX_CHAINS,
    OPENVPN_TCP_OVERHEAD,
    OPENVPN_UDP_OVERHEAD,
    Chain,
    Engine,
    Slot,
)
from chainctl.model.parts import (
    HOST,
    NOBODY,
    PANEL,
    TCP,
    UDP,
    Address,
    Client,
    ClientBridge,
    FarEnd,
    ForeignLink,
    Forwarding,
    KernelWireGuard,
    LanLeg,
    LanMode,
    Leg,
    Namespace,
    NftTable,
    Part,
    PortFilter,
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
from chainctl.net.layout import layout
from tests.conftest import Golden
from tests.unit.supervisor.chains import chains, make_chain, make_tunnel

HERE = Path(__file__).parent
LINK_NAME = 15  # IFNAMSIZ of linux/if.h, without the zero at the end.

several = st.lists(st.integers(0, MAX_CHAINS - 1), min_size=2, max_size=4, unique=True).flatmap(
    lambda numbers: st.tuples(*(chains(number=number) for number in numbers))
)


@pytest.mark.parametrize(
    ("name", "chain"),
    [
        ("layout_1", make_chain(1, docker_user=True)),
        ("layout_3", make_chain(3)),
        ("layout_own_uplink", make_chain(2, guests=True, wan_mode=LanMode.MACVLAN)),
        (
            "layout_docker_own_uplink",
            make_chain(1, lan_mode=LanMode.DOCKER, wan_mode=LanMode.BRIDGE),
        ),
    ],
    ids=["1", "3", "own uplink", "docker and own uplink"],
)
def test_golden(name: str, chain: Chain, golden: Golden) -> None:
    lines = "".join(f"{_line(part)}\n" for part in layout(chain))
    golden(HERE / "golden" / f"{name}.txt", lines)


def _line(part: Part) -> str:
    """Tables have golden files of their own."""
    if isinstance(part, NftTable):
        return f"NftTable {part.ns or 'host'} {part.table}"
    values = " ".join(f"{name}={value}" for name, value in vars(part).items())
    return f"{type(part).__name__} {values}"


@given(chain=chains(told=None))
def test_each_part_has_a_key_of_its_own(chain: Chain) -> None:
    parts = layout(chain)
    assert len({part.key for part in parts}) == len(parts)
    assert not any(isinstance(part, ForeignLink) for part in parts)


@pytest.mark.parametrize("via", [UDP, TCP])
def test_two_tunnels_to_one_server_share_its_route(via: int) -> None:
    one = make_chain(1, vias=(via,))
    (hop,) = one.hops
    other = make_tunnel(0, 1, slot=hop.active.other, via=UDP)
    chain = replace(one, hops=(replace(hop, tunnels=(hop.tunnel, other)),))
    parts = layout(chain)
    assert len({part.key for part in parts}) == len(parts)
    to_server = [
        part
        for part in parts
        if isinstance(part, Route)
        and part.to.prefixlen == 32
        and part.to.network_address == other.endpoint
    ]
    assert [route.mtu is not None for route in to_server] == [via == TCP]
    ports = {part.source_port for part in parts if isinstance(part, WireTuple)}
    assert {chain.source_port(hop, slot) for slot in Slot} <= ports


@given(chain=chains(told=None))
def test_a_network_of_our_own_is_guarded_whatever_the_uplink(chain: Chain) -> None:
    parts = layout(chain)
    keys = [part.key for part in parts]
    own = chain.own_network
    bridges = [part.link for part in parts if isinstance(part, ClientBridge)]
    assert bridges == ([own.interface] if own else [])
    table = NftTable(HOST, guard.own_network_table(chain.name), "").key
    assert (table in keys) == (own is not None)
    if own:
        leg = ("link", chain.gateway, own.link)
        assert keys.index(table) < keys.index(("bridge", own.interface)) < keys.index(leg)


@given(chain=chains(told=None))
def test_names_of_links_are_short_enough(chain: Chain) -> None:
    for part in layout(chain):
        for name in (getattr(part, "link", None), getattr(part, "port", None)):
            assert len(name or "") <= LINK_NAME


@given(several)
def test_several_chains_share_only_the_panel_and_the_host(them: tuple[Chain, ...]) -> None:
    named = [
        make_chain(
            len(chain.hops),
            number=chain.number,
            name=f"chain{chain.number}",
            docker_user=chain.uplink.docker_user,
            both_slots=len(chain.hops[0].tunnels) == 2,
        )
        for chain in them
    ]
    layouts = [layout(chain) for chain in named]
    for number, parts in enumerate(layouts):
        for others in layouts[number + 1 :]:
            both = {part.key for part in parts} & {part.key for part in others}
            assert both == {
                ("namespace", PANEL),
                ("nft", PANEL, "chainctl"),
                ("forwarding", "eth0"),
            }
    everything = [part for parts in layouts for part in parts]
    uids = [part.uid for part in everything if isinstance(part, Client)]
    assert len(set(uids)) == len(uids)
    legs = [
        part.interface.ip
        for part in everything
        if isinstance(part, Address) and part.link in ("in0", "out0", "up0", *_host_links(named))
    ]
    assert len(set(legs)) == len(legs)
    assert all(address in named[0].wires for address in legs)
    sources = [
        (part.source, part.source_port)
        for part in everything
        if isinstance(part, WireTuple) and not part.fragments
    ]
    assert len(set(sources)) == len(sources)


def _host_links(them: list[Chain]) -> list[str]:
    return [chain.host_link for chain in them]


@given(chain=chains(told=None))
def test_each_tuple_has_its_reverse_at_the_other_end(chain: Chain) -> None:
    parts = layout(chain)
    far = {part.port: part.far for part in parts if isinstance(part, FarEnd)}
    tuples = [part for part in parts if isinstance(part, WireTuple)]
    assert len(tuples) == 2 * sum(len(hop.tunnels) for hop in chain.hops)
    reverses = {
        (wire.port, wire.source, wire.source_port, wire.destination, wire.destination_port)
        for wire in tuples
    }
    for wire in tuples:
        there = wire.destination, wire.destination_port
        assert (far[wire.port], *there, wire.source, wire.source_port) in reverses


@given(chain=chains(told=None))
def test_wires_join_two_ports(chain: Chain) -> None:
    parts = layout(chain)
    far = {part.port: part.far for part in parts if isinstance(part, FarEnd)}
    ports = {part.port for part in parts if isinstance(part, Leg)}
    assert set(far) == ports
    assert all(far[far[port]] == port != far[port] for port in ports)
    for kind in (PortRow, PortFilter):
        assert {part.port for part in parts if isinstance(part, kind)} == ports
    rows = {part.port: part for part in parts if isinstance(part, PortRow)}
    legs = {part.port: part for part in parts if isinstance(part, Leg)}
    assert all(rows[port].far_mtu >= legs[far[port]].mtu for port in ports)
    gated = {row.port for row in rows.values() if row.gate == chain.gateway_port}
    assert gated == {chain.gateway_port, chain.in_port(chain.exit)}


@given(chain=chains(told=None))
def test_mtus_shrink_by_what_each_hop_adds(chain: Chain) -> None:
    mtus = {part.ns: part.mtu for part in layout(chain) if isinstance(part, Tun | KernelWireGuard)}
    outside_in = [chain.path_mtu, *(mtus[chain.namespace(hop)] for hop in chain.hops)]
    taken = [outer - inner for outer, inner in pairwise(outside_in)]
    assert taken == [hop.tunnel.overhead for hop in chain.hops]
    (gateway,) = [part for part in layout(chain) if isinstance(part, Leg) and part.link == "up0"]
    assert gateway.mtu == chain.mtu == outside_in[-1]


@given(chain=chains(told=None))
def test_a_kernel_device_needs_no_process(chain: Chain) -> None:
    parts = layout(chain)
    clients = sum(isinstance(part, Client) for part in parts)
    tunnels = [tunnel for hop in chain.hops for tunnel in hop.tunnels]
    assert clients == sum(tunnel.engine is not Engine.KERNEL for tunnel in tunnels)
    assert len(tunnels) == sum(isinstance(part, TunnelConfig) for part in parts)


@given(chain=chains(told=None))
def test_policy_comes_before_connectivity(chain: Chain) -> None:
    parts = layout(chain)
    at = {part.key: number for number, part in enumerate(parts)}

    tables = {part.ns: number for number, part in enumerate(parts) if isinstance(part, NftTable)}
    for number, part in enumerate(parts):
        ns = getattr(part, "ns", HOST)
        if ns != HOST:
            assert at["namespace", ns] < number
        if isinstance(part, Leg | LanLeg | Tun | KernelWireGuard):
            assert tables[ns] < number
        match part:
            case Leg():
                assert at["namespace", PANEL] < at["nft", PANEL, "chainctl"] < number
            case PortRow(port) | FarEnd(port) | WireTuple(port) | PortFilter(port):
                assert number < at["up", PANEL, port]
            case Up(_, link) if ns != PANEL:
                assert at["link", ns, link] < number
            case Address(_, link) | TunFilter(_, link):
                assert at["link", ns, link] < number
            case Route(_, table, link=str(link)):
                assert at["up", ns, link] < number
                if ns != HOST:
                    assert number > min(
                        n
                        for n, other in enumerate(parts)
                        if isinstance(other, Route)
                        and (other.ns, other.table, other.link) == (ns, table, None)
                    )
            case Forwarding():
                assert at["nft", HOST, f"chainctl-{chain.name}"] < number
            case Client(_, _, link) | TunnelConfig(_, _, link):
                assert at["tunfilter", ns, link] < number
                for rule in parts:
                    if isinstance(rule, Rule) and rule.ns == ns:
                        assert at[rule.key] < number
                for end in (link, "out0", "in0"):
                    assert at["up", ns, end] < number
                assert all(
                    at["up", PANEL, leg.port] < number
                    for leg in parts
                    if isinstance(leg, Leg) and leg.ns == ns
                )
            case LanLeg(ns) if ns == chain.gateway:
                before = (Client, TunnelConfig, PortFilter, Namespace)
                assert all(n < number for n, p in enumerate(parts) if isinstance(p, before))
            case _:
                pass


@given(chain=chains(told=None))
def test_a_tunnel_without_an_address_lets_nothing_in(chain: Chain) -> None:
    parts = layout(chain)
    filters = {(part.ns, part.link): part.address for part in parts if isinstance(part, TunFilter)}
    held = {(part.ns, part.link) for part in parts if isinstance(part, Address)}
    for hop in chain.hops:
        for tunnel in hop.tunnels:
            device = chain.namespace(hop), tunnel.slot.link
            assert filters[device] == (tunnel.address or NOBODY)
            assert (device in held) == (tunnel.address is not None)


def test_segments_of_a_tcp_tunnel_fit_into_the_tunnel_outside_it() -> None:
    chain = make_chain(3, vias=(TCP, UDP, TCP), path_mtu=1492)
    mtus = {
        part.ns: part.mtu
        for part in layout(chain)
        if isinstance(part, Route) and part.to.prefixlen == 32 and part.link == "out0"
    }
    assert mtus == {
        "home.hop1": 1492,
        "home.hop2": None,
        "home.hop3": 1492 - OPENVPN_TCP_OVERHEAD - OPENVPN_UDP_OVERHEAD,
    }
