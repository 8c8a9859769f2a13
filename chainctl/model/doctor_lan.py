"""Judging the LAN's interface, and addresses that meet. Pure; called by `model.doctor`."""

from __future__ import annotations

from collections.abc import Iterator, Sequence

from chainctl.model.facts import (
    SHORTEST_NETWORK,
    Known,
    LanFacts,
    LinkFacts,
    NetworkFacts,
    RouteFacts,
)
from chainctl.model.findings import Finding, Wish, blocks, is_own_link, note, ok, warning


def judge_addresses(network: NetworkFacts, wish: Wish) -> Iterator[Finding]:
    findings = [
        *_wires(network, wish),
        *judge_lan_address(network, wish),
        *_tunnel_addresses(network, wish),
    ]
    yield from findings or [ok("addresses", f"nothing else uses {wish.wires}")]


def _wires(network: NetworkFacts, wish: Wish) -> Iterator[Finding]:
    hint = "choose another network in `wires.network`"
    if wish.address and wish.address.network.overlaps(wish.wires):
        yield blocks(
            "addresses",
            "C360",
            f"the LAN {wish.address.network} overlaps {wish.wires}, used between hops",
            hint,
        )
    for route in _networks(network):
        if not is_own_link(route.link) and route.to.overlaps(wish.wires):
            yield blocks(
                "addresses",
                "C361",
                f"this host's route {route.to} ({route.link or 'unreachable'}) overlaps "
                f"{wish.wires}, used between hops",
                hint,
            )


def judge_lan_address(network: NetworkFacts, wish: Wish) -> Iterator[Finding]:
    if wish.address is None:
        return
    for held in network.addresses:
        if held.interface.ip == wish.address.ip:
            yield blocks(
                "addresses",
                "C362",
                f"{wish.address.ip} is this host's own address on {held.link}",
                "choose a free address of the LAN in `lan.address`",
            )
    for route in _networks(network):
        elsewhere = route.link != wish.lan and not is_own_link(route.link)
        if elsewhere and route.to.overlaps(wish.address.network):
            yield warning(
                "addresses",
                "N346",
                f"this host has a route {route.to} to {route.link or 'nowhere'}, which overlaps "
                f"the LAN {wish.address.network}",
                "see whether `lan.interface` is the right one",
            )


def _tunnel_addresses(network: NetworkFacts, wish: Wish) -> Iterator[Finding]:
    for tunnel in sorted(set(wish.tunnels)):
        if wish.address and tunnel.ip in wish.address.network:
            yield blocks(
                "addresses",
                "C363",
                f"the tunnel address {tunnel.ip} lies in the LAN {wish.address.network}",
                "move the LAN to another network, or take another server",
            )
        elif any(tunnel.ip in route.to for route in _networks(network)):
            yield note(
                "addresses",
                "N347",
                f"the tunnel address {tunnel.ip} also lies in a network of this host; they do "
                "not meet",
            )


def _networks(network: NetworkFacts) -> Iterator[RouteFacts]:
    """The host's IPv4 routes to a network, not those that stand for everywhere."""
    for route in network.routes:
        if route.to.version == 4 and route.to.prefixlen >= SHORTEST_NETWORK:
            yield route


def judge_lan(network: NetworkFacts, heard: LanFacts, wish: Wish) -> Iterator[Finding]:
    if wish.lan is None:
        return
    about = f"LAN {wish.lan}"
    link = network.link(wish.lan)
    if link is None:
        yield blocks(
            about,
            "C333",
            f"there is no interface {wish.lan}",
            "interfaces here: " + ", ".join(link.name for link in network.links),
        )
        return
    yield from _lan_link(about, link) or [ok(about, _joining(link))]
    yield from _bypasses(about, network, heard, wish.lan)
    yield from _holders(about, heard, wish)


def _lan_link(about: str, link: LinkFacts) -> Sequence[Finding]:
    if not link.ethernet:
        return [blocks(about, "C364", f"{link.name} is no Ethernet link; devices need ARP")]
    if link.wireless.known is Known.YES:
        return [
            blocks(
                about,
                "C334",
                f"{link.name} is Wi-Fi: the access point takes frames from one MAC only, and the "
                "gateway has a MAC of its own",
                "use a cable, or let the access point be bridged to this host",
            )
        ]
    if link.master is not None:
        return [
            blocks(
                about,
                "C365",
                f"{link.name} belongs to {link.master}, which takes all its frames",
                f"name {link.master} in `lan.interface`",
            )
        ]
    if not link.up:
        return [
            warning(
                about,
                "N348",
                f"{link.name} is switched off",
                f"ip link set {link.name} up",
            )
        ]
    if not link.carrier:
        return [warning(about, "N349", f"{link.name} has no carrier: no cable?")]
    return []


def _joining(link: LinkFacts) -> str:
    how = "a port of the bridge" if link.kind == "bridge" else "a macvlan beside the host"
    return f"MTU {link.mtu}, the gateway joins as {how}"


def _bypasses(about: str, network: NetworkFacts, heard: LanFacts, lan: str) -> Iterator[Finding]:
    """Ways past the gateway that devices on the LAN may take."""
    default = network.default_route
    if default is not None and default.link == lan and default.gateway is not None:
        yield note(
            about,
            "N350",
            f"the uplink is on the same LAN; devices with {default.gateway} as gateway bypass "
            "the chain",
        )
    addresses = _ipv6_routers(network, heard, lan)
    if addresses:
        yield warning(
            about,
            "N351",
            f"{lan} has an IPv6 router ({', '.join(addresses)}); devices that use it bypass "
            "this chain",
            "switch IPv6 off at the router, or its advertisements on this LAN",
        )
    elif heard.routers is not None:
        yield ok(about, "no IPv6 router answered")
    elif heard.silent_because:
        yield note(about, "N352", f"nobody listened for IPv6 routers: {heard.silent_because}")


def _ipv6_routers(network: NetworkFacts, heard: LanFacts, lan: str) -> list[str]:
    """Those heard now, and those the kernel learned a default route from."""
    advertised = {str(router.address) for router in heard.routers or () if router.lifetime}
    learned = {
        str(route.gateway)
        for route in network.routes
        if route.from_advertisement and route.default and route.link == lan
    }
    return sorted(advertised | learned)


def _holders(about: str, heard: LanFacts, wish: Wish) -> Iterator[Finding]:
    if wish.address is None or heard.holders is None:
        return
    others = [mac for mac in heard.holders if mac not in wish.own_macs]
    if others:
        yield blocks(
            about,
            "C366",
            f"{wish.address.ip} is taken: {', '.join(others)} answers for it",
            "choose a free address in `lan.address`",
        )
    else:
        yield ok(about, f"{wish.address.ip} is free")
