"""The target's DNS answers, byte by byte."""

from __future__ import annotations

import struct

import pytest
from hypothesis import given
from hypothesis import strategies as st

from chainctl.lab.programs.target import dns_answer

A, TXT, AAAA = 1, 16, 28


def question(name: str, kind: int, flags: int = 0x0100) -> bytes:
    labels = b"".join(bytes([len(part)]) + part.encode() for part in name.split("."))
    return (
        struct.pack("!6H", 0x1234, flags, 1, 0, 0, 0) + labels + b"\0" + struct.pack("!2H", kind, 1)
    )


@pytest.mark.parametrize("name", ["whoami.lab", "WhoAmI.Lab"])
def test_whoami_is_the_asker(name: str) -> None:
    asked = question(name, A)
    answer = dns_answer(asked, "5.3.0.10")
    assert answer[:8] == b"\x12\x34\x85\x80\0\1\0\1"
    assert answer[12 : len(asked)] == asked[12:]
    assert answer[len(asked) :] == b"\xc0\x0c\0\1\0\1\0\0\0\0\0\4\5\3\0\x0a"


def test_whoami_as_text() -> None:
    assert dns_answer(question("whoami.lab", TXT), "5.3.0.10").endswith(b"\0\x09\x085.3.0.10")


def test_any_other_name_is_somewhere() -> None:
    assert dns_answer(question("example.org", A), "5.3.0.10").endswith(b"\0\4\x2d\x64\0\x35")


def test_what_it_does_not_have_is_no_data() -> None:
    answer = dns_answer(question("whoami.lab", AAAA), "5.3.0.10")
    assert answer[2:8] == b"\x85\x80\0\1\0\0"


def test_answers_are_not_answered() -> None:
    assert dns_answer(question("whoami.lab", A, 0x8180), "5.3.0.10") == b""


@given(st.binary(max_size=80))
def test_any_bytes_are_answered_or_not(data: bytes) -> None:
    assert dns_answer(data, "5.3.0.10")[:2] in (b"", data[:2])


@given(st.binary(max_size=60))
def test_any_name_is_answered_or_not(tail: bytes) -> None:
    dns_answer(question("x", A)[:12] + tail, "5.3.0.10")
