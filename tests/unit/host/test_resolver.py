"""Only names that the machine answers by itself: tests ask nobody."""

from __future__ import annotations

from ipaddress import IPv4Address

import pytest

from chainctl.host.resolver import lookup_ipv4


@pytest.mark.parametrize(
    ("name", "expected"),
    [
        ("localhost", (IPv4Address("127.0.0.1"),)),
        ("192.0.2.7", (IPv4Address("192.0.2.7"),)),
        ("a" * 64 + ".invalid", ()),
    ],
)
def test_lookup(name: str, expected: tuple[IPv4Address, ...]) -> None:
    assert lookup_ipv4(name) == expected
