"""A container as Docker is asked for it; what it may do is decided here."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from ipaddress import IPv4Address, IPv4Network
from pathlib import Path


@dataclass(frozen=True)
class Archive:
    """An image as Docker loads it."""

    ids: tuple[str, ...]
    """What Docker calls it once it is there: that depends on where its images lie."""
    data: bytes = field(repr=False)


@dataclass(frozen=True)
class NetworkSpec:
    """A network of Docker's on a bridge that is there already."""

    name: str
    bridge: str
    subnet: IPv4Network
    range: IPv4Network
    """Where Docker takes addresses from."""
    gateway: IPv4Address
    label: str
    tag: str
    """Value of `label`: whose it is."""


@dataclass(frozen=True)
class ContainerSpec:
    """A container as Docker is asked for it. It may do nothing that is not said here."""

    name: str
    image: Archive
    argv: tuple[str, ...]
    uid: int
    network: str
    """`none`, or `container:ID`."""
    labels: Mapping[str, str]
    memory: int
    pids: int
    env: tuple[str, ...] = ()
    seccomp: str = ""
    """The profile itself; empty: Docker's own."""
    devices: tuple[tuple[Path, str], ...] = ()
    """(node on this machine, name inside), for reading and writing."""
    binds: tuple[tuple[Path, str], ...] = ()
    ulimits: Mapping[str, int] = field(default_factory=dict)
