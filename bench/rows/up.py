"""How long a chain takes from nothing to the first answer, beside a shell script.

Both start with their containers' image unpacked; the supervisor runs. The clock stops when the
first ping of the lab's client to its target is answered, through three hops.
"""

from __future__ import annotations

import time
from functools import partial

from bench.handwired import Handwired, handwired
from bench.harness import Result, compare, interleave, ratio_at_most, row
from bench.labs import chainctl, lab, status, supervisor
from chainctl.lab.lab import Lab
from chainctl.lab.layout import TARGET

_PING = f"""
import os, select, socket, struct, sys, time
sock = socket.socket(socket.AF_INET, socket.SOCK_DGRAM, socket.IPPROTO_ICMP)
end = time.monotonic() + 20
number = 0
while time.monotonic() < end:
    number += 1
    try:
        sock.sendto(struct.pack("!BBHHH", 8, 0, 0, 0, number), ("{TARGET.ip}", 0))
    except OSError:
        pass
    if select.select([sock], [], [], 0.01)[0]:
        sys.exit(0)
sys.exit("no answer within 20 s")
"""


@row("up_vs_script", unit="s", target=ratio_at_most(2))
def up_vs_script() -> Result:
    with lab("up", 3) as one, supervisor(one):
        allow_ping(one)
        chainctl(one, "up", str(one.chain_file))
        mtus = [hop["mtu"] for hop in status(one)["hops"]]
        chainctl(one, "down")
        with handwired(one, mtus) as by_hand:
            return compare(interleave(partial(_ours, one), partial(_script, one, by_hand)))


def _ours(one: Lab) -> float:
    begun = time.monotonic()
    chainctl(one, "up", str(one.chain_file))
    took = _until_ping(one) - begun
    chainctl(one, "down")
    _forget_gateway(one)
    return took


def _script(one: Lab, by_hand: Handwired) -> float:
    by_hand.prepare()
    begun = time.monotonic()
    by_hand.up()
    took = _until_ping(one) - begun
    by_hand.down()
    _forget_gateway(one)
    return took


def _until_ping(one: Lab) -> float:
    done = one.run("client", ["python3", "-I", "-c", _PING], timeout=40)
    if done.returncode:
        raise RuntimeError(done.stderr)
    return time.monotonic()


def allow_ping(one: Lab) -> None:
    """By a socket without the whole machine's ICMP in it."""
    path = "/proc/sys/net/ipv4/ping_group_range"
    one.run("client", ["sh", "-c", f"echo 0 0 > {path}"], timeout=10)


def _forget_gateway(one: Lab) -> None:
    """Each has a MAC address of its own for the client's gateway."""
    one.run("client", ["ip", "neigh", "flush", "dev", "eth0"], timeout=10)
