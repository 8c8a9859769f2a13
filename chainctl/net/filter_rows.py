"""Keys and values of the filter's maps from what they mean, and back. Pure.

`chainctl.net.filter` writes and reads them; the layouts are in `chainctl.net.identity`.
"""

from __future__ import annotations

import sys
from collections.abc import Iterable, Mapping
from ipaddress import IPv4Address, IPv4Network
from typing import NamedTuple

from chainctl.model.parts import PortMode
from chainctl.net import identity
from chainctl.net.policy import PolicyKey, PolicyRows, PolicyRule

POLICY_MAPS = ("policy_map", "endpoint_map", "cidr_map")


class Port(NamedTuple):
    """A row of `port_map`. `address` 0.0.0.0: the tuples alone say who may send."""

    identity: int
    address: IPv4Address
    far_mtu: int
    mode: PortMode
    scope: int
    gate: int


class WireRow(NamedTuple):
    """One tuple that may enter at the port `ifindex`; `rule` is what verdicts name."""

    ifindex: int
    source: IPv4Address
    source_port: int
    destination: IPv4Address
    destination_port: int
    protocol: int
    fragments: bool = False
    rule: int = 1


def pack_port(port: Port) -> bytes:
    return identity.PORT.pack(
        port.identity, int(port.address), port.far_mtu, port.mode.value, port.scope, port.gate
    )


def parse_port(value: bytes) -> Port:
    number, address, far_mtu, mode, scope, gate = identity.PORT.unpack(value)
    return Port(number, IPv4Address(address), far_mtu, PortMode(mode), scope, gate)


def to_number(packed: bytes) -> int:
    return int(identity.U32.unpack(packed)[0])


def wire_key(wire: WireRow) -> bytes:
    ports = wire.source_port, wire.destination_port
    ends = int(wire.source), int(wire.destination)
    return identity.WIRE_KEY.pack(wire.ifindex, *ends, *ports, wire.protocol, 0, 0)


def fragment_key(wire: WireRow) -> bytes:
    ends = int(wire.source), int(wire.destination)
    return identity.WIRE_KEY.pack(wire.ifindex, *ends, 0, 0, wire.protocol, 1, 0)


def is_fragment_key(key: bytes) -> bool:
    return bool(identity.WIRE_KEY.unpack(key)[6])


def pack_wire(wire: WireRow) -> bytes:
    return identity.WIRE.pack(wire.rule, identity.WIRE_FRAGMENTS if wire.fragments else 0)


def parse_wire(key: bytes, value: bytes) -> WireRow | None:
    """None for the row of later fragments, which belongs to others."""
    if is_fragment_key(key):
        return None
    ifindex, source, destination, source_port, port, protocol, _, _ = identity.WIRE_KEY.unpack(key)
    rule, flags = identity.WIRE.unpack(value)
    ends = IPv4Address(source), source_port, IPv4Address(destination), port
    return WireRow(ifindex, *ends, protocol, bool(flags & identity.WIRE_FRAGMENTS), rule)


def place_of_scope(name: str) -> int:
    """The byte at which a key has its scope."""
    return 4 if name == "cidr_map" else 0


def scope_of(name: str, key: bytes) -> int:
    place = place_of_scope(name)
    return int.from_bytes(key[place : place + 4], sys.byteorder)


def rule_rows(scope: int, rows: PolicyRows) -> dict[bytes, bytes]:
    """To be written in this order: a row that no longer covers finer ones comes after them."""
    covers = _covers(rows.rules)
    return {
        identity.POLICY_KEY.pack(scope, *key, 0): identity.POLICY_RULE.pack(
            *rows.rules[key], covers[key], 0
        )
        for key in sorted(rows.rules, key=_is_for_all)
    }


def _is_for_all(key: PolicyKey) -> bool:
    return not key.port_class and not key.protocol


def _covers(keys: Iterable[PolicyKey]) -> dict[PolicyKey, int]:
    """Which finer rows its pair does not have, by each row."""
    keys = list(keys)
    with_class = {(key.source, key.destination) for key in keys if key.port_class}
    with_protocol = {
        (key.source, key.destination) for key in keys if key.protocol and not key.port_class
    }
    found = dict.fromkeys(keys, 0)
    for key in keys:
        if _is_for_all(key):
            pair = key.source, key.destination
            found[key] |= 0 if pair in with_class else identity.COVERS_CLASSES
            found[key] |= 0 if pair in with_protocol else identity.COVERS_PROTOCOLS
    return found


def endpoint_rows(scope: int, rows: PolicyRows) -> dict[bytes, bytes]:
    return {
        identity.ENDPOINT_KEY.pack(scope, int(address)): identity.U32.pack(number)
        for address, number in rows.endpoints.items()
    }


def cidr_rows(scope: int, rows: PolicyRows) -> dict[bytes, bytes]:
    return {
        identity.CIDR_KEY.pack(
            identity.SCOPE_BITS + network.prefixlen, scope, network.network_address.packed
        ): identity.U32.pack(number)
        for network, number in rows.prefixes.items()
    }


def parse_rows(scope: int, maps: Mapping[str, Mapping[bytes, bytes]]) -> PolicyRows:
    mine = {
        name: {key: value for key, value in rows.items() if scope_of(name, key) == scope}
        for name, rows in maps.items()
    }
    covers = _covers(_policy_key(key) for key in mine["policy_map"])
    rules = {}
    for raw, value in mine["policy_map"].items():
        key = _policy_key(raw)
        number, deny, audit, covered, _ = identity.POLICY_RULE.unpack(value)
        # One that covers something else is not the row it seems to be.
        if covered == covers[key]:
            rules[key] = PolicyRule(number, bool(deny), bool(audit))
    endpoints = {
        IPv4Address(identity.ENDPOINT_KEY.unpack(key)[1]): to_number(value)
        for key, value in mine["endpoint_map"].items()
    }
    prefixes = {}
    for raw, value in mine["cidr_map"].items():
        bits, _, address = identity.CIDR_KEY.unpack(raw)
        prefixes[IPv4Network((address, bits - identity.SCOPE_BITS))] = to_number(value)
    return PolicyRows(endpoints, prefixes, rules)


def _policy_key(key: bytes) -> PolicyKey:
    return PolicyKey(*identity.POLICY_KEY.unpack(key)[1:5])
