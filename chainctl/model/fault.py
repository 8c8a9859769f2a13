"""What can be wrong with a hop: the classes a verdict tells apart."""

from __future__ import annotations

from dataclasses import dataclass
from enum import Enum


class Fault(Enum):
    """The value is what `--json` says; `code` is the stable one of messages and events."""

    UPLINK = "uplink"
    AUTH = "auth"
    TLS = "tls"
    CLOCK = "clock"
    CONFIG = "config"
    REFUSED = "refused"
    ONE_WAY = "one-way"
    PAYLOAD = "payload"
    DEAD = "dead"
    LOSSY = "lossy"
    SLOW = "slow"

    @property
    def code(self) -> str:
        return _CODES[self]

    @property
    def concerns_account(self) -> bool:
        """Another server of the same account would fail in the same way, so that to try them
        all would only make the provider suspicious.
        """
        return self is Fault.AUTH


_CODES = {
    Fault.DEAD: "C410",
    Fault.PAYLOAD: "C411",
    Fault.AUTH: "C412",
    Fault.TLS: "C413",
    Fault.CLOCK: "C414",
    Fault.CONFIG: "C415",
    Fault.REFUSED: "C416",
    Fault.ONE_WAY: "C417",
    Fault.SLOW: "C418",
    Fault.UPLINK: "C425",
    Fault.LOSSY: "C426",
}


@dataclass(frozen=True)
class Said:
    """What a VPN client itself says of why it has no tunnel: never data of its own choosing,
    since a server may have written it.
    """

    fault: Fault
    text: str
    """The rest of a sentence that begins with the server's name: `refused the login`."""
