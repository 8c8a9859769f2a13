"""Profiles and chain files for tests, with made-up keys."""

from __future__ import annotations

import base64
import hashlib
from collections.abc import Callable
from pathlib import Path
from typing import TypeVar

from chainctl.errors import Complaint, MendFile
from chainctl.spec.model import WireGuardProfile
from chainctl.spec.wireguard_profile import parse_wireguard_profile

_T = TypeVar("_T")


def outcome(read: Callable[[], _T]) -> _T | tuple[Complaint, ...]:
    """What was read, or the complaints about it."""
    try:
        return read()
    except MendFile as error:
        return error.complaints


def key(word: str) -> str:
    return base64.b64encode(hashlib.sha256(word.encode()).digest()).decode()


PRIVATE, PUBLIC, SHARED = key("private"), key("public"), key("shared")


def profile_text(
    *,
    address: str = "10.64.0.2/32",
    dns: str = "10.64.0.1",
    endpoint: str = "192.0.2.10:51820",
    interface: str = "",
    peer: str = "",
) -> str:
    return (
        f"[Interface]\nPrivateKey = {PRIVATE}\nAddress = {address}\nDNS = {dns}\n{interface}\n"
        f"[Peer]\nPublicKey = {PUBLIC}\nAllowedIPs = 0.0.0.0/0\nEndpoint = {endpoint}\n{peer}\n"
    )


def profile(name: str = "server", **parts: str) -> WireGuardProfile:
    return parse_wireguard_profile(profile_text(**parts), Path(f"{name}.conf"))


def chain_text(
    *,
    lan: str = "192.168.10.254/24",
    hops: int = 1,
    servers: str = "./*.conf",
    hop: str = "",
    more: str = "",
) -> str:
    """`hop` holds more keys of each hop, `more` more of the chain."""
    keys = f"servers: {servers}{', ' if hop else ''}{hop}"
    listed = "".join(f"  - {{name: hop{n}, {keys}}}\n" for n in range(1, hops + 1))
    return f"chain: home\nlan: {{interface: eth1, address: {lan}}}\nhops:\n{listed}{more}"


def pem(label: str, word: str) -> str:
    """What looks like a certificate or key from outside, made up from `word`."""
    body = hashlib.sha256(word.encode()).digest() * 2
    text = base64.b64encode(bytes([0x30, len(body)]) + body).decode()
    return f"-----BEGIN {label}-----\n{text[:64]}\n{text[64:]}\n-----END {label}-----\n"


def static_key(word: str = "static") -> str:
    digits = hashlib.sha256(word.encode()).hexdigest() * 8
    lines = "\n".join(digits[at : at + 32] for at in range(0, 512, 32))
    begin, end = (f"-----{side} OpenVPN Static key V1-----" for side in ("BEGIN", "END"))
    return f"#\n# 2048 bit OpenVPN static key\n#\n{begin}\n{lines}\n{end}\n"


CA = f"<ca>\n{pem('CERTIFICATE', 'ca')}</ca>\n"
IDENTITY = (
    f"<cert>\nCertificate:\n    Data:\n{pem('CERTIFICATE', 'client')}</cert>\n"
    f"<key>\n{pem('PRIVATE' + ' KEY', 'key')}</key>\n"
)


def openvpn_text(
    *,
    remote: str = "remote 192.0.2.10 1194",
    check: str = "remote-cert-tls server",
    login: str = "auth-user-pass",
    blocks: str = CA,
    more: str = "",
) -> str:
    return f"client\ndev tun\n{remote}\n{check}\n{login}\n{more}\n{blocks}"
