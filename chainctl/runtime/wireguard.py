"""WireGuard devices behind one face, whether the kernel or wireguard-go does the work.

The supervisor configures them and reads what they say. Keys go in and never come out again:
only the digest of a whole configuration does.
"""

from __future__ import annotations

import base64
from collections.abc import Sequence
from dataclasses import dataclass
from ipaddress import IPv4Address
from typing import Protocol

from chainctl.model.chain import Engine
from chainctl.model.secret import Secret
from chainctl.model.wireguard import WireGuardConfig

EVERYTHING = "0.0.0.0/0"
NO_KEY = base64.b64encode(bytes(32)).decode()
"""What a device shows, and takes, for a preshared key that is not there."""


@dataclass(frozen=True)
class WireGuardStatus:
    digest: str | None
    """Of the configuration in force; None: none that chainctl would make."""
    handshake: float | None
    """When the last one was, in seconds since 1970; None: never."""
    received: int
    """Bytes on the outside, as is `sent`."""
    sent: int
    endpoint: tuple[IPv4Address, int] | None
    listen_port: int


class WireGuardDevice(Protocol):
    @property
    def engine(self) -> Engine: ...

    def configure(self, config: WireGuardConfig) -> None:
        """Make `config` the whole configuration. The session of an unchanged peer lives on."""

    def shake_anew(self, config: WireGuardConfig) -> None:
        """As `configure`, and begin the handshake now: one that was begun in vain is tried again
        only after 5 s (REKEY_TIMEOUT, section 6.1 of the WireGuard paper).
        """

    def read(self) -> WireGuardStatus: ...


@dataclass(frozen=True)
class Reading:
    """What a device says of itself and its one peer; empty fields where it has none."""

    private_key: str = ""
    listen_port: int = 0
    public_key: str = ""
    preshared: str = ""
    host: str = ""
    port: int = 0
    keepalive: int = 0
    allowed: Sequence[str] = ()
    handshake_seconds: int = 0
    handshake_nanoseconds: int = 0
    received: int = 0
    sent: int = 0

    def __repr__(self) -> str:
        return "Reading(…)"

    def status(self) -> WireGuardStatus:
        config = self._config()
        handshake = self.handshake_seconds + self.handshake_nanoseconds / 1e9
        return WireGuardStatus(
            digest=config.digest if config and list(self.allowed) == [EVERYTHING] else None,
            handshake=handshake or None,
            received=self.received,
            sent=self.sent,
            endpoint=(config.endpoint, config.endpoint_port) if config else None,
            listen_port=self.listen_port,
        )

    def _config(self) -> WireGuardConfig | None:
        try:
            return WireGuardConfig(
                private_key=Secret(self.private_key),
                listen_port=self.listen_port,
                peer_public_key=self.public_key,
                preshared=None if self.preshared in ("", NO_KEY) else Secret(self.preshared),
                endpoint=IPv4Address(self.host),
                endpoint_port=self.port,
                keepalive=self.keepalive,
            )
        # No key, no peer, no endpoint, or one that is not IPv4.
        except ValueError:
            return None
