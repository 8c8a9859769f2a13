"""Against the real client: what it would read in a hostile file, and that it takes what we write.

Nothing here needs root or a TUN device (`dev null`); what is connected, is so on loopback.
"""

from __future__ import annotations

import re
import socket
import subprocess
import tempfile
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from ipaddress import IPv4Address
from pathlib import Path

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from chainctl.model.openvpn import OpenVpnConfig, render
from chainctl.model.parts import TCP, UDP
from chainctl.spec.model import OpenVpnServer
from chainctl.spec.openvpn_profile import read_openvpn
from tests.unit.spec.builders import openvpn_text
from tests.unit.spec.hostile import BEFORE, SPELLINGS, Spelling
from tests.unit.spec.openvpn_keys import Keys, make_keys

PATIENCE = 60.0
"""Seconds."""
LOOPBACK = IPv4Address("127.0.0.1")
PATH = Path("profile.ovpn")


@pytest.fixture(scope="module")
def keys(tmp_path_factory: pytest.TempPathFactory) -> Keys:
    return make_keys(tmp_path_factory.mktemp("openvpn") / "keys")


# What a client reads in a file


@pytest.fixture(scope="module")
def trial() -> Iterator[Callable[[Callable[[bytes, bytes], bytes]], tuple[bytes, bool]]]:
    """Writes a file around `log FILE`; says what was in it and whether the client made FILE.

    `log` takes effect while the file is read, so nothing after it has to be right.
    """
    with tempfile.TemporaryDirectory(prefix="ovpn") as name:
        folder = Path(name)

        def run(write: Callable[[bytes, bytes], bytes]) -> tuple[bytes, bool]:
            content = write(b"log", bytes(folder / "mark"))
            (folder / "file").write_bytes(content)
            command = ["openvpn", "--config", str(folder / "file"), "--version"]
            subprocess.run(command, cwd=folder, capture_output=True, timeout=PATIENCE, check=False)
            made = [path for path in folder.iterdir() if path.name.startswith("mark")]
            for path in made:
                path.unlink()
            return content, bool(made)

        yield run


Trial = Callable[[Callable[[bytes, bytes], bytes]], tuple[bytes, bool]]


@pytest.mark.parametrize("spelling", SPELLINGS, ids=lambda each: each.name)
def test_the_spellings_are_what_a_client_reads(spelling: Spelling, trial: Trial) -> None:
    def write(name: bytes, word: bytes) -> bytes:
        return spelling.write(name.upper() if spelling.name == "capitals" else name, word)

    content, done = trial(write)
    assert done is spelling.read_there
    assert not read_openvpn(content, PATH).servers


_PIECES = st.sampled_from(
    [
        *(b" ", b"\t", b"\n", b"\n", b"\r", b"\v", b"\f", b"\0", b'"', b"'", b"\\", b"#", b";"),
        *(b"--", b"<", b">", b"</ca>", b"<ca>\n", b"<key>", b"</key>", b"setenv ", b"opt "),
        *(b"x", b"x" * 254, b"x" * 255, b"\xc3\xa9" * 128, b"<connection>", b"\xef\xbb\xbf"),
    ]
)


@settings(max_examples=150)
@given(st.lists(_PIECES, max_size=6), st.lists(_PIECES, max_size=3), st.lists(_PIECES, max_size=3))
def test_what_a_client_would_do_is_refused(
    trial: Trial, before: list[bytes], between: list[bytes], after: list[bytes]
) -> None:
    def write(name: bytes, word: bytes) -> bytes:
        pieces = (BEFORE, *before, name, b" ", *between, word, *after)
        return b"".join(pieces)

    content, done = trial(write)
    reading = read_openvpn(content, PATH)
    if done:
        # C215: the line is one the client makes two of.
        assert {each.code for each in reading.complaints(PATH)} & {"C222", "C215"}, content


# What it is given


def _blocks(keys: Keys, *more: str) -> str:
    identity = keys.block("cert", "client.crt") + keys.block("key", "client.key")
    return "".join((keys.block("ca", "ca.crt"), identity, *more))


_AUTH = "auth SHA256\n"
SHAPES: dict[str, Callable[[Keys], tuple[dict[str, str], str | None]]] = {
    # A server for one client asks for a certificate; this one is only read.
    "password only": lambda k: ({"blocks": k.block("ca", "ca.crt")}, None),
    "certificate only": lambda k: ({"login": "", "blocks": _blocks(k)}, ""),
    "both": lambda k: ({"blocks": _blocks(k)}, ""),
    "tls-auth 1": lambda k: (
        {
            "blocks": _blocks(k, k.block("tls-auth", "static.key")),
            "more": f"{_AUTH}key-direction 1",
        },
        "--tls-auth static.key 0 --auth SHA256",
    ),
    "tls-auth without direction": lambda k: (
        {"blocks": _blocks(k, k.block("tls-auth", "static.key")), "more": "auth SHA512"},
        "--tls-auth static.key --auth SHA512",
    ),
    "tls-crypt": lambda k: (
        {"blocks": _blocks(k, k.block("tls-crypt", "static.key"))},
        "--tls-crypt static.key",
    ),
    "tls-crypt-v2": lambda k: (
        {"blocks": _blocks(k, k.block("tls-crypt-v2", "v2-client.key"))},
        "--tls-crypt-v2 v2-server.key",
    ),
    "fingerprint instead of a CA": lambda k: (
        {
            "check": f"peer-fingerprint {k.fingerprint}",
            "blocks": k.block("cert", "client.crt") + k.block("key", "client.key"),
        },
        "",
    ),
    "fingerprint block": lambda k: (
        {"check": f"<peer-fingerprint>\n{k.fingerprint}\n</peer-fingerprint>"}
        | {"blocks": _blocks(k)},
        "",
    ),
    "name": lambda k: ({"check": "verify-x509-name server.example name", "blocks": _blocks(k)}, ""),
    "name prefix": lambda k: (
        {
            "check": "remote-cert-tls server\nverify-x509-name server name-prefix",
            "blocks": _blocks(k),
        },
        "",
    ),
    "whole subject": lambda k: (
        {"check": "verify-x509-name 'C=CH, CN=server.example'", "blocks": _blocks(k)},
        "",
    ),
    "older check": lambda k: ({"check": "ns-cert-type server", "blocks": _blocks(k)}, ""),
    "no check": lambda k: ({"check": "", "blocks": _blocks(k)}, ""),
    "EC key": lambda k: (
        {
            "blocks": k.block("ca", "ca.crt")
            + k.block("cert", "client.crt", "ca.crt")
            + k.block("key", "client-ec.key")
        },
        "",
    ),
    "extra certificates": lambda k: ({"blocks": _blocks(k, k.block("extra-certs", "ca.crt"))}, ""),
    "comp-lzo no": lambda k: ({"blocks": _blocks(k), "more": "comp-lzo no"}, "--comp-lzo no"),
    "comp-lzo": lambda k: ({"blocks": _blocks(k), "more": "comp-lzo"}, "--comp-lzo yes"),
    "compress": lambda k: ({"blocks": _blocks(k), "more": "compress"}, "--compress"),
    "compress stub-v2": lambda k: (
        {"blocks": _blocks(k), "more": "compress stub-v2"},
        "--compress stub-v2",
    ),
    "compress lz4-v2": lambda k: (
        {"blocks": _blocks(k), "more": "compress lz4-v2"},
        "--compress lz4-v2",
    ),
    "compress lz4": lambda k: ({"blocks": _blocks(k), "more": "compress lz4"}, "--compress lz4"),
    "compress lzo": lambda k: ({"blocks": _blocks(k), "more": "compress lzo"}, "--compress lzo"),
    "fragment": lambda k: ({"blocks": _blocks(k), "more": "fragment 1300"}, "--fragment 1300"),
    "tcp": lambda k: ({"blocks": _blocks(k), "more": "proto tcp"}, ""),
    "tcp with tls-crypt": lambda k: (
        {"blocks": _blocks(k, k.block("tls-crypt", "static.key")), "more": "proto tcp-client"},
        "--tls-crypt static.key",
    ),
    "small packets": lambda k: ({"blocks": _blocks(k), "more": "tun-mtu 1400\nmssfix 1200"}, ""),
    "only TLS 1.3": lambda k: (
        {
            "blocks": _blocks(k),
            "more": "tls-version-min 1.3\ntls-ciphersuites TLS_AES_256_GCM_SHA384\n"
            "tls-groups X25519:secp256r1",
        },
        "",
    ),
    "older TLS words": lambda k: (
        {
            "blocks": _blocks(k),
            "more": "tls-version-min 1.0\ntls-version-max 1.2\ntls-cert-profile preferred\n"
            "tls-cipher TLS-ECDHE-ECDSA-WITH-AES-256-GCM-SHA384",
        },
        "",
    ),
    "ciphers": lambda k: (
        {
            "blocks": _blocks(k),
            "more": "data-ciphers CHACHA20-POLY1305:AES-128-CBC\ncipher AES-128-GCM\n"
            "data-ciphers-fallback AES-128-GCM\nreneg-sec 0\nexplicit-exit-notify 3",
        },
        "--data-ciphers CHACHA20-POLY1305",
    ),
}


def test_there_are_many() -> None:
    assert len(SHAPES) >= 27


@pytest.mark.parametrize("shape", SHAPES)
def test_a_client_connects_with_what_is_written(shape: str, keys: Keys) -> None:
    parts, server_words = SHAPES[shape](keys)
    port, own = _free_port(), _free_port()
    reading = read_openvpn(openvpn_text(**parts).encode(), PATH)
    assert reading.servers, reading.complaints(PATH)
    (server,) = reading.servers
    if server_words is None:
        with _client(server, port, own) as manager:
            manager.await_line(">HOLD:")
        return
    with _server(server, server_words, port, keys), _client(server, port, own) as manager:
        # A client asks a second after TLS what else there is: not waited for in every shape.
        manager.connect(",CONNECTED," if shape == "ciphers" else "Peer Connection Initiated")


def _free_port() -> int:
    with socket.socket() as one:
        one.bind((str(LOOPBACK), 0))
        return int(one.getsockname()[1])


@contextmanager
def _server(server: OpenVpnServer, words: str, port: int, keys: Keys) -> Iterator[None]:
    """One that speaks to a single client."""
    proto = {UDP: "udp4", TCP: "tcp4-server"}[server.protocol]
    line = (
        f"openvpn --dev null --tls-server --proto {proto} --local {LOOPBACK} --port {port}"
        f" --ca ca.crt --cert server.crt --key server.key --dh none"
        f" --allow-compression asym {words}"
    )
    ready = "link local" if server.protocol == UDP else "Listening for"
    with _running(line.split(), keys.folder, ready):
        yield


class _Manager:
    """The management socket of a client, as the supervisor uses it."""

    def __init__(self, stream: socket.socket) -> None:
        self.stream = stream
        self.seen = ""

    def connect(self, sign: str) -> None:
        self.await_line(">HOLD:")
        self.say("log on")
        self.say("state on")
        self.say("hold release")
        wanted = (">PASSWORD:Need 'Auth'", sign, ",EXITING,")
        while sign not in (found := self.await_line(*wanted)):
            assert found.startswith(">PASSWORD"), found
            self.say('username "Auth" me')
            self.say('password "Auth" word')

    def say(self, line: str) -> None:
        self.stream.sendall(f"{line}\n".encode())

    def await_line(self, *wanted: str) -> str:
        deadline = time.monotonic() + PATIENCE
        while True:
            line, feed, rest = self.seen.partition("\n")
            if feed:
                self.seen = rest
                if any(each in line for each in wanted):
                    return line
                continue
            self.stream.settimeout(max(0.01, deadline - time.monotonic()))
            got = self.stream.recv(4096).decode()
            assert got, "the client ended"
            self.seen += got


@contextmanager
def _client(server: OpenVpnServer, port: int, own: int) -> Iterator[_Manager]:
    # The path of a unix socket has 108 bytes at most.
    with tempfile.TemporaryDirectory(prefix="ovpn") as name:
        path = Path(name) / "m"
        config = OpenVpnConfig(LOOPBACK, port, server.protocol, own, server.profile)
        text = render(config, link="tunA", local=LOOPBACK, management=str(path))
        text, count = re.subn("dev tunA\ndev-type tun\n", "dev null\n", text)
        assert count == 1
        file = Path(name) / "client.conf"
        file.write_text(text)
        with (
            _running(["openvpn", "--config", str(file)], Path(name), "Need hold release"),
            socket.socket(socket.AF_UNIX) as stream,
        ):
            stream.connect(str(path))
            yield _Manager(stream)


@contextmanager
def _running(command: list[str], folder: Path, ready: str) -> Iterator[None]:
    log = folder / f"{Path(command[-1]).name}-{time.monotonic_ns()}.log"
    with log.open("wb") as output:
        process = subprocess.Popen(command, cwd=folder, stdout=output, stderr=subprocess.STDOUT)
    deadline = time.monotonic() + PATIENCE
    try:
        while ready not in log.read_text():
            assert process.poll() is None, log.read_text()
            assert time.monotonic() < deadline, log.read_text()
            time.sleep(0.005)
        yield
    finally:
        process.kill()
        process.wait()
