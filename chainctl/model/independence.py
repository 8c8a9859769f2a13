"""What the servers of one chain may not have in common."""

from __future__ import annotations

from dataclasses import dataclass
from enum import Enum


class Trait(Enum):
    """Something two servers can share. Values are the words of the chain file; the order is
    the one in which rules are checked and named.
    """

    SERVER = "server"
    """The same address, whatever it is called."""
    NETWORK = "network"
    """The same IPv4 /16 (Tor path-spec 2.2, EnforceDistinctSubnets)."""
    OPERATOR = "operator"
    COUNTRY = "country"
    ASN = "asn"


@dataclass(frozen=True)
class Independence:
    """`require` is never broken; `prefer` is, when nothing better is left.

    Raises ValueError when `require` lacks SERVER: a server that sees two places of a chain
    sees past the one between them.
    """

    require: frozenset[Trait]
    prefer: frozenset[Trait]

    def __post_init__(self) -> None:
        if Trait.SERVER not in self.require:
            raise ValueError("no server may be used twice in a chain")
