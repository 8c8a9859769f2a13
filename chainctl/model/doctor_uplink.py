"""Judging the way out and the rules others have put on it. Pure; called by `model.doctor`."""

from __future__ import annotations

from collections.abc import Iterator

from chainctl.model.facts import SHORTEST_NETWORK, LinkFacts, NetworkFacts
from chainctl.model.findings import Finding, Wish, blocks, note, ok, warning


def judge_uplink(network: NetworkFacts, wish: Wish) -> Iterator[Finding]:
    default = network.default_route
    name = wish.wan or (default.link if default else None)
    link = network.link(name) if name else None
    if name is None:
        yield blocks(
            "uplink",
            "C330",
            "this host has no IPv4 default route, so no server can be reached",
            "connect it, or name the interface in `wan.interface`",
        )
        return
    if link is None:
        yield blocks(f"uplink {name}", "C331", f"there is no interface {name}", "ip link")
        return
    if not (link.up and link.carrier):
        yield warning(f"uplink {name}", "N334", f"{name} is not connected")
    elif default is None or default.link != name:
        yield warning(
            f"uplink {name}",
            "N335",
            f"the default route does not lead to {name}",
            "servers are reached by whatever route this host has to them",
        )
    else:
        yield ok(f"uplink {name}", f"default route, MTU {link.mtu}")
    yield from _detours(network)
    yield from _strict_reverse_path(network, link)
    if link.forwarding:
        yield note(
            f"uplink {name}",
            "N336",
            f"this host already forwards packets that come in on {name}",
        )
    if network.network_manager:
        yield note(
            "NetworkManager",
            "N337",
            "NetworkManager runs; it has no business with interfaces named chain*",
            "unmanaged-devices=interface-name:chain* in its [keyfile] section",
        )


def _detours(network: NetworkFacts) -> Iterator[Finding]:
    """0.0.0.0/1 and the like: how a VPN on the host takes the default route over."""
    taken = {
        route.link
        for route in network.routes
        if route.to.version == 4 and 0 < route.to.prefixlen < SHORTEST_NETWORK and route.link
    }
    for link in sorted(taken):
        yield note(
            "host's own VPN",
            "N338",
            f"{link} takes this host's traffic; the first server is reached through it",
        )


def _strict_reverse_path(network: NetworkFacts, link: LinkFacts) -> Iterator[Finding]:
    gateways = {route.link for route in network.routes if route.default and route.to.version == 4}
    if link.rp_filter == 1 and len(gateways - {None}) > 1:
        yield warning(
            f"uplink {link.name}",
            "N339",
            f"strict reverse path filter on {link.name} and several default routes: "
            "answers of servers may be dropped",
            f"sysctl -w net.ipv4.conf.{link.name}.rp_filter=2",
        )


def judge_firewall(network: NetworkFacts, wish: Wish) -> Iterator[Finding]:
    firewall = network.firewall
    if not firewall.readable:
        yield warning("firewall", "N340", "the host's rules could not be read")
        return
    findings = [*_drops(network), *_other_firewalls(network, wish)]
    yield from findings or [ok("firewall", "nobody drops forwarded packets")]


def _drops(network: NetworkFacts) -> Iterator[Finding]:
    docker = "ip filter FORWARD" if network.firewall.docker_user else None
    for chain in network.firewall.forward_drops:
        if chain == docker:
            yield note(
                "docker",
                "N341",
                "Docker drops forwarded packets; `up` puts one rule into its chain DOCKER-USER "
                "and `down` takes it out",
            )
        else:
            yield blocks(
                "firewall",
                "C332",
                f"{chain} drops forwarded packets, and no rule of chainctl can undo that",
                "give that chain the policy accept, and drop at its end what does not come from "
                "or go to interfaces named chain*",
            )


def _other_firewalls(network: NetworkFacts, wish: Wish) -> Iterator[Finding]:
    firewall = network.firewall
    if firewall.firewalld:
        yield warning(
            "firewalld",
            "N343",
            "firewalld refuses forwarded packets of interfaces it does not know",
            "firewall-cmd --permanent --zone=trusted --add-interface=chain0 && "
            "firewall-cmd --reload",
        )
    if firewall.legacy_iptables:
        yield warning(
            "iptables",
            "N344",
            "rules of the old iptables are loaded, and whether they drop forwarded packets "
            "cannot be seen by nft",
            "iptables-legacy -S FORWARD",
        )
    link = network.link(wish.lan) if wish.lan else None
    drops = firewall.forward_drops or firewall.firewalld
    if link and link.kind == "bridge" and firewall.bridge_calls_iptables and drops:
        yield warning(
            f"LAN {link.name}",
            "N345",
            f"frames across the bridge {link.name} pass the host's forward rules, which drop",
            "sysctl -w net.bridge.bridge-nf-call-iptables=0",
        )
