from __future__ import annotations

from collections.abc import Sequence
from ipaddress import IPv4Address

from chainctl.spec.model import HopSpec
from chainctl.spec.pins import address_of, resolve_endpoints, usable
from tests.unit.spec.builders import profile

ONE, TWO, THREE = (IPv4Address(f"192.0.2.{n}") for n in (1, 2, 3))
LITERAL = profile("literal", endpoint="192.0.2.9:1")
A, B, C = (profile(name, endpoint=f"{name}.example:1") for name in ("a", "b", "c"))
AGAIN = profile("again", endpoint="A.example.:2")


class _Names:
    """A resolver with a memory of what it was asked."""

    def __init__(self, **known: Sequence[IPv4Address]) -> None:
        self.known = {f"{name}.example": addresses for name, addresses in known.items()}
        self.asked: list[str] = []

    def __call__(self, name: str) -> Sequence[IPv4Address]:
        self.asked.append(name)
        return self.known.get(name, ())


def test_each_name_is_asked_once() -> None:
    names = _Names(a=[ONE, TWO], b=[TWO])
    found = resolve_endpoints([LITERAL, A, AGAIN, B, A], {}, names)
    assert names.asked == ["a.example", "b.example"]
    assert found.pins == {"a.example": ONE, "b.example": TWO}
    assert found.fresh == ("a.example", "b.example")
    assert found.unresolved == ()


def test_a_pin_is_kept_and_not_asked_for() -> None:
    names = _Names(a=[TWO], b=[THREE])
    found = resolve_endpoints([A, B], {"a.example": ONE, "gone.example": ONE}, names)
    assert names.asked == ["b.example"]
    assert found.pins == {"a.example": ONE, "b.example": THREE}
    assert found.fresh == ("b.example",)


def test_answers_that_no_server_can_have() -> None:
    lies = [IPv4Address("0.0.0.0"), IPv4Address("127.0.0.1"), IPv4Address("255.255.255.255")]
    found = resolve_endpoints([A, B, C], {}, _Names(a=lies, b=[*lies, TWO]))
    assert found.pins == {"b.example": TWO}
    assert found.unresolved == ("a.example", "c.example")


def test_usable_servers() -> None:
    hop = HopSpec("guard", (LITERAL, A, B), 1)
    assert usable(hop, {"b.example": TWO}) == ((LITERAL, IPv4Address("192.0.2.9")), (B, TWO))
    assert address_of(A, {}) is None
