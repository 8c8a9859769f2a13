"""What a dump shows, as parts: the cases that a kernel at hand does not offer."""

from __future__ import annotations

from dataclasses import replace
from ipaddress import IPv4Interface, IPv4Network

from chainctl.model.parts import (
    HOST,
    PANEL,
    Address,
    ForeignLink,
    Leg,
    Namespace,
    NsName,
    Part,
    PortName,
    Route,
    Rule,
    Up,
)
from chainctl.net.links_seen import Sight, bridge_port, parts
from chainctl.net.rtnl import IFF_NOARP, IFF_UP, AddressSeen, LinkSeen, RouteSeen, RuleSeen

HOP = NsName("home.hop1")
LO = LinkSeen(1, "lo", "", IFF_UP, 65536)
PORT = LinkSeen(5, "c3-in", "veth", IFF_NOARP, 1400, peer=2, peer_nsid=0)
LEG = LinkSeen(2, "in0", "veth", IFF_NOARP, 1400, peer=5, peer_nsid=9)
DEFAULT_RULES = (
    RuleSeen(0, "", None, 255),
    RuleSeen(32766, "", None, 254),
    RuleSeen(32767, "", None, 253),
)
PANEL_SEEN = Sight(PANEL, links=(LO, PORT), rules=DEFAULT_RULES, forwarding=False)


def _hop(*links: LinkSeen, **more: object) -> Sight:
    sight = Sight(HOP, links=links, panel=9, host=8, forwarding=True)
    return replace(sight, **more)  # type: ignore[arg-type]


def _local(address: str, index: int) -> RouteSeen:
    return RouteSeen(255, IPv4Network(address), index, None, 0, "type 2", kernels=True)


def _seen(*sights: Sight) -> list[Part]:
    return parts(sights, port_prefix="c3-")


def test_a_leg_is_two_ends_that_name_each_other() -> None:
    whole = [Namespace(PANEL), Namespace(HOP, True), Leg(HOP, "in0", PortName("c3-in"), 1400)]
    assert _seen(PANEL_SEEN, _hop(LO, LEG)) == [*whole, Up(HOP, "lo")]
    for other in (
        replace(LEG, peer=6),
        replace(LEG, peer_nsid=8),
        replace(LEG, peer_nsid=None),
        replace(LEG, index=3),
        replace(LEG, flags=0),
    ):
        found = _seen(PANEL_SEEN, _hop(other))
        assert ForeignLink(HOP, "in0", "veth") in found
        assert ForeignLink(PANEL, "c3-in", "veth") in found
        assert not [part for part in found if isinstance(part, Leg)]


def test_ports_of_other_chains_and_their_legs_are_not_ours() -> None:
    theirs = replace(PORT, name="c33-in", flags=IFF_NOARP | IFF_UP)
    panel = replace(PANEL_SEEN, links=(theirs,))
    host = Sight(HOST, links=(replace(LEG, name="chain33", flags=IFF_UP),), panel=9)
    assert _seen(host, panel) == [Namespace(PANEL)]


def test_what_is_on_the_hosts_links_is_only_ours_where_the_link_is() -> None:
    eth0 = LinkSeen(7, "eth0", "", IFF_UP, 1500)
    host = Sight(
        HOST,
        links=(LO, eth0, replace(LEG, name="chain3", flags=IFF_UP | IFF_NOARP)),
        addresses=tuple(AddressSeen(i, IPv4Interface(f"10.0.0.{i}/32")) for i in (1, 2, 7)),
        routes=(
            *(_local(f"10.0.0.{i}", i) for i in (1, 2, 7)),
            *(RouteSeen(254, IPv4Network(f"10.1.0.{i or 0}/32"), i, None, 0) for i in (None, 2, 7)),
        ),
        rules=(*DEFAULT_RULES, RuleSeen(5, "eth0", None, 9)),
        panel=9,
        without_ipv6=frozenset({"chain3"}),
    )
    assert _seen(host, PANEL_SEEN) == [
        Leg(HOST, "chain3", PortName("c3-in"), 1400),
        Address(HOST, "chain3", IPv4Interface("10.0.0.2/32")),
        Up(HOST, "chain3"),
        Route(HOST, 254, IPv4Network("10.1.0.2/32"), "chain3"),
        Namespace(PANEL),
    ]


def test_devices_the_kernel_puts_into_every_namespace_are_nobodys() -> None:
    tunl0 = LinkSeen(3, "tunl0", "ipip", IFF_NOARP, 1480)
    assert _seen(_hop(tunl0)) == [Namespace(HOP, True)]
    # Unless somebody makes use of it.
    assert Up(HOP, "tunl0") in _seen(_hop(replace(tunl0, flags=IFF_UP)))


def test_wireguard_devices_are_the_runtimes_but_what_is_on_them_is_not() -> None:
    device = LinkSeen(4, "tunA", "wireguard", IFF_UP, 1380)
    on_it = (AddressSeen(4, IPv4Interface("10.64.0.2/32")),)
    assert _seen(_hop(device, addresses=on_it, routes=(_local("10.64.0.2", 4),))) == [
        Namespace(HOP, True),
        Address(HOP, "tunA", IPv4Interface("10.64.0.2/32")),
        Up(HOP, "tunA"),
    ]


def test_an_address_without_its_route_is_none() -> None:
    """After `ip route flush table local` the kernel shows it, but takes no packet for it."""
    link = LinkSeen(4, "tunA", "wireguard", 0, 1380)
    addresses = (AddressSeen(4, IPv4Interface("10.64.0.2/24")),)
    others = (
        _local("10.64.0.2", 5),
        _local("10.64.0.3", 4),
        replace(_local("10.64.0.2", 4), table=254),
    )
    assert _seen(_hop(link, addresses=addresses, routes=others)) == [Namespace(HOP, True)]
    whole = (*others, _local("10.64.0.2", 4))
    address = Address(HOP, "tunA", IPv4Interface("10.64.0.2/24"))
    assert _seen(_hop(link, addresses=addresses, routes=whole)) == [Namespace(HOP, True), address]


def test_a_tun_without_owner_or_with_more_than_one_queue_is_foreign() -> None:
    details = {"IFLA_TUN_OWNER": 70001, "IFLA_TUN_TYPE": 1, "IFLA_TUN_PERSIST": 1}
    for odd in (
        {"IFLA_TUN_OWNER": None},
        {"IFLA_TUN_GROUP": 5},
        {"IFLA_TUN_TYPE": 2},
        {"IFLA_TUN_PERSIST": 0},
        {"IFLA_TUN_MULTI_QUEUE": 1},
    ):
        tun = LinkSeen(4, "tunA", "tun", 0, 1380, details=tuple({**details, **odd}.items()))
        assert ForeignLink(HOP, "tunA", "tun") in _seen(_hop(tun))
    tun = LinkSeen(4, "tunA", "tun", 0, 1380, details=tuple(details.items()))
    assert not [part for part in _seen(_hop(tun)) if isinstance(part, ForeignLink)]


def test_a_namespace_with_wrong_settings_is_left_out() -> None:
    assert _seen(_hop(forwarding=None)) == []


def test_the_kernels_rules_are_parts_where_a_layout_lists_them() -> None:
    """In the panel and on the host nobody lists them, so they are passed over there."""
    assert [part for part in _seen(_hop(rules=DEFAULT_RULES)) if isinstance(part, Rule)] == [
        Rule(HOP, 0, "", None, 255),
        Rule(HOP, 32766, "", None, 254),
    ]
    host = Sight(HOST, links=(LO,), rules=DEFAULT_RULES)
    assert _seen(host, replace(PANEL_SEEN, links=(LO,))) == [Namespace(PANEL)]


def test_a_bridge_ports_name_fits_and_differs() -> None:
    names = {bridge_port(NsName(f"a-very-long-chain-name-{i}.gateway"), "lan0") for i in range(99)}
    assert len(names) == 99
    assert max(map(len, names)) <= 15
