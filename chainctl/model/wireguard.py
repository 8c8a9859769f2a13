"""How one WireGuard tunnel is configured, and what tells two configurations apart."""

from __future__ import annotations

import base64
import binascii
import hashlib
from dataclasses import dataclass
from ipaddress import IPv4Address

from chainctl.model.secret import Secret

_NO_KEY = bytes(32)


@dataclass(frozen=True)
class WireGuardConfig:
    """A device with one peer, the server, through which everything goes (0.0.0.0/0).

    Keys are 32 bytes in base64, as in wg(8). Raises ValueError for anything else.
    """

    private_key: Secret
    listen_port: int
    """Pinned: the wire lets out only this source port."""
    peer_public_key: str
    endpoint: IPv4Address
    endpoint_port: int
    preshared: Secret | None = None
    keepalive: int = 0
    """Seconds; 0: none."""

    def __post_init__(self) -> None:
        for key in (self.private_key.reveal(), self.peer_public_key):
            key_bytes(key)
        if self.preshared is not None:
            key_bytes(self.preshared.reveal())
        for port in (self.listen_port, self.endpoint_port):
            if not 0 < port < 65536:
                raise ValueError(f"{port} is no port")

    @property
    def digest(self) -> str:
        """Equal for configurations that a device cannot tell apart; gives no key away."""
        parts = [
            hashlib.sha256(clamped(key_bytes(self.private_key.reveal()))).hexdigest(),
            hashlib.sha256(self._preshared_bytes()).hexdigest(),
            key_bytes(self.peer_public_key).hex(),
            f"{self.listen_port} {self.endpoint}:{self.endpoint_port} {self.keepalive}",
        ]
        return hashlib.sha256("\n".join(parts).encode()).hexdigest()

    def _preshared_bytes(self) -> bytes:
        # A device says that it has no preshared key by a key of zeros.
        return _NO_KEY if self.preshared is None else key_bytes(self.preshared.reveal())


def key_bytes(key: str) -> bytes:
    """Raises ValueError, without the key in it, when `key` is not 32 bytes in base64."""
    try:
        raw = base64.b64decode(key, validate=True)
    except (binascii.Error, ValueError):
        raise ValueError("a WireGuard key is base64") from None
    if len(raw) != 32:
        raise ValueError("a WireGuard key has 32 bytes")
    return raw


def clamped(private_key: bytes) -> bytes:
    """The key as devices keep and show it (RFC 7748, section 5)."""
    first, last = private_key[0] & 248, (private_key[31] & 127) | 64
    return bytes([first]) + private_key[1:31] + bytes([last])
