"""A network for clients on this machine: what somebody does to its bridge, and what `down` leaves.

The host's namespace of these tests is one of their own.
"""

from __future__ import annotations

import subprocess
from collections.abc import Iterator
from contextlib import closing
from pathlib import Path

import pytest

from chainctl.host.netns import Namespaces
from chainctl.model.parts import HOST, ClientBridge, NftTable, Part
from chainctl.net import guard
from chainctl.settings import Settings
from chainctl.supervisor.machine import Machine
from chainctl.supervisor.plan import Change, Make, Remove, plan
from tests.unit.supervisor.chains import make_chain

pytestmark = pytest.mark.root

BRIDGE = "ch-home"
WANTED = (
    NftTable(HOST, guard.own_network_table("home"), guard.render_own_network(BRIDGE)),
    ClientBridge(BRIDGE),
)


@pytest.fixture
def machine(tmp_path: Path) -> Iterator[Machine]:
    settings = Settings(run_dir=tmp_path / "run", state_dir=tmp_path / "state")
    with Namespaces(tmp_path / "outer") as outer:
        outer.create("host")
        with closing(outer.call("host", lambda: Machine(settings))) as machine:
            for part in WANTED:
                machine.make(part)
            yield machine
        outer.remove("host")


def run(machine: Machine, command: str) -> None:
    machine.namespaces.call(HOST, lambda: subprocess.run(command.split(), check=True, timeout=10))


def seen(machine: Machine) -> list[Part]:
    found = machine.observe("home", 0, None)
    return [part for part in found if isinstance(part, NftTable | ClientBridge)]


def adjust(machine: Machine, *want: Part) -> None:
    for step in plan(want, seen(machine)):
        match step:
            case Make(part):
                machine.make(part)
            case Change(old, new):
                machine.change(old, new)
            case Remove(part):
                machine.remove(part)


MEDDLING = [
    "sysctl -qw net.ipv4.ip_forward=1",
    f"sysctl -qw net.ipv4.conf.{BRIDGE}.arp_ignore=0",
    f"ip link set {BRIDGE} down",
    f"ip address add 10.9.0.1/24 dev {BRIDGE}",
]


def test_as_made(machine: Machine) -> None:
    assert set(seen(machine)) == set(WANTED)
    adjust(machine)
    assert seen(machine) == []


@pytest.mark.parametrize("meddling", MEDDLING)
def test_what_somebody_changed_is_seen_and_mended(machine: Machine, meddling: str) -> None:
    run(machine, meddling)
    assert ClientBridge(BRIDGE, settled=False) in seen(machine)
    adjust(machine, *WANTED)
    assert set(seen(machine)) == set(WANTED)


HEARD = [
    MEDDLING[0],
    *MEDDLING[2:],
    f"nft flush table inet {guard.own_network_table('home')}",
    f"nft delete table inet {guard.own_network_table('home')}",
    f"ip link delete {BRIDGE}",
]


@pytest.mark.parametrize("meddling", HEARD)
def test_what_somebody_does_is_heard_at_once(machine: Machine, meddling: str) -> None:
    machine.configure(make_chain())
    machine.take_over()
    seen(machine)
    machine.news(rows=False, pins=False)
    run(machine, meddling)
    assert machine.news(rows=False, pins=False) == frozenset({"home"})


@pytest.mark.parametrize("meddling", MEDDLING)
def test_who_is_connected_stays_guarded_whatever_was_changed(
    machine: Machine, meddling: str
) -> None:
    run(machine, "ip link add box type veth peer name box-far")
    run(machine, f"ip link set box master {BRIDGE}")
    run(machine, meddling)
    adjust(machine)
    assert {part.key for part in seen(machine)} == {part.key for part in WANTED}
    run(machine, "ip link delete box")
    adjust(machine)
    assert seen(machine) == []
