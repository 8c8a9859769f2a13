"""What a chain is made of on this machine, one value per kernel object.

`chainctl.net.layout` lists the parts a chain should have, in the order in which they may
come into being (policy before connectivity). The drivers list those that exist, in the same
words, so that `chainctl.supervisor.plan` only has to compare: a part with the same `key` but
another content is a part that has to change.

A namespace is named as its pin is; `HOST` is the namespace the supervisor was started in.
"""

from __future__ import annotations

from dataclasses import dataclass
from enum import Enum
from ipaddress import IPv4Address, IPv4Interface, IPv4Network
from typing import NewType, TypeAlias

NsName = NewType("NsName", str)
PortName = NewType("PortName", str)
Key: TypeAlias = tuple[str, ...]

HOST = NsName("")
PANEL = NsName("panel")

UDP = 17
TCP = 6

NOBODY = IPv4Address(0)
"""An address that no packet of ours ever has."""


class RuntimeKind(Enum):
    """What runs VPN clients."""

    EMBEDDED = "embedded"
    """runc, called by the supervisor itself."""
    DOCKER = "docker"


@dataclass(frozen=True)
class Namespace:
    """A pinned network namespace without IPv6.

    `runtime`: EMBEDDED, it is owned by a user namespace of its own; DOCKER, a container without
    any right holds it; None, that container is gone, so no other could join it any more.
    """

    name: NsName
    forwarding: bool = False
    runtime: RuntimeKind | None = RuntimeKind.EMBEDDED

    @property
    def key(self) -> Key:
        return ("namespace", self.name)


@dataclass(frozen=True)
class NftTable:
    """A whole table `inet <table>`; `rules` is what stands between its braces."""

    ns: NsName
    table: str
    rules: str

    @property
    def key(self) -> Key:
        return ("nft", self.ns, self.table)


@dataclass(frozen=True)
class Leg:
    """A veth pair: `link` in `ns` and its outer end, the port, in the panel. Both NOARP."""

    ns: NsName
    link: str
    port: PortName
    mtu: int

    @property
    def key(self) -> Key:
        return ("link", self.ns, self.link)


class LanMode(Enum):
    MACVLAN = "macvlan"
    BRIDGE = "bridge"
    LOCAL = "local"
    """A network of chainctl's own, for programs of this machine; its bridge is nobody else's."""
    DOCKER = "docker"
    """As LOCAL, and Docker puts containers into it."""

    @property
    def own(self) -> bool:
        return self in (LanMode.LOCAL, LanMode.DOCKER)


@dataclass(frozen=True)
class LanLeg:
    """A link on a network outside: a macvlan on `parent`, or a veth into the bridge `parent`."""

    ns: NsName
    link: str
    parent: str
    mode: LanMode

    @property
    def key(self) -> Key:
        return ("link", self.ns, self.link)


@dataclass(frozen=True)
class Tun:
    """A persistent TUN device that only `uid` may attach to."""

    ns: NsName
    link: str
    uid: int
    mtu: int

    @property
    def key(self) -> Key:
        return ("link", self.ns, self.link)


@dataclass(frozen=True)
class KernelWireGuard:
    """A WireGuard device of the kernel; stands where `Tun` and `Client` stand otherwise."""

    ns: NsName
    link: str
    mtu: int

    @property
    def key(self) -> Key:
        return ("link", self.ns, self.link)


@dataclass(frozen=True)
class ForeignLink:
    """A link in a namespace of ours that nobody of us made."""

    ns: NsName
    link: str
    kind: str

    @property
    def key(self) -> Key:
        return ("link", self.ns, self.link)


@dataclass(frozen=True)
class Address:
    ns: NsName
    link: str
    interface: IPv4Interface

    @property
    def key(self) -> Key:
        return ("address", self.ns, self.link, str(self.interface))


@dataclass(frozen=True)
class Up:
    """The link is up. For a port it is what lets frames into the filter."""

    ns: NsName
    link: str

    @property
    def key(self) -> Key:
        return ("up", self.ns, self.link)


@dataclass(frozen=True)
class Route:
    """`link` None: unreachable; `via` None: who it leads to is on the link. Table 254 is `main`."""

    ns: NsName
    table: int
    to: IPv4Network
    link: str | None = None
    source: IPv4Address | None = None
    metric: int = 0
    mtu: int | None = None
    """Bytes; less than the link's, for what TCP tells the other side."""
    via: IPv4Address | None = None

    @property
    def key(self) -> Key:
        return ("route", self.ns, str(self.table), str(self.to), str(self.metric))


@dataclass(frozen=True)
class Rule:
    """An `ip rule`; `iif` "": from anywhere, `table` None: unreachable."""

    ns: NsName
    priority: int
    iif: str
    mark: int | None = None
    table: int | None = None

    @property
    def key(self) -> Key:
        return ("rule", self.ns, str(self.priority))


class PortMode(Enum):
    """What judges a packet that enters the panel here (the numbers of bpf/identity.h)."""

    TUPLE = 1
    """A wire between hops or to the uplink: only the tuples listed for the port."""
    CLIENT = 2
    """From the gateway: the identity policy, and the gate."""
    REPLY = 3
    """From the exit hop to the gateway: only replies, and the gate."""


@dataclass(frozen=True)
class PortRow:
    """What the filter knows about a port.

    `address`: the only source it may have; 0.0.0.0: the tuples or the policy say it.
    `gate`: the port whose gate is asked.
    """

    port: PortName
    mode: PortMode
    address: IPv4Address
    far_mtu: int
    scope: int
    gate: PortName | None = None

    @property
    def key(self) -> Key:
        return ("port", self.port)


@dataclass(frozen=True)
class FarEnd:
    """The other end of the wire that begins at `port`; gone as soon as `far` is deleted."""

    port: PortName
    far: PortName

    @property
    def key(self) -> Key:
        return ("far", self.port)


@dataclass(frozen=True)
class WireTuple:
    """One tuple that may enter the panel at `port`. `fragments`: also without ports."""

    port: PortName
    source: IPv4Address
    source_port: int
    destination: IPv4Address
    destination_port: int
    protocol: int
    fragments: bool = False

    @property
    def key(self) -> Key:
        ends = (f"{self.source}:{self.source_port}", f"{self.destination}:{self.destination_port}")
        return ("wire", self.port, *ends, str(self.protocol))


@dataclass(frozen=True)
class ClientPolicy:
    """Who may reach what on a client wire; compiled into maps by `chainctl.net.policy`.

    Sources outside `clients` have no identity. Of the destinations, `refused` prefixes are
    denied, `dns` addresses may be asked on port 53 although they may lie in one of them,
    everything else is the world, which may be reached except on ports 53 and 853.
    """

    scope: int
    clients: tuple[IPv4Network, ...]
    refused: tuple[IPv4Network, ...]
    dns: tuple[IPv4Address, ...]

    @property
    def key(self) -> Key:
        return ("policy", str(self.scope))


@dataclass(frozen=True)
class PortFilter:
    """The identity filter is attached to the port and uses the pinned maps."""

    port: PortName

    @property
    def key(self) -> Key:
        return ("filter", self.port)


@dataclass(frozen=True)
class TunFilter:
    """On the way into the tunnel nothing but packets from `address` passes; NOBODY: nothing."""

    ns: NsName
    link: str
    address: IPv4Address

    @property
    def key(self) -> Key:
        return ("tunfilter", self.ns, self.link)


@dataclass(frozen=True)
class Forwarding:
    """The host forwards packets that come in on this link of its own namespace."""

    link: str

    @property
    def key(self) -> Key:
        return ("forwarding", self.link)


@dataclass(frozen=True)
class DockerRule:
    """One accept rule in Docker's own chain DOCKER-USER, since no table of ours undoes a drop."""

    link: str

    @property
    def key(self) -> Key:
        return ("docker", self.link)


@dataclass(frozen=True)
class ClientBridge:
    """A bridge of the host without any address, for clients that live on this machine."""

    link: str
    settled: bool = True
    """False: it is there, but down, with an address, or with settings that somebody changed."""

    @property
    def key(self) -> Key:
        return ("bridge", self.link)


@dataclass(frozen=True)
class DockerNetwork:
    """Docker's network on a ClientBridge: containers have `gateway` as their default route."""

    name: str
    bridge: str
    subnet: IPv4Network
    gateway: IPv4Address

    @property
    def key(self) -> Key:
        return ("docker network", self.name)


@dataclass(frozen=True)
class Client:
    """A VPN client's process: one tunnel slot of a hop, in a container of its own.

    `name` is unique on the machine, `image` the digest of its root file system.
    """

    name: str
    ns: NsName
    link: str
    uid: int
    image: str
    runtime: RuntimeKind = RuntimeKind.EMBEDDED

    @property
    def key(self) -> Key:
        return client_key(self.name, self.runtime)


def client_key(name: str, runtime: RuntimeKind) -> Key:
    return ("client", name, runtime.value)


@dataclass(frozen=True)
class TunnelConfig:
    """The client (or kernel device) of `link` has this configuration.

    `digest` stands for keys that are never part of a value that may be printed.
    """

    name: str
    ns: NsName
    link: str
    digest: str

    @property
    def key(self) -> Key:
        return ("config", self.name)


Part: TypeAlias = (
    Namespace
    | NftTable
    | Leg
    | LanLeg
    | Tun
    | KernelWireGuard
    | ForeignLink
    | Address
    | Up
    | Route
    | Rule
    | PortRow
    | FarEnd
    | WireTuple
    | ClientPolicy
    | PortFilter
    | TunFilter
    | Forwarding
    | DockerRule
    | ClientBridge
    | DockerNetwork
    | Client
    | TunnelConfig
)
