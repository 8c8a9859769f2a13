"""What a chain file and its profiles say, as values: what the rest of chainctl works with."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from dataclasses import dataclass, field
from datetime import time
from ipaddress import IPv4Address, IPv4Interface, IPv4Network
from pathlib import Path
from types import MappingProxyType
from typing import TypeAlias

from chainctl.model.clients import NamedClient, Publish
from chainctl.model.independence import Independence, Trait
from chainctl.model.openvpn import OpenVpnProfile
from chainctl.model.parts import LanMode, RuntimeKind
from chainctl.model.secret import Secret
from chainctl.spec.asn_table import NO_TABLE, AsnTable
from chainctl.spec.yaml_text import PathInFile, Place


@dataclass(frozen=True, order=True)
class Notice:
    """Something in a profile that chainctl does differently; nothing has to be mended."""

    file: str
    line: int
    column: int
    code: str
    message: str

    def __str__(self) -> str:
        return f"[{self.code}] {self.file}:{self.line}:{self.column} {self.message}"


@dataclass(frozen=True)
class Endpoint:
    host: IPv4Address | str
    """A name is looked up once and pinned (`chainctl.spec.pins`)."""
    port: int

    def __str__(self) -> str:
        return f"{self.host}:{self.port}"


@dataclass(frozen=True)
class Labels:
    """Where a server stands and who runs it, as far as anybody said; None is unknown.

    Two servers of which one is unknown never conflict, and an unknown country is none that a
    hop asks for.
    """

    country: str | None = None
    """Two small letters, ISO 3166-1."""
    city: str | None = None
    operator: str | None = None
    """In small letters."""
    asn: int | None = None
    """Number of the autonomous system that announces its address."""


@dataclass(frozen=True)
class WireGuardProfile:
    """A server of a provider, with the account to use it.

    What a tunnel may carry is not kept: it is 0.0.0.0/0, or the profile was refused.
    """

    name: str
    """The file's name without its ending, or as the list of servers calls it; unique in its
    pool."""
    private_key: Secret
    addresses: tuple[IPv4Interface, ...]
    """The client's addresses inside the tunnel, at least one."""
    dns: tuple[IPv4Address, ...]
    mtu: int | None
    """Bytes; what the provider says at most."""
    peer_public_key: str
    preshared: Secret | None
    endpoint: Endpoint
    keepalive: int | None
    """Seconds."""
    file: Path
    """The profile, or the list of servers."""
    notices: tuple[Notice, ...] = field(default=(), compare=False)
    labels: Labels = Labels()


@dataclass(frozen=True)
class OpenVpnServer:
    """A server of a provider, as one `remote` of an OpenVPN profile names it."""

    name: str
    """The file's name without its ending; with `#2` behind for the second `remote`, and so on,
    when there are several."""
    endpoint: Endpoint
    protocol: int
    """UDP or TCP of `chainctl.model.parts`."""
    profile: OpenVpnProfile
    dns: tuple[IPv4Address, ...]
    mtu: int | None
    """Bytes; what the provider says at most."""
    file: Path
    notices: tuple[Notice, ...] = field(default=(), compare=False)
    """About the file; with the first of its servers."""
    labels: Labels = Labels()

    @property
    def addresses(self) -> tuple[IPv4Interface, ...]:
        """None that is known: the server says the client's address when it connects."""
        return ()


ServerProfile: TypeAlias = WireGuardProfile | OpenVpnServer
"""A server a hop may use; another kind of VPN is another member of this union."""


@dataclass(frozen=True)
class LanSpec:
    interface: str
    address: IPv4Interface
    """Of the gateway: what devices use as default route. Its network is the LAN."""
    mode: LanMode | None
    """None: macvlan where possible, else bridge."""


@dataclass(frozen=True)
class WanSpec:
    """By `interface`; None: by that of the default route."""

    interface: str | None
    mode: LanMode | None = None
    """None: NAT through the host; else a link of the chain's own, with `address`."""
    address: IPv4Interface | None = None
    router: IPv4Address | None = None
    """None: the host's, if it is in the network of `address`."""


@dataclass(frozen=True)
class HopSpec:
    name: str
    pool: tuple[ServerProfile, ...]
    """In the order of the chain file, files of one pattern sorted by name; never empty. Only
    those of the countries asked for."""
    line: int = field(compare=False)
    rotate: tuple[float, float] | None = None
    """Seconds, least and most, after which the server is changed."""
    keep: float | None = None
    """Seconds. Of `rotate`, `keep` and `prefer` at most one is set."""
    prefer: str | None = None
    """The server of the pool to go back to."""
    standby: bool = False
    sessions: int = 0
    """Tunnels the account allows at a time; 0: any number. 1: remove before make."""
    notices: tuple[Notice, ...] = field(default=(), compare=False)
    """About the pool as a whole."""
    listed: bool = False
    """Its servers are named one by one: their order counts where chance would decide."""
    asns: AsnTable = field(default=NO_TABLE, compare=False, repr=False)
    """Where labels name no autonomous system."""


INDEPENDENCE = Independence(
    require=frozenset({Trait.SERVER}), prefer=frozenset(Trait) - {Trait.SERVER}
)
"""When the chain file says nothing; docs/decisions/0012-independence.md says why so little."""


@dataclass(frozen=True)
class RotationSpec:
    """When and how often servers are replaced. The values here are the defaults."""

    per_hop_hour: int = 6
    """Changes of one hop's server, also unplanned ones; above: hold, and stay closed."""
    per_chain_hour: int = 12
    quiet: tuple[time, time] | None = None
    """Local time of day without planned changes; may go over midnight."""
    drain: float = 600.0
    """Seconds for which connections go on over the exit they began with."""
    guard_budget: int = 4
    """Different guards in 60 days."""


@dataclass(frozen=True)
class HealthSpec:
    """How a failing hop is recognised. The values here are the defaults."""

    interval: float = 0.25
    """Seconds between two questions to a hop that answers."""
    patience: float = 12.0
    """Seconds for a first answer; a lost first handshake costs 5."""
    phi: float = 8.0
    loss: float = 0.2
    """A share of 1."""
    probe: IPv4Address | None = None
    """Asked through each hop before anything else; None: no third party is asked."""
    sweep: float = 60.0
    """Seconds between two sweeps that nothing but time is the reason for."""


@dataclass(frozen=True)
class ChainSpec:
    name: str
    lans: tuple[LanSpec, ...]
    """At least one; their networks are apart."""
    wan: WanSpec
    dns_upstream: IPv4Address | None
    """Who answers the clients, asked through the chain; None: the exit profile's resolver."""
    wires: IPv4Network
    hops: tuple[HopSpec, ...]
    """Guard first."""
    file: Path
    independent: Independence = INDEPENDENCE
    rotation: RotationSpec = RotationSpec()
    health: HealthSpec = HealthSpec()
    runtime: RuntimeKind | None = RuntimeKind.EMBEDDED
    """None: Docker if a daemon answers when the chain comes up."""
    clients: tuple[NamedClient, ...] = ()
    publish: tuple[Publish, ...] = ()
    places: Mapping[PathInFile, Place] = field(
        default_factory=lambda: MappingProxyType({}), compare=False, repr=False
    )
    """Where in the file each value stands, for complaints that are found later."""

    @property
    def notices(self) -> Iterator[Notice]:
        for hop in self.hops:
            yield from hop.notices
            for profile in hop.pool:
                yield from profile.notices

    @property
    def profiles(self) -> Iterator[ServerProfile]:
        return (profile for hop in self.hops for profile in hop.pool)
