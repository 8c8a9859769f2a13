"""The links driver against the kernel: what is made is seen as it was made.

The host's namespace of these tests is one of their own, so that nothing happens on the
machine's links.
"""

from __future__ import annotations

import contextlib
import ctypes
import json
import os
import select
import socket
import subprocess
import sys
import threading
import time
from collections.abc import Callable, Iterator
from dataclasses import replace
from ipaddress import IPv4Address, IPv4Interface, IPv4Network
from pathlib import Path
from typing import Any, TypeVar

import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from chainctl.errors import MendHost
from chainctl.host import sysctl
from chainctl.host.netns import Namespaces
from chainctl.model.parts import (
    HOST,
    PANEL,
    Address,
    ForeignLink,
    Forwarding,
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
from chainctl.net import rtnl, rtnl_read
from chainctl.net.changes import Changes
from chainctl.net.links import LinkPart, Links
from chainctl.net.links_seen import Sight
from chainctl.net.netlink import open_netlink

pytestmark = pytest.mark.root

HOP = NsName("n.hop1")
GATEWAY = NsName("n.gateway")
PREFIX = "c7-"
ANYWHERE = IPv4Network("0.0.0.0/0")
BORN = {
    Rule(ns, priority, "", None, table)
    for ns in (HOP, GATEWAY)
    for priority, table in ((0, 255), (32766, 254))
}
LAST = 4_000_000_000
INTRUDER = Path(__file__).with_name("intruder.py")


class World:
    """A host namespace with an interface `eth1` and a bridge `br0`, and the driver in it."""

    def __init__(self, namespaces: Namespaces, changes: Changes, directory: Path) -> None:
        self.namespaces = namespaces
        self.links = Links(namespaces, changes)
        self.directory = directory

    def see(self, *, forwarding: tuple[str, ...] = ()) -> list[Part]:
        """Without the rules that every namespace is born with; these tests add to them."""
        seen = self.see_all(forwarding=forwarding)
        return [part for part in seen if not (isinstance(part, Rule) and part in BORN)]

    def see_all(self, *, forwarding: tuple[str, ...] = ()) -> list[Part]:
        return self.links.observe([GATEWAY, HOP], port_prefix=PREFIX, forwarding=forwarding)

    def make(self, *parts: LinkPart) -> None:
        for part in parts:
            self.links.make(part)

    def remove(self, *parts: LinkPart) -> None:
        for part in parts:
            self.links.remove(part)

    def foreign(self, ns: NsName, kind: str, **more: Any) -> None:
        """A link made by somebody else, in pyroute2's words."""
        self.namespaces.netlink(ns, lambda r: r.link("add", kind=kind, **more))


@pytest.fixture
def world(tmp_path: Path) -> Iterator[World]:
    with Namespaces(tmp_path / "outer") as outer:
        outer.create("host")
        with (
            outer.call("host", lambda: Namespaces(tmp_path / "pins")) as namespaces,
            contextlib.closing(Changes(namespaces)) as changes,
        ):
            world = World(namespaces, changes, tmp_path)
            world.foreign(HOST, "veth", ifname="eth1", peer={"ifname": "eth1-far"})
            world.foreign(HOST, "bridge", ifname="br0")
            yield world
            for name in namespaces.names():
                namespaces.remove(name)
        outer.remove("host")


T = TypeVar("T")

NAMESPACES = (Namespace(PANEL), Namespace(HOP, True), Namespace(GATEWAY, True))
IN0 = Leg(HOP, "in0", PortName("c7-h1in"), 1492)
OUT0 = Leg(HOP, "out0", PortName("c7-h1out"), 1492)
UP0 = Leg(GATEWAY, "up0", PortName("c7-gw"), 1300)
CHAIN0 = Leg(HOST, "chain7", PortName("c7-up"), 1492)
TUN_A = Tun(HOP, "tunA", 70001, 1380)
LAN0 = LanLeg(GATEWAY, "lan0", "eth1", LanMode.MACVLAN)


def _address(ns: NsName, link: str, text: str) -> Address:
    return Address(ns, link, IPv4Interface(text))


CHAIN: tuple[LinkPart, ...] = (
    *NAMESPACES,
    CHAIN0,
    OUT0,
    IN0,
    UP0,
    TUN_A,
    _address(HOST, "chain7", "198.19.7.30/32"),
    _address(HOP, "out0", "198.19.7.3/32"),
    _address(HOP, "in0", "198.19.7.2/32"),
    _address(HOP, "tunA", "10.64.0.2/32"),
    _address(GATEWAY, "up0", "198.19.7.1/32"),
    Route(HOP, 254, ANYWHERE, metric=LAST),
    Route(HOP, 1, ANYWHERE, metric=LAST),
    Rule(HOP, 1001, "in0", 1, 1),
    Rule(HOP, 1050, "in0"),
    Route(GATEWAY, 254, ANYWHERE, metric=LAST),
    Up(HOP, "tunA"),
    Up(HOP, "out0"),
    Up(HOP, "in0"),
    Up(GATEWAY, "up0"),
    Up(HOST, "chain7"),
    *(Up(PANEL, port) for port in ("c7-up", "c7-h1out", "c7-h1in", "c7-gw")),
    Route(HOP, 254, IPv4Network("203.0.113.9/32"), "out0", IPv4Address("198.19.7.3")),
    Route(HOP, 1, ANYWHERE, "tunA"),
    Route(HOP, 254, IPv4Network("192.168.10.0/24"), "in0"),
    Route(GATEWAY, 254, ANYWHERE, "up0"),
    Route(HOST, 254, IPv4Network("198.19.7.3/32"), "chain7"),
    Forwarding("chain7"),
    Forwarding("eth1"),
    LAN0,
    _address(GATEWAY, "lan0", "192.168.10.254/24"),
    Up(GATEWAY, "lan0"),
)


def test_a_whole_chain_is_seen_as_it_was_made(world: World) -> None:
    world.make(*CHAIN)
    seen = world.see(forwarding=("eth1",))
    assert set(seen) == set(CHAIN)
    assert len(seen) == len(CHAIN)
    world.make(*CHAIN)
    assert set(world.see(forwarding=("eth1",))) == set(CHAIN)
    world.remove(*reversed(CHAIN))
    world.remove(*reversed(CHAIN))
    assert world.see(forwarding=("eth1",)) == []


def test_a_batch_of_sixty_is_quick(world: World) -> None:
    """60 ms are promised on an idle machine; ten times that would be another design."""
    world.make(*NAMESPACES, IN0, OUT0, Up(HOP, "in0"), Up(PANEL, IN0.port))
    spent = []
    for table in (1, 2, 3):
        began = time.monotonic()
        for number in range(60):
            world.make(Route(HOP, table, IPv4Network((0x0A000000 + number, 32)), "in0"))
        spent.append(time.monotonic() - began)
    assert min(spent) < 0.6


def test_the_bridge_leg_is_seen_as_it_was_made(world: World) -> None:
    lan = LanLeg(GATEWAY, "lan0", "br0", LanMode.BRIDGE)
    parts: tuple[LinkPart, ...] = (Namespace(GATEWAY, True), lan, Up(GATEWAY, "lan0"))
    world.make(*parts, *parts)
    assert set(world.see()) == set(parts)
    world.remove(lan, lan)
    assert world.see() == [Namespace(GATEWAY, True)]
    assert _names(world, HOST) == {"lo", "eth1", "eth1-far", "br0"}


@pytest.mark.parametrize("mode", list(LanMode))
def test_a_missing_parent_is_named(world: World, mode: LanMode) -> None:
    world.make(Namespace(GATEWAY))
    with pytest.raises(MendHost, match="eth9") as refused:
        world.make(LanLeg(GATEWAY, "lan0", "eth9", mode))
    assert refused.value.code == "C312"


def test_no_bridge_no_bridge_port(world: World) -> None:
    world.make(Namespace(GATEWAY))
    with pytest.raises(MendHost, match="no bridge eth1") as refused:
        world.make(LanLeg(GATEWAY, "lan0", "eth1", LanMode.BRIDGE))
    assert refused.value.code == "C312"


def test_a_parent_in_use_is_said_to_be(world: World) -> None:
    world.make(Namespace(GATEWAY))
    (bridge,) = (link.index for link in _links(world, HOST) if link.name == "br0")
    (eth1,) = (link.index for link in _links(world, HOST) if link.name == "eth1")
    world.namespaces.netlink(HOST, lambda r: r.link("set", index=eth1, master=bridge))
    with pytest.raises(MendHost) as refused:
        world.make(LAN0)
    assert refused.value.code == "C315"
    assert "name the bridge" in refused.value.hint


def _read(world: World, ns: NsName, read: Callable[[socket.socket], list[T]]) -> list[T]:
    def inside() -> list[T]:
        with open_netlink() as link:
            return read(link)

    return world.namespaces.call(ns, inside)


def _links(world: World, ns: NsName) -> list[rtnl.LinkSeen]:
    return _read(world, ns, rtnl_read.read_links)


def _names(world: World, ns: NsName) -> set[str]:
    return {link.name for link in _links(world, ns)}


@pytest.mark.parametrize("leg", [IN0, CHAIN0], ids=lambda leg: leg.link)
def test_a_leg_is_born_down_and_mute(world: World, leg: Leg) -> None:
    world.make(*NAMESPACES, leg)
    ends = [
        link
        for ns, name in ((leg.ns, leg.link), (PANEL, leg.port))
        for link in _links(world, ns)
        if link.name == name
    ]
    assert len(ends) == 2
    for end in ends:
        assert not end.up
        assert end.flags & rtnl.IFF_NOARP


def test_an_unused_leg_sends_nothing(world: World) -> None:
    """An ordinary veth in the same place speaks as soon as it is up."""
    world.make(*NAMESPACES, CHAIN0)
    ordinary = {"ifname": "far", "net_ns_fd": str(world.namespaces.path(PANEL))}
    world.foreign(HOST, "veth", ifname="near", peer=ordinary)
    # IPv6 is on by default in the machine's namespaces, off in that of the tests.
    world.namespaces.call(HOST, lambda: _ipv6(True))
    heard = world.namespaces.call(PANEL, lambda: {n: _listen(n) for n in (CHAIN0.port, "far")})
    try:
        for name in ("near", CHAIN0.link):
            world.links.make(Up(HOST, name))
        for name in ("far", CHAIN0.port):
            world.links.make(Up(PANEL, name))
        ready, _, _ = select.select([heard["far"]], [], [], 20)
        assert ready, "the control stays mute: nothing is proved"
        assert heard["far"].recv(2048)
        with pytest.raises(BlockingIOError):
            heard[CHAIN0.port].recv(2048)
    finally:
        for listener in heard.values():
            listener.close()


def _ipv6(on: bool) -> None:
    for which in ("all", "default", "near"):
        sysctl.write(f"net/ipv6/conf/{which}/disable_ipv6", "0" if on else "1")
    sysctl.write("net/ipv6/conf/chain7/disable_ipv6", "1")


def _listen(link: str) -> socket.socket:
    listener = socket.socket(socket.AF_PACKET, socket.SOCK_RAW, socket.htons(3))
    listener.bind((link, 0))
    listener.setblocking(False)
    # Bound to a link that is down it reports just that first.
    listener.getsockopt(socket.SOL_SOCKET, socket.SO_ERROR)
    return listener


def test_ipv6_is_off_on_the_hosts_leg(world: World) -> None:
    world.namespaces.call(HOST, lambda: sysctl.write("net/ipv6/conf/default/disable_ipv6", "0"))
    world.make(*NAMESPACES, CHAIN0)
    setting = "net/ipv6/conf/chain7/disable_ipv6"
    assert world.namespaces.call(HOST, lambda: sysctl.read(setting)) == "1"
    # A leg whose maker was killed before that is not taken for a whole one.
    world.namespaces.call(HOST, lambda: sysctl.write(setting, "0"))
    assert CHAIN0 not in world.see()
    (half,) = (part for part in world.see() if isinstance(part, ForeignLink) and part.ns == HOST)
    assert half.key == CHAIN0.key
    world.remove(half)
    world.make(CHAIN0)
    assert CHAIN0 in world.see()


def test_mtu_changes_in_place(world: World) -> None:
    world.make(*NAMESPACES, IN0, TUN_A)
    before = [link.index for link in _links(world, HOP)]
    world.links.change(IN0, replace(IN0, mtu=1280))
    world.links.change(TUN_A, replace(TUN_A, mtu=1281))
    assert [link.index for link in _links(world, HOP)] == before
    assert {replace(IN0, mtu=1280), replace(TUN_A, mtu=1281)} <= set(world.see())


def test_ends_of_different_mtu_are_not_a_leg_anybody_wants(world: World) -> None:
    world.make(*NAMESPACES, IN0)
    world.namespaces.netlink(PANEL, lambda r: rtnl.set_link(r, IN0.port, mtu=9000))
    assert IN0 not in world.see()
    (seen,) = (part for part in world.see() if isinstance(part, Leg))
    world.links.change(seen, IN0)
    assert IN0 in world.see()


def test_other_changes_end_as_wanted(world: World) -> None:
    world.make(*NAMESPACES, IN0, OUT0, TUN_A, Up(HOP, "in0"), Up(HOP, "out0"))
    old_route = Route(HOP, 254, ANYWHERE, "in0")
    world.make(old_route)
    changes: list[tuple[LinkPart, LinkPart]] = [
        (TUN_A, replace(TUN_A, uid=70002)),
        (Namespace(HOP, True), Namespace(HOP, False)),
        (old_route, Route(HOP, 254, ANYWHERE, "out0")),
    ]
    for old, new in changes:
        world.links.change(old, new)
        assert new in world.see()
        assert old not in world.see()


def test_a_namespace_with_other_settings_is_not_the_one_wanted(world: World) -> None:
    world.make(*NAMESPACES)
    setting = "net/ipv6/conf/all/disable_ipv6"
    world.namespaces.call(HOP, lambda: sysctl.write(setting, "0"))
    assert Namespace(HOP, True) not in world.see()
    world.make(Namespace(HOP, True))
    assert Namespace(HOP, True) in world.see()


def test_what_others_made_is_seen_and_can_be_removed(world: World) -> None:
    world.make(*NAMESPACES, IN0, OUT0, _address(HOP, "out0", "198.19.7.3/32"), Up(HOP, "out0"))
    base = set(world.see())
    world.foreign(HOP, "veth", ifname="evil0", peer={"ifname": "evil1"})
    world.foreign(PANEL, "bridge", ifname="c7-evil")
    world.foreign(PANEL, "bridge", ifname="c8-theirs")
    odd_routes = (
        "9.9.9.9 via 198.19.0.9 dev out0 onlink",
        "blackhole 9.9.9.8",
        "throw default table 1",
    )
    for route in odd_routes:
        _ip(world, HOP, f"route add {route}")
    odd_rules = ("from 10.0.0.0/8", "oif out0", "fwmark 1/3")
    for rule in odd_rules:
        _ip(world, HOP, f"rule add priority 7 {rule} table 77")
    strange = [part for part in world.see() if part not in base]
    links = {part.key for part in strange if isinstance(part, ForeignLink)}
    assert links == {
        ("link", HOP, "evil0"),
        ("link", HOP, "evil1"),
        ("link", PANEL, "c7-evil"),
    }
    assert sum(isinstance(part, Route) for part in strange) == len(odd_routes)
    assert sum(isinstance(part, Rule) for part in strange) == len(odd_rules)
    # None of them can be taken for one that a layout wants: no link has a space in its name, and
    # nobody in a hop leads on.
    assert all(" " in (p.link or "") or p.via for p in strange if isinstance(p, Route))
    assert all(" " in p.iif for p in strange if isinstance(p, Rule))
    for part in strange:
        assert isinstance(part, ForeignLink | Route | Rule)
        world.remove(part)
    assert set(world.see()) == base


def _ip(world: World, ns: NsName, words: str) -> None:
    command = ["nsenter", f"--net={world.namespaces.path(ns)}", "ip", *words.split()]
    subprocess.run(command, check=True)


def test_flushed_rules_are_missed_and_come_back(world: World) -> None:
    world.make(*NAMESPACES)
    born = [part for part in world.see_all() if part in BORN]
    assert set(born) == BORN
    for command in ("rule flush", "rule del priority 0"):
        _ip(world, HOP, command)
    assert not [part for part in world.see_all() if isinstance(part, Rule) and part.ns == HOP]
    for rule in BORN:
        world.make(rule)
    assert {part for part in world.see_all() if isinstance(part, Rule)} == BORN


def test_rules_that_are_there_are_not_doubled(world: World) -> None:
    world.make(*NAMESPACES)
    mine = Rule(HOP, 1050, "in0")
    for rule in (*BORN, mine, mine):
        world.make(rule)
    rules = [part for part in world.see_all() if isinstance(part, Rule)]
    assert sorted(rules, key=str) == sorted([*BORN, mine], key=str)


def test_a_flushed_address_is_missed_and_comes_back(world: World) -> None:
    """What `ip route flush table local` leaves is an address that no packet is for."""
    address = Address(HOP, "tunA", IPv4Interface("10.64.0.2/24"))
    route = Route(HOP, 101, ANYWHERE, "tunA", source=address.interface.ip)
    world.make(*NAMESPACES, Tun(HOP, "tunA", 7000000, 1380), address, Up(HOP, "tunA"), route)
    whole = world.see()
    for table in ("local", "all"):
        _ip(world, HOP, f"route flush table {table}")
        seen = world.see()
        assert address not in seen
        world.make(address, *(part for part in (route,) if part not in seen))
        assert world.see() == whole
    world.remove(address)
    left = _read(world, HOP, rtnl_read.read_routes)
    assert not [seen for seen in left if seen.to.subnet_of(address.interface.network)]


def test_removing_a_route_leaves_the_one_behind_it(world: World) -> None:
    """The kernel takes metric 0 for any: a second removal would open the table's end."""
    last = Route(HOP, 254, ANYWHERE, metric=LAST)
    first = Route(HOP, 254, ANYWHERE, "in0")
    world.make(*NAMESPACES, IN0, Up(HOP, "in0"), last, first)
    world.remove(first, first)
    assert [part for part in world.see() if isinstance(part, Route)] == [last]


def test_a_taken_name_is_a_conflict_and_not_adopted(world: World) -> None:
    world.make(*NAMESPACES)
    world.foreign(HOST, "veth", ifname="chain7", peer={"ifname": "theirs"})
    world.foreign(HOP, "veth", ifname="tunA", peer={"ifname": "in0"})
    for part in (CHAIN0, IN0, TUN_A):
        with pytest.raises(MendHost) as refused:
            world.make(part)
        assert refused.value.code == "C313"
    # Of the host's links only those that end in the panel are anybody's of ours.
    assert not [part for part in world.see() if part.key == CHAIN0.key]
    assert {"chain7", "theirs"} <= _names(world, HOST)


def test_what_the_kernel_refuses_is_said_in_its_words(world: World) -> None:
    world.make(*NAMESPACES, IN0)
    with pytest.raises(MendHost, match=r"Route n\.hop1 254 .* not up") as refused:
        world.make(Route(HOP, 254, ANYWHERE, "in0"))
    assert refused.value.code == "C310"
    with pytest.raises(MendHost, match="no link nowhere"):
        world.make(_address(HOP, "nowhere", "10.0.0.1/32"))
    with pytest.raises(MendHost) as missing:
        world.make(Leg(NsName("n.gone"), "in0", PortName("c7-x"), 1500))
    assert missing.value.code == "C311"


def test_a_port_without_its_leg_is_seen(world: World) -> None:
    elsewhere = NsName("n.renamed")
    world.make(*NAMESPACES, Namespace(elsewhere), Leg(elsewhere, "in0", IN0.port, 1492))
    (stray,) = (part for part in world.see() if isinstance(part, ForeignLink))
    assert stray == ForeignLink(PANEL, IN0.port, "veth")
    world.remove(stray)
    assert _names(world, elsewhere) == {"lo"}


@pytest.mark.parametrize("ns", [HOST, PANEL])
@pytest.mark.parametrize(
    ("command", "alone"),
    [
        ("ip link add new type veth peer name newer", True),
        ("ip link set one up; ip link set two up", True),
        ("ip link set one name three", True),
        ("ip link set one mtu 1280", True),
        ("ip link set two arp off", True),
        ("ip link del one", True),
        ("ip link del one; ip link add one index 4000 type veth peer name two", True),
        ("ip link set one up; ip address add 10.0.0.1/24 dev one; ip link set one down", True),
        ("ip route add unreachable 10.1.0.0/16; ip rule add priority 7 table 9", True),
        ("ip link set one up; tc qdisc add dev one clsact", True),
        ("sysctl -qw net.ipv4.ip_forward=1", False),
        ("sysctl -qw net.ipv4.conf.all.rp_filter=1", False),
        ("for i in $(seq 40); do ip link add v$i type veth peer name w$i; done", False),
    ],
)
def test_links_that_changed_are_read_again_alone(
    world: World, ns: NsName, command: str, alone: bool
) -> None:
    world.make(Namespace(PANEL))
    world.foreign(ns, "veth", ifname="one", peer={"ifname": "two"})
    world.links.sight(ns)
    before = world.links._seen[ns].at

    def change() -> None:
        subprocess.run(["sh", "-ec", command], check=True, timeout=20)

    world.namespaces.call(ns, change)
    seen = world.links.sight(ns)
    assert (world.links._seen[ns].at == before) == alone
    assert _sorted(seen) == _sorted(world.links.sight(ns, oldest=-1.0))


def _sorted(sight: Sight) -> Sight:
    return replace(sight, links=sorted(sight.links, key=lambda link: link.index))


def test_of_what_was_not_heard_everything_is_read_again(world: World) -> None:
    world.make(Namespace(PANEL))
    world.links.sight(PANEL)
    before = world.links._seen[PANEL].at
    world.links._changes.routing.setsockopt(socket.SOL_SOCKET, socket.SO_RCVBUF, 4096)
    flood = "for i in $(seq 30); do ip link add v$i type veth peer name w$i; ip link del v$i; done"

    def change() -> None:
        subprocess.run(["sh", "-ec", flood + "; ip link add one type veth"], check=True, timeout=20)

    world.namespaces.call(PANEL, change)
    assert "one" in world.links.sight(PANEL).indexes
    assert world.links._seen[PANEL].at > before


ATTACH = """
import ctypes, fcntl, os, struct, sys
pin, link, uid = sys.argv[1:]
assert ctypes.CDLL(None).setns(os.open(pin, os.O_RDONLY), 0x40000000) == 0
device = os.open("/dev/net/tun", os.O_RDWR)
os.setresuid(int(uid), int(uid), int(uid))
try:
    fcntl.ioctl(device, 0x400454CA, struct.pack("16sH22x", link.encode(), 0x5001))
except PermissionError:
    sys.exit(77)
"""


def _attaches(world: World, link: str, uid: int) -> bool:
    pin = str(world.namespaces.path(HOP))
    command = [sys.executable, "-I", "-S", "-c", ATTACH, pin, link, str(uid)]
    done = subprocess.run(command, timeout=20, check=False)
    assert done.returncode in (0, 77)
    return done.returncode == 0


def test_only_its_uid_may_attach_to_a_tun(world: World) -> None:
    world.make(*NAMESPACES, TUN_A)
    assert _attaches(world, "tunA", TUN_A.uid)
    assert not _attaches(world, "tunA", TUN_A.uid + 1)
    # Without an owner anybody could.
    world.foreign(HOP, "tuntap", ifname="naive", mode="tun", flags=1)
    assert _attaches(world, "naive", TUN_A.uid + 1)
    assert ForeignLink(HOP, "naive", "tun") in world.see()


_OCTETS = st.integers(1, 250)
_TABLES = st.sampled_from([1, 2, 100, 254, 1000])


@st.composite
def _debris(draw: st.DrawFn) -> list[LinkPart]:
    """Parts of every kind that may exist together, in an order in which they can be made."""
    parts: list[LinkPart] = [
        Namespace(PANEL),
        Namespace(HOP, draw(st.booleans())),
        Namespace(GATEWAY, draw(st.booleans())),
    ]
    mtu = st.integers(576, 1500)
    for leg in draw(st.lists(st.sampled_from([IN0, OUT0, UP0, CHAIN0]), unique=True)):
        parts.append(replace(leg, mtu=draw(mtu)))
    for slot in draw(st.lists(st.sampled_from(["tunA", "tunB"]), unique=True)):
        parts.append(Tun(HOP, slot, draw(st.integers(1, 2**32 - 2)), draw(mtu)))
    if draw(st.booleans()):
        mode = draw(st.sampled_from((LanMode.MACVLAN, LanMode.BRIDGE)))
        parent = "br0" if mode is LanMode.BRIDGE else "eth1"
        parts.append(LanLeg(GATEWAY, "lan0", parent, mode))
    links = [(part.ns, part.link) for part in parts if isinstance(part, Leg | Tun | LanLeg)]
    on_links: set[LinkPart] = set()
    routes: dict[tuple[str, ...], LinkPart] = {}
    up = {link for link in links if draw(st.booleans())}
    for ns, link in links:
        for octet in draw(st.sets(_OCTETS, max_size=2)):
            prefix = draw(st.sampled_from([24, 32]))
            on_links.add(_address(ns, link, f"10.{octet}.0.{octet}/{prefix}"))
        if (ns, link) in up:
            on_links.add(Up(ns, link))
            for octet in draw(st.sets(_OCTETS, max_size=2)):
                to = IPv4Network(f"172.16.{octet}.0/24")
                metric = draw(st.integers(0, 5))
                table = 254 if ns == HOST else draw(_TABLES)
                route = Route(ns, table, to, link, metric=metric)
                routes[route.key] = route
    for table in draw(st.sets(_TABLES)):
        last = Route(HOP, table, ANYWHERE, metric=LAST)
        routes[last.key] = last
    rules: dict[int, LinkPart] = {
        priority: Rule(
            HOP,
            priority,
            draw(st.sampled_from(["in0", "tunA", "not-there"])),
            draw(st.none() | st.integers(0, 2**32 - 1)),
            draw(st.none() | _TABLES),
        )
        for priority in draw(st.sets(st.integers(1, 32000), max_size=4))
    }
    return [
        *parts,
        *sorted(on_links, key=lambda part: (isinstance(part, Up), part.key)),
        *routes.values(),
        *rules.values(),
    ]


@settings(
    max_examples=25,
    deadline=None,
    suppress_health_check=[HealthCheck.function_scoped_fixture, HealthCheck.too_slow],
)
@given(parts=_debris())
def test_making_and_seeing_is_a_fixpoint(world: World, parts: list[LinkPart]) -> None:
    try:
        for _ in range(2):
            world.make(*parts)
            seen = [part for part in world.see() if not isinstance(part, Forwarding)]
            assert sorted(map(repr, seen)) == sorted(map(repr, parts))
    finally:
        world.remove(*reversed(parts))
    assert world.see() == []


def _intrude(world: World, pin: Path, *, as_owner: bool) -> dict[str, Any]:
    """What an administrator of the namespace `pin` can do to the panel (intruder.py)."""
    done = subprocess.run(
        [sys.executable, str(INTRUDER), pin, "owner" if as_owner else "host", IN0.port],
        capture_output=True,
        text=True,
        timeout=30,
        check=False,
    )
    assert done.returncode == 0, done.stderr
    answer: dict[str, Any] = json.loads(done.stdout)
    return answer


ATTACKS = ("macvlan", "delete", "replace")


def test_a_hops_administrator_does_not_reach_the_panel(world: World) -> None:
    world.make(*NAMESPACES, IN0, OUT0)
    before = _links(world, PANEL)
    done = _intrude(world, world.namespaces.path(HOP), as_owner=True)
    assert done["own"] == ["in0", "lo", "out0"], "it is an administrator: it sees its own"
    assert done["renames its own"] == 0
    assert done["seen"] == []
    assert {name: done[name] != 0 for name in ATTACKS} == dict.fromkeys(ATTACKS, True)
    assert _links(world, PANEL) == before


def test_in_a_namespace_of_the_hosts_owner_it_would(world: World) -> None:
    world.make(*NAMESPACES, IN0)
    pin, gone = _naive_namespace(world)
    try:
        done = _intrude(world, pin, as_owner=False)
    finally:
        gone.set()
    assert IN0.port in done["seen"]
    assert {name: done[name] for name in ATTACKS} == dict.fromkeys(ATTACKS, 0)


def _naive_namespace(world: World) -> tuple[Path, threading.Event]:
    """A namespace as `ip netns` makes it, with a leg in the panel; it lives until the event."""
    ready, gone = threading.Event(), threading.Event()
    where: list[Path] = []

    def live() -> None:
        assert ctypes.CDLL(None).unshare(0x40000000) == 0
        where.append(Path(f"/proc/{os.getpid()}/task/{threading.get_native_id()}/ns/net"))
        ready.set()
        gone.wait(60)

    threading.Thread(target=live, daemon=True).start()
    assert ready.wait(10)
    with where[0].open() as file:
        world.namespaces.netlink(
            PANEL, lambda r: rtnl.add_veth(r, "naive", peer="in0", peer_namespace=file.fileno())
        )
    return where[0], gone
