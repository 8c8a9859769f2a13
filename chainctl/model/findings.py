"""What a look at the machine is made for (`Wish`) and what comes out of it (`Finding`)."""

from __future__ import annotations

import re
from dataclasses import dataclass
from enum import IntEnum
from ipaddress import IPv4Interface, IPv4Network

WIRES = IPv4Network("198.19.0.0/16")
"""Where the addresses between hops come from unless the chain file says otherwise."""

_OWN_LINK = re.compile(r"chain\d+")


class Level(IntEnum):
    OK = 0
    NOTE = 1
    WARNING = 2
    BLOCKS = 3


@dataclass(frozen=True)
class Finding:
    about: str
    """What was looked at, in two words at most: the left column."""
    level: Level
    code: str
    """Empty when all is well."""
    text: str
    hint: str = ""


@dataclass(frozen=True)
class Wish:
    """What somebody wants to do on this machine; whatever is None is not checked."""

    lan: str | None = None
    address: IPv4Interface | None = None
    wan: str | None = None
    hops: int = 0
    wires: IPv4Network = WIRES
    tunnels: tuple[IPv4Interface, ...] = ()
    """The client addresses that the servers' profiles ask for."""
    own_macs: frozenset[str] = frozenset()
    """Of gateways of ours that are up: they may hold the address."""


def ok(about: str, text: str) -> Finding:
    return Finding(about, Level.OK, "", text)


def note(about: str, code: str, text: str, hint: str = "") -> Finding:
    return Finding(about, Level.NOTE, code, text, hint)


def warning(about: str, code: str, text: str, hint: str = "") -> Finding:
    return Finding(about, Level.WARNING, code, text, hint)


def blocks(about: str, code: str, text: str, hint: str = "") -> Finding:
    return Finding(about, Level.BLOCKS, code, text, hint)


def is_own_link(name: str | None) -> bool:
    """Whether a link of the host is a chain's uplink, which conflicts with nothing."""
    return name is not None and _OWN_LINK.fullmatch(name) is not None
