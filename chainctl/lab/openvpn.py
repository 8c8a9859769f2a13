"""The lab's OpenVPN providers: their authority, what a server runs with, what customers get.

Two providers in turn, each with its habits: certificates and tls-crypt; a login, tls-auth and
Windows line ends. Certificates are made by openssl(1), and are worth nothing outside of a lab.
"""

from __future__ import annotations

import secrets
import shutil
import tempfile
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

from chainctl.errors import MendHost
from chainctl.host.run import run
from chainctl.lab.layout import ServerPlan

USERNAME = "otter"
_DAYS = "30"


@dataclass(frozen=True)
class Authority:
    """Who signs for every server and customer of a lab. PEM everywhere."""

    certificate: str
    key: str

    def __repr__(self) -> str:
        return "Authority(…)"


@dataclass(frozen=True)
class OpenVpnKeys:
    certificate: str
    """The server's, as is `key`."""
    key: str
    client_certificate: str
    client_key: str
    shared: str
    """For tls-crypt or tls-auth."""
    password: str
    """Of the account; where the provider takes none, nobody asks."""

    def __repr__(self) -> str:
        return "OpenVpnKeys(…)"


def find_openvpn() -> Path:
    """Raises MendHost C605."""
    found = shutil.which("openvpn")
    if found is None:
        raise MendHost(
            "C605",
            "there is no openvpn for the lab's servers",
            hint="install the package openvpn",
        )
    return Path(found)


def asks_for_login(server: ServerPlan) -> bool:
    """The second provider's way."""
    return server.hop % 2 == 0


def make_authority() -> Authority:
    with tempfile.TemporaryDirectory() as folder:
        certificate, key = Path(folder) / "crt", Path(folder) / "key"
        _openssl(
            *("req", "-x509", *_NEW_KEY, "-days", _DAYS, "-subj", "/CN=Lab Authority"),
            *("-keyout", key, "-out", certificate),
        )
        return Authority(certificate.read_text(), key.read_text())


def make_openvpn_keys(server: ServerPlan, authority: Authority | None) -> OpenVpnKeys:
    assert authority is not None, "somebody has to sign"
    certificate, key = sign(authority, f"{server.label}.example", "serverAuth")
    client_certificate, client_key = sign(authority, USERNAME, "clientAuth")
    return OpenVpnKeys(
        certificate,
        key,
        client_certificate,
        client_key,
        shared=_static_key(),
        password=secrets.token_hex(8),
    )


def sign(
    authority: Authority, name: str, usage: str, *, valid: Sequence[str] = ()
) -> tuple[str, str]:
    """(certificate, key). `valid`: options of openssl-ca(1) for when, by default for 30 days."""
    with tempfile.TemporaryDirectory() as folder:
        place = Path(folder)
        (place / "ca.crt").write_text(authority.certificate)
        (place / "ca.key").write_text(authority.key)
        (place / "index").write_text("")
        (place / "serial").write_text(f"01{secrets.token_hex(8)}\n")
        (place / "cnf").write_text(_CA_CONFIG.format(folder=folder, usage=usage))
        _openssl(
            *("req", *_NEW_KEY, "-subj", f"/CN={name}"),
            *("-keyout", place / "key", "-out", place / "csr"),
        )
        _openssl(
            *("ca", "-batch", "-notext", "-config", place / "cnf"),
            *(valid or ("-days", _DAYS)),
            *("-in", place / "csr", "-out", place / "crt", "-outdir", folder),
        )
        return (place / "crt").read_text(), (place / "key").read_text()


def render_server(
    server: ServerPlan, keys: OpenVpnKeys, authority: Authority, *, more: Sequence[str] = ()
) -> str:
    """The server's configuration. `more`: lines of it that outrank those before."""
    network = server.tunnel.network
    first = server.tunnel.ip + 1
    lines = [
        *("mode server", "tls-server", f"dev {server.link}", "dev-type tun", "topology subnet"),
        f"proto {'udp' if server.via == 'udp' else 'tcp-server'}",
        *(f"local {server.uplink.ip}", f"port {server.port}"),
        f"ifconfig {server.tunnel.ip} {network.netmask}",
        f"ifconfig-pool {first} {first + 200} {network.netmask}",
        *("keepalive 10 60", "duplicate-cn", "dh none", "verb 3", "script-security 2"),
        'push "topology subnet"',
        f'push "route-gateway {server.tunnel.ip}"',
        f'push "dhcp-option DNS {server.tunnel.ip}"',
        'push "redirect-gateway def1 bypass-dhcp"',
        'push "route-ipv6 2000::/3"',
        _block("ca", authority.certificate),
        _block("cert", keys.certificate),
        _block("key", keys.key),
        *_wrap(server, keys, direction=0),
        *more,
    ]
    return "\n".join(lines) + "\n"


def render_login_check(keys: OpenVpnKeys) -> str:
    """A program for auth-user-pass-verify: openvpn(8) hands it a file of two lines."""
    return f"""\
#!/bin/sh
[ "$(sed -n 1p "$1")" = {USERNAME} ] && [ "$(sed -n 2p "$1")" = {keys.password} ]
"""


def render_profile(server: ServerPlan, keys: OpenVpnKeys, authority: Authority) -> str:
    """What the provider's customer downloads."""
    over = server.via
    if asks_for_login(server):
        text = f"""\
# {server.label}
client
dev tun
proto {over}
remote {server.uplink.ip} {server.port}
remote-random
resolv-retry infinite
nobind
persist-key
persist-tun
remote-cert-tls server
cipher AES-256-GCM
auth SHA512
auth-user-pass
setenv UV_SERVER {server.label}
fast-io
verb 3
up /etc/openvpn/update-resolv-conf
{_block("ca", authority.certificate)}
key-direction 1
{_block("tls-auth", keys.shared)}
"""
        # The commented form is the usual one; a live one is refused.
        return text.replace("\nup /etc", "\n#up /etc").replace("\n", "\r\n")
    return f"""\
client
dev tun
remote {server.uplink.ip} {server.port} {over}
nobind
data-ciphers AES-256-GCM:CHACHA20-POLY1305
cipher AES-256-GCM
verify-x509-name {server.label}.example name
remote-cert-tls server
reneg-sec 0
explicit-exit-notify 2
{_block("ca", authority.certificate)}
{_block("cert", keys.client_certificate)}
{_block("key", keys.client_key)}
{_block("tls-crypt", keys.shared)}
"""


def render_login(keys: OpenVpnKeys) -> str:
    """The file beside the profiles with the account."""
    return f"{USERNAME}\n{keys.password}\n"


def _wrap(server: ServerPlan, keys: OpenVpnKeys, *, direction: int) -> list[str]:
    if asks_for_login(server):
        login = ["verify-client-cert none", "auth SHA512"]
        return [*login, f"key-direction {direction}", _block("tls-auth", keys.shared)]
    return [_block("tls-crypt", keys.shared)]


def _block(name: str, content: str) -> str:
    return f"<{name}>\n{content.strip()}\n</{name}>"


def _static_key() -> str:
    """As `openvpn --genkey` writes it."""
    digits = secrets.token_hex(256)
    lines = "\n".join(digits[at : at + 32] for at in range(0, len(digits), 32))
    return f"-----BEGIN OpenVPN Static key V1-----\n{lines}\n-----END OpenVPN Static key V1-----\n"


_NEW_KEY = ("-newkey", "ec", "-pkeyopt", "ec_paramgen_curve:P-256", "-nodes")

_CA_CONFIG = """\
[ca]
default_ca = lab
[lab]
dir = {folder}
database = $dir/index
serial = $dir/serial
certificate = $dir/ca.crt
private_key = $dir/ca.key
default_md = sha256
policy = any
unique_subject = no
x509_extensions = leaf
[any]
commonName = supplied
[leaf]
basicConstraints = CA:FALSE
keyUsage = digitalSignature
extendedKeyUsage = {usage}
"""


def _openssl(*words: str | Path) -> None:
    run(["openssl", *map(str, words)])
