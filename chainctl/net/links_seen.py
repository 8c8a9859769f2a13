"""From what the kernel shows of some namespaces to the parts that are there. Pure.

`chainctl.net.links` reads and hands in a Sight per namespace; it gets the same parts it made.
What is there and is not one of our shapes comes out as something no layout can want: a
ForeignLink, or a Route or Rule with a description in the place of its link.
"""

from __future__ import annotations

import functools
import hashlib
from collections.abc import Collection, Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from ipaddress import IPv4Network

from chainctl.model.parts import (
    HOST,
    PANEL,
    Address,
    ForeignLink,
    LanLeg,
    LanMode,
    Leg,
    Namespace,
    NsName,
    Part,
    PortName,
    Route,
    Rule,
    Tun,
    Up,
)
from chainctl.net.rtnl import (
    IFF_NOARP,
    LOCAL_TABLE,
    AddressSeen,
    LinkSeen,
    RouteSeen,
    RuleSeen,
)

KERNELS_OWN_RULES = (
    RuleSeen(0, "", None, 255),
    RuleSeen(32766, "", None, 254),
    RuleSeen(32767, "", None, 253),
)
# Made by the kernel in every new namespace while their module is loaded, and not removable.
_FALLBACKS = frozenset(
    "tunl0 gre0 gretap0 erspan0 ip_vti0 ip6_vti0 sit0 ip6tnl0 ip6gre0".split()  # noqa: SIM905
)
_TUN_TYPE = 1


@dataclass(frozen=True)
class Sight:
    """One namespace. `panel` and `host` are the numbers by which it knows those two."""

    ns: NsName
    links: Sequence[LinkSeen] = ()
    addresses: Sequence[AddressSeen] = ()
    routes: Sequence[RouteSeen] = ()
    rules: Sequence[RuleSeen] = ()
    panel: int | None = None
    host: int | None = None
    forwarding: bool | None = None
    """None: not everything that `Namespaces.create` promises of its settings holds."""
    without_ipv6: frozenset[str] = frozenset()
    """In the host's namespace: links on which IPv6 is off."""

    @functools.cached_property
    def indexes(self) -> Mapping[str, int]:
        """Of the links by their names."""
        return {link.name: link.index for link in self.links}


BRIDGE_PORT = "lan-"


def bridge_port(ns: NsName, link: str) -> str:
    """The name of the host's end of a LanLeg into a bridge: at most 15 characters."""
    return BRIDGE_PORT + hashlib.sha256(f"{ns}/{link}".encode()).hexdigest()[:10]


def parts(sights: Iterable[Sight], *, port_prefix: str) -> list[Part]:
    """The parts in the namespaces of `sights`.

    In the panel only ports whose name begins with `port_prefix` are looked at, and in the
    host's namespace only the legs at the other end of these. WireGuard devices are left to
    the runtime, which knows their configuration too.
    """
    by_name = {sight.ns: sight for sight in sights}
    host, panel = by_name.get(HOST, Sight(HOST)), by_name.get(PANEL, Sight(PANEL))
    ports = {port.index: port for port in panel.links if port.name.startswith(port_prefix)}
    found: list[Part] = []
    for sight in by_name.values():
        if sight.ns != HOST and sight.forwarding is not None:
            found.append(Namespace(sight.ns, sight.forwarding))
        if sight.ns != PANEL:
            links = {link.index: _link(link, sight, host, ports) for link in sight.links}
            found += [part for part in links.values() if part is not None]
            found += _on_links(sight, {i for i, part in links.items() if part or sight.ns != HOST})
    # A port without its leg: the leg is in a namespace that is no longer the chain's.
    whole = {part.port for part in found if isinstance(part, Leg)}
    strays = [port for port in ports.values() if port.name not in whole]
    found += [ForeignLink(PANEL, port.name, port.kind) for port in strays]
    found += _on_links(panel, set(ports))
    return found


def _link(link: LinkSeen, sight: Sight, host: Sight, ports: Mapping[int, LinkSeen]) -> Part | None:
    port = _port_of(link, sight, ports)
    if port is not None:
        return _leg(link, port, sight)
    return None if sight.ns == HOST else _inner_link(link, sight, host)


def _port_of(link: LinkSeen, sight: Sight, ports: Mapping[int, LinkSeen]) -> LinkSeen | None:
    if link.kind != "veth" or link.peer_nsid is None or link.peer_nsid != sight.panel:
        return None
    port = ports.get(link.peer or 0)
    return port if port is not None and port.peer == link.index else None


def _leg(link: LinkSeen, port: LinkSeen, sight: Sight) -> Part:
    silent = link.flags & port.flags & IFF_NOARP
    if not silent or (sight.ns == HOST and link.name not in sight.without_ipv6):
        return ForeignLink(sight.ns, link.name, link.kind)
    # Ends that differ are no MTU that a layout can want, so they are made equal.
    mtu = link.mtu if link.mtu == port.mtu else 0
    return Leg(sight.ns, link.name, PortName(port.name), mtu)


def _inner_link(link: LinkSeen, sight: Sight, host: Sight) -> Part | None:
    if link.name == "lo" or link.kind == "wireguard" or link.name in _FALLBACKS:
        return None
    if link.kind == "tun":
        found = _tun(link, sight)
    elif link.peer_nsid is not None and link.peer_nsid == sight.host:
        found = _lan_leg(link, sight, host)
    else:
        found = None
    return found or ForeignLink(sight.ns, link.name, link.kind)


def _tun(link: LinkSeen, sight: Sight) -> Part | None:
    """Whether there is a virtio header is the client's choice when it attaches."""
    details = dict(link.details)
    owner = details.get("IFLA_TUN_OWNER")
    ours = (
        owner is not None
        and details.get("IFLA_TUN_GROUP") is None
        and details.get("IFLA_TUN_TYPE") == _TUN_TYPE
        and details.get("IFLA_TUN_PERSIST")
        and not details.get("IFLA_TUN_MULTI_QUEUE")
    )
    return Tun(sight.ns, link.name, owner, link.mtu) if ours and owner is not None else None


def _lan_leg(link: LinkSeen, sight: Sight, host: Sight) -> Part | None:
    others = {other.index: other for other in host.links}
    other = others.get(link.peer or 0)
    if other is None:
        return None
    if link.kind == "macvlan" and dict(link.details).get("IFLA_MACVLAN_MODE") == "bridge":
        return LanLeg(sight.ns, link.name, other.name, LanMode.MACVLAN)
    bridge = others.get(other.master or 0)
    ours = (
        link.kind == "veth"
        and bridge is not None
        and other.name == bridge_port(sight.ns, link.name)
        and other.up
        and other.name in host.without_ipv6
    )
    return LanLeg(sight.ns, link.name, bridge.name, LanMode.BRIDGE) if ours and bridge else None


def _on_links(sight: Sight, known: Collection[int]) -> Iterator[Part]:
    """Addresses, routes and rules, and which links are up."""
    names = {link.index: link.name for link in sight.links}
    # Without its route it is an address in name only: `ip route flush table local`.
    local = {(r.index, r.to) for r in sight.routes if r.kernels and r.table == LOCAL_TABLE}
    for address in sight.addresses:
        if address.index not in known or names[address.index] == "lo":
            continue
        if (address.index, IPv4Network(address.interface.ip)) in local:
            yield Address(sight.ns, names[address.index], address.interface)
    for link in sight.links:
        if link.index in known and link.up:
            yield Up(sight.ns, link.name)
    for route in (route for route in sight.routes if not route.kernels):
        if sight.ns != HOST or route.index in known:
            yield _route(route, sight.ns, names)
    for rule in sight.rules:
        ours = sight.ns != HOST or rule.iif in {names[index] for index in known}
        # In a namespace of ours the kernel's rules are parts as well: somebody may take them.
        passed_over = KERNELS_OWN_RULES if sight.ns in (HOST, PANEL) else KERNELS_OWN_RULES[2:]
        if ours and rule not in passed_over:
            iif = f"{rule.iif} {rule.oddity}" if rule.oddity else rule.iif
            yield Rule(sight.ns, rule.priority, iif, rule.mark, rule.table)


def _route(seen: RouteSeen, ns: NsName, names: Mapping[int, str]) -> Route:
    link = None if seen.index is None else names.get(seen.index, f"link {seen.index}")
    if seen.oddity:
        link = f"{link} {seen.oddity}"
    return Route(ns, seen.table, seen.to, link, seen.source, seen.metric, seen.mtu, seen.via)
