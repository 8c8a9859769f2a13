"""Hosts written down as data, and what the doctor says about each."""

from __future__ import annotations

import re
from collections.abc import Mapping
from dataclasses import replace
from ipaddress import IPv4Address, IPv4Interface, IPv6Address, ip_interface, ip_network
from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st

import chainctl.model
from chainctl.model.doctor import assess, exit_status, worst
from chainctl.model.facts import (
    AddressFacts,
    CgroupMode,
    Facts,
    Feature,
    FirewallFacts,
    HostFacts,
    Known,
    LanFacts,
    LinkFacts,
    NetworkFacts,
    Reading,
    RouteFacts,
    Router,
)
from chainctl.model.findings import Finding, Level, Wish

DOCUMENT = Path(__file__).parents[3] / "docs" / "doctor.md"

WISH = Wish(lan="eth1", address=IPv4Interface("192.168.10.254/24"), hops=3)
YES = Reading(Known.YES)


def features(
    *, without: tuple[Feature, ...] = (), unknown: tuple[Feature, ...] = ()
) -> Mapping[Feature, Reading]:
    return (
        dict.fromkeys(Feature, YES)
        | dict.fromkeys(without, Reading(Known.NO, "Invalid argument"))
        | dict.fromkeys(unknown, Reading(Known.UNKNOWN, "only root can try it"))
    )


HOST = HostFacts(
    release="6.1.0-18-amd64",
    root=True,
    missing_capabilities=(),
    features=features(),
    cgroups=CgroupMode.V2,
    controllers=frozenset({"memory", "pids", "cpu"}),
)


def route(to: str, link: str | None, gateway: str | None = None) -> RouteFacts:
    return RouteFacts(ip_network(to), link, IPv4Address(gateway) if gateway else None)


ETH0 = LinkFacts("eth0", mac="02:00:00:00:00:01")
ETH1 = LinkFacts("eth1", mac="02:00:00:00:00:02")
NETWORK = NetworkFacts(
    links=(LinkFacts("lo", ethernet=False), ETH0, ETH1),
    addresses=(
        AddressFacts("eth0", ip_interface("203.0.113.9/24")),
        AddressFacts("eth1", ip_interface("192.168.10.2/24")),
    ),
    routes=(
        route("0.0.0.0/0", "eth0", "203.0.113.1"),
        route("203.0.113.0/24", "eth0"),
        route("192.168.10.0/24", "eth1"),
    ),
)
QUIET = LanFacts(routers=(), holders=())
GOOD = Facts(HOST, NETWORK, QUIET, memory_available=2**32)


def on_host(**changes: object) -> Facts:
    return replace(GOOD, host=replace(HOST, **changes))  # type: ignore[arg-type]


def on_network(**changes: object) -> Facts:
    return replace(GOOD, network=replace(NETWORK, **changes))  # type: ignore[arg-type]


def with_lan(**changes: object) -> Facts:
    return with_links(ETH0, replace(ETH1, **changes))  # type: ignore[arg-type]


def with_links(*links: LinkFacts) -> Facts:
    return on_network(links=links)


def with_routes(*more: RouteFacts) -> Facts:
    return on_network(routes=NETWORK.routes + more)


def with_firewall(firewall: FirewallFacts) -> Facts:
    return on_network(firewall=firewall)


def hearing(*routers: Router, holders: tuple[str, ...] = ()) -> Facts:
    return replace(GOOD, lan=LanFacts(routers, holders))


ROUTER = Router(IPv6Address("fe80::1"), "02:00:00:00:00:99", 1800)
DOCKER = ("ip filter FORWARD",)

OLD = (Feature.REDIRECT_PEER, Feature.RINGBUF)
"""What Linux 5.4 does not have."""

HOSTS: dict[str, tuple[Facts, Wish, set[str]]] = {
    "a good one": (GOOD, WISH, set()),
    "a bare look": (GOOD, Wish(), set()),
    "5.4": (on_host(release="5.4.0-150-generic", features=features(without=OLD)), WISH,
            {"C345", "C347"}),
    "5.15": (on_host(release="5.15.0-91-generic"), WISH, set()),
    "6.1 without kernel WireGuard": (
        on_host(features=features(without=(Feature.WIREGUARD,))), WISH, set()),
    "a kernel without modules for TC": (
        on_host(features=features(without=(Feature.TC_BPF,))), WISH, {"C344"}),
    "not root": (
        on_host(root=False, features=features(unknown=(Feature.TC_BPF, Feature.NFTABLES))),
        WISH, {"C340", "N330"}),
    "a container that lost rights": (
        on_host(missing_capabilities=("NET_ADMIN", "SYS_ADMIN")), WISH, {"C341"}),
    "no network namespaces": (
        on_host(features=features(without=(Feature.NETNS,))), WISH, {"C342"}),
    "no user namespaces": (
        on_host(features=features(without=(Feature.USERNS,))), WISH, {"C343"}),
    "no maps": (
        on_host(features=features(without=(Feature.DEVMAP_HASH, Feature.HASH_OF_MAPS))),
        WISH, {"C346"}),
    "no bpffs": (on_host(features=features(without=(Feature.BPFFS,))), WISH, {"C348"}),
    "no veth": (on_host(features=features(without=(Feature.VETH,))), WISH, {"C349"}),
    "no tun": (on_host(features=features(without=(Feature.TUN,))), WISH, {"C350"}),
    "no libnftables": (
        on_host(features=features(without=(Feature.LIBNFTABLES,))), WISH, {"C351"}),
    "no nftables": (
        on_host(features=features(
            without=(Feature.NFTABLES, Feature.MASQUERADE, Feature.STATELESS))),
        WISH, {"C352", "C353", "C354"}),
    "no runc": (on_host(features=features(without=(Feature.RUNC,))), WISH, {"C355"}),
    "no libbpf": (on_host(features=features(without=(Feature.LIBBPF,))), WISH, {"C356"}),
    "no macvlan": (on_host(features=features(without=(Feature.MACVLAN,))), WISH, {"C357"}),
    "no macvlan, LAN is a bridge": (
        replace(with_lan(kind="bridge"),
                host=replace(HOST, features=features(without=(Feature.MACVLAN,)))),
        WISH, {"N331"}),
    "no cgroups": (
        on_host(cgroups=CgroupMode.NONE, controllers=frozenset()), WISH, {"C358"}),
    "a Raspberry Pi, no memory controller": (
        on_host(controllers=frozenset({"pids", "cpu"})), WISH, {"N332"}),
    "little memory": (
        replace(on_host(features=features(without=(Feature.WIREGUARD,))),
                memory_available=2**28), WISH, {"N333"}),
    "little memory, kernel WireGuard": (replace(GOOD, memory_available=2**28), WISH, set()),
    "no default route": (on_network(routes=NETWORK.routes[1:]), WISH, {"C330"}),
    "only an unreachable default": (
        on_network(routes=(route("0.0.0.0/0", None), *NETWORK.routes[1:])), WISH, {"C330"}),
    "no default route, uplink named": (
        on_network(routes=NETWORK.routes[1:]), replace(WISH, wan="eth0"), {"N335"}),
    "a named uplink that is not there": (GOOD, replace(WISH, wan="eth7"), {"C331"}),
    "uplink unplugged": (with_links(replace(ETH0, carrier=False), ETH1), WISH, {"N334"}),
    "a VPN of the host": (
        with_routes(route("0.0.0.0/1", "tun0"), route("128.0.0.0/1", "tun0")), WISH, {"N338"}),
    "two uplinks, strict filter": (
        on_network(
            links=(replace(ETH0, rp_filter=1), ETH1),
            routes=(RouteFacts(ip_network("0.0.0.0/0"), "eth2", metric=9), *NETWORK.routes)),
        WISH, {"N339"}),
    "one uplink, strict filter": (with_links(replace(ETH0, rp_filter=1), ETH1), WISH, set()),
    "a router": (with_links(replace(ETH0, forwarding=True), ETH1), WISH, {"N336"}),
    "NetworkManager": (on_network(network_manager=True), WISH, {"N337"}),
    "Docker": (
        with_firewall(FirewallFacts(forward_drops=DOCKER, docker_user=True)), WISH, {"N341"}),
    "Docker before its chain DOCKER-USER": (
        with_firewall(FirewallFacts(forward_drops=DOCKER)), WISH, {"C332"}),
    "Docker and an own firewall": (
        with_firewall(FirewallFacts(
            forward_drops=(*DOCKER, "inet mine forward"), docker_user=True)),
        WISH, {"N341", "C332"}),
    "firewalld": (with_firewall(FirewallFacts(firewalld=True)), WISH, {"N343"}),
    "old iptables": (with_firewall(FirewallFacts(legacy_iptables=True)), WISH, {"N344"}),
    "rules that cannot be read": (with_firewall(FirewallFacts(readable=False)), WISH, {"N340"}),
    "a bridged LAN on a Docker host": (
        on_network(
            links=(ETH0, replace(ETH1, kind="bridge")),
            firewall=FirewallFacts(
                forward_drops=DOCKER, docker_user=True, bridge_calls_iptables=True)),
        WISH, {"N341", "N345"}),
    "a bridged LAN": (with_lan(kind="bridge"), WISH, set()),
    "LAN in the wires' network": (
        GOOD, replace(WISH, address=IPv4Interface("198.19.4.1/24")), {"C360"}),
    "a route into the wires' network": (
        with_routes(route("198.18.0.0/15", "eth0")), WISH, {"C361"}),
    "a chain that is up": (with_routes(route("198.19.0.3/32", "chain0")), WISH, set()),
    "address of the host": (
        GOOD, replace(WISH, address=IPv4Interface("192.168.10.2/24")), {"C362"}),
    "LAN also elsewhere": (
        with_routes(route("192.168.10.128/25", "br-1a2b")), WISH, {"N346"}),
    "tunnel address in the LAN": (
        GOOD, replace(WISH, tunnels=(IPv4Interface("192.168.10.7/32"),)), {"C363"}),
    "tunnel address in a network of the host": (
        with_routes(route("10.64.0.0/16", "eth0")),
        replace(WISH, tunnels=(IPv4Interface("10.64.0.3/32"),)), {"N347"}),
    "missing LAN": (GOOD, replace(WISH, lan="eth9"), {"C333", "N346"}),
    "a LAN on PPP": (with_lan(ethernet=False), WISH, {"C364"}),
    "Wi-Fi": (with_lan(wireless=Reading(Known.YES, "nl80211")), WISH, {"C334"}),
    "a port of a bridge": (with_lan(master="br0"), WISH, {"C365"}),
    "LAN switched off": (with_lan(up=False, carrier=False), WISH, {"N348"}),
    "LAN unplugged": (with_lan(carrier=False), WISH, {"N349"}),
    "one interface for both": (
        GOOD, Wish(lan="eth0", address=IPv4Interface("203.0.113.254/24")), {"N350"}),
    "IPv6 router": (hearing(ROUTER), WISH, {"N351"}),
    "IPv6 router of local prefixes only": (hearing(replace(ROUTER, lifetime=0)), WISH, set()),
    "IPv6 router the kernel knows": (
        with_routes(RouteFacts(ip_network("::/0"), "eth1", IPv6Address("fe80::1"),
                               from_advertisement=True)), WISH, {"N351"}),
    "IPv6 router on the uplink only": (
        with_routes(RouteFacts(ip_network("::/0"), "eth0", IPv6Address("fe80::1"),
                               from_advertisement=True)), WISH, set()),
    "nobody listened": (
        replace(GOOD, lan=LanFacts(silent_because="eth1 is not connected")), WISH, {"N352"}),
    "duplicate address": (hearing(holders=("02:00:00:00:00:77",)), WISH, {"C366"}),
    "our own gateway": (
        hearing(holders=("02:00:00:00:00:77",)),
        replace(WISH, own_macs=frozenset({"02:00:00:00:00:77"})), set()),
}  # fmt: skip


def bad(findings: tuple[Finding, ...]) -> set[str]:
    return {finding.code for finding in findings if finding.level is not Level.OK}


@pytest.mark.parametrize("name", HOSTS)
def test_says_what_is_wrong_and_nothing_else(name: str) -> None:
    facts, wish, codes = HOSTS[name]
    assert bad(assess(facts, wish)) == codes


@pytest.mark.parametrize("name", HOSTS)
def test_level_and_code_agree(name: str) -> None:
    facts, wish, _ = HOSTS[name]
    for finding in assess(facts, wish):
        expected = {Level.OK: "", Level.BLOCKS: "C"}.get(finding.level, "N")
        assert finding.code[:1] == expected


def test_every_code_has_a_host_and_a_line_in_the_document() -> None:
    folder = Path(chainctl.model.__path__[0])
    source = "".join(path.read_text() for path in folder.glob("doctor*.py"))
    codes = set(re.findall(r'"([CN]3\d\d)"', source))
    assert codes == {code for _, _, codes in HOSTS.values() for code in codes}
    assert codes == set(re.findall(r"^\| ([CN]3\d\d) \|", DOCUMENT.read_text(), re.MULTILINE))


def test_exit_status_is_that_of_the_worst() -> None:
    assert exit_status(assess(GOOD, WISH)) == 0
    assert exit_status(assess(with_routes(route("0.0.0.0/1", "tun0")), WISH)) == 0
    assert exit_status(assess(hearing(ROUTER), WISH)) == 1
    assert exit_status(assess(hearing(ROUTER, holders=("02:00:00:00:00:77",)), WISH)) == 3


def test_an_old_kernel_is_told_which_one_it_needs() -> None:
    facts, wish, _ = HOSTS["5.4"]
    hints = {finding.hint for finding in assess(facts, wish) if finding.level is Level.BLOCKS}
    assert hints == {"this is Linux 5.4.0-150-generic; boot 5.10 or newer"}


def test_the_router_is_named() -> None:
    texts = [finding.text for finding in assess(hearing(ROUTER), WISH)]
    assert any("fe80::1" in text and "bypass" in text for text in texts)


@given(st.dictionaries(st.sampled_from(Feature), st.sampled_from(Known)), st.text(max_size=12))
def test_what_could_not_be_tried_is_never_fine(known: dict[Feature, Known], release: str) -> None:
    """Only what was seen to work counts; what nobody looked at counts as not tried."""
    readings = {feature: Reading(answer) for feature, answer in known.items()}
    findings = assess(on_host(features=readings, release=release), WISH)
    needed = set(Feature) - {Feature.WIREGUARD}
    if any(known.get(feature) is not Known.YES for feature in needed):
        assert worst(findings) >= Level.WARNING
    else:
        assert worst(findings) is Level.OK
    if any(known.get(feature) is Known.NO for feature in needed):
        assert worst(findings) is Level.BLOCKS
