"""ICMP by the byte: what is sent is right, what is received never breaks the reader."""

from __future__ import annotations

import struct
from ipaddress import IPv4Address

import pytest
from hypothesis import example, given
from hypothesis import strategies as st

from chainctl.supervisor.icmp import Answer, parse_answer, render_echo
from tests.kernel.packets import icmp_error, ipv4

_ICMP, _UDP = 1, 17
_NUMBERS = st.integers(0, 0xFFFF)
_US, _THEM = IPv4Address("10.64.0.2"), IPv4Address("10.64.0.1")


def _reply(echo: bytes, *, options: bytes = b"") -> bytes:
    return ipv4(_THEM, _US, _ICMP, b"\0" + echo[1:], options=options)


def _sum(data: bytes) -> int:
    """RFC 1071, in another way than the code does."""
    data += bytes(len(data) % 2)
    total: int = sum(struct.unpack(f"!{len(data) // 2}H", data))
    return total % 0xFFFF


@given(identifier=_NUMBERS, sequence=_NUMBERS, size=st.integers(0, 2000))
def test_an_echo_is_as_long_as_asked_and_sums_up(identifier: int, sequence: int, size: int) -> None:
    echo = render_echo(identifier, sequence, size)
    assert len(echo) + 20 == max(28, size)
    assert echo[:2] == b"\x08\0"
    assert _sum(echo) == 0
    assert parse_answer(_reply(echo)) == Answer(identifier, sequence)


@pytest.mark.parametrize("kind", [3, 11])
@given(identifier=_NUMBERS, sequence=_NUMBERS, words=st.integers(0, 10))
def test_an_error_about_our_echo_is_an_answer(
    kind: int, identifier: int, sequence: int, words: int
) -> None:
    asked = ipv4(_US, _THEM, _ICMP, render_echo(identifier, sequence), options=b"\1" * 4 * words)
    error = ipv4(_THEM, _US, _ICMP, icmp_error(asked, kind=kind, quoted_bytes=len(asked)))
    assert parse_answer(error) == Answer(identifier, sequence)


def test_options_of_the_header_are_passed_over() -> None:
    assert parse_answer(_reply(render_echo(7, 8), options=b"\1" * 12)) == Answer(7, 8)


@pytest.mark.parametrize(
    "packet",
    [
        ipv4(_US, _THEM, _ICMP, render_echo(7, 8)),
        ipv4(_THEM, _US, _ICMP, icmp_error(ipv4(_US, _THEM, _UDP, bytes(20)))),
        ipv4(_THEM, _US, _ICMP, icmp_error(_reply(render_echo(7, 8)))),
        ipv4(_THEM, _US, _ICMP, icmp_error(ipv4(_US, _THEM, _ICMP, render_echo(7, 8)), kind=5)),
        ipv4(_THEM, _US, _ICMP, b"\0" * 7),
        b"",
    ],
    ids=["our own echo", "about UDP", "about a reply", "a redirect", "too short", "nothing"],
)
def test_what_is_no_answer(packet: bytes) -> None:
    assert parse_answer(packet) is None


@given(packet=st.binary(max_size=120))
@example(b"\x4f" + bytes(40))
def test_any_bytes_are_read_without_a_fault(packet: bytes) -> None:
    parse_answer(packet)


@given(cut=st.integers(0, 80), flips=st.lists(st.tuples(st.integers(0, 79), st.integers(0, 255))))
def test_a_broken_answer_is_read_without_a_fault(cut: int, flips: list[tuple[int, int]]) -> None:
    asked = ipv4(_US, _THEM, _ICMP, render_echo(7, 8))
    packet = bytearray(ipv4(_THEM, _US, _ICMP, icmp_error(asked)))
    for position, value in flips:
        packet[position % len(packet)] = value
    parse_answer(bytes(packet[:cut]))
