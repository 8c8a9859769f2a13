"""Clients by the names people know them by, and ports of containers that devices may reach."""

from __future__ import annotations

import re
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, field
from ipaddress import IPv4Address

from chainctl.model.parts import TCP

NAME_LABEL = "chainctl.client"
"""A container that has this label is called by its value, if it is a name."""
SERVICE_LABEL = "com.docker.compose.service"
"""Compose calls the container of the service `download` `stack-download-1` or the like."""


CLIENT_NAME = "[A-Za-z0-9][A-Za-z0-9_.-]{0,127}"
"""What Docker takes for a container, and no longer than people read."""


@dataclass(frozen=True)
class NamedClient:
    """A name, and the one thing by which its bearer is known; the others are None or empty."""

    name: str
    address: IPv4Address | None = None
    mac: str = ""
    """In small letters, with colons."""
    container: str = ""
    label: str = ""
    """`key`, or `key=value`."""


@dataclass(frozen=True)
class Publish:
    """A port of the gateway that is to lead to a port of a container."""

    port: int
    client: str
    client_port: int
    protocol: int = TCP
    at: IPv4Address | None = None
    """The one address of the gateway; None: each that it has in a network of devices."""

    def __str__(self) -> str:
        words = f"{self.port}:{self.client}:{self.client_port}"
        at = f"{self.at}:" if self.at else ""
        return f"{at}{words}{'' if self.protocol == TCP else '/udp'}"


@dataclass(frozen=True)
class Published:
    """As `Publish`, with the addresses that belong to it now."""

    wish: Publish
    at: tuple[IPv4Address, ...]
    to: IPv4Address | None
    """None: there is no such container, or it does not run."""


@dataclass(frozen=True, order=True)
class Member:
    """A running container in a chain's network, as Docker tells of it."""

    container: str
    """Its name, unique at a daemon; one that is made anew may have it again."""
    key: str
    """Docker's id, nobody else's ever."""
    address: IPv4Address
    mac: str
    labels: tuple[tuple[str, str], ...] = field(default=(), repr=False)

    def label(self, key: str) -> str | None:
        return dict(self.labels).get(key)


@dataclass(frozen=True)
class DockerSeen:
    """What is known of a chain's network for containers."""

    answers: bool = False
    """The daemon did, when it was asked last."""
    made: bool = False
    """The network was, and nobody said that it is gone."""
    members: tuple[Member, ...] = ()
    """Sorted; with a daemon that does not answer those of before."""


NO_DOCKER = DockerSeen()


@dataclass(frozen=True, order=True)
class Neighbour:
    """Who was heard of in one of the chain's networks."""

    link: str
    """The gateway's, in that network."""
    address: IPv4Address
    mac: str


def name_of(member: Member, named: Sequence[NamedClient]) -> str:
    """As the chain file calls it; else its own label, else the container's name."""
    return _named(member, named) or _labelled(member) or member.container


def find_member(
    name: str, members: Sequence[Member], named: Sequence[NamedClient]
) -> Member | None:
    """Who is meant by `name`: what the chain file calls it, its own name, its Compose service,
    or its label.

    The label last, because whoever made its image may have written it, to be taken for another.
    Of several, as when a service is scaled, the first by the container's name.
    """
    for names in (
        lambda member: _named(member, named),
        lambda member: member.container,
        lambda member: member.label(SERVICE_LABEL),
        _labelled,
    ):
        found = next((member for member in members if names(member) == name), None)
        if found is not None:
            return found
    return None


def differences(
    before: Sequence[Member], after: Sequence[Member], named: Sequence[NamedClient]
) -> Iterator[tuple[str, str]]:
    """(kind of event, sentence) for each container that came, went, or is another one now."""
    old, new = ({member.key: member for member in members} for members in (before, after))
    for key, member in old.items():
        if key not in new:
            yield "client_left", f"{_called(member, named)} left; it had {member.address}"
    for key, member in new.items():
        called, known = _called(member, named), old.get(key)
        if known is None:
            yield "client_joined", f"{called} joined with {member.address}"
            continue
        if _called(known, named) != called:
            yield "client_renamed", f"{_called(known, named)} is called {called} now"
        if known.address != member.address:
            yield "client_moved", f"{called} has {member.address} now, not {known.address}"


def _named(member: Member, named: Sequence[NamedClient]) -> str | None:
    return next((client.name for client in named if _is(client, member)), None)


def _labelled(member: Member) -> str | None:
    """A label may hold anything, also what a terminal takes for a command."""
    found = member.label(NAME_LABEL) or ""
    return found if re.fullmatch(CLIENT_NAME, found) else None


def _is(client: NamedClient, member: Member) -> bool:
    key, _, value = client.label.partition("=")
    return (
        client.address == member.address
        or client.mac == member.mac != ""
        or client.container == member.container
        or (client.label != "" and _has_label(member, key, value if "=" in client.label else None))
    )


def _has_label(member: Member, key: str, value: str | None) -> bool:
    found = member.label(key)
    return found is not None and value in (None, found)


def _called(member: Member, named: Sequence[NamedClient]) -> str:
    name = name_of(member, named)
    return name if name == member.container else f"{name} (container {member.container})"
