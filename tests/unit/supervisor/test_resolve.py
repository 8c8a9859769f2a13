"""From a chain file and facts to a chain: servers, interfaces, sizes, and refusals."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import replace
from ipaddress import IPv4Address, IPv4Interface, IPv4Network
from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st

from chainctl.errors import ChainctlError, ChangeServer
from chainctl.model.chain import Engine, Place, Slot
from chainctl.model.clients import DockerSeen, Member, Publish
from chainctl.model.facts import (
    FirewallFacts,
    Known,
    LinkFacts,
    NetworkFacts,
    Reading,
    RouteFacts,
)
from chainctl.model.parts import HOST, DockerNetwork, LanMode, NftTable
from chainctl.model.secret import Secret
from chainctl.model.selection import HopSelection
from chainctl.model.wireguard import WireGuardConfig
from chainctl.net.layout import layout
from chainctl.spec.chain_file import load_chain_file
from chainctl.spec.model import ChainSpec, HopSpec, LanSpec, ServerProfile, WanSpec
from chainctl.supervisor.resolve import Facts, resolve, settle
from tests.unit.spec.builders import chain_text, profile, profile_text

NETWORK = NetworkFacts(
    links=(
        LinkFacts("lo"),
        LinkFacts("eth0", mtu=1492),
        LinkFacts("eth1"),
        LinkFacts("br0", "bridge"),
    ),
    routes=(RouteFacts(IPv4Network("0.0.0.0/0"), "eth0"),),
)
FACTS = Facts(
    number=3,
    network=NETWORK,
    selection={},
    names={},
    engine=Engine.USERSPACE,
    image="sha256:abc",
    forwarded_before=False,
)


@pytest.fixture
def spec(tmp_path: Path) -> ChainSpec:
    for number in (1, 2, 3):
        text = profile_text(endpoint=f"192.0.2.{number}:51820", address=f"10.64.0.{number}/32")
        (tmp_path / f"server{number}.conf").write_text(text)
    (tmp_path / "chain.yaml").write_text(chain_text(hops=2))
    return load_chain_file(tmp_path / "chain.yaml")


def _chosen(spec: ChainSpec, selection: Mapping[str, str] = {}) -> dict[str, str]:
    earlier = {hop: HopSelection(servers={Slot.A: server}) for hop, server in selection.items()}
    return {hop: chosen.server for hop, chosen in settle(spec, earlier, {}).items()}


def test_no_server_sees_two_places(spec: ChainSpec) -> None:
    assert _chosen(spec) == {"hop1": "server1", "hop2": "server2"}


def test_what_was_chosen_stays(spec: ChainSpec) -> None:
    assert _chosen(spec, {"hop1": "server3", "hop2": "server1"}) == {
        "hop1": "server3",
        "hop2": "server1",
    }


def test_the_first_guard_that_leaves_servers_for_the_others_is_used(spec: ChainSpec) -> None:
    def guard(*order: int, pool: int = 3) -> str:
        guards = [IPv4Address(f"192.0.2.{number}") for number in order]
        small = _with_pools(spec, spec.hops[0].pool, spec.hops[1].pool[:pool])
        return settle(small, {}, {}, guards)["hop1"].server

    assert guard(2, 1, 3) == "server2"
    assert guard(9, 3) == "server3", "one that is not in the pool is passed over"
    assert guard(1, 3, 2, pool=1) == "server3", "the other hop has nothing but server1"
    with pytest.raises(ChangeServer):
        guard(1, pool=1)
    earlier = {"hop1": HopSelection(servers={Slot.A: "server3"})}
    assert settle(spec, earlier, {}, [IPv4Address("192.0.2.2")])["hop1"].server == "server3"


def test_what_is_preferred_is_used_first(spec: ChainSpec) -> None:
    wish = replace(spec, hops=(spec.hops[0], replace(spec.hops[1], prefer="server3")))
    assert _chosen(wish) == {"hop1": "server1", "hop2": "server3"}
    assert _chosen(wish, {"hop2": "server2"})["hop2"] == "server2"


def test_what_is_gone_is_passed_over(spec: ChainSpec) -> None:
    earlier = {"hop1": "server9", "hop9": "server1", "hop2": "server1"}
    assert _chosen(spec, earlier) == {"hop1": "server2", "hop2": "server1"}


def test_one_server_under_two_names_is_one(spec: ChainSpec) -> None:
    pool = (profile("a", endpoint="192.0.2.9:1"), profile("b", endpoint="192.0.2.9:2"))
    with pytest.raises(ChangeServer) as caught:
        _chosen(_with_pools(spec, pool, pool))
    assert (caught.value.code, caught.value.where) == ("C403", "hop hop2")


def test_both_tunnels_are_to_one_server_only_where_that_was_chosen(spec: ChainSpec) -> None:
    """A client that ended begins anew beside itself; a standby for the same server is none."""

    def spare(**servers: str) -> str | None:
        earlier = HopSelection(Slot.A, {Slot[slot]: server for slot, server in servers.items()})
        return settle(spec, {"hop1": earlier}, {})["hop1"].servers.get(Slot.B)

    assert spare(A="server1", B="server1") == "server1"
    assert spare(A="server1", B="server3") == "server3"
    assert spare(A="gone", B="server1") is None


def test_another_port_of_its_server_may_be_tried_beside_it(spec: ChainSpec) -> None:
    pool = (profile("a", endpoint="192.0.2.9:1"), profile("b", endpoint="192.0.2.9:2"))
    earlier = HopSelection(Slot.A, {Slot.A: "a", Slot.B: "b"})
    settled = settle(_with_pools(spec, pool), {"hop1": earlier}, {})
    assert settled["hop1"] == earlier


def test_a_name_without_an_address_is_passed_over(spec: ChainSpec) -> None:
    named, plain = profile("named", endpoint="vpn.example.net:51820"), spec.hops[0].pool[0]
    odd = _with_pools(spec, (named, plain))
    assert settle(odd, {}, {})["hop1"].server == plain.name
    pins = {"vpn.example.net": IPv4Address("203.0.113.5")}
    assert settle(odd, {}, pins)["hop1"].server == named.name
    facts = replace(FACTS, names=pins)
    assert resolve(odd, facts).hops[0].tunnel.endpoint == IPv4Address("203.0.113.5")


def _with_pools(spec: ChainSpec, *pools: tuple[ServerProfile, ...]) -> ChainSpec:
    hops = zip(spec.hops, pools, strict=False)
    return replace(spec, hops=tuple(replace(hop, pool=pool) for hop, pool in hops))


_HOP_NAMES = st.lists(st.sampled_from(["guard", "middle", "exit"]), min_size=1, unique=True)


@given(selection=st.dictionaries(st.text(max_size=5), st.sampled_from("abcdef")), data=st.data())
def test_any_choice_keeps_the_rules(selection: dict[str, str], data: st.DataObject) -> None:
    servers = [profile(name, endpoint=f"192.0.2.{n}:1") for n, name in enumerate("abcdef", 1)]
    pools = st.lists(st.sampled_from(servers), min_size=1, max_size=6, unique_by=lambda s: s.name)
    spec = ChainSpec(
        name="home",
        lans=(),
        wan=None,  # type: ignore[arg-type]
        dns_upstream=None,
        wires=IPv4Network("198.19.0.0/16"),
        hops=tuple(
            HopSpec(name, tuple(data.draw(pools)), line=1) for name in data.draw(_HOP_NAMES)
        ),
        file=Path("chain.yaml"),
    )
    try:
        chosen = _chosen(spec, selection)
    except ChangeServer:
        return
    assert len(set(chosen.values())) == len(spec.hops)
    assert all(chosen[hop.name] in {server.name for server in hop.pool} for hop in spec.hops)
    assert _chosen(spec, chosen) == chosen


def test_numbers_come_from_the_facts(spec: ChainSpec) -> None:
    chain = resolve(spec, FACTS)
    assert (chain.number, chain.uplink.interface, chain.path_mtu) == (3, "eth0", 1492)
    assert [hop.number for hop in chain.hops] == [1, 2]
    assert chain.mtu == 1492 - 2 * 60
    for hop in chain.hops:
        tunnel = hop.tunnel
        assert isinstance(tunnel.config, WireGuardConfig)
        assert tunnel.config.listen_port == chain.source_port(hop, tunnel.slot)
        assert tunnel.config.keepalive == 25
        assert isinstance(tunnel.config.private_key, Secret)
    assert chain.resolver == IPv4Address("10.64.0.1")


def test_resolving_twice_gives_the_same(spec: ChainSpec) -> None:
    assert resolve(spec, FACTS) == resolve(spec, FACTS)


@pytest.mark.parametrize(
    ("link", "mode"), [("eth1", LanMode.MACVLAN), ("br0", LanMode.BRIDGE)], ids=["eth1", "br0"]
)
def test_how_the_gateway_is_joined(spec: ChainSpec, link: str, mode: LanMode) -> None:
    spec = replace(spec, lans=(replace(spec.lans[0], interface=link),))
    assert resolve(spec, FACTS).lans[0].mode is mode


WAN = WanSpec("br0", LanMode.BRIDGE, IPv4Interface("203.0.113.5/24"), IPv4Address("203.0.113.1"))


def test_a_way_out_of_its_own_touches_nothing_of_the_host(spec: ChainSpec) -> None:
    strict = replace(NETWORK, firewall=FirewallFacts(forward_drops=("ip filter FORWARD",)))
    chain = resolve(replace(spec, wan=WAN), replace(FACTS, network=strict))
    assert chain.uplink.place == Place(
        LanMode.BRIDGE, IPv4Interface("203.0.113.5/24"), IPv4Address("203.0.113.1")
    )
    assert {part.ns for part in layout(chain) if isinstance(part, NftTable)} >= {"home.uplink"}
    assert not [part for part in layout(chain) if HOST in part.key]


def test_the_router_is_the_hosts_when_nobody_says(spec: ChainSpec) -> None:
    route = replace(NETWORK.routes[0], gateway=IPv4Address("203.0.113.9"))
    network = replace(NETWORK, routes=(route,))
    wan = replace(WAN, interface="eth0", mode=LanMode.MACVLAN, router=None)
    chain = resolve(replace(spec, wan=wan), replace(FACTS, network=network))
    assert chain.uplink.place is not None
    assert chain.uplink.place.router == IPv4Address("203.0.113.9")


@pytest.mark.parametrize(
    ("code", "wan", "network"),
    [
        ("C331", replace(WAN, interface="eth0"), NETWORK),
        ("C335", replace(WAN, router=None), NETWORK),
        (
            "C336",
            WAN,
            replace(
                NETWORK,
                firewall=FirewallFacts(
                    forward_drops=("ip filter FORWARD",), bridge_calls_iptables=True
                ),
            ),
        ),
        (
            "C334",
            replace(WAN, interface="wlan0", mode=LanMode.MACVLAN),
            replace(
                NETWORK,
                links=(*NETWORK.links, LinkFacts("wlan0", wireless=Reading(Known.YES, ""))),
            ),
        ),
    ],
)
def test_ways_out_that_cannot_be(
    spec: ChainSpec, code: str, wan: WanSpec, network: NetworkFacts
) -> None:
    with pytest.raises(ChainctlError) as caught:
        resolve(replace(spec, wan=wan), replace(FACTS, network=network))
    assert caught.value.code == code
    assert caught.value.hint


def _network(**changes: object) -> Facts:
    return replace(FACTS, network=replace(NETWORK, **changes))  # type: ignore[arg-type]


@pytest.mark.parametrize(
    ("code", "facts"),
    [
        ("C330", _network(routes=())),
        ("C331", _network(links=(LinkFacts("eth1"),))),
        ("C332", _network(firewall=FirewallFacts(forward_drops=("ip filter FORWARD",)))),
        ("C333", _network(links=(LinkFacts("eth0"),))),
        (
            "C334",
            _network(links=(LinkFacts("eth0"), LinkFacts("eth1", wireless=Reading(Known.YES, "")))),
        ),
        ("C401", replace(FACTS, number=2048)),
        ("C402", _network(links=(LinkFacts("eth0", mtu=600), LinkFacts("eth1")))),
    ],
)
def test_refusals_say_what_to_do(spec: ChainSpec, code: str, facts: Facts) -> None:
    with pytest.raises(ChainctlError) as caught:
        resolve(spec, facts)
    assert caught.value.code == code
    assert caught.value.hint


def test_docker_may_drop_when_it_has_a_chain_for_us(spec: ChainSpec) -> None:
    firewall = FirewallFacts(forward_drops=("ip filter FORWARD",), docker_user=True)
    assert resolve(spec, _network(firewall=firewall)).uplink.docker_user


def test_a_port_leads_only_to_the_chains_own_network(spec: ChainSpec) -> None:
    """Whatever the daemon says. Without one the chain comes up, and its network waits."""
    own = LanSpec("ch-home", IPv4Interface("172.31.7.1/24"), LanMode.DOCKER)
    wished = replace(spec, lans=(*spec.lans, own), publish=(Publish(8080, "web", 80),))

    def leads_to(address: str) -> IPv4Address | None:
        web = Member("web", "0a1b", IPv4Address(address), "")
        facts = replace(FACTS, docker=DockerSeen(answers=True, members=(web,)))
        (one,) = resolve(wished, facts).published
        assert one.at == (IPv4Address("192.168.10.254"),)
        return one.to

    assert leads_to("172.31.7.2") == IPv4Address("172.31.7.2")
    assert leads_to("192.0.2.9") is None

    def makes_network(docker: DockerSeen) -> bool:
        parts = layout(resolve(wished, replace(FACTS, docker=docker)))
        return any(isinstance(part, DockerNetwork) for part in parts)

    assert makes_network(DockerSeen(answers=True))
    assert makes_network(DockerSeen(made=True)), "it is not taken away while the daemon is away"
    assert not makes_network(DockerSeen())
