"""What a machine has, as plain values: read by `chainctl.net.facts`, judged by `model.doctor`.

Nothing here touches the machine, so that hosts nobody has at hand can be written down as data.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from enum import Enum
from ipaddress import (
    IPv4Address,
    IPv4Interface,
    IPv4Network,
    IPv6Address,
    IPv6Interface,
    IPv6Network,
)
from typing import TypeAlias

Network: TypeAlias = IPv4Network | IPv6Network
Interface: TypeAlias = IPv4Interface | IPv6Interface

MAIN_TABLE = 254
SHORTEST_NETWORK = 8
"""A shorter prefix is somebody's detour for everything, such as 0.0.0.0/1, not a network."""


class Known(Enum):
    """The answer to a question to the machine. What could not be asked is never a yes."""

    YES = "yes"
    NO = "no"
    UNKNOWN = "unknown"


@dataclass(frozen=True)
class Reading:
    """One answer, with the version or the kernel's own words."""

    known: Known
    detail: str = ""


class Feature(Enum):
    """What a chain needs from a kernel or from the packages installed."""

    TC_BPF = "tc-bpf"
    """A scheduler classifier can be loaded and attached to a link's clsact."""
    REDIRECT_PEER = "bpf-redirect-peer"
    """The helper that carries a packet across the panel (Linux 5.10)."""
    DEVMAP_HASH = "devmap-hash"
    HASH_OF_MAPS = "hash-of-maps"
    RINGBUF = "ring-buffer"
    BPFFS = "bpffs"
    NETNS = "network-namespaces"
    USERNS = "user-namespaces"
    VETH = "veth"
    MACVLAN = "macvlan"
    TUN = "tun"
    NFTABLES = "nftables"
    """A table of family inet with a base chain and a set whose elements time out."""
    MASQUERADE = "masquerade"
    STATELESS = "stateless-rewriting"
    """notrack, conntrack zones, and rewriting of addresses and of the TCP MSS."""
    WIREGUARD = "kernel-wireguard"
    RUNC = "runc"
    LIBBPF = "libbpf"
    LIBNFTABLES = "libnftables"


class CgroupMode(Enum):
    V1 = "v1"
    V2 = "v2"
    HYBRID = "hybrid"
    NONE = "none"


@dataclass(frozen=True)
class HostFacts:
    """What stays the same while the machine runs."""

    release: str
    """The kernel's own name for its version, as uname(2) gives it."""
    root: bool
    missing_capabilities: tuple[str, ...]
    features: Mapping[Feature, Reading]
    cgroups: CgroupMode
    controllers: frozenset[str]

    def feature(self, feature: Feature) -> Reading:
        return self.features.get(feature, Reading(Known.UNKNOWN, "not looked at"))

    @property
    def lacks_something(self) -> bool:
        return bool(self.missing_capabilities) or any(
            self.feature(feature).known is not Known.YES
            for feature in Feature
            if feature is not Feature.WIREGUARD
        )


@dataclass(frozen=True)
class LinkFacts:
    name: str
    kind: str = ""
    """The kernel's link kind (`bridge`, `veth`, `vlan` …); empty for hardware."""
    ethernet: bool = True
    up: bool = True
    carrier: bool = True
    mtu: int = 1500
    mac: str = ""
    master: str | None = None
    """The bridge or bond it is enslaved to."""
    forwarding: bool = False
    """The host forwards IPv4 packets that come in here."""
    rp_filter: int = 0
    """The effective mode: 0 none, 1 strict, 2 loose (ip-sysctl: maximum of `all` and the link)."""
    wireless: Reading = Reading(Known.NO)
    """Whether it is a Wi-Fi station, whose access point takes frames from one MAC only."""


@dataclass(frozen=True)
class AddressFacts:
    link: str
    interface: Interface


@dataclass(frozen=True)
class RouteFacts:
    to: Network
    link: str | None
    """None: unreachable, blackhole or prohibit."""
    gateway: IPv4Address | IPv6Address | None = None
    table: int = MAIN_TABLE
    metric: int = 0
    from_advertisement: bool = False
    """The kernel made it from an IPv6 router advertisement (`proto ra`)."""

    @property
    def default(self) -> bool:
        return self.to.prefixlen == 0


@dataclass(frozen=True)
class FirewallFacts:
    """What other rules on this host do to forwarded packets. Tables of chainctl are left out."""

    readable: bool = True
    forward_drops: tuple[str, ...] = ()
    """Base chains at the forward hook with policy drop, as `family table chain`."""
    docker_user: bool = False
    firewalld: bool = False
    legacy_iptables: bool = False
    """The old kernel interface holds a filter table, whose policy nft does not show."""
    bridge_calls_iptables: bool = False
    """Frames between ports of a bridge pass the forward chains too (br_netfilter)."""


@dataclass(frozen=True)
class NetworkFacts:
    """The namespace the reading thread was in."""

    links: tuple[LinkFacts, ...] = ()
    addresses: tuple[AddressFacts, ...] = ()
    routes: tuple[RouteFacts, ...] = ()
    firewall: FirewallFacts = field(default_factory=FirewallFacts)
    network_manager: bool = False

    def link(self, name: str) -> LinkFacts | None:
        return next((link for link in self.links if link.name == name), None)

    @property
    def default_route(self) -> RouteFacts | None:
        """The IPv4 default route the kernel prefers."""
        routes = [
            route
            for route in self.routes
            if route.default
            and route.to.version == 4
            and route.table == MAIN_TABLE
            and route.link is not None
        ]
        return min(routes, key=lambda route: route.metric, default=None)


@dataclass(frozen=True)
class Router:
    """An IPv6 router that was heard on the LAN."""

    address: IPv6Address
    mac: str
    lifetime: int
    """Seconds devices may use it as default router; 0: not at all."""
    prefixes: tuple[IPv6Network, ...] = ()


@dataclass(frozen=True)
class LanFacts:
    """What was heard on the LAN. None: nobody listened, and `silent_because` says why."""

    routers: tuple[Router, ...] | None = None
    holders: tuple[str, ...] | None = None
    """MAC addresses that claim the gateway's address."""
    silent_because: str = ""


@dataclass(frozen=True)
class Facts:
    host: HostFacts
    network: NetworkFacts
    lan: LanFacts = LanFacts()
    memory_available: int = 0
    """Bytes the kernel thinks can be had without swapping."""
