"""A client wire through the identity filter, with as many rules as asked for."""

from __future__ import annotations

import ctypes
import os
from collections.abc import Iterator
from contextlib import contextmanager
from ipaddress import IPv4Address
from pathlib import Path
from tempfile import TemporaryDirectory

from chainctl.host.clock import boot_ns
from chainctl.model.parts import PortMode
from chainctl.net.filter import IDENTITY_OBJECT, PanelFilter, Port, mount_bpffs
from chainctl.net.policy import PolicyKey, PolicyRows, PolicyRule

SCOPE = 1
MTU = 1500
_HOUR = 3600 * 10**9
_FIRST_IDENTITY = 256
_SOURCES = 256
"""Of the clients whom rules speak of; with as many servers each that makes 65 536 pairs."""


def client(number: int) -> IPv4Address:
    return IPv4Address("10.0.0.0") + number


def server(number: int) -> IPv4Address:
    return IPv4Address("45.0.0.0") + number


def pair(number: int, rules: int) -> tuple[IPv4Address, IPv4Address]:
    """Who may talk to whom by rule `number`, from 0, of a policy of so many."""
    width = min(_SOURCES, rules)
    return client(number % width), server(number // width)


def policy(rules: int) -> PolicyRows:
    """`rules` pairs of one client and one server; each of them has an identity of its own."""
    pairs = [pair(number, rules) for number in range(rules)]
    addresses = sorted({address for one in pairs for address in one})
    endpoints = {address: _FIRST_IDENTITY + index for index, address in enumerate(addresses)}
    return PolicyRows(
        endpoints=endpoints,
        rules={
            PolicyKey(endpoints[source], endpoints[destination]): PolicyRule(1)
            for source, destination in pairs
        },
    )


@contextmanager
def panel(rules: int) -> Iterator[PanelFilter]:
    """The filter with its maps in a bpffs of its own, attached nowhere yet."""
    with TemporaryDirectory(prefix="chainctl-bench-") as folder:
        pins = Path(folder, "bpf")
        mount_bpffs(pins)
        try:
            opened = PanelFilter.open(IDENTITY_OBJECT, pins)
            try:
                opened.put_policy_rows(SCOPE, policy(rules))
                yield opened
            finally:
                opened.close()
        finally:
            _unmount(pins)


def join(opened: PanelFilter, inner: int, outer: int) -> None:
    """Rows for a client wire from the port `inner` to the port `outer`, its gate open."""
    anybody = IPv4Address(0)
    opened.put_port(inner, Port(257, anybody, MTU, PortMode.CLIENT, SCOPE, inner))
    opened.put_port(outer, Port(258, anybody, MTU, PortMode.REPLY, SCOPE, inner))
    opened.put_far(inner, outer)
    opened.put_far(outer, inner)
    opened.open_gate(inner, boot_ns() + _HOUR)


def _unmount(path: Path) -> None:
    libc = ctypes.CDLL(None, use_errno=True)
    if libc.umount2(os.fsencode(path), 2):
        raise OSError(ctypes.get_errno(), f"cannot unmount {path}")
