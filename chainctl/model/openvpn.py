"""What one OpenVPN tunnel to one server is told, and the text that tells it.

`OpenVpnProfile` is the provider's part: parsed values, never text of the provider. `render` puts
them into the frame that every tunnel has here: no script, no route and no address of the
client's own making, no file, one server, driven over its management socket.
Options: openvpn(8), 2.6 and 2.7.
"""

from __future__ import annotations

import base64
import functools
import hashlib
from collections.abc import Iterator
from dataclasses import dataclass
from enum import Enum
from ipaddress import IPv4Address

from chainctl.model.parts import TCP, UDP
from chainctl.model.secret import Secret

AEAD = ("AES-256-GCM", "AES-128-GCM", "CHACHA20-POLY1305")
"""Data ciphers that are offered; others (CBC, without authentication of their own) never."""


class Framing(Enum):
    """What stands before each packet of the data channel: part of the wire format.

    Nothing is ever compressed here (VORACLE). What a server compresses is understood (`asym`).
    """

    NONE = "none"
    LZO_NO = "comp-lzo no"
    LZO = "comp-lzo yes"
    STUB = "compress"
    STUB_V2 = "compress stub-v2"
    COMPRESS_LZO = "compress lzo"
    LZ4 = "compress lz4"
    LZ4_V2 = "compress lz4-v2"

    @property
    def lines(self) -> tuple[str, ...]:
        """What the client is told; `no` would refuse most framings with the compression."""
        match self:
            case Framing.NONE:
                return ("allow-compression no",)
            case Framing.LZO_NO:
                return (self.value, "allow-compression no")
            case _:
                return (self.value, "allow-compression asym")

    @property
    def overhead(self) -> int:
        """Bytes it adds to a packet that is not compressed."""
        return 0 if self in (Framing.NONE, Framing.STUB_V2, Framing.LZ4_V2) else 1


class KeyWrap(Enum):
    """How packets of the control channel are protected before TLS; the name of the block."""

    AUTH = "tls-auth"
    CRYPT = "tls-crypt"
    CRYPT_V2 = "tls-crypt-v2"


@dataclass(frozen=True)
class ControlKey:
    """The key under the control channel."""

    wrap: KeyWrap
    key: Secret
    """256 bytes in hex; for tls-crypt-v2 what stands in the PEM block, in base64."""
    direction: int | None = None
    """0 or 1, with tls-auth only; None: both directions use the same part of the key."""


@dataclass(frozen=True)
class PrivateKey:
    kind: str
    """As in the PEM block: `PRIVATE KEY`, `RSA PRIVATE KEY`, `EC PRIVATE KEY`."""
    der: Secret
    """In base64."""


@dataclass(frozen=True)
class Identity:
    """A client certificate with its key."""

    chain: tuple[bytes, ...]
    """DER; the client's own first."""
    key: PrivateKey


@dataclass(frozen=True)
class Credentials:
    username: Secret
    password: Secret


@dataclass(frozen=True)
class ServerCheck:
    """How the client knows that it talks to the server; at least one of the three is there."""

    usage: bool = True
    """The certificate has to be one for servers (`remote-cert-tls server`)."""
    name: str = ""
    """Subject or common name the certificate has to have; "": not looked at."""
    name_kind: str = "subject"
    """`subject`, `name` or `name-prefix`, of verify-x509-name."""
    fingerprints: tuple[str, ...] = ()
    """SHA-256 of certificates, hex; the server has one of them."""

    def __post_init__(self) -> None:
        if not (self.usage or self.name or self.fingerprints):
            raise ValueError("nothing tells the server from anybody else")


@dataclass(frozen=True)
class TlsOptions:
    minimum: str = "1.2"
    """`1.2` or `1.3`."""
    maximum: str = ""
    ciphers: str = ""
    ciphersuites: str = ""
    groups: str = ""
    profile: str = ""
    """Each of these as OpenSSL writes it; "": the client's default."""


@dataclass(frozen=True)
class OpenVpnProfile:
    """The provider's part: what the client has to know beside address, port and protocol."""

    ca: tuple[bytes, ...]
    """DER. May be empty when `check` has fingerprints."""
    check: ServerCheck
    identity: Identity | None = None
    login: bool = False
    """The server asks for username and password."""
    credentials: Credentials | None = None
    """Those of the account; None with `login`: nobody said them yet."""
    control: ControlKey | None = None
    crl: tuple[bytes, ...] = ()
    """DER; certificates that were called back."""
    ciphers: tuple[str, ...] = AEAD
    fallback: str = ""
    """Data cipher for servers that cannot negotiate; "": such servers are refused."""
    auth: str = "SHA1"
    """Digest of the HMAC that tls-auth uses."""
    tls: TlsOptions = TlsOptions()
    framing: Framing = Framing.NONE
    fragment: int = 0
    """Bytes above which the client splits packets itself; 0: it does not, which is another
    wire format."""
    tun_mtu: int = 1500
    reneg: int | None = None
    """Seconds until new keys; 0: only the server asks for them; None: the client's default."""

    def __post_init__(self) -> None:
        if not self.ca and not self.check.fingerprints:
            raise ValueError("neither a CA nor a fingerprint")

    @property
    def framing_overhead(self) -> int:
        """Bytes that framing adds to every packet inside the data channel."""
        return self.framing.overhead + (4 if self.fragment else 0)


@dataclass(frozen=True)
class OpenVpnConfig:
    """One tunnel to one server. Raises ValueError for what is no port or no protocol."""

    endpoint: IPv4Address
    endpoint_port: int
    protocol: int
    """UDP or TCP of `chainctl.model.parts`."""
    source_port: int
    """Pinned: the wire lets out only this one."""
    profile: OpenVpnProfile

    def __post_init__(self) -> None:
        if self.protocol not in (UDP, TCP):
            raise ValueError(f"{self.protocol} is no protocol of a tunnel")
        for port in (self.source_port, self.endpoint_port):
            if not 0 < port < 65536:
                raise ValueError(f"{port} is no port")

    @property
    def digest(self) -> str:
        """Equal for tunnels that are told the same; gives neither key nor password away."""
        return _digest(self)


def render(config: OpenVpnConfig, *, link: str, local: IPv4Address, management: str) -> str:
    """The whole configuration of a client: all that the real openvpn ever reads.

    `link` is a TUN device that exists, `local` the address of the hop's outer leg,
    `management` the path of the unix socket on which the client waits before it sends
    anything. Contains keys; username and password go over that socket.
    """
    return "\n".join([*_frame(config, link, local, management), *_provider(config), ""])


def _frame(config: OpenVpnConfig, link: str, local: IPv4Address, management: str) -> Iterator[str]:
    udp = config.protocol == UDP
    yield "client"
    yield f"dev {link}"
    yield "dev-type tun"
    yield "persist-tun"
    yield f"proto {'udp4' if udp else 'tcp4-client'}"
    yield f"remote {config.endpoint} {config.endpoint_port}"
    yield f"local {local}"
    yield f"lport {config.source_port}"
    # Without these the client, or what the server pushes, would set addresses and routes.
    yield from ("script-security 0", "ifconfig-noexec", "route-noexec", "route-nopull")
    yield from (f'pull-filter accept "{word}"' for word in _PUSHED)
    yield 'pull-filter ignore ""'
    yield f"management {management} unix"
    yield f"tmp-dir {management.rpartition('/')[0] or '/'}"
    # It waits for release before every attempt: no restart of its own hides a dead server.
    yield from ("management-hold", "management-query-passwords", "auth-retry nointeract")
    # The login stays in its memory: new keys, every hour, must not need anybody who answers.
    yield from ("persist-key", "resolv-retry 0", "connect-retry 1 1")
    yield from ("connect-timeout 10", "tls-timeout 1", "hand-window 30")
    yield from ("ping 10", "ping-restart 0", "mssfix 0", "disable-dco")
    if udp:
        # Else the server keeps the session, and lets nobody begin another from the same port.
        yield "explicit-exit-notify 1"
        # No poll(2) before each write: a tenth more goes through. It would wait for room in the
        # socket, which is there, since a packet counts no longer once it is with the host. 2.7
        # ignores it.
        yield "fast-io"
    # Muted, because each question on the management socket is logged.
    yield from ("suppress-timestamps", "verb 3", "mute 8")


_PUSHED = (
    *("ifconfig ", "topology ", "peer-id ", "cipher ", "protocol-flags ", "key-derivation "),
    *("auth-token ", "auth-token-user ", "comp-lzo", "compress", "push-continuation "),
)
"""What the client takes from a server: what the two have to agree on, and nothing that says
what this machine should do. Compared by prefix, so a blank excludes longer words."""


def _provider(config: OpenVpnConfig) -> Iterator[str]:
    profile = config.profile
    yield f"data-ciphers {':'.join(profile.ciphers)}"
    if profile.fallback:
        yield f"data-ciphers-fallback {profile.fallback}"
    yield f"auth {profile.auth}"
    yield from profile.framing.lines
    yield f"tun-mtu {profile.tun_mtu}"
    if profile.fragment:
        yield f"fragment {profile.fragment}"
    if profile.reneg is not None:
        yield f"reneg-sec {profile.reneg}"
    if profile.login:
        yield "auth-user-pass"
    yield from _tls(profile.tls)
    yield from _check(profile.check)
    yield from _blocks(profile)


def _tls(tls: TlsOptions) -> Iterator[str]:
    words = {
        "tls-version-min": tls.minimum,
        "tls-version-max": tls.maximum,
        "tls-cipher": tls.ciphers,
        "tls-ciphersuites": tls.ciphersuites,
        "tls-groups": tls.groups,
        "tls-cert-profile": tls.profile,
    }
    yield from (f"{word} {value}" for word, value in words.items() if value)


def _check(check: ServerCheck) -> Iterator[str]:
    if check.usage:
        yield "remote-cert-tls server"
    if check.name:
        yield f"verify-x509-name {quoted(check.name)} {check.name_kind}"
    if check.fingerprints:
        pairs = (":".join(_split(each, 2)) for each in check.fingerprints)
        yield from _block("peer-fingerprint", pairs)


def _blocks(profile: OpenVpnProfile) -> Iterator[str]:
    if profile.ca:
        yield from _block("ca", _certificates(profile.ca))
    if profile.crl:
        yield from _block("crl-verify", _pems("X509 CRL", profile.crl))
    if profile.identity:
        key = profile.identity.key
        yield from _block("cert", _certificates(profile.identity.chain))
        yield from _block("key", _pem(key.kind, key.der.reveal()))
    control = profile.control
    if control is None:
        return
    if control.wrap is KeyWrap.CRYPT_V2:
        lines = _pem("OpenVPN tls-crypt-v2 client key", control.key.reveal())
    else:
        lines = _enclosed("OpenVPN Static key V1", _split(control.key.reveal(), 32))
    if control.direction is not None:
        yield f"key-direction {control.direction}"
    yield from _block(control.wrap.value, lines)


def quoted(word: str) -> str:
    """`word` as one parameter, by the rules of openvpn(8) for quotes and backslashes."""
    return '"' + word.replace("\\", "\\\\").replace('"', '\\"') + '"'


def _certificates(chain: tuple[bytes, ...]) -> Iterator[str]:
    return _pems("CERTIFICATE", chain)


def _pems(label: str, values: tuple[bytes, ...]) -> Iterator[str]:
    for value in values:
        yield from _pem(label, base64.b64encode(value).decode())


def _pem(label: str, base64_text: str) -> Iterator[str]:
    return _enclosed(label, _split(base64_text, 64))


def _enclosed(label: str, lines: Iterator[str]) -> Iterator[str]:
    yield f"-----BEGIN {label}-----"
    yield from lines
    yield f"-----END {label}-----"


def _block(name: str, lines: Iterator[str]) -> Iterator[str]:
    yield f"<{name}>"
    yield from lines
    yield f"</{name}>"


def _split(text: str, length: int) -> Iterator[str]:
    return (text[begin : begin + length] for begin in range(0, len(text), length))


@functools.lru_cache(maxsize=4096)
def _digest(config: OpenVpnConfig) -> str:
    text = render(config, link="", local=IPv4Address(0), management="")
    login = config.profile.credentials
    if login:
        # A short password could be found by trying, were its plain hash known.
        words = f"{login.username.reveal()}\n{login.password.reveal()}".encode()
        text += hashlib.scrypt(words, salt=b"chainctl", n=2**14, r=8, p=1).hex()
    return hashlib.sha256(text.encode()).hexdigest()
