"""The two-sided lab under Docker: servers 1, 2 and 3 in containers, and a chain towards them.

    sudo .venv/bin/python compose/lab/lab.py up FOLDER
    sudo .venv/bin/chainctl up FOLDER/chain.yaml
    sudo .venv/bin/python compose/lab/lab.py down FOLDER

`up` writes keys, servers' and clients' files and a chain file into FOLDER, loads the images,
starts compose.yaml, and gives the servers what their images have no tools for: WireGuard its
configuration and address, each a masquerading table. server1 is WireGuard, server2 OpenVPN over
UDP with tls-crypt, server3 OpenVPN over TCP. Both may be called again.
"""

from __future__ import annotations

import argparse
import base64
import json
import os
import secrets
import shutil
import socket
import subprocess
import sys
import time
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

import docker

_HERE = Path(__file__).resolve().parent
_PATIENCE = 60.0
_DAYS = "3650"

_MASQUERADE = """\
table ip lab
delete table ip lab
table ip lab {
    chain post {
        type nat hook postrouting priority srcnat
        oifname "eth*" masquerade
    }
}
"""

_OPENVPN_SERVER = """\
dev tun
topology subnet
server {network} 255.255.255.0
proto {protocol}
port {port}
keepalive 5 30
persist-key
persist-tun
script-security 0
data-ciphers AES-256-GCM:CHACHA20-POLY1305
dh none
tls-version-min 1.2
verb 1
"""

_OPENVPN_CLIENT = """\
client
dev tun
proto {protocol}
remote {address} {port}
nobind
persist-key
persist-tun
remote-cert-tls server
data-ciphers AES-256-GCM:CHACHA20-POLY1305
verb 1
"""

_CHAIN = """\
chain: compose-lab
lan: {interface: lablan, address: 10.87.9.254/24}
wan: {interface: labup}
# Nothing in the lab answers names; it says where questions would go.
dns: {upstream: 9.9.9.9}
hops:
  - {name: guard, servers: ./clients/server1.conf}
  - {name: middle, servers: ./clients/server2.ovpn}
  - {name: exit, servers: ./clients/server3.ovpn}
"""


@dataclass(frozen=True)
class _OpenVpn:
    name: str
    address: str
    port: int
    protocol: str
    network: str


_OPENVPN = (
    _OpenVpn("server2", "203.0.113.76", 1194, "udp", "10.92.2.0"),
    _OpenVpn("server3", "203.0.113.141", 443, "tcp", "10.92.3.0"),
)


def main() -> None:
    parser = argparse.ArgumentParser(description="Three VPN servers under Docker.")
    parser.add_argument("do", choices=["up", "down"])
    parser.add_argument("folder", type=Path)
    words = parser.parse_args()
    folder: Path = words.folder.resolve()
    if words.do == "up":
        up(folder)
    else:
        down(folder)


def up(folder: Path) -> None:
    if not (folder / "chain.yaml").exists():
        make_files(folder)
    _compose(folder, "up", "--detach", images=_load_images())
    _finish_wireguard(folder)
    for server in ("server1", "server2", "server3"):
        _inside(folder, server, "nft", "-f", "-", stdin=_MASQUERADE)
    print(f"The servers run. Next: chainctl up {folder}/chain.yaml")


def down(folder: Path) -> None:
    _compose(folder, "down", "--volumes", images=dict.fromkeys(_IMAGES, "none"))
    shutil.rmtree(folder, ignore_errors=True)


# Files.


def make_files(folder: Path) -> None:
    """Keys of its own for every lab; the chain file comes last and says that all are there."""
    for name in ("server1", "server2", "server3", "clients", "ca"):
        (folder / name).mkdir(parents=True, exist_ok=True, mode=0o700)
    _authority(folder / "ca")
    for server in _OPENVPN:
        _openvpn_files(folder, server)
    _wireguard_files(folder)
    (folder / "chain.yaml").write_text(_CHAIN)


def _wireguard_files(folder: Path) -> None:
    keys = {name: _run("wg", "genkey").strip() for name in ("server", "client")}
    public = {name: _run("wg", "pubkey", stdin=key).strip() for name, key in keys.items()}
    _secret(
        folder / "server1/settings",
        f"set=1\nprivate_key={_hex(keys['server'])}\nlisten_port=51820\nreplace_peers=true\n"
        f"public_key={_hex(public['client'])}\nallowed_ip=10.92.1.2/32\n\n",
    )
    _secret(
        folder / "clients/server1.conf",
        f"[Interface]\nPrivateKey = {keys['client']}\nAddress = 10.92.1.2/32\n\n"
        f"[Peer]\nPublicKey = {public['server']}\nEndpoint = 203.0.113.11:51820\n"
        "AllowedIPs = 0.0.0.0/0\n",
    )


def _openvpn_files(folder: Path, server: _OpenVpn) -> None:
    ca = folder / "ca"
    own = _certificate(ca, server.name, "serverAuth")
    client = _certificate(ca, f"client-of-{server.name}", "clientAuth")
    key = "\n".join(secrets.token_hex(16) for _ in range(16))
    shared = {
        "ca": (ca / "ca.crt").read_text(),
        "tls-crypt": f"-----BEGIN OpenVPN Static key V1-----\n{key}\n"
        "-----END OpenVPN Static key V1-----\n",
    }
    facts = vars(server)
    _secret(folder / server.name / "server.conf", _blocks(_OPENVPN_SERVER, facts, shared | own))
    _secret(
        folder / f"clients/{server.name}.ovpn", _blocks(_OPENVPN_CLIENT, facts, shared | client)
    )


def _blocks(template: str, facts: dict[str, object], inline: dict[str, str]) -> str:
    return template.format(**facts) + "".join(
        f"<{name}>\n{text}</{name}>\n" for name, text in inline.items()
    )


def _authority(ca: Path) -> None:
    _openssl(
        *("req", "-x509", "-newkey", "ec", "-pkeyopt", "ec_paramgen_curve:P-256", "-nodes"),
        *("-keyout", str(ca / "ca.key"), "-out", str(ca / "ca.crt"), "-days", _DAYS),
        *("-subj", "/CN=lab", "-addext", "keyUsage=critical,keyCertSign,cRLSign"),
    )


def _certificate(ca: Path, name: str, usage: str) -> dict[str, str]:
    request, certificate, key = (ca / f"{name}.{ending}" for ending in ("csr", "crt", "key"))
    _openssl(
        *("req", "-newkey", "ec", "-pkeyopt", "ec_paramgen_curve:P-256", "-nodes"),
        *("-keyout", str(key), "-out", str(request), "-subj", f"/CN={name}"),
    )
    (ca / "usage").write_text(f"extendedKeyUsage={usage}\nkeyUsage=critical,digitalSignature\n")
    _openssl(
        *("x509", "-req", "-in", str(request), "-out", str(certificate), "-days", _DAYS),
        *("-CA", str(ca / "ca.crt"), "-CAkey", str(ca / "ca.key"), "-CAcreateserial"),
        *("-extfile", str(ca / "usage")),
    )
    return {"cert": certificate.read_text(), "key": key.read_text()}


def _secret(path: Path, text: str) -> None:
    path.touch(mode=0o600)
    path.write_text(text)


def _hex(key: str) -> str:
    return base64.b64decode(key).hex()


# Containers.

_IMAGES = ("wireguard", "openvpn", "pause")


def _load_images() -> dict[str, str]:
    loaded = json.loads(_run(sys.executable, "-m", "chainctl", "images", "load", "--json"))
    return {image["kind"]: image["reference"] for image in loaded}


def _compose(folder: Path, *words: str, images: dict[str, str]) -> str:
    """`docker compose`, or the program docker-compose where there is one."""
    program = ["docker-compose"] if shutil.which("docker-compose") else ["docker", "compose"]
    named = {f"CHAINCTL_LAB_{kind.upper()}": name for kind, name in images.items()}
    environ = {**os.environ, **named, "CHAINCTL_LAB_FOLDER": str(folder)}
    return _run(*program, "--file", str(_HERE / "compose.yaml"), *words, env=environ)


def _finish_wireguard(folder: Path) -> None:
    deadline = time.monotonic() + _PATIENCE
    while True:
        with socket.socket(socket.AF_UNIX) as door:
            try:
                # By a short name: the path of a unix socket has at most 107 bytes.
                os.chdir(folder / "server1")
                door.connect("wg0.sock")
            except OSError:
                if time.monotonic() > deadline:
                    raise
                time.sleep(0.1)
                continue
            door.sendall((folder / "server1/settings").read_bytes())
            answer = door.recv(4096).decode()
        if "errno=0" not in answer:
            raise SystemExit(f"wireguard-go refuses its settings: {answer.strip()}")
        break
    for words in ("address replace 10.92.1.1/24 dev wg0", "link set wg0 mtu 1400 up"):
        _inside(folder, "server1", "ip", *words.split())


def _inside(folder: Path, server: str, *words: str, stdin: str | None = None) -> None:
    """Run a program of this machine in the network namespace of a server."""
    container = _compose(folder, "ps", "--quiet", server, images=dict.fromkeys(_IMAGES, "none"))
    client = docker.from_env()
    try:
        pid = client.api.inspect_container(container.strip())["State"]["Pid"]
    finally:
        client.close()
    _run("nsenter", f"--net=/proc/{pid}/ns/net", *words, stdin=stdin)


def _openssl(*words: str) -> None:
    _run("openssl", *words)


def _run(*words: str, stdin: str | None = None, env: dict[str, str] | None = None) -> str:
    done = _finished(words, stdin, env)
    if done.returncode:
        raise SystemExit(f"{' '.join(words[:3])}: {done.stderr.strip() or done.stdout.strip()}")
    return done.stdout


def _finished(
    words: Sequence[str], stdin: str | None, env: dict[str, str] | None
) -> subprocess.CompletedProcess[str]:
    return subprocess.run(list(words), input=stdin, env=env, capture_output=True, text=True)


if __name__ == "__main__":
    main()
