"""TCP through a filtered wire beside TCP through a Linux bridge that filters nothing."""

from __future__ import annotations

import socket
from collections.abc import Iterator
from contextlib import contextmanager
from functools import partial

from bench import panel, throughput
from bench.harness import Result, compare, interleave, ratio_at_least, row
from bench.namespaces import Namespaces, namespaces

_SECONDS = 1.0
_PAIRS = 31
_CLIENT, _SERVER = panel.pair(0, 1)
_BRIDGE_CLIENT, _BRIDGE_SERVER = "10.9.0.1", "10.9.0.2"


@row("wire_vs_bridge", unit="bit/s", target=ratio_at_least(1.0))
def wire_vs_bridge() -> Result:
    """With 10 rules and with 65 536; the worse of the two is the row's."""
    return min((_with_rules(10), _with_rules(65_536)), key=_lower_end)


def _with_rules(rules: int) -> Result:
    with _places(rules) as places:
        ends = places.enter("client", []), places.enter("server", [])
        speed = partial(throughput.measure, *ends, seconds=_SECONDS)
        wire, bridge = partial(speed, str(_SERVER)), partial(speed, _BRIDGE_SERVER)
        return compare(interleave(wire, bridge, count=_PAIRS))


def _lower_end(result: Result) -> float:
    assert result.ratio is not None
    return result.ratio.low


@contextmanager
def _places(rules: int) -> Iterator[Namespaces]:
    """Two namespaces joined twice, by the filter and by a bridge."""
    with namespaces("wire") as places, panel.panel(rules) as opened:
        places.add("client", "server", "panel", "bridge")
        _make_bridge(places)
        _make_legs(places)

        def fill() -> None:
            inner, outer = socket.if_nametoindex("client"), socket.if_nametoindex("server")
            panel.join(opened, inner, outer)
            opened.attach(inner)
            opened.attach(outer)

        places.inside("panel", fill)
        yield places


def _make_bridge(places: Namespaces) -> None:
    places.ip("bridge", "link add bridge type bridge", "link set bridge up")
    for name, address in (("client", _BRIDGE_CLIENT), ("server", _BRIDGE_SERVER)):
        peer = f"peer name br0 netns {places.name(name)}"
        places.ip(
            "bridge",
            f"link add {name} type veth {peer}",
            f"link set {name} master bridge up",
        )
        places.ip(name, f"address add {address}/24 dev br0", "link set br0 up")


def _make_legs(places: Namespaces) -> None:
    """As the product makes them: no ARP, an address alone, everything else by the link."""
    for name, address in (("client", _CLIENT), ("server", _SERVER)):
        peer = f"peer name up0 netns {places.name(name)}"
        places.ip("panel", f"link add {name} type veth {peer}", f"link set {name} arp off up")
        places.ip(
            name,
            "link set up0 arp off up",
            f"address add {address}/32 dev up0",
            "route add default dev up0",
        )
