"""No directive gets through in any spelling: code and line of each."""

from __future__ import annotations

from pathlib import Path

import pytest
from hypothesis import example, given
from hypothesis import strategies as st

from chainctl.spec.openvpn_profile import read_openvpn
from chainctl.spec.openvpn_text import MOST_WORDS, split_words
from chainctl.spec.remarks import Verdict
from tests.unit.spec.builders import CA
from tests.unit.spec.hostile import BEFORE, DIRECTIVES, SPELLINGS, Spelling

PATH = Path("hostile.ovpn")
_BLOCK_NAMES = {"ca", "cert", "key", "extra-certs", "crl-verify", "tls-auth", "tls-crypt"} | {
    "tls-crypt-v2",
    "auth-user-pass",
}


def refusals(content: bytes) -> dict[int, set[str]]:
    reading = read_openvpn(content, PATH)
    assert not reading.servers, "a refused profile gives no server"
    found: dict[int, set[str]] = {}
    for remark in reading.remarks:
        if remark.verdict is Verdict.REFUSED:
            found.setdefault(remark.place.line, set()).add(remark.code)
    return found


def test_the_profile_itself_is_fine() -> None:
    assert read_openvpn(BEFORE, PATH).servers


@pytest.mark.parametrize("spelling", SPELLINGS, ids=lambda each: each.name)
def test_every_directive(spelling: Spelling) -> None:
    for name, code in DIRECTIVES.items():
        if spelling.name == "as a block" and name in _BLOCK_NAMES:
            continue
        written = name.upper() if spelling.name == "capitals" else name
        found = refusals(spelling.write(written.encode(), b"/tmp/x"))
        expected = spelling.code or code
        assert expected in found.get(spelling.line, set()), (name, found)


def test_scripts_that_set_the_resolver_are_recognised_by_the_bare_path_only() -> None:
    for words in (
        "/etc/openvpn/update-resolv-conf /tmp/x",
        "'/etc/openvpn/update-resolv-conf ; x'",
        "/etc/openvpn/../../tmp/update-resolv-conf.x",
        "/etc/openvpn/update-resolv-confx",
        "$HOME/update-resolv-conf",
    ):
        assert {"C221"} in refusals(BEFORE + f"up {words}\n".encode()).values(), words


soup = st.lists(
    st.sampled_from(
        [
            *(b"up", b"log", b"ca", b"client", b"remote 192.0.2.1", b"setenv", b"opt", b"--"),
            *(b"<ca>", b"</ca>", b"<connection>", b"</connection>", b"<tls-auth>", b"#", b";"),
            *(b" ", b"\t", b"\n", b"\r\n", b"\v", b"\f", b"\0", b'"', b"'", b"\\", b"\xef\xbb\xbf"),
            *(b"x" * 100, b"\xc3\xa9" * 60, CA.encode(), b"ignore-unknown-option up", b"[inline]"),
        ]
    )
    | st.binary(max_size=5),
    max_size=40,
).map(b"".join)


@given(soup)
@example(b"")
@example(b"\0")
@example(b"<>\n</>")
def test_anything_at_all_is_answered(content: bytes) -> None:
    reading = read_openvpn(content, PATH)
    complaints = reading.complaints(PATH)
    assert bool(reading.servers) != bool(complaints)
    lines = content.count(b"\n") + 1
    assert all(1 <= each.line <= lines and each.column >= 1 for each in complaints)


@given(soup)
def test_nothing_makes_it_overlook_what_follows(content: bytes) -> None:
    """Behind whatever stands before it, a directive is seen unless it is inside a block."""
    closed = content + b"\n</ca>\n</connection>\n</tls-auth>\nup /tmp/x\n"
    found = refusals(closed)
    assert found


@given(
    st.lists(st.text(st.characters(min_codepoint=33, max_codepoint=126), min_size=1, max_size=9))
)
def test_words_come_back_as_they_were_quoted(words: list[str]) -> None:
    words = words[:MOST_WORDS]
    line = " ".join('"' + w.replace("\\", "\\\\").replace('"', '\\"') + '"' for w in words)
    if len(line) < 250:
        assert split_words(line.encode() + b"\n")[0] == words
