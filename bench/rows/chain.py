"""A whole chain beside the same tunnels wired by hand, between the lab's client and target."""

from __future__ import annotations

import sys
from collections.abc import Iterator
from contextlib import contextmanager
from functools import partial

from bench import throughput
from bench.handwired import handwired
from bench.harness import Result, compare, interleave, ratio_at_least, row
from bench.labs import chainctl, lab, status
from chainctl.lab.lab import Lab
from chainctl.lab.layout import TARGET

_SECONDS = 1.0
_PAIRS, _OPENVPN_PAIRS = 41, 161
"""OpenVPN loses some of what comes in bursts, and so its pairs differ more."""

_SENDER = """
import socket, sys, time
sender = socket.socket(type=socket.SOCK_DGRAM)
while True:
    try:
        sender.sendto(b"here", (sys.argv[1], 7))
    except OSError:
        pass  # There is no tunnel yet.
    time.sleep(0.5)
"""


def _chain_vs_handwired(hops: int, via: str = "") -> Result:
    """Two labs at once: both chains are up, and TCP goes through one at a time."""
    with (
        lab("chain", hops, via) as ours,
        lab("hand", hops, via) as baseline,
        _in_use(ours),
        _in_use(baseline),
    ):
        chainctl(ours, "up", str(ours.chain_file))
        mtus = [hop["mtu"] for hop in status(ours)["hops"]]
        with handwired(baseline, mtus) as by_hand:
            by_hand.prepare()
            by_hand.up()
            pairs = _OPENVPN_PAIRS if via else _PAIRS
            return compare(
                interleave(partial(_speed, ours), partial(_speed, baseline), count=pairs)
            )


@contextmanager
def _in_use(one: Lab) -> Iterator[None]:
    """A device sends a datagram to the target each half second and has it echoed, as there always
    is one that does.

    OpenVPN 2.6 looks after TLS with each packet from the connection on until it has sent nothing
    for two seconds, and again when it sends at the moment of a look it takes every 15 s
    (check_tls in forward.c): 5 µs for client and server. A tunnel under load for minutes is in
    that state; one second of load and one of silence in turns is not, but where a chain's
    questions go through.
    """
    with one.popen("client", [sys.executable, "-c", _SENDER, str(TARGET.ip)]) as process:
        try:
            yield
        finally:
            process.kill()


def _speed(one: Lab) -> float:
    return throughput.measure(
        _enter(one, "client"), _enter(one, "target"), str(TARGET.ip), seconds=_SECONDS
    )


def _enter(one: Lab, place: str) -> list[str]:
    return ["nsenter", f"--net=/run/netns/{one.namespace(place)}", "--"]


for _hops in (1, 2, 3):
    row(f"chain_vs_handwired_{_hops}", unit="bit/s", target=ratio_at_least(0.97))(
        partial(_chain_vs_handwired, _hops)
    )

for _name, _via in (("openvpn", "udp"), ("mixed", "udp,wg,udp")):
    row(f"{_name}_vs_handwired", unit="bit/s", target=ratio_at_least(0.97))(
        partial(_chain_vs_handwired, _via.count(",") + 1, _via)
    )
