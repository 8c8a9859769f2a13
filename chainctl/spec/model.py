"""What a chain file and its profiles say, as values: what the rest of chainctl works with."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from dataclasses import dataclass, field
from ipaddress import IPv4Address, IPv4Interface, IPv4Network
from pathlib import Path
from types import MappingProxyType
from typing import TypeAlias

from chainctl.model.parts import LanMode
from chainctl.model.secret import Secret
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
class WireGuardProfile:
    """A server of a provider, with the account to use it.

    What a tunnel may carry is not kept: it is 0.0.0.0/0, or the profile was refused.
    """

    name: str
    """The file's name without its ending; unique in its pool."""
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
    notices: tuple[Notice, ...] = field(default=(), compare=False)


ServerProfile: TypeAlias = WireGuardProfile
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
    """NAT by `interface`; None: by that of the default route."""

    interface: str | None


@dataclass(frozen=True)
class HopSpec:
    name: str
    pool: tuple[ServerProfile, ...]
    """In the order of the chain file, files of one pattern sorted by name; never empty."""
    line: int = field(compare=False)


@dataclass(frozen=True)
class ChainSpec:
    name: str
    lan: LanSpec
    wan: WanSpec
    dns_upstream: IPv4Address | None
    """Who answers the clients, asked through the chain; None: the exit profile's resolver."""
    wires: IPv4Network
    hops: tuple[HopSpec, ...]
    """Guard first."""
    file: Path
    places: Mapping[PathInFile, Place] = field(
        default_factory=lambda: MappingProxyType({}), compare=False, repr=False
    )
    """Where in the file each value stands, for complaints that are found later."""

    @property
    def notices(self) -> Iterator[Notice]:
        return (notice for hop in self.hops for profile in hop.pool for notice in profile.notices)

    @property
    def profiles(self) -> Iterator[ServerProfile]:
        return (profile for hop in self.hops for profile in hop.pool)
