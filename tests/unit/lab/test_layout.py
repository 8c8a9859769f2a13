"""A lab's plan: addresses that a chain accepts, and nothing plugged in twice."""

from __future__ import annotations

from collections import Counter
from ipaddress import IPv4Network
from itertools import combinations

import pytest

from chainctl.errors import MendFile
from chainctl.lab.layout import TARGET, LabSpec, Layout
from chainctl.lab.namespaces import render_cables, render_place

SPECS = [
    LabSpec(),
    LabSpec("one", hops=1, spares=0),
    LabSpec("wide", hops=14, spares=30, clients=5),
    LabSpec("mixed", via="wg,udp,tcp"),
    LabSpec("dsl", path_mtu=1492, icmp=False, clients=2, wan_mtu=1400),
]


@pytest.mark.parametrize("spec", SPECS, ids=lambda spec: spec.name)
class TestEveryLayout:
    def test_no_two_servers_share_a_16_with_each_other_or_the_target(self, spec: LabSpec) -> None:
        networks = [server.network for server in Layout(spec).servers]
        networks.append(IPv4Network((TARGET.ip, 16), strict=False))
        assert not [pair for pair in combinations(networks, 2) if pair[0].overlaps(pair[1])]

    def test_every_end_is_in_a_place_and_used_once(self, spec: LabSpec) -> None:
        layout = Layout(spec)
        ends = [end for cable in layout.cables for end in (cable.a, cable.b)]
        assert {end.place for end in ends} == {place.name for place in layout.places}
        assert max(Counter((end.place, end.link) for end in ends).values()) == 1
        assert all(len(end.link) < 16 for end in ends)

    def test_the_ends_of_a_cable_are_in_one_network(self, spec: LabSpec) -> None:
        for cable in Layout(spec).cables:
            if cable.a.address and cable.b.address:
                assert cable.a.address.network == cable.b.address.network
                assert cable.a.address != cable.b.address
            assert cable.a.mtu == cable.b.mtu

    def test_every_pool_has_a_server_of_its_own_label(self, spec: LabSpec) -> None:
        servers = Layout(spec).servers
        assert {server.hop for server in servers} == set(range(1, spec.hops + 1))
        assert max(Counter(server.label for server in servers).values()) == 1
        ends = Counter((server.uplink.ip, server.port) for server in servers)
        assert max(ends.values()) == 1

    def test_all_links_have_indexes_of_their_own(self, spec: LabSpec) -> None:
        words = render_cables(Layout(spec)).split()
        indexes = [words[at + 1] for at, word in enumerate(words) if word == "index"]
        assert len(indexes) == len(set(indexes)) == 2 * len(Layout(spec).cables)


def test_two_hops_hand_out_the_same_client_address() -> None:
    first, second, third = Layout(LabSpec(spares=0)).servers
    assert first.device_address(1) == third.device_address(1) != second.device_address(1)


def test_the_host_has_no_address_on_the_lan() -> None:
    layout = Layout(LabSpec())
    eth1 = [e for c in layout.cables for e in (c.a, c.b) if (e.place, e.link) == ("host", "eth1")]
    assert [end.address for end in eth1] == [None]


def test_plain_frames_are_asked_of_every_link() -> None:
    layout = Layout(LabSpec(offload=False, clients=2))
    scripts = "".join(render_place(layout, place) for place in layout.places)
    assert scripts.count("gso_max_segs 1 up") == 2 * len(layout.cables)


@pytest.mark.parametrize(
    "wrong",
    [
        {"name": "Home"},
        {"name": "a.b"},
        {"name": "../x"},
        {"name": ""},
        {"name": "x" * 17},
        {"hops": 0},
        {"hops": 15},
        {"spares": -1},
        {"clients": 0},
        {"loss_percent": 101},
        {"rtt_ms": -1},
        {"rtt_ms": float("nan")},
        {"path_mtu": 100},
        {"via": "wg,udp"},
        {"via": "wg,udp,ssh"},
    ],
    ids=str,
)
def test_what_cannot_be_built_is_refused(wrong: dict[str, object]) -> None:
    with pytest.raises(MendFile) as caught:
        LabSpec(**wrong)  # type: ignore[arg-type]
    assert caught.value.code == "C604"


@pytest.mark.parametrize("which", [0, 6, "server6", "target", ""])
def test_unknown_servers_are_named(which: int | str) -> None:
    with pytest.raises(MendFile, match="1 to 5"):
        Layout(LabSpec()).server(which)


def test_unknown_places_are_named() -> None:
    with pytest.raises(MendFile, match=r"\[C603\].*it has host, client, internet"):
        Layout(LabSpec()).place("moon")
