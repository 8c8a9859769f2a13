"""What has been read of an OpenVPN profile so far, and how a directive says what becomes of it."""

from __future__ import annotations

import re
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from ipaddress import IPv4Address
from typing import TypeVar

from chainctl.model.openvpn import AEAD, Credentials, Framing, KeyWrap, PrivateKey
from chainctl.model.parts import UDP
from chainctl.model.secret import Secret
from chainctl.spec.openvpn_text import Directive, Line
from chainctl.spec.words import quote
from chainctl.spec.yaml_text import Place

T = TypeVar("T")


class RefusedDirective(Exception):
    def __init__(self, code: str, message: str) -> None:
        super().__init__(message)
        self.code = code


class DroppedDirective(Exception):
    def __init__(self, code: str, reason: str) -> None:
        super().__init__(reason)
        self.code = code


@dataclass(frozen=True)
class Entry:
    """What may be said of each server on its own (`<connection>`)."""

    port: int = 1194
    protocol: int = UDP
    six: bool = False
    wrap: KeyWrap | None = None
    key: Secret | None = None
    direction: int | None = None
    fragment: int = 0
    tun_mtu: int = 1500


@dataclass(frozen=True)
class Remote:
    place: Place
    words: tuple[str, ...]
    entry: Entry | None
    """None: as everything in the file has it at its end."""


@dataclass
class Said:
    """What the file says of all its servers."""

    ca: tuple[bytes, ...] = ()
    chain: tuple[bytes, ...] = ()
    extra: tuple[bytes, ...] = ()
    key: PrivateKey | None = None
    crl: tuple[bytes, ...] = ()
    login: bool = False
    credentials: Credentials | None = None
    ciphers: tuple[str, ...] = AEAD
    fallback: str = ""
    auth: str = "SHA1"
    framing: Framing = Framing.NONE
    reneg: int | None = None
    usage: bool = False
    name: tuple[str, str] = ("", "subject")
    fingerprints: tuple[str, ...] = ()
    tls: dict[str, str] = field(default_factory=dict)
    dns: list[IPv4Address] = field(default_factory=list)
    entry: Entry = Entry()
    remotes: list[Remote] = field(default_factory=list)
    inside: bool = False
    """Of a `<connection>`."""
    passed_over: set[str] = field(default_factory=set)
    """By ignore-unknown-option; `*`: everything unknown."""
    first: dict[str, tuple[int, object]] = field(default_factory=dict)
    """By directive: line and value, of what must not stand there with two values."""

    def once(self, directive: Directive, value: T, what: str = "") -> T:
        """Refuses a second, different value: whichever of the two counts, one is a mistake."""
        what = what or directive.name
        line, first = self.first.setdefault(what, (directive.place.line, value))
        if first != value:
            words = f"{what} stands here a second time with another value, first in line {line}"
            raise RefusedDirective("C211", words)
        return value


def is_word(name: str) -> bool:
    """Whether it can be a directive's name, and not a piece of a key that lost its block."""
    return bool(re.fullmatch("[A-Za-z][A-Za-z0-9-]{0,39}", name)) and not re.fullmatch(
        "[0-9A-Fa-f]{16,}", name
    )


def shown(word: str) -> str:
    """What stands there, unless it is long or could be part of a key."""
    plain = re.fullmatch("[ -~]{0,30}", word) and not re.fullmatch("[0-9A-Fa-f]{16,}", word)
    return quote(word) if plain else "a text not shown here, it may be a secret"


def arguments(directive: Directive, least: int, most: int | None = None) -> tuple[str, ...]:
    """The words behind the name, when there are as many as there may be."""
    most = least if most is None else most
    if directive.block is not None:
        raise RefusedDirective("C225", f"{directive.name} is no inline block")
    if not least <= len(directive.words) <= most:
        expected = str(least) if least == most else f"{least} to {most}"
        raise ValueError(f"expected {expected} words behind it, found {len(directive.words)}")
    return directive.words


def refuse_file(directive: Directive) -> None:
    """`ca [inline]` is how OpenVPN 2.1 said that a block follows."""
    if directive.block is None and directive.words[:1] != ("[inline]",):
        name = directive.name
        words = f"reads a file; put what stands in it between `<{name}>` and `</{name}>`"
        raise RefusedDirective("C222", f"{name} {words}")


def parse_block(directive: Directive, parse: Callable[[Sequence[Line]], T]) -> T:
    """The value of an inline block."""
    try:
        return parse(directive.block or ())
    except ValueError as error:
        raise RefusedDirective("C226", f"<{directive.name}>: {error}") from None


def number(word: str, low: int, high: int) -> int:
    if not re.fullmatch("[0-9]{1,9}", word) or not low <= int(word) <= high:
        raise ValueError(f"expected a number from {low} to {high}, found {shown(word)}")
    return int(word)
