"""Tampered: what judges is taken away or replaced during a flood; the other layer holds."""

from __future__ import annotations

import subprocess
from functools import partial

import pytest

from chainctl.model.parts import PortName
from chainctl.net import clsact, libbpf
from chainctl.net.filter import LAYOUT
from chainctl.supervisor.words import describe_side
from tests.kernel.open_wire import OBJECT, attach_pass_all
from tests.leak.chain_rig import HOPS, ChainRig, Fault, Passing, endure
from tests.leak.oracle import Oracle

pytestmark = pytest.mark.root

PORTS = ("c0-up", *(f"c0-h{hop}{end}" for hop in range(1, HOPS + 1) for end in ("out", "in")))
FILTERS = tuple(f"filter {describe_side(PortName(port))}" for port in (*PORTS, "c0-gw"))


def detach_all(chain: ChainRig) -> None:
    for index in chain.ports.values():
        chain.inside("panel", partial(clsact.detach, index, libbpf.INGRESS))


def put_before(chain: ChainRig) -> None:
    """A program that is asked first and gives every packet to the panel's own stack."""
    index = chain.ports["c0-gw"]
    opened = libbpf.Object(OBJECT)
    try:
        program = opened.program("pass_all")
        chain.inside("panel", lambda: libbpf.attach(index, libbpf.INGRESS, program, 1, 1))
    finally:
        opened.close()


def remove_rows(chain: ChainRig) -> None:
    ports = chain.ports
    with chain.maps() as maps:
        maps.remove_port(ports["c0-h2in"])
        chain.inside("panel", lambda: maps.remove_far(ports["c0-h3out"]))
        maps.remove_wires([wire for wire in maps.wires() if wire.ifindex == ports["c0-h1out"]])
        maps.remove_policy(1)


def widen_rows(chain: ChainRig) -> None:
    """The gateway's port leads past all hops, and the host's takes every source."""
    ports = chain.ports
    with chain.maps() as maps:
        chain.inside("panel", lambda: maps.put_far(ports["c0-gw"], ports["c0-up"]))
        client = maps.ports()[ports["c0-gw"]]
        maps.put_port(ports["c0-h1in"], client)


def delete_pins(chain: ChainRig) -> None:
    for pin in (chain.run_dir / "bpf" / LAYOUT).iterdir():
        pin.unlink()


def unmount(chain: ChainRig) -> None:
    subprocess.run(["umount", "--lazy", str(chain.run_dir / "bpf")], check=True)


def open_tunnels(chain: ChainRig) -> None:
    for hop in range(1, HOPS + 1):
        index = chain.links(f"hop{hop}")["tunA"]
        chain.inside(f"hop{hop}", partial(attach_pass_all, index))


def flush(chain: ChainRig, place: str) -> Fault:
    said = {"host": "the host", "panel": "the filter's namespace"}
    return Fault(
        f"nft flush ruleset in {place}",
        lambda chain: chain.run(place, "nft", "flush", "ruleset"),
        (f"nft table in {said.get(place, f'{chain.lab.name}.{place}')}",),
    )


def test_the_programs_of_the_filter(chain: ChainRig, oracle: Oracle) -> None:
    faults = [
        Fault("detached", detach_all, FILTERS),
        Fault("replaced", ChainRig.open_wires, FILTERS),
        Fault("put before", put_before, ("filter at the gateway",)),
    ]
    endure(chain, oracle, faults)


def test_the_rows_of_the_filter(chain: ChainRig, oracle: Oracle) -> None:
    inner, outer = "filter entry on the inner side of hop", "filter entry on the outer side of hop"
    gone = (f"{inner} 2", f"{outer} 3", f"{outer} 1")
    other = ("filter entry at the gateway", f"{inner} 1")
    faults = [
        Fault("removed", remove_rows, (*gone, "filter policy")),
        Fault("widened", widen_rows, other),
    ]
    endure(chain, oracle, faults, Passing(at_servers=True, at_leg=True))


def test_the_pins_of_the_filter(chain: ChainRig, oracle: Oracle) -> None:
    faults = [
        Fault("pins deleted", delete_pins, FILTERS),
        Fault("bpffs unmounted", unmount, FILTERS),
    ]
    endure(chain, oracle, faults)


def test_the_filters_of_the_tunnels(chain: ChainRig, oracle: Oracle) -> None:
    words = tuple(f"source filter on tunA of {chain.lab.name}.hop{k}" for k in range(1, HOPS + 1))
    endure(chain, oracle, [Fault("passing all", open_tunnels, words)])


def test_the_tables(chain: ChainRig, oracle: Oracle) -> None:
    faults = [flush(chain, place) for place in chain.places]
    endure(chain, oracle, faults, Passing(at_servers=True, naked=True))
