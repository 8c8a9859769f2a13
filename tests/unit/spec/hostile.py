"""Profiles as somebody writes them who wants something done: each directive in each spelling.

A spelling hides one directive in a whole profile. It says in which line the directive is, and
whether the client would read it there (`hidden`), which `test_openvpn_client` tries.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass

from chainctl.spec.openvpn_text import LONGEST_LINE
from chainctl.spec.openvpn_words import TABLE, Refused
from tests.unit.spec.builders import CA, openvpn_text

BEFORE = openvpn_text().encode()
LINE = BEFORE.count(b"\n") + 1
"""Where the hidden directive is, if it stands behind an ordinary profile."""

DIRECTIVES: dict[str, str] = {
    name: kind.code for name, kind in TABLE.items() if isinstance(kind, Refused)
} | dict.fromkeys(
    (
        *("ca", "cert", "key", "extra-certs", "crl-verify", "tls-auth", "tls-crypt"),
        *("tls-crypt-v2", "auth-user-pass"),
    ),
    "C222",
)
"""All that is refused with one word behind it, and with which code."""


@dataclass(frozen=True)
class Spelling:
    name: str
    write: Callable[[bytes, bytes], bytes]
    """The whole file, from a directive and what stands behind it."""
    line: int = LINE
    code: str = ""
    """Of the complaint in that line; "": that of the directive."""
    read_there: bool = True
    """The client takes it for the directive."""


def _behind(write: Callable[[bytes, bytes], bytes]) -> Callable[[bytes, bytes], bytes]:
    return lambda name, word: BEFORE + write(name, word) + b"\n"


def _as(form: str) -> Callable[[bytes, bytes], bytes]:
    """`NAME` and `WORD` in it stand for the directive and what is behind it."""
    raw = form.encode("latin-1")
    return _behind(lambda name, word: raw.replace(b"NAME", name).replace(b"WORD", word))


_PAD = ("é" * 127 + "x").encode().decode("latin-1")
"""255 bytes, 128 characters for who reads UTF-8."""

SPELLINGS = (
    Spelling("plain", _as("NAME WORD")),
    Spelling("indented", _as(" \t NAME\tWORD")),
    Spelling("double quotes", _as('"NAME" "WORD"')),
    Spelling("single quotes", _as("'NAME' 'WORD'")),
    Spelling("quotes without a blank", _as('"NAME""WORD"')),
    Spelling("dashes", _as("--NAME WORD")),
    Spelling("dashes in quotes", _as('"--NAME" WORD')),
    Spelling("vertical tab", _as("NAME\vWORD")),
    Spelling("form feed first", _as("\fNAME WORD")),
    Spelling("carriage return first", _as("\rNAME WORD")),
    Spelling("escaped letters of blanks", _as("NAME WORD\\ x")),
    Spelling("comment behind", _as("NAME WORD # is not used")),
    Spelling("nul behind", _as("NAME WORD\0 # harmless")),
    Spelling("setenv opt", _as("setenv opt NAME WORD")),
    Spelling("setenv opt in quotes", _as("'setenv' \"opt\" NAME WORD")),
    Spelling("told to pass over it", _as("ignore-unknown-option NAME\nNAME WORD"), LINE + 1),
    Spelling("forward compatible", _as("setenv FORWARD_COMPATIBLE 1\nNAME WORD"), LINE + 1),
    Spelling(
        "byte order mark", lambda name, word: b"\xef\xbb\xbf%b %b\n" % (name, word) + BEFORE, 1
    ),
    Spelling(
        "dos", lambda name, word: (BEFORE + b"%b %b\n" % (name, word)).replace(b"\n", b"\r\n")
    ),
    Spelling("no line feed", lambda name, word: BEFORE + b"%b %b" % (name, word)),
    Spelling(
        "behind a block with junk",
        _as(CA.replace("</ca>", "</ca> x") + "NAME WORD"),
        LINE + CA.count("\n"),
    ),
    Spelling(
        "behind a block closed by a form feed",
        _as(CA.replace("</ca>", "\f</ca>") + "NAME WORD"),
        LINE + CA.count("\n"),
    ),
    Spelling(
        "behind a block closed at byte 255",
        _as(f"<extra-certs>\n{_PAD}</extra-certs>\nNAME WORD\n</extra-certs>"),
        LINE + 2,
    ),
    Spelling(
        "under what is no block",
        _as("ignore-unknown-option <ca>\n<ca> x\nNAME WORD\n</ca>"),
        LINE + 2,
    ),
    Spelling("under what only looks like one", _as("setenv opt <ca>\nNAME WORD\n</ca>"), LINE + 1),
    Spelling(
        "behind a nul in a comment",
        _as("#\0" + "x" * (LONGEST_LINE + 2 - 2) + "NAME WORD"),
        code="C215",
    ),
    Spelling("a long line", _as("NAME WORD" + "x" * 50_000), read_there=False),
    Spelling("as a block", _as("<NAME>\nWORD\n</NAME>"), read_there=False),
    Spelling(
        "in a connection",
        _as("<connection>\nremote 192.0.2.1\nNAME WORD\n</connection>"),
        LINE + 2,
        read_there=False,
    ),
    Spelling("capitals", _as("Name WORD"), code="C225", read_there=False),
)


def upper(spelling: Spelling, name: str) -> bytes:
    """The name as it stands in a spelling of capitals."""
    return name.upper().encode() if spelling.name == "capitals" else name.encode()
