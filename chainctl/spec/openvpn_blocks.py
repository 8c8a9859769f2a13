"""Inline blocks of an OpenVPN profile, parsed as what they claim to be.

Each function takes the lines of a block and gives a value, from which the block is written anew
(`chainctl.model.openvpn.render`); nothing else that stands between the tags gets any further.
They raise ValueError with the reason; no message repeats what stands in a block.
"""

from __future__ import annotations

import base64
import binascii
import re
from collections.abc import Iterable, Iterator
from typing import NamedTuple

from chainctl.model.openvpn import Credentials, PrivateKey
from chainctl.model.secret import Secret
from chainctl.spec.openvpn_text import Line

LONGEST_LOGIN = 127
"""Characters of a username or password; what clients without PKCS#11 take."""

_KEYS = ("PRIVATE KEY", "RSA PRIVATE KEY", "EC PRIVATE KEY")
_MARK = re.compile("-----(BEGIN|END) ([A-Za-z0-9 -]{1,40})-----")


class _Pem(NamedTuple):
    label: str
    lines: list[str]


def parse_certificates(block: Iterable[Line]) -> tuple[bytes, ...]:
    """DER of each; what `openssl x509 -text` writes around them is passed over."""
    return _ders(block, "CERTIFICATE", "certificate")


def parse_revocations(block: Iterable[Line]) -> tuple[bytes, ...]:
    return _ders(block, "X509 CRL", "revocation list")


def parse_private_key(block: Iterable[Line]) -> PrivateKey:
    pems = list(_pems(block))
    found = [pem for pem in pems if pem.label.endswith("PRIVATE KEY")]
    if len(found) != 1:
        raise ValueError(f"expected one private key, found {len(found)}")
    label, lines = found[0]
    if label == "ENCRYPTED PRIVATE KEY" or any(":" in line for line in lines):
        way_out = "`openssl pkey -in KEY -out NEW` takes the passphrase away"
        raise ValueError(f"the key is protected by a passphrase that nobody could type; {way_out}")
    if label not in _KEYS:
        raise ValueError(f"a key of the kind `{label}`; expected `PRIVATE KEY`")
    der = _decode(lines)
    _check_der(der, "private key")
    return PrivateKey(label, Secret(base64.b64encode(der).decode()))


def parse_static_key(block: Iterable[Line]) -> Secret:
    """256 bytes in hex, as `openvpn --genkey` writes them."""
    pems = list(_pems(block))
    if [pem.label for pem in pems] != ["OpenVPN Static key V1"]:
        raise ValueError("expected one key that begins with `BEGIN OpenVPN Static key V1`")
    text = "".join(line for line in pems[0].lines if not line.startswith("#")).lower()
    if not re.fullmatch("[0-9a-f]{512}", text):
        raise ValueError("a static key has 256 bytes in hex, 16 lines of 32 digits")
    return Secret(text)


def parse_crypt_v2_key(block: Iterable[Line]) -> Secret:
    """The client's key with the server's wrapped copy, in base64."""
    pems = list(_pems(block))
    if [pem.label for pem in pems] != ["OpenVPN tls-crypt-v2 client key"]:
        raise ValueError("expected one key, `BEGIN OpenVPN tls-crypt-v2 client key`")
    raw = _decode(pems[0].lines)
    # 256 bytes of key, then tag, encrypted key, metadata and length (tls-crypt-v2.txt).
    if not 256 + 32 + 256 + 2 <= len(raw) <= 256 + 1024:
        raise ValueError("a tls-crypt-v2 client key has another length")
    return Secret(base64.b64encode(raw).decode())


def parse_fingerprints(block: Iterable[Line]) -> tuple[str, ...]:
    lines = (line for line in _texts(block) if line and not line.startswith(("#", ";")))
    found = tuple(parse_fingerprint(line) for line in lines)
    if not found:
        raise ValueError("no fingerprint stands here")
    return found


def parse_fingerprint(word: str) -> str:
    """64 hex digits of a SHA-256, which are written with colons between the bytes."""
    if not re.fullmatch("([0-9A-Fa-f]{2}:){31}[0-9A-Fa-f]{2}", word):
        raise ValueError("expected a SHA-256 fingerprint, 32 pairs of hex digits with colons")
    return word.replace(":", "").lower()


def parse_login(block: Iterable[Line]) -> Credentials:
    """Username in the first line, password in the second."""
    lines = [line.content.removesuffix(b"\r") for line in block]
    while lines and not lines[-1]:
        lines.pop()
    if len(lines) != 2 or not all(lines):
        raise ValueError("expected two lines: username, then password")
    try:
        words = [line.decode() for line in lines]
    except UnicodeDecodeError:
        raise ValueError("username and password have to be UTF-8 text") from None
    for word, name in zip(words, ("username", "password"), strict=True):
        if len(word.encode()) > LONGEST_LOGIN:
            raise ValueError(f"the {name} is longer than {LONGEST_LOGIN} bytes")
        if not word.isprintable():
            raise ValueError(f"the {name} contains unprintable characters")
    return Credentials(Secret(words[0]), Secret(words[1]))


def _ders(block: Iterable[Line], label: str, what: str) -> tuple[bytes, ...]:
    pems = list(_pems(block))
    for pem in pems:
        if pem.label != label:
            raise ValueError(f"expected a {what}, found `{pem.label}`")
    if not pems:
        raise ValueError(f"expected a {what}, beginning with `-----BEGIN {label}-----`")
    found = tuple(_decode(pem.lines) for pem in pems)
    for der in found:
        _check_der(der, what)
    return found


def _pems(block: Iterable[Line]) -> Iterator[_Pem]:
    opened: _Pem | None = None
    for text in _texts(block):
        mark = _MARK.fullmatch(text)
        if opened is None:
            if mark and mark[1] == "BEGIN":
                opened = _Pem(mark[2], [])
        elif mark is None:
            opened.lines.append(text)
        elif mark.groups() != ("END", opened.label):
            raise ValueError(f"`BEGIN {opened.label}` ends with another line than it should")
        else:
            yield opened
            opened = None
    if opened:
        raise ValueError(f"`-----END {opened.label}-----` is missing")


def _texts(block: Iterable[Line]) -> Iterator[str]:
    return (line.content.decode("latin-1").strip(" \t\r\v\f") for line in block)


def _decode(lines: list[str]) -> bytes:
    try:
        return base64.b64decode("".join(lines), validate=True)
    except (binascii.Error, ValueError):
        raise ValueError("what stands between BEGIN and END is not base64") from None


def _check_der(der: bytes, what: str) -> None:
    """One ASN.1 sequence of just this length (X.690, 8.1.3)."""
    length, header = (der[1], 2) if len(der) > 1 else (0, 2)
    if length > 127:
        header = 2 + (length & 127)
        length = int.from_bytes(der[2:header], "big")
    if der[:1] != b"\x30" or length < 16 or header + length != len(der):
        raise ValueError(f"no {what} stands between BEGIN and END; was its end lost?")
