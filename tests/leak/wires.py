"""Three namespaces in a row, for the oracle's own tests: client, box, far.

    client (eth0 10.77.1.2) ── lan (10.77.1.1) box up0 (10.78.1.1) ── eth0 (10.78.1.2) far

The box routes without any rule, so that every leak can be made on purpose.
"""

from __future__ import annotations

import json
import subprocess
import time
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path

CLIENT_ADDRESS = "10.77.1.2"
BOX_LAN = "10.77.1.1"
BOX_UP = "10.78.1.1"
FAR_ADDRESS = "10.78.1.2"


@dataclass(frozen=True)
class Wires:
    prefix: str

    @property
    def client(self) -> Path:
        return self._path("client")

    @property
    def box(self) -> Path:
        return self._path("box")

    @property
    def far(self) -> Path:
        return self._path("far")

    def run(self, place: str, *argv: str) -> None:
        """Run a program in `client`, `box` or `far`."""
        _run("ip", "netns", "exec", f"{self.prefix}{place}", *argv)

    def _path(self, place: str) -> Path:
        return Path("/run/netns", f"{self.prefix}{place}")


@contextmanager
def made(prefix: str) -> Iterator[Wires]:
    """The three namespaces, gone at the end."""
    places = [f"{prefix}{place}" for place in ("client", "box", "far")]
    try:
        for place in places:
            _run("ip", "netns", "add", place)
            _run("ip", "netns", "exec", place, "sysctl", "-qw", "net.ipv6.conf.all.disable_ipv6=1")
        client, box, far = places
        _join(client, "eth0", CLIENT_ADDRESS, box, "lan", BOX_LAN)
        _join(box, "up0", BOX_UP, far, "eth0", FAR_ADDRESS)
        _run("ip", "-n", client, "route", "add", "default", "via", BOX_LAN)
        _run("ip", "-n", far, "route", "add", "default", "via", BOX_UP)
        _run("ip", "netns", "exec", box, "sysctl", "-qw", "net.ipv4.ip_forward=1")
        yield Wires(prefix)
    finally:
        for place in places:
            subprocess.run(["ip", "netns", "del", place], check=False, capture_output=True)


def _join(
    place: str, link: str, address: str, other: str, other_link: str, other_address: str
) -> None:
    end = ("peer", "name", other_link, "netns", other)
    _run("ip", "-n", place, "link", "add", link, "type", "veth", *end)
    for where, name, own in ((place, link, address), (other, other_link, other_address)):
        _run("ip", "-n", where, "address", "add", f"{own}/24", "dev", name)
        _run("ip", "-n", where, "link", "set", name, "up")
    _wait_until_up(place, link)
    _wait_until_up(other, other_link)


def _wait_until_up(place: str, link: str) -> None:
    """Before its queue is there a link drops what it is given, and says nothing."""
    deadline = time.monotonic() + 5
    while True:
        shown = subprocess.run(
            ["ip", "-n", place, "-j", "link", "show", link],
            check=True,
            capture_output=True,
            text=True,
        )
        (state,) = json.loads(shown.stdout)
        if state["operstate"] == "UP" and state["qdisc"] != "noop":
            return
        assert time.monotonic() < deadline, f"{link} in {place} does not come up"
        time.sleep(0.005)


def _run(*argv: str) -> None:
    subprocess.run(argv, check=True, capture_output=True, text=True)
