"""The Python side of the maps: what is written is read back, room, pins, tables of flows."""

from __future__ import annotations

from collections.abc import Iterator
from ipaddress import IPv4Address, IPv4Network
from pathlib import Path

import pytest

from chainctl.errors import MendHost
from chainctl.model.parts import UDP, ClientPolicy, PortMode
from chainctl.net import libbpf
from chainctl.net.census import Census, Differences
from chainctl.net.filter import (
    IDENTITY_OBJECT,
    LAYOUT,
    PanelFilter,
    Port,
    WireRow,
    is_bpffs,
    mount_bpffs,
    remove_pins,
)
from chainctl.net.identity import Reason
from chainctl.net.policy import compile_policy
from tests.kernel.filter_rig import LINK, SCOPE, Rig, bpffs, flow_key, rig, unmount
from tests.kernel.packets import frame, ipv4, udp

pytestmark = pytest.mark.root

CLIENT, WEB = "192.168.1.5", "198.51.100.9"
HOME = IPv4Network("192.168.1.0/24")


@pytest.fixture
def pins(tmp_path: Path) -> Iterator[Path]:
    with bpffs(tmp_path / "bpf") as mounted:
        yield mounted


@pytest.fixture
def panel(pins: Path) -> Iterator[PanelFilter]:
    opened = PanelFilter.open(IDENTITY_OBJECT, pins)
    yield opened
    opened.close()


def _policy(scope: int, refused: int = 1) -> ClientPolicy:
    prefixes = (IPv4Network((0x0A000000 + (number << 8), 24)) for number in range(refused))
    return ClientPolicy(scope, (HOME,), tuple(prefixes), (IPv4Address("10.0.0.1"),))


def _wires(count: int, fragments: bool = False) -> list[WireRow]:
    ends = IPv4Address("198.19.0.2"), IPv4Address("192.0.2.1")
    return [
        WireRow(7, ends[0], 1000 + number, ends[1], 51820, UDP, fragments, rule=number)
        for number in range(count)
    ]


def _sorted(wires: list[WireRow]) -> list[WireRow]:
    return sorted(wires, key=lambda wire: wire.rule)


def test_what_is_written_is_read_back(panel: PanelFilter) -> None:
    port = Port(300, IPv4Address("198.19.0.2"), 1440, PortMode.TUPLE, 0, 0)
    client = Port(301, IPv4Address(0), 1312, PortMode.CLIENT, 3, 12)
    panel.put_port(7, port)
    panel.put_port(8, client)
    panel.put_far(LINK, LINK)
    panel.open_gate(12, 10**15)
    wires = [*_wires(3), _wires(4)[3]._replace(fragments=True)]
    panel.put_wires(wires)
    for scope in (3, 4):
        panel.put_policy(_policy(scope))
    assert panel.ports() == {7: port, 8: client}
    assert panel.fars() == {LINK: LINK}
    assert panel.gates() == {12: 10**15}
    assert _sorted(panel.wires()) == wires
    assert panel.policy(3) == compile_policy(_policy(3))
    assert panel.scopes() == {3, 4}

    panel.remove_port(7)
    panel.remove_far(LINK)
    panel.close_gate(12)
    panel.remove_wires(wires)
    panel.remove_policy(3)
    for _ in range(2):
        panel.remove_port(7)
        panel.remove_policy(3)
    assert panel.ports() == {8: client}
    assert (panel.fars(), panel.gates(), panel.wires()) == ({}, {}, [])
    assert panel.policy(3) is None
    assert panel.scopes() == {4}
    assert panel.policy(4) == compile_policy(_policy(4))


def test_nothing_of_a_port_stays(panel: PanelFilter) -> None:
    (wire,) = _wires(1, fragments=True)
    other = wire._replace(ifindex=8)
    panel.put_wires([wire, other])
    before = len(panel.split_rows("wire_map", panel.raw_rows("wire_map")))
    panel.remove_wires_of(7)
    assert panel.wires() == [other]
    after = panel.split_rows("wire_map", panel.raw_rows("wire_map"))
    # Each has a row for later fragments besides its own.
    assert (before, len(after)) == (4, 2)


def test_the_far_end_has_to_exist(panel: PanelFilter) -> None:
    with pytest.raises(MendHost):
        panel.put_far(LINK, 99_999)
    assert panel.fars() == {}


def test_a_policy_is_replaced_as_a_whole(panel: PanelFilter) -> None:
    for refused in (5, 2, 9):
        panel.put_policy(_policy(3, refused))
        assert panel.policy(3) == compile_policy(_policy(3, refused))


def test_a_missing_table_of_flows_shows(panel: PanelFilter) -> None:
    panel.put_policy(_policy(3))
    panel._maps["flow_map"].drop((3).to_bytes(4, "little"))
    assert panel.policy(3) is None
    panel.put_policy(_policy(3))
    assert panel.policy(3) is not None


def test_room_is_asked_for_first(pins: Path) -> None:
    sizes = {"cidr_map": 8, "wire_map": 8, "policy_map": 64, "port_map": 2}
    small = PanelFilter.open(IDENTITY_OBJECT, pins, sizes)
    try:
        small.put_policy(_policy(3, refused=3))
        for scope, refused in ((3, 40), (4, 6)):
            with pytest.raises(MendHost, match="cidr_map") as refusal:
                small.put_policy(_policy(scope, refused))
            assert refusal.value.code == "C321"
        assert small.policy(3) == compile_policy(_policy(3, refused=3))
        assert small.scopes() == {3}

        small.put_wires(_wires(8))
        small.put_wires(_wires(8))
        with pytest.raises(MendHost, match="wire_map"):
            small.put_wires(_wires(9))
        assert _sorted(small.wires()) == _wires(8)

        port = Port(300, IPv4Address(0), 1440, PortMode.TUPLE, 0, 0)
        small.put_port(1, port)
        small.put_port(2, port)
        with pytest.raises(MendHost, match="port_map"):
            small.put_port(3, port)
    finally:
        small.close()


def test_the_maps_outlive_their_writer(pins: Path) -> None:
    first = PanelFilter.open(IDENTITY_OBJECT, pins)
    first.put_wires(_wires(5))
    first.put_far(LINK, LINK)
    first.put_policy(_policy(3))
    first.close()
    second = PanelFilter.open(IDENTITY_OBJECT, pins)
    try:
        assert len(second.wires()) == 5
        assert second.fars() == {LINK: LINK}
        assert second.policy(3) == compile_policy(_policy(3))
        assert second.pins_whole()
    finally:
        second.close()


def test_maps_of_another_layout_are_refused(pins: Path) -> None:
    for sizes in ({"policy_map": 64}, {"far_map": 64}):
        PanelFilter.open(IDENTITY_OBJECT, pins, sizes).close()
        with pytest.raises(MendHost) as refusal:
            PanelFilter.open(IDENTITY_OBJECT, pins)
        assert refusal.value.code == "C320"
        assert "chainctl down" in refusal.value.hint
        remove_pins(pins)
    PanelFilter.open(IDENTITY_OBJECT, pins).close()


def test_lost_and_foreign_pins_show(panel: PanelFilter, pins: Path) -> None:
    assert panel.pins_whole()
    (pins / LAYOUT / "gate_map").unlink()
    assert not panel.pins_whole()
    other = PanelFilter.open(IDENTITY_OBJECT, pins)
    try:
        assert other.pins_whole()
        assert not panel.pins_whole()
    finally:
        other.close()


def test_an_unmounted_bpffs_shows(panel: PanelFilter, pins: Path) -> None:
    unmount(pins)
    assert not is_bpffs(pins)
    assert not panel.pins_whole()
    with pytest.raises(MendHost) as refusal:
        PanelFilter.open(IDENTITY_OBJECT, pins)
    assert refusal.value.code == "C322"


def test_mounting_twice_is_once(pins: Path) -> None:
    mount_bpffs(pins)
    assert Path("/proc/mounts").read_text().count(str(pins)) == 1
    assert pins.stat().st_mode & 0o777 == 0o700


def test_a_missing_object_says_so(pins: Path) -> None:
    with pytest.raises(MendHost) as refusal:
        PanelFilter.open(pins / "nothing.bpf.o", pins)
    assert refusal.value.code == "C322"


def test_nobody_pushes_out_another_chain_s_flows(tmp_path: Path) -> None:
    """One client scans; its own chain forgets, the other does not."""
    ours, theirs = flow_key(CLIENT, 5000, WEB, 443, UDP), flow_key(CLIENT, 9, WEB, 443, UDP)
    with rig(tmp_path / "bpf", {"flow_table": 256}) as one:
        for scope in (SCOPE, SCOPE + 1):
            one.panel.put_policy(_policy(scope))
        one.be(PortMode.CLIENT)
        _send(one, 5000)
        one.be(PortMode.CLIENT, scope=SCOPE + 1)
        _send(one, 9)
        assert theirs in one.flows(SCOPE + 1)
        for port in range(10_000, 12_000):
            _send(one, port)
        assert theirs not in one.flows(SCOPE + 1)
        assert ours in one.flows(SCOPE)
        one.be(PortMode.REPLY)
        answer = frame(ipv4(WEB, CLIENT, UDP, udp(443, 5000)))
        assert one.judge(answer) == Reason.PASS_REPLY


def _send(one: Rig, port: int) -> None:
    data = frame(ipv4(CLIENT, WEB, UDP, udp(port, 443)))
    assert libbpf.run_program(one.panel.program_fd, data) == 7


def test_many_rows_are_written_and_read_whole(panel: PanelFilter) -> None:
    """60 000 in one call each way."""
    panel.put_wires(_wires(60_000))
    assert len(panel.wires()) == 60_000


def test_a_census_tells_which_rows_somebody_changed(panel: PanelFilter) -> None:
    port = Port(256, IPv4Address(0), 1500, PortMode.TUPLE, SCOPE, 0)
    census = Census(panel)
    assert census.take() == Differences()
    for index in (LINK, LINK + 1):
        panel.put_port(index, port)
    panel.put_policy(_policy(SCOPE))
    panel.put_wires(_wires(3))
    assert census.take() == Differences(frozenset({LINK, LINK + 1, 7}), frozenset({SCOPE}))
    # Ends of wires and places for flows are asked for in turns.
    for _ in range(2):
        census.take()
    assert census.take() == Differences()
    panel.remove_wires(_wires(1))
    assert census.take() == Differences(ports=frozenset({7}))
    panel.put_port(LINK, port._replace(scope=SCOPE + 1))
    assert census.take() == Differences(ports=frozenset({LINK}))
    panel.put_policy(_policy(SCOPE, refused=2))
    assert census.take() == Differences(scopes=frozenset({SCOPE}))
    panel.put_far(LINK, LINK)
    assert Differences(ports=frozenset({LINK})) in (census.take(), census.take())
    panel.remove_far(LINK)
    assert Differences(ports=frozenset({LINK})) in (census.take(), census.take())
    panel.remove_policy(SCOPE)
    assert census.take() == Differences(scopes=frozenset({SCOPE}))
