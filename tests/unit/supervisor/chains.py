"""Chains for tests, with made-up servers and keys; the same arguments give the same chain."""

from __future__ import annotations

import base64
import hashlib
from collections.abc import Iterator, Sequence
from dataclasses import replace
from ipaddress import IPv4Address, IPv4Interface, IPv4Network

from hypothesis import strategies as st

from chainctl.model.chain import (
    MAX_CHAINS,
    MAX_HOPS,
    Chain,
    Engine,
    Hop,
    Lan,
    Place,
    Slot,
    Tunnel,
    Uplink,
    source_port,
)
from chainctl.model.clients import Publish, Published
from chainctl.model.openvpn import OpenVpnConfig, OpenVpnProfile, ServerCheck
from chainctl.model.parts import TCP, UDP, LanMode
from chainctl.model.secret import Secret
from chainctl.model.wireguard import WireGuardConfig

WIRES = IPv4Network("198.19.0.0/16")
IMAGE = "sha256:0f0e0d"
OPENVPN_IMAGE = "sha256:0c0b0a"
_NAMES = ("guard", "middle", "third", "fourth")


def key(word: str) -> str:
    return base64.b64encode(hashlib.sha256(word.encode()).digest()).decode()


def server_address(hop_number: int, server: int) -> IPv4Address:
    """Documentation ranges for the first hops (RFC 5737), one address a server."""
    ranges = ("192.0.2.0", "198.51.100.0", "203.0.113.0")
    if hop_number <= len(ranges):
        return IPv4Address(ranges[hop_number - 1]) + server
    return IPv4Address("8.0.0.0") + hop_number * 65536 + server


def make_tunnel(
    number: int,
    hop_number: int,
    *,
    server: int = 1,
    slot: Slot = Slot.A,
    engine: Engine = Engine.USERSPACE,
    mtu_limit: int | None = None,
    via: int | None = None,
    told: bool = True,
) -> Tunnel:
    """A tunnel to the `server`-th server of the hop's pool; each gives another address.

    `via`: OpenVPN over UDP or TCP, and then `told` says whether its address is known.
    """
    if via is not None:
        return _openvpn_tunnel(number, hop_number, server, slot, via, told)
    config = WireGuardConfig(
        private_key=Secret(key(f"private {hop_number} {server}")),
        listen_port=source_port(number, hop_number, slot),
        peer_public_key=key(f"public {hop_number} {server}"),
        endpoint=server_address(hop_number, server),
        endpoint_port=51820,
        keepalive=25,
    )
    return Tunnel(
        server=f"server-{hop_number}-{server}",
        slot=slot,
        address=IPv4Address("10.64.0.0") + 256 * hop_number + server,
        resolver=IPv4Address("10.64.0.1"),
        config=config,
        engine=engine,
        image=IMAGE,
        mtu_limit=mtu_limit,
    )


def _openvpn_tunnel(
    number: int, hop_number: int, server: int, slot: Slot, via: int, told: bool
) -> Tunnel:
    return Tunnel(
        server=f"server-{hop_number}-{server}",
        slot=slot,
        address=IPv4Address("10.65.0.0") + 256 * hop_number + server if told else None,
        resolver=IPv4Address("10.65.0.1") if told else None,
        config=OpenVpnConfig(
            endpoint=server_address(hop_number, server),
            endpoint_port=1194 if via == UDP else 443,
            protocol=via,
            source_port=source_port(number, hop_number, slot),
            profile=OpenVpnProfile(ca=(b"authority",), check=ServerCheck(), login=True),
        ),
        engine=Engine.OPENVPN,
        image=OPENVPN_IMAGE,
    )


GUESTS = Lan("lan1", "guests", IPv4Interface("10.20.0.1/24"), LanMode.BRIDGE)
CONTAINERS = Lan("lan2", "ch-home", IPv4Interface("172.31.7.1/24"), LanMode.DOCKER)
WEB = Publish(8080, "web", 80)
NAMES = Publish(5353, "names", 5300, UDP)
PLACE = Place(LanMode.MACVLAN, IPv4Interface("203.0.113.5/24"), IPv4Address("203.0.113.1"))


def make_chain(
    hops: int = 3,
    *,
    number: int = 0,
    name: str = "home",
    servers: tuple[int, ...] = (),
    engine: Engine = Engine.USERSPACE,
    lan: str = "192.168.10.254/24",
    lan_mode: LanMode = LanMode.MACVLAN,
    forwarded_before: bool = False,
    docker_user: bool = False,
    resolver: str | None = "10.64.0.1",
    uplink_mtu: int = 1500,
    path_mtu: int | None = None,
    both_slots: bool = False,
    vias: Sequence[int | None] = (),
    told: bool = True,
    wires: IPv4Network = WIRES,
    guests: bool = False,
    wan_mode: LanMode | None = None,
    published: int | None = None,
) -> Chain:
    """`published`: ports of containers, of which one has this address; 0: it does not run.

    `servers`: which server each hop uses (default: its first), guard first. `vias`: how, as
    for `make_tunnel` (default: by WireGuard).
    """
    ways = [*vias, *[None] * hops]
    slots = (Slot.A, Slot.B) if both_slots else (Slot.A,)
    chosen = [*servers, *[1] * hops][:hops]
    lans = [Lan("lan0", "eth1", IPv4Interface(lan), lan_mode), *([GUESTS] if guests else [])]
    # A chain has one network of its own.
    publishes = published is not None and not lan_mode.own
    return Chain(
        name=name,
        number=number,
        lans=(*lans, *([CONTAINERS] if publishes else [])),
        uplink=Uplink("eth0", uplink_mtu, forwarded_before, docker_user)
        if wan_mode is None
        else Uplink("eth0", uplink_mtu, True, False, replace(PLACE, mode=wan_mode)),
        hops=tuple(
            Hop(
                hop_number,
                (*_NAMES, *map(str, range(5, MAX_HOPS + 1)))[hop_number - 1],
                tuple(
                    make_tunnel(
                        number,
                        hop_number,
                        server=server + 10 * (slot is Slot.B),
                        slot=slot,
                        engine=engine,
                        via=ways[hop_number - 1],
                        told=told,
                    )
                    for slot in slots
                ),
                slots[-1],
            )
            for hop_number, server in enumerate(chosen, start=1)
        ),
        wires=wires,
        resolver=IPv4Address(resolver) if resolver else None,
        path_mtu=path_mtu or uplink_mtu,
        published=tuple(_published([one.address.ip for one in lans], published or 0))
        if publishes
        else (),
    )


def _published(gateways: Sequence[IPv4Address], web: int) -> Iterator[Published]:
    inside = CONTAINERS.address.network
    yield Published(WEB, tuple(gateways), inside[web] if web else None)
    yield Published(replace(NAMES, at=gateways[0]), (gateways[0],), inside[99])


def chains(
    max_hops: int = MAX_HOPS, *, number: int | None = None, told: bool | None = True
) -> st.SearchStrategy[Chain]:
    """Any chain of up to `max_hops` hops; `told` None: its addresses are known or not."""
    return st.builds(
        make_chain,
        hops=st.integers(1, max_hops),
        number=st.integers(0, MAX_CHAINS - 1) if number is None else st.just(number),
        servers=st.lists(st.integers(1, 3), max_size=max_hops).map(tuple),
        engine=st.sampled_from((Engine.KERNEL, Engine.USERSPACE)),
        vias=st.lists(st.sampled_from((None, UDP, TCP)), max_size=max_hops),
        told=st.booleans() if told is None else st.just(told),
        lan=st.sampled_from(("192.168.10.254/24", "192.168.10.253/24", "172.20.0.1/16")),
        lan_mode=st.sampled_from(LanMode),
        forwarded_before=st.booleans(),
        docker_user=st.booleans(),
        resolver=st.sampled_from((None, "10.64.0.1", "9.9.9.9")),
        uplink_mtu=st.sampled_from((1500, 1492, 9000)),
        path_mtu=st.sampled_from((None, 1480, 1492)),
        both_slots=st.booleans(),
        guests=st.booleans(),
        published=st.sampled_from((None, 0, 2, 3)),
        wan_mode=st.sampled_from((None, None, *LanMode)),
    )
