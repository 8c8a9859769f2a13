"""Who uses a chain, as `status` and `explain` say it (docs/json.md lists the fields)."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from ipaddress import IPv4Address
from typing import Any

from chainctl.model.chain import Chain
from chainctl.model.clients import DockerSeen, Member, NamedClient, Neighbour, name_of
from chainctl.model.parts import TCP

Facts = dict[str, Any]


def describe_clients(
    chain: Chain,
    named: Sequence[NamedClient],
    docker: DockerSeen,
    neighbours: Sequence[Neighbour],
) -> list[Facts]:
    """Containers first, then whom the chain file names, then others that were heard of."""
    macs = {(one.link, one.address): one.mac for one in neighbours}
    own = chain.own_network
    inside = own.link if own else ""
    containers = [_container(member, named) for member in docker.members]
    called = {entry["name"] for entry in containers}
    known = {(inside, member.address) for member in docker.members}
    devices = []
    for client in named:
        if client.name in called:
            continue
        found = next((one for one in neighbours if _is(client, one)), None)
        if found is not None:
            known.add((found.link, found.address))
        devices.append(_named(client, found, inside))
    others = [
        _unnamed("program" if link == inside else "device", address, mac)
        for (link, address), mac in macs.items()
        if (link, address) not in known
    ]
    return [*containers, *devices, *others]


def describe_published(chain: Chain) -> list[Facts]:
    return [
        {
            "port": one.wish.port,
            "protocol": "tcp" if one.wish.protocol == TCP else "udp",
            "at": [str(address) for address in one.at],
            "client": one.wish.client,
            "client_port": one.wish.client_port,
            "to": None if one.to is None else str(one.to),
        }
        for one in chain.published
    ]


def notes_on_containers(chain: Chain, docker: DockerSeen) -> Iterator[str]:
    if not chain.has_containers:
        return
    if not docker.answers:
        words = "Docker does not answer; containers join this chain's network when it does."
        yield _note("N504", words)
    for one in chain.published:
        if one.to is None:
            words = f"port {one.wish.port} leads nowhere: no container {one.wish.client} runs"
            yield _note("N505", f"{words} in the network of {chain.name}.")


def _note(code: str, words: str) -> str:
    return f"[{code}] {words}"


def _container(member: Member, named: Sequence[NamedClient]) -> Facts:
    return {
        "name": name_of(member, named),
        "kind": "container",
        "address": str(member.address),
        "mac": member.mac or None,
        "container": member.container,
        "here": True,
    }


def _named(client: NamedClient, found: Neighbour | None, inside: str) -> Facts:
    address = found.address if found else client.address
    kind = "device"
    if client.container or client.label:
        kind = "container"
    elif found is not None and found.link == inside:
        kind = "program"
    return {
        "name": client.name,
        "kind": kind,
        "address": None if address is None else str(address),
        "mac": found.mac if found else client.mac or None,
        "container": client.container or None,
        "here": found is not None,
    }


def _unnamed(kind: str, address: IPv4Address, mac: str) -> Facts:
    return {
        "name": None,
        "kind": kind,
        "address": str(address),
        "mac": mac,
        "container": None,
        "here": True,
    }


def _is(client: NamedClient, neighbour: Neighbour) -> bool:
    return client.address == neighbour.address or client.mac == neighbour.mac != ""
