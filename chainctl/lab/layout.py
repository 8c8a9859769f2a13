"""What a lab consists of: its places, the cables between them, every address. Pure.

Addresses are made up. No namespace of a lab is connected to the machine's own network, so
the ranges may belong to anybody; each server has a /16 of its own because a chain refuses
two servers in one.
"""

from __future__ import annotations

import re
from dataclasses import dataclass
from functools import cached_property
from ipaddress import IPv4Address, IPv4Interface, IPv4Network

from chainctl.errors import MendFile

TARGET = IPv4Interface("45.100.0.10/24")
HOST = IPv4Interface("192.0.2.2/24")
GATEWAY = IPv4Interface("192.168.10.254/24")
"""The chain's address on the LAN: what the clients have as their default route."""

_HOST_SIDE = IPv4Interface("192.0.2.1/24")
_MODEM = IPv4Interface("203.0.113.2/30")
_MODEM_SIDE = IPv4Interface("203.0.113.1/30")
_FIRST_CLIENT = IPv4Interface("192.168.10.50/24")
_FIRST_PORT = 51821
_PORTS = {"udp": 1194, "tcp": 443}
"""Of OpenVPN servers."""
_MOST_SERVERS = 200
_NAME = re.compile(r"[a-z][a-z0-9-]{0,15}")


@dataclass(frozen=True)
class LabSpec:
    """What is asked of a lab. Raises MendFile C604 for what cannot be built."""

    name: str = "lab"
    hops: int = 3
    spares: int = 2
    clients: int = 1
    devices: int = 2
    """Key pairs per server: the first is in the hop's pool, the others are for whoever
    builds tunnels by hand beside the chain."""
    rtt_ms: float = 0.0
    """Added to the round trip of every server."""
    loss_percent: float = 0.0
    """Of the packets to and from every server, each way."""
    wan_mtu: int = 1500
    """Of the host's own uplink."""
    path_mtu: int | None = None
    """Of the link behind a modem, which the host cannot see (PPPoE: 1492)."""
    icmp: bool = True
    """False: the modem does not say what was too big for it."""
    via: str = ""
    """How each hop's servers are reached, guard first: `wg,udp,tcp`, the last two by OpenVPN.
    `wg+udp` is a pool of both, in turn. Empty: all by WireGuard."""
    offload: bool = True
    """False: every frame on a cable is a packet of at most the MTU, as on a real one. Costs
    throughput, makes captures plain."""

    def __post_init__(self) -> None:
        bounds = {
            "hops": (self.hops, 1, 14),
            "spares": (self.spares, 0, _MOST_SERVERS - 14),
            "clients": (self.clients, 1, 100),
            "devices": (self.devices, 1, 1000),
            "rtt": (self.rtt_ms, 0, 10_000),
            "loss": (self.loss_percent, 0, 100),
            "wan-mtu": (self.wan_mtu, 576, 9000),
            "path-mtu": (self.path_mtu or 1500, 576, 9000),
        }
        if not _NAME.fullmatch(self.name):
            raise _cannot(f"{self.name!r} is no name for a lab: a-z, 0-9 and -, at most 16")
        ways = {way for via in self.vias for way in via.split("+")}
        if self.via and (len(self.vias) != self.hops or not ways <= {"wg", "udp", "tcp"}):
            raise _cannot(f"{self.via!r} does not say wg, udp or tcp for each of {self.hops} hops")
        for what, (value, low, high) in bounds.items():
            if not low <= value <= high:
                raise _cannot(f"{what} is {value}, expected {low} to {high}")

    @property
    def servers(self) -> int:
        return self.hops + self.spares

    @property
    def vias(self) -> tuple[str, ...]:
        return tuple(self.via.split(",")) if self.via else ("wg",) * self.hops


@dataclass(frozen=True)
class ServerPlan:
    """One VPN server as it stands in the world."""

    name: str
    number: int
    hop: int
    """The pool it belongs to, from 1. Pools of odd hops hand out the same client addresses."""
    label: str
    """The name its provider gives it, such as `ch-zrh-01`."""
    uplink: IPv4Interface
    port: int
    tunnel: IPv4Interface
    """Its own address inside the tunnel, where it also answers DNS."""
    via: str = "wg"
    """`udp` and `tcp`: by OpenVPN."""

    @property
    def link(self) -> str:
        """Its tunnel device."""
        return "wg0" if self.via == "wg" else "ovpn0"

    @property
    def network(self) -> IPv4Network:
        return IPv4Network((self.uplink.ip, 16), strict=False)

    @property
    def gateway(self) -> IPv4Interface:
        return _first_of(self.uplink)

    def device_address(self, number: int) -> IPv4Address:
        """What the provider hands to its customer's device `number`, from 1."""
        return self.tunnel.ip + number


@dataclass(frozen=True)
class End:
    """One end of a cable: a link in a place."""

    place: str
    link: str
    address: IPv4Interface | None = None
    mtu: int = 1500


@dataclass(frozen=True)
class Cable:
    a: End
    b: End


@dataclass(frozen=True)
class Place:
    """One namespace, complete but for its cables."""

    name: str
    forwards: bool = False
    routes: tuple[str, ...] = ()
    nft: str = ""
    bridge: bool = False
    sets_df: bool = True
    """Its own packets may not be fragmented on their way, as is the default of Linux."""


@dataclass(frozen=True)
class Layout:
    """Everything about a lab that follows from its spec."""

    spec: LabSpec

    def namespace(self, place: str) -> str:
        return f"{self.spec.name}.{place}"

    def place(self, name: str) -> Place:
        """Raises MendFile C603."""
        for place in self.places:
            if place.name == name:
                return place
        names = ", ".join(place.name for place in self.places)
        raise MendFile("C603", f"the lab has no {name!r}; it has {names}")

    def server(self, which: int | str) -> ServerPlan:
        """By number from 1 or by name. Raises MendFile C603."""
        for server in self.servers:
            if which in (server.number, server.name):
                return server
        raise MendFile("C603", f"{which!r} is no server; the lab has 1 to {self.spec.servers}")

    @cached_property
    def servers(self) -> tuple[ServerPlan, ...]:
        """First one per hop, then the spares, dealt out to the hops in turn."""
        return tuple(self._server(number) for number in range(1, self.spec.servers + 1))

    @cached_property
    def places(self) -> tuple[Place, ...]:
        out = [Place("host", routes=(f"default via {_HOST_SIDE.ip}",))]
        out += [Place(name, routes=(f"default via {GATEWAY.ip}",)) for name in self._clients]
        if self.spec.clients > 1:
            out.append(Place("switch", bridge=True))
        if self.spec.path_mtu is not None:
            route = f"default via {_MODEM_SIDE.ip}"
            out.append(Place("modem", True, (route,), "" if self.spec.icmp else _SILENT))
            out.append(Place("internet", True, (f"{HOST.network} via {_MODEM.ip}",)))
        else:
            out.append(Place("internet", forwards=True))
        out.append(Place("target", routes=(f"default via {_first_of(TARGET).ip}",)))
        return (*out, *(_server_place(server) for server in self.servers))

    @cached_property
    def cables(self) -> tuple[Cable, ...]:
        star = [
            Cable(
                End(server.name, "eth0", server.uplink),
                End("internet", server.name, server.gateway),
            )
            for server in self.servers
        ]
        target = Cable(End("target", "eth0", TARGET), End("internet", "target", _first_of(TARGET)))
        return (*self._uplink, *self._lan, target, *star)

    @property
    def _uplink(self) -> tuple[Cable, ...]:
        host = End("host", "eth0", HOST, self.spec.wan_mtu)
        if self.spec.path_mtu is None:
            return (Cable(host, End("internet", "host", _HOST_SIDE, self.spec.wan_mtu)),)
        narrow = self.spec.path_mtu
        return (
            Cable(host, End("modem", "lan", _HOST_SIDE, self.spec.wan_mtu)),
            Cable(
                End("modem", "wan", _MODEM, narrow), End("internet", "host", _MODEM_SIDE, narrow)
            ),
        )

    @property
    def _lan(self) -> tuple[Cable, ...]:
        ends = [
            End(name, "eth0", IPv4Interface(f"{_FIRST_CLIENT.ip + index}/24"))
            for index, name in enumerate(self._clients)
        ]
        if len(ends) == 1:
            return (Cable(ends[0], End("host", "eth1")),)
        ends.append(End("host", "eth1"))
        return tuple(Cable(end, End("switch", end.place)) for end in ends)

    @property
    def _clients(self) -> list[str]:
        return ["client", *(f"client{number}" for number in range(2, self.spec.clients + 1))]

    def _server(self, number: int) -> ServerPlan:
        hops = self.spec.hops
        hop = (number - 1) % hops + 1
        ways = self.spec.vias[hop - 1].split("+")
        via = ways[(number - 1) // hops % len(ways)]
        site = _SITES[(hop - 1) % len(_SITES)]
        return ServerPlan(
            name=f"server{number}",
            number=number,
            hop=hop,
            label=f"{site}-{(number - 1) // hops + 1 + (hop - 1) // len(_SITES) * 50:02}",
            uplink=IPv4Interface(f"5.{number}.0.10/24"),
            port=_PORTS.get(via, _FIRST_PORT + number - 1),
            tunnel=IPv4Interface("10.64.0.1/16" if hop % 2 else "10.2.0.1/16"),
            via=via,
        )


_SITES = ("ch-zrh", "nl-ams", "se-sto", "de-fra", "fr-par")

_SILENT = """
table ip lab {
    chain output {
        type filter hook output priority filter
        icmp type destination-unreachable drop
    }
}
"""


def _server_place(server: ServerPlan) -> Place:
    """It masquerades its clients, also towards other servers, so that tunnels nest.

    DNS asked at its address in the tunnel goes to the target, which therefore sees the
    question come from this server. What it encrypts goes out without DF, as from the kernel's
    WireGuard, which providers run (drivers/net/wireguard/socket.c): with DF, the first large
    answer through an outer tunnel would be lost. What its conntrack thinks is no part of a
    connection (after a long silence, say) would go out with the customer's inner address. A
    datagram to a port of nobody's is refused before conntrack keeps it: a server further inside
    that still sends into a tunnel of an earlier chain would hold that tunnel's tuple, and the
    next chain's would be given another source port.
    """
    arriving = f'iifname "{server.link}" ip daddr {server.tunnel.ip}'
    asked = f"{arriving} meta l4proto {{ tcp, udp }} th dport 53"
    rules = f"""
table ip lab {{
    chain prerouting {{
        type nat hook prerouting priority dstnat
        {asked} dnat to {TARGET.ip}
    }}
    chain input {{
        type filter hook input priority filter
        iifname "eth0" ct state new udp dport != {server.port} reject
    }}
    chain forward {{
        type filter hook forward priority filter
        iifname "{server.link}" oifname "eth0" ct state invalid drop
    }}
    chain postrouting {{
        type nat hook postrouting priority srcnat
        oifname "eth0" iifname "{server.link}" masquerade
    }}
}}
"""
    routes = (
        f"default via {server.gateway.ip}",
        # Without its tunnel it is not to send customers' inner addresses to the internet.
        f"blackhole {server.tunnel.network} metric 4096",
    )
    return Place(server.name, True, routes, rules, sets_df=False)


def _first_of(interface: IPv4Interface) -> IPv4Interface:
    """The router's address in a network."""
    return IPv4Interface((interface.network.network_address + 1, interface.network.prefixlen))


def _cannot(message: str) -> MendFile:
    return MendFile("C604", message, hint="chainctl lab up --help")
