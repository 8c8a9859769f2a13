"""The filter against a naive evaluator in Python, over random policies and packets."""

from __future__ import annotations

import random
from collections.abc import Iterator
from ipaddress import IPv4Address, IPv4Network
from pathlib import Path
from typing import NamedTuple

import pytest

from chainctl.model.parts import TCP, UDP, PortMode
from chainctl.net.identity import UNKNOWN, WORLD, Reason
from chainctl.net.policy import PolicyKey, PolicyRows, PolicyRule
from tests.kernel.filter_rig import SCOPE, Rig, rig
from tests.kernel.packets import echo, frame, ipv4, tcp, udp

pytestmark = [pytest.mark.root, pytest.mark.timeout(300)]

POLICIES, PACKETS = 25, 1_000
IDENTITIES = [UNKNOWN, WORLD, 256, 257, 1 << 24]
CLASSES = {53: 1, 853: 2, 443: 2, 444: 2, 8080: 3}
PORTS = [53, 443, 444, 80, 8080, 0, 65535]
PROTOCOLS = [TCP, UDP, 1, 50]


class Packet(NamedTuple):
    source: IPv4Address
    destination: IPv4Address
    protocol: int
    port: int

    @property
    def frame(self) -> bytes:
        payload = {
            TCP: tcp(4000, self.port),
            UDP: udp(4000, self.port),
            1: echo(self.port),
            50: bytes(24),
        }[self.protocol]
        return frame(ipv4(self.source, self.destination, self.protocol, payload))

    @property
    def flow(self) -> tuple[int, ...]:
        ends = int(self.source), int(self.destination)
        return (*ends, self.protocol, 0 if self.protocol == 50 else self.port)


@pytest.fixture
def port(tmp_path: Path) -> Iterator[Rig]:
    with rig(tmp_path / "bpf") as one:
        yield one


def test_the_filter_does_what_the_rows_say(port: Rig) -> None:
    dice = random.Random(20_240_817)
    met: set[Reason] = set()
    seen: set[tuple[int, ...]] = set()
    for _ in range(POLICIES):
        rows = _draw_rows(dice)
        port.panel.put_policy_rows(SCOPE, rows, CLASSES)
        port.panel.put_policy_rows(SCOPE + 1, _draw_rows(dice), CLASSES)
        port.be(PortMode.CLIENT)
        for _ in range(PACKETS):
            packet = _draw_packet(dice)
            expected = _expect(rows, packet, seen)
            assert port.judge(packet.frame) == expected, packet
            met.add(expected)
        assert port.panel.policy(SCOPE) == rows
        # Every other policy takes the place of the one before, whose flows stay.
        if dice.random() < 0.5:
            port.panel.remove_policy(SCOPE)
            seen.clear()
        port.panel.remove_policy(SCOPE + 1)
    assert met == {
        Reason.PASS_NEW,
        Reason.PASS_KNOWN,
        Reason.PASS_AUDITED,
        Reason.DROP_SOURCE,
        Reason.DROP_DESTINATION,
        Reason.DROP_NO_RULE,
        Reason.DROP_RULE,
    }


def _draw_address(dice: random.Random) -> IPv4Address:
    """From a corner in which prefixes nest, or anywhere."""
    return IPv4Address(
        0x0A000000 + dice.randrange(64) if dice.random() < 0.9 else dice.getrandbits(32)
    )


def _draw_rows(dice: random.Random) -> PolicyRows:
    prefixes = {
        IPv4Network((_draw_address(dice), dice.choice([0, 8, 26, 27, 28, 30, 32])), strict=False)
        for _ in range(dice.randrange(1, 12))
    }
    keys = [
        PolicyKey(
            dice.choice(IDENTITIES), dice.choice(IDENTITIES), dice.choice([0, 0, 1, 2, 3]), protocol
        )
        for protocol in dice.choices([0, 0, *PROTOCOLS], k=dice.randrange(80))
    ]
    rules = [
        PolicyRule(dice.getrandbits(32), dice.random() < 0.4, dice.random() < 0.3) for _ in keys
    ]
    return PolicyRows(
        {_draw_address(dice): dice.choice(IDENTITIES) for _ in range(dice.randrange(20))},
        {network: dice.choice(IDENTITIES) for network in prefixes},
        dict(zip(keys, rules, strict=True)),
    )


def _draw_packet(dice: random.Random) -> Packet:
    ends = _draw_address(dice), _draw_address(dice)
    return Packet(*ends, dice.choice(PROTOCOLS), dice.choice(PORTS))


def _expect(rows: PolicyRows, packet: Packet, seen: set[tuple[int, ...]]) -> Reason:
    source, destination = (_identify(rows, end) for end in (packet.source, packet.destination))
    if source in (UNKNOWN, WORLD):
        return Reason.DROP_SOURCE
    if destination == UNKNOWN:
        return Reason.DROP_DESTINATION
    number = CLASSES.get(packet.port, 0) if packet.protocol in (TCP, UDP) else 0
    tries = [(number, packet.protocol), (0, packet.protocol), (0, 0)]
    keys = [PolicyKey(source, destination, *one) for one in tries]
    rule = next((rows.rules[key] for key in keys if key in rows.rules), None)
    if rule is None:
        return Reason.DROP_NO_RULE
    if rule.deny and not rule.audit:
        return Reason.DROP_RULE
    known = packet.flow in seen
    seen.add(packet.flow)
    if rule.deny:
        return Reason.PASS_AUDITED
    return Reason.PASS_KNOWN if known else Reason.PASS_NEW


def _identify(rows: PolicyRows, address: IPv4Address) -> int:
    if address in rows.endpoints:
        return rows.endpoints[address]
    fitting = [network for network in rows.prefixes if address in network]
    best = max(fitting, key=lambda network: network.prefixlen, default=None)
    return UNKNOWN if best is None else rows.prefixes[best]
