"""Certificates and keys that the real client takes, made anew for each run of the tests."""

from __future__ import annotations

import subprocess
from dataclasses import dataclass
from pathlib import Path


@dataclass(frozen=True)
class Keys:
    folder: Path

    def text(self, name: str) -> str:
        return (self.folder / name).read_text()

    def block(self, tag: str, *names: str) -> str:
        return f"<{tag}>\n{''.join(self.text(name) for name in names)}</{tag}>\n"

    @property
    def fingerprint(self) -> str:
        printed = _run(self.folder, "openssl x509 -in server.crt -noout -fingerprint -sha256")
        return printed.strip().partition("=")[2]


def make_keys(folder: Path) -> Keys:
    """`ca`, `server` and `client` as `.crt` and `.key`, `static.key` and both tls-crypt-v2 keys."""
    folder.mkdir()
    new = "openssl req -newkey ec -pkeyopt ec_paramgen_curve:P-256 -nodes -sha256"
    _run(folder, f"{new} -x509 -keyout ca.key -out ca.crt -subj /CN=ca -days 9")
    for name, usage in (("server", "serverAuth"), ("client", "clientAuth")):
        _run(
            folder,
            f"{new} -x509 -CA ca.crt -CAkey ca.key -keyout {name}.key -out {name}.crt -days 9"
            f" -subj /C=CH/CN={name}.example -addext extendedKeyUsage={usage}"
            " -addext keyUsage=digitalSignature,keyAgreement",
        )
    _run(folder, "openssl ec -in client.key -out client-ec.key")
    _run(folder, "openvpn --genkey secret static.key")
    _run(folder, "openvpn --genkey tls-crypt-v2-server v2-server.key")
    _run(
        folder,
        "openvpn --tls-crypt-v2 v2-server.key --genkey tls-crypt-v2-client v2-client.key",
    )
    return Keys(folder)


def _run(folder: Path, command: str) -> str:
    done = subprocess.run(
        command.split(), cwd=folder, capture_output=True, text=True, timeout=60, check=True
    )
    return done.stdout
