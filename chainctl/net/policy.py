"""A chain's client policy as rows of the filter's maps. Pure.

Precedence is resolved here, so that the filter only has to look up: every address gets one
identity by what may be said about it (is it a client, is it refused, is it a resolver), and each
pair of identities its rows. An identity's number is made of just these facts, so that it means
the same in every policy and rows of an old policy never contradict those of a new one.

`chainctl.net.filter` writes the rows and reads them back.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from dataclasses import dataclass, field
from enum import IntEnum, IntFlag
from ipaddress import IPv4Address, IPv4Network
from typing import NamedTuple

from chainctl.model.parts import TCP, UDP, ClientPolicy
from chainctl.net.identity import CIDR_IDENTITY, WORLD

EVERYWHERE = IPv4Network("0.0.0.0/0")


class Trait(IntFlag):
    """What may be said about an address; together its identity."""

    CLIENT = 1
    REFUSED = 2
    RESOLVER = 4


class PortClass(IntEnum):
    """Destination ports that are judged alike. 0 is every other port."""

    DNS = 1
    ENCRYPTED_DNS = 2


CLASS_OF_PORT: Mapping[int, int] = {53: PortClass.DNS, 853: PortClass.ENCRYPTED_DNS}


class RuleId(IntEnum):
    """The rule a verdict names."""

    WORLD = 1
    """A client may reach the world."""
    REFUSED = 2
    """Nobody reaches a refused prefix or another client."""
    DNS = 3
    """A client may ask the chain's resolvers."""
    OTHER_DNS = 4
    """Nobody asks any other resolver."""


class PolicyKey(NamedTuple):
    """`port_class` and `protocol` 0 stand for any."""

    source: int
    destination: int
    port_class: int = 0
    protocol: int = 0


class PolicyRule(NamedTuple):
    """`audit`: a denial is reported but not enforced."""

    rule: int
    deny: bool = False
    audit: bool = False


@dataclass(frozen=True)
class PolicyRows:
    """What stands in the maps for one scope, apart from the flows."""

    endpoints: Mapping[IPv4Address, int] = field(default_factory=dict)
    prefixes: Mapping[IPv4Network, int] = field(default_factory=dict)
    rules: Mapping[PolicyKey, PolicyRule] = field(default_factory=dict)


def compile_policy(policy: ClientPolicy) -> PolicyRows:
    """The rows for `policy`; of two prefixes the longer one decides, as the filter does it."""
    networks = {EVERYWHERE, *policy.clients, *policy.refused}
    prefixes = {network: _identity(_traits(policy, network)) for network in networks}
    endpoints = {
        address: _identity(_traits(policy, IPv4Network(address)) | Trait.RESOLVER)
        for address in policy.dns
    }
    known = {*prefixes.values(), *endpoints.values()}
    rules = {
        PolicyKey(source, destination, port_class, protocol): rule
        for source in known
        if source != WORLD and Trait(source - CIDR_IDENTITY) & Trait.CLIENT
        for destination in known
        for port_class, protocol, rule in _rules_towards(destination)
    }
    return PolicyRows(endpoints, prefixes, rules)


def _traits(policy: ClientPolicy, network: IPv4Network) -> Trait:
    traits = Trait(0)
    if any(network.subnet_of(client) for client in policy.clients):
        traits |= Trait.CLIENT
    if any(network.subnet_of(refused) for refused in policy.refused):
        traits |= Trait.REFUSED
    return traits


def _identity(traits: Trait) -> int:
    return CIDR_IDENTITY | traits if traits else WORLD


def _rules_towards(destination: int) -> Iterator[tuple[int, int, PolicyRule]]:
    """What a client may send there: (class, protocol, rule)."""
    traits = Trait(0) if destination == WORLD else Trait(destination - CIDR_IDENTITY)
    inside = traits & (Trait.CLIENT | Trait.REFUSED)
    resolver = traits & Trait.RESOLVER
    if inside:
        yield 0, 0, PolicyRule(RuleId.REFUSED, deny=True)
    else:
        yield 0, 0, PolicyRule(RuleId.WORLD)
    for protocol in (TCP, UDP):
        if resolver:
            yield PortClass.DNS, protocol, PolicyRule(RuleId.DNS)
        elif not inside:
            yield PortClass.DNS, protocol, PolicyRule(RuleId.OTHER_DNS, deny=True)
        if not inside:
            yield PortClass.ENCRYPTED_DNS, protocol, PolicyRule(RuleId.OTHER_DNS, deny=True)
