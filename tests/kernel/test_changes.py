"""What others change in a namespace is heard of, and what we do to the gate ourselves is not."""

from __future__ import annotations

import math
import select
import subprocess
from collections.abc import Iterator
from contextlib import closing
from pathlib import Path
from typing import cast

import pytest

from chainctl.errors import MendHost
from chainctl.host import clock, nft
from chainctl.host.netns import Namespaces
from chainctl.model.parts import HOST, PANEL, NftTable, NsName
from chainctl.net.changes import Changes, Touched
from chainctl.net.gate import NftGate
from chainctl.net.guard import GATE_SET, TABLE
from chainctl.net.tables import CHANGED, Tables
from tests.waiting import wait_until

pytestmark = pytest.mark.root

PLACE = NsName("place")
GATE_TABLE = f"""table inet {TABLE} {{
    set {GATE_SET} {{ type ifname; flags timeout; }}
}}
"""


class World:
    """A host of its own with one namespace beside it."""

    def __init__(self, namespaces: Namespaces, changes: Changes) -> None:
        self.namespaces = namespaces
        self.changes = changes

    def run(self, ns: NsName, command: str) -> None:
        def run() -> None:
            subprocess.run(command.split(), check=True, timeout=10)

        # The netlink thread is in `ns`, and so is what it starts.
        self.namespaces.call(ns, run)

    def gate(self) -> dict[str, float]:
        """Seconds left by link."""
        answer = self.namespaces.call(
            PLACE, lambda: nft.read_json(f"list set inet {TABLE} {GATE_SET}")
        )
        (found,) = (item["set"] for item in answer["nftables"] if "set" in item)
        elements = (element["elem"] for element in found.get("elem", []))
        return {each["val"]: each["expires"] for each in elements}


@pytest.fixture
def world(tmp_path: Path) -> Iterator[World]:
    with Namespaces(tmp_path / "outer") as outer:
        outer.create("host")
        with (
            outer.call("host", lambda: Namespaces(tmp_path / "pins")) as namespaces,
            closing(Changes(namespaces)) as changes,
        ):
            namespaces.create(PLACE)
            namespaces.call(PLACE, lambda: changes.follow(PLACE))
            yield World(namespaces, changes)
            for name in namespaces.names():
                namespaces.remove(name)
        outer.remove("host")


@pytest.mark.parametrize(
    "command",
    [
        "ip link set lo up",
        "ip address add 10.9.0.1/32 dev lo",
        "ip route add unreachable 10.8.0.0/16",
        "ip rule add priority 7 from 10.0.0.0/8 table 9",
        "tc qdisc add dev lo clsact",
        "sysctl -qw net.ipv4.ip_forward=1",
    ],
)
def test_a_change_is_heard_of_at_once(world: World, command: str) -> None:
    world.changes.take()
    before = world.changes.count(PLACE), world.changes.count(PLACE, tables=True)
    world.run(PLACE, command)
    assert world.changes.count(PLACE) > before[0]
    assert world.changes.count(PLACE, tables=True) == before[1]
    touched = world.changes.take()
    assert touched is not None
    assert {ns for ns, _ in touched} == {PLACE}
    assert world.changes.take() == frozenset()


def test_a_change_of_a_table_is_heard_of_by_its_name(world: World) -> None:
    before = world.changes.count(PLACE), world.changes.count(PLACE, tables=True)
    world.run(PLACE, "nft add table inet strange")
    assert world.changes.count(PLACE) == before[0]
    assert world.changes.count(PLACE, tables=True) > before[1]
    assert world.changes.take() == frozenset({Touched(PLACE, "strange")})


def test_links_of_the_host_are_heard_of_by_their_names(world: World) -> None:
    world.run(HOST, "ip link add chain7 type veth peer name far7")
    world.changes.take()
    for command in ("ip address add 10.9.0.1/32 dev chain7", "tc qdisc add dev chain7 clsact"):
        world.run(HOST, command)
        assert world.changes.take() == frozenset({Touched(HOST, "chain7")})


def test_a_pin_that_is_replaced_is_missed(world: World) -> None:
    assert not world.changes.lost()
    pin = world.namespaces.path(PLACE)
    subprocess.run(["umount", "--lazy", str(pin)], check=True)
    assert world.changes.lost() == {PLACE}
    pin.unlink()
    world.namespaces.create(PLACE)
    assert world.changes.lost() == {PLACE}
    world.namespaces.call(PLACE, lambda: world.changes.follow(PLACE))
    assert not world.changes.lost()


def test_what_was_not_heard_may_be_anything(world: World) -> None:
    before = world.changes.count(PLACE)
    # Told of more than fits into the socket's buffer.
    world.changes.routing.setsockopt(1, 8, 4096)
    flush = "for i in $(seq 1 200); do ip addr add 10.9.$i.1/32 dev lo; done"
    world.namespaces.call(PLACE, lambda: subprocess.run(["sh", "-c", flush], check=True))
    assert world.changes.take() is None
    assert world.changes.count(PLACE) > before
    assert world.changes.take() == frozenset()


def test_a_new_link_is_heard_of_by_its_name_alone(world: World) -> None:
    world.run(PLACE, "ip link add first type veth peer name second")
    assert world.changes.take() == frozenset({Touched(PLACE, "first"), Touched(PLACE, "second")})


def test_a_filter_is_heard_of_by_its_link_alone(world: World) -> None:
    world.run(PLACE, "ip link add first type veth peer name second")
    world.changes.take()
    world.run(PLACE, "tc qdisc add dev first clsact")
    world.run(PLACE, "tc chain add dev first ingress chain 1")
    assert world.changes.take() == frozenset({Touched(PLACE, "first")})


def test_a_port_that_has_no_name_yet_is_taken_for_no_other(world: World) -> None:
    world.namespaces.create(PANEL)
    world.namespaces.call(PANEL, lambda: world.changes.follow(PANEL))
    world.run(PANEL, "ip link add first type veth peer name second")
    world.changes.take()
    # As when only its settings had been told by now.
    (link,) = (link for link, name in world.changes._names.items() if name == "first")
    del world.changes._names[link]
    world.run(PANEL, "sysctl -qw net.ipv4.conf.first.forwarding=1")
    assert world.changes.take() == frozenset()
    assert world.changes.take() == frozenset({Touched(PANEL, "")})
    assert world.changes.take() == frozenset()
    world.run(PANEL, "sysctl -qw net.ipv4.conf.first.forwarding=0")
    assert world.changes.take() == frozenset()
    world.run(PANEL, "ip link set first up")
    assert world.changes.take() == frozenset({Touched(PANEL, "first")})


def prolong(gate: NftGate, milliseconds: int) -> None:
    (refused,) = gate.open([(PLACE, clock.boot_ns() + milliseconds * 1_000_000)])
    if refused is not None:
        raise refused


def is_told(world: World) -> bool:
    """Whether there is anything to read, be it passed over or not."""
    return bool(select.select([world.changes.tables], [], [], 0)[0])


def test_the_gate_wakes_nobody_up_and_others_elements_do(world: World) -> None:
    gate = NftGate(world.namespaces, world.changes)
    world.namespaces.call(PLACE, lambda: nft.apply(GATE_TABLE))
    world.changes.take()
    prolong(gate, 60_000)
    assert not is_told(world)
    world.run(PLACE, f"nft add element inet {TABLE} {GATE_SET} {{ lo }}")
    assert is_told(world)
    assert world.changes.take() == frozenset({Touched(PLACE, TABLE)})
    prolong(gate, 60_000)
    world.run(PLACE, f"nft delete element inet {TABLE} {GATE_SET} {{ lo }}")
    assert world.changes.take() == frozenset({Touched(PLACE, TABLE)})


def test_the_gate_of_one_that_is_not_there_keeps_no_other_shut(world: World) -> None:
    gate = NftGate(world.namespaces, world.changes)
    world.namespaces.call(PLACE, lambda: nft.apply(GATE_TABLE))
    until = clock.boot_ns() + 60_000_000_000
    gone, there = gate.open([(NsName("gone"), until), (PLACE, until)])
    assert gone is not None
    assert there is None
    assert world.gate().keys() == {"up0"}


def test_the_gate_is_opened_prolonged_and_no_news(world: World) -> None:
    gate = NftGate(world.namespaces, world.changes)
    world.namespaces.call(PLACE, lambda: nft.apply(GATE_TABLE))
    world.changes.take()
    prolong(gate, 5_000)
    prolong(gate, 60_000)
    assert world.gate().keys() == {"up0"}
    assert all(5 < left <= 60 for left in world.gate().values())
    assert world.changes.take() == frozenset()
    prolong(gate, 50)
    wait_until(lambda: not world.gate())
    prolong(gate, 60_000)
    assert len(world.gate()) == 1


def test_a_gate_without_its_table_is_refused(world: World) -> None:
    gate = NftGate(world.namespaces, world.changes)
    with pytest.raises(MendHost, match="gate") as refused:
        prolong(gate, 1000)
    assert refused.value.code == "C305"
    world.namespaces.call(PLACE, lambda: nft.apply(GATE_TABLE))
    prolong(gate, 60_000)
    assert len(world.gate()) == 1


def test_a_table_is_listed_again_when_somebody_changed_it(world: World, tmp_path: Path) -> None:
    tables = Tables(world.namespaces, world.changes, tmp_path / "tables")
    part = NftTable(PLACE, TABLE, "chain input {\n\t\ttype filter hook input priority 0;\n\t}")
    tables.write(part)

    def see() -> list[NftTable]:
        return list(tables.observe([(PLACE, TABLE)]))

    assert see() == see() == [part]
    world.run(PLACE, f"nft add rule inet {TABLE} input accept")
    assert see() == [NftTable(PLACE, TABLE, CHANGED)]
    tables.write(part)
    assert see() == [part]
    world.run(PLACE, "nft flush ruleset")
    assert see() == []


class Deaf:
    """Hears of nothing."""

    def follow(self, ns: NsName) -> None:
        pass

    def count(self, ns: NsName, *, tables: bool) -> int:
        return 0


def test_the_kernel_numbers_changes_that_nobody_heard_of(world: World, tmp_path: Path) -> None:
    """So that a table need not be listed again to know that it is the same."""
    tables = Tables(world.namespaces, cast(Changes, Deaf()), tmp_path / "tables")
    part = NftTable(PLACE, TABLE, "chain input {\n\t\ttype filter hook input priority 0;\n\t}")
    tables.write(part)

    def see(oldest: float) -> list[NftTable]:
        return list(tables.observe([(PLACE, TABLE)], oldest=oldest))

    changed = [NftTable(PLACE, TABLE, CHANGED)]
    assert see(-1.0) == [part]
    for command, then in (
        (f"nft add rule inet {TABLE} input accept", changed),
        (f"nft flush chain inet {TABLE} input", [part]),
        ("nft flush ruleset", []),
    ):
        before = see(math.inf)
        world.run(PLACE, command)
        assert see(math.inf) == before, "it was heard, so this proves nothing"
        assert see(-1.0) == then
    tables.write(part)
    assert see(-1.0) == see(-1.0) == [part]
