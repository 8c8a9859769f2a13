"""A chain as it should be: what `resolve` makes of the chain file and the facts.

Every number that has to be the same in several places (addresses of legs, ports, uids,
names of links) is worked out here and nowhere else.
"""

from __future__ import annotations

import hashlib
from dataclasses import dataclass
from enum import Enum
from ipaddress import IPv4Address, IPv4Interface, IPv4Network
from typing import TypeAlias

from chainctl.model.clients import Published
from chainctl.model.openvpn import OpenVpnConfig
from chainctl.model.parts import HOST, TCP, UDP, LanMode, NsName, PortName, RuntimeKind
from chainctl.model.wireguard import WireGuardConfig

MAX_HOPS = 14
MAX_LANS = 16
WAN_LINK = "wan0"
MAX_CHAINS = 2048
LEGS_PER_CHAIN = 32
WIREGUARD_OVERHEAD = 60
"""Bytes: IPv4 20, UDP 8, WireGuard header 16, Poly1305 tag 16 (WireGuard paper, section 5.4.6)."""
OPENVPN_UDP_OVERHEAD = 56
"""Bytes: IPv4 20, UDP 8, opcode and peer id 4, packet id 8, tag 16. Packet ids have 4 bytes before
2.7's epoch keys (openvpn-rfc, section "Data channel packet format").
"""
OPENVPN_TCP_OVERHEAD = 82
"""Bytes: IPv4 20, TCP 20, its timestamps 12, length 2, then as over UDP."""
MINIMUM_MTU = 576
"""Bytes every IPv4 host must accept (RFC 791)."""

_FIRST_UID = 7_000_000
_FIRST_OPENVPN_UID = 7_100_000
_FIRST_SOURCE_PORT = 20_000
_SOURCE_PORTS = 12_000
"""Below Linux' ephemeral range (32768), so that no socket of the host takes one by chance."""


VpnConfig: TypeAlias = WireGuardConfig | OpenVpnConfig


class Engine(Enum):
    """What encrypts: the kernel's own WireGuard device, or a client in a container."""

    KERNEL = "kernel"
    USERSPACE = "wireguard-go"
    OPENVPN = "openvpn"


class Slot(Enum):
    """One of the two places for a tunnel in a hop."""

    A = 1
    B = 2

    @property
    def other(self) -> Slot:
        return Slot.B if self is Slot.A else Slot.A

    @property
    def link(self) -> str:
        return f"tun{self.name}"

    @property
    def table(self) -> int:
        """Routing table of what this slot's tunnel carries; also its mark and ct zone."""
        return 100 + self.value


@dataclass(frozen=True)
class Tunnel:
    """A VPN client bound to one server, in one slot of a hop."""

    server: str
    slot: Slot
    address: IPv4Address | None
    """The client's address inside the tunnel, as the provider gave it; None: its server has yet
    to say it, and until then nothing is forwarded."""
    resolver: IPv4Address | None
    config: VpnConfig
    engine: Engine
    image: str
    mtu_limit: int | None = None
    """What the profile says at most, in bytes."""

    @property
    def protocol(self) -> int:
        """UDP or TCP, as the outside sees it."""
        return self.config.protocol if isinstance(self.config, OpenVpnConfig) else UDP

    @property
    def overhead(self) -> int:
        """Bytes that the tunnel adds to each packet."""
        if not isinstance(self.config, OpenVpnConfig):
            return WIREGUARD_OVERHEAD
        bare = OPENVPN_TCP_OVERHEAD if self.protocol == TCP else OPENVPN_UDP_OVERHEAD
        return bare + self.config.profile.framing_overhead

    @property
    def endpoint(self) -> IPv4Address:
        return self.config.endpoint

    @property
    def endpoint_port(self) -> int:
        return self.config.endpoint_port


@dataclass(frozen=True)
class Hop:
    number: int
    """1 is the guard, next to the uplink."""
    name: str
    tunnels: tuple[Tunnel, ...]
    active: Slot

    @property
    def tunnel(self) -> Tunnel:
        """The tunnel that carries traffic."""
        return next(tunnel for tunnel in self.tunnels if tunnel.slot is self.active)

    @property
    def candidate(self) -> Tunnel | None:
        """The other one: coming up, standing by, or draining."""
        return next((tunnel for tunnel in self.tunnels if tunnel.slot is not self.active), None)


@dataclass(frozen=True)
class Lan:
    """A network of devices, and the gateway's link and address in it."""

    link: str
    interface: str
    """Of the host; for a network of our own its bridge."""
    address: IPv4Interface
    mode: LanMode
    joined: bool = True
    """False: Docker was not there yet to make its network here."""


@dataclass(frozen=True)
class Place:
    """An address of the chain's own in the network outside, and who leads on from there."""

    mode: LanMode
    address: IPv4Interface
    router: IPv4Address


@dataclass(frozen=True)
class Uplink:
    """The way to the internet by a host's interface."""

    interface: str
    mtu: int
    forwarded_before: bool
    """The host forwarded packets from this interface already before chainctl came."""
    docker_user: bool
    """Docker drops what it does not know, and has a chain for rules such as ours."""
    place: Place | None = None
    """None: NAT through the host. Else the host's rules and routes play no part."""


@dataclass(frozen=True)
class Chain:
    name: str
    number: int
    lans: tuple[Lan, ...]
    uplink: Uplink
    hops: tuple[Hop, ...]
    wires: IPv4Network
    resolver: IPv4Address | None
    """Who answers what devices ask the gateway on port 53; None: nobody."""
    path_mtu: int
    """Largest packet that reaches hop 1's server, in bytes."""
    runtime: RuntimeKind = RuntimeKind.EMBEDDED
    published: tuple[Published, ...] = ()

    @property
    def gateway(self) -> NsName:
        return gateway_of(self.name)

    @property
    def clients(self) -> tuple[IPv4Network, ...]:
        """The networks whose devices may use the chain."""
        return tuple(lan.address.network for lan in self.lans)

    @property
    def own_network(self) -> Lan | None:
        """The one for clients that live on this machine."""
        return next((lan for lan in self.lans if lan.mode.own), None)

    @property
    def has_containers(self) -> bool:
        own = self.own_network
        return own is not None and own.mode is LanMode.DOCKER

    @property
    def devices(self) -> tuple[Lan, ...]:
        """The networks outside this machine."""
        return tuple(lan for lan in self.lans if not lan.mode.own)

    @property
    def exit(self) -> Hop:
        return self.hops[-1]

    def namespace(self, hop: Hop) -> NsName:
        return NsName(f"{self.name}.hop{hop.number}")

    @property
    def port_prefix(self) -> str:
        return _port_prefix(self.number)

    @property
    def gateway_port(self) -> PortName:
        return gateway_port(self.number)

    @property
    def uplink_port(self) -> PortName:
        return PortName(f"{self.port_prefix}up")

    def in_port(self, hop: Hop) -> PortName:
        return PortName(f"{self.port_prefix}h{hop.number}in")

    def out_port(self, hop: Hop) -> PortName:
        return PortName(f"{self.port_prefix}h{hop.number}out")

    @property
    def host_link(self) -> str:
        """The leg of the uplink in the host's namespace."""
        return f"chain{self.number}"

    @property
    def uplink_namespace(self) -> NsName:
        return NsName(f"{self.name}.uplink") if self.uplink.place else HOST

    @property
    def uplink_link(self) -> str:
        """The leg of the uplink, where hop 1's packets arrive."""
        return "in0" if self.uplink.place else self.host_link

    @property
    def wan_link(self) -> str:
        """The link to the network outside, in the uplink's namespace."""
        return WAN_LINK if self.uplink.place else self.uplink.interface

    def _leg(self, index: int) -> IPv4Address:
        return self.wires[self.number * LEGS_PER_CHAIN + index]

    @property
    def gateway_leg(self) -> IPv4Address:
        return self._leg(1)

    @property
    def uplink_leg(self) -> IPv4Address:
        return self._leg(LEGS_PER_CHAIN - 2)

    def in_leg(self, hop: Hop) -> IPv4Address:
        return self._leg(2 * hop.number)

    def out_leg(self, hop: Hop) -> IPv4Address:
        return self._leg(2 * hop.number + 1)

    def uid(self, hop: Hop, slot: Slot) -> int:
        """One uid per slot: a compromised client must not hold its own replacement's TUN.

        Another engine has another, and with it a TUN of its own: a device keeps the offloads
        that wireguard-go asked for, and openvpn would send packets without their checksums.
        """
        openvpn = any(each.slot is slot and each.engine is Engine.OPENVPN for each in hop.tunnels)
        return (_FIRST_OPENVPN_UID if openvpn else _FIRST_UID) + self._serial(hop, slot)

    def source_port(self, hop: Hop, slot: Slot) -> int:
        return source_port(self.number, hop.number, slot)

    def _serial(self, hop: Hop, slot: Slot) -> int:
        return _serial(self.number, hop.number, slot)

    def client_name(self, hop: Hop, slot: Slot) -> str:
        return f"{self.name}.hop{hop.number}.{slot.name.lower()}"

    def tunnel_mtu(self, hop: Hop, tunnel: Tunnel) -> int:
        """Bytes that fit into the tunnel, counted outside-in from the path MTU."""
        mtu = self.path_mtu
        for outer in self.hops[: hop.number]:
            current = tunnel if outer.number == hop.number else outer.tunnel
            mtu = min(mtu - current.overhead, current.mtu_limit or mtu)
        return mtu

    def outer_mtu(self, hop: Hop) -> int:
        """Bytes of a packet that the hop's own clients can send to their servers."""
        if hop.number == 1:
            return self.path_mtu
        outer = self.hops[hop.number - 2]
        return self.tunnel_mtu(outer, outer.tunnel)

    @property
    def path(self) -> str:
        """What the path MTU was measured for: another uplink or guard has another."""
        return self.path_to(self.hops[0].tunnel.endpoint)

    def path_to(self, endpoint: IPv4Address) -> str:
        return f"{self.uplink.interface} {self.uplink.mtu} {endpoint}"

    @property
    def mtu(self) -> int:
        """What a LAN device can send at once, in bytes."""
        return self.tunnel_mtu(self.exit, self.exit.tunnel)


def client_bridge(chain: str) -> str:
    """The host's bridge of a chain's own network. It outlives the chain's number, and a link's
    name has at most 15 characters."""
    short = hashlib.sha256(chain.encode()).hexdigest()[:4]
    return f"ch-{chain}" if len(chain) <= 12 else f"ch-{chain[:7]}-{short}"


def gateway_of(chain: str) -> NsName:
    return NsName(f"{chain}.gateway")


def gateway_port(number: int) -> PortName:
    """Of the chain of that number, in the panel."""
    return PortName(f"{_port_prefix(number)}gw")


def _port_prefix(number: int) -> str:
    return f"c{number}-"


def docker_network(chain: str) -> str:
    return f"chain-{chain}"


def chain_of_network(network: str) -> str:
    return network.removeprefix(docker_network(""))


def source_port(chain_number: int, hop_number: int, slot: Slot) -> int:
    """The UDP port a tunnel sends from. Pinned, since the filter lists exact tuples."""
    return _FIRST_SOURCE_PORT + _serial(chain_number, hop_number, slot) % _SOURCE_PORTS


def _serial(chain_number: int, hop_number: int, slot: Slot) -> int:
    return chain_number * LEGS_PER_CHAIN + 2 * (hop_number - 1) + slot.value - 1
