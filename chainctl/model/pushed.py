"""What an OpenVPN server pushes to its client, and what is made of it. Pure.

Nothing that a server pushes is done because it was pushed. Of the whole reply two things are
taken, and looked at first: the client's address and a resolver. openvpn(8), "--push".
"""

from __future__ import annotations

import re
from collections.abc import Iterable
from dataclasses import dataclass
from ipaddress import AddressValueError, IPv4Address, IPv4Network
from typing import Any

_HEAD = "PUSH_REPLY"
_NAME = re.compile(r"[a-z][a-z0-9-]{0,31}")
_AGREED = frozenset(
    (
        *("ifconfig", "topology", "route-gateway", "tun-mtu", "push-continuation", "peer-id"),
        *("cipher", "protocol-flags", "key-derivation", "auth-token", "auth-token-user"),
        *("comp-lzo", "compress", "ping", "ping-restart"),
    )
)
"""Options the two ends have to agree on, or that say only what goes without saying."""

_NEVER = tuple(
    IPv4Network(text)
    for text in ("0.0.0.0/8", "127.0.0.0/8", "169.254.0.0/16", "192.0.0.0/24", "224.0.0.0/3")
)
"""No addresses of one host in a network: RFC 6890, multicast, class E and broadcast."""


@dataclass(frozen=True)
class Pushed:
    """What the server of one tunnel said, and the chain goes by."""

    server: str
    """Whose word it is: the name in the pool."""
    address: IPv4Address
    resolver: IPv4Address | None = None

    def to_json(self) -> list[str]:
        return [self.server, str(self.address), str(self.resolver or "")]

    @classmethod
    def from_json(cls, value: Any) -> Pushed:
        """Raises ValueError or TypeError for anything `to_json` did not write."""
        server, address, resolver = value
        return cls(str(server), IPv4Address(address), IPv4Address(resolver) if resolver else None)


@dataclass(frozen=True)
class PushReply:
    """A reply as it is read; where something stands twice, the first counts."""

    address: IPv4Address | None = None
    resolver: IPv4Address | None = None
    ignored: tuple[str, ...] = ()
    """Names of options that ask for something that is not done."""

    def joined(self, later: PushReply) -> PushReply:
        """A long reply comes in several messages."""
        return PushReply(
            self.address or later.address,
            self.resolver or later.resolver,
            _unique([*self.ignored, *later.ignored]),
        )


def parse_push(message: str) -> PushReply | None:
    """`PUSH_REPLY,OPTION,…` as the client logs it; None when it is something else.

    A server writes what it likes: no input raises, and what is no address is not there.
    """
    head, *options = message.split(",")
    if head != _HEAD:
        return None
    address = resolver = None
    ignored = []
    for words in (option.replace('"', " ").split() for option in options):
        name = words[0] if words else ""
        if name == "ifconfig" and len(words) > 1:
            address = address or _address(words[1])
        elif name == "dhcp-option" and words[1:2] == ["DNS"] and len(words) > 2:
            resolver = resolver or _address(words[2])
        elif name == "dns" and "address" in words:
            found = [_address(word) for word in words[words.index("address") + 1 :]]
            resolver = resolver or next((one for one in found if one), None)
        if name not in _AGREED and _NAME.fullmatch(name):
            ignored.append(name)
    return PushReply(address, resolver, _unique(ignored))


def objection(address: IPv4Address, elsewhere: Iterable[tuple[IPv4Network, str]]) -> str | None:
    """Why a tunnel cannot have this address; None when it can.

    `elsewhere`: networks that have a meaning already, with words for what they are.
    """
    if any(address in network for network in _NEVER):
        return f"{address} is no address of a host"
    for network, what in elsewhere:
        if address in network:
            return f"{address} lies in {what}"
    return None


def _address(word: str) -> IPv4Address | None:
    try:
        return IPv4Address(word)
    except AddressValueError:
        return None


def _unique(names: Iterable[str]) -> tuple[str, ...]:
    return tuple(dict.fromkeys(names))
