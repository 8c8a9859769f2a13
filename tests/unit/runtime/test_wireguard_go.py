"""Configurations go in as they should, and come back as the same digest."""

from __future__ import annotations

import base64
import socket
import threading
from collections.abc import Iterator
from contextlib import suppress
from ipaddress import IPv4Address
from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st

from chainctl.errors import ChainctlError, ChangeServer, LookAgain
from chainctl.model.secret import Secret
from chainctl.model.wireguard import WireGuardConfig
from chainctl.runtime.wireguard_go import WireGuardGo, parse_get, parse_udp, render_set

keys = st.binary(min_size=32, max_size=32).map(lambda raw: base64.b64encode(raw).decode())
ports = st.integers(1, 65535)
configs = st.builds(
    WireGuardConfig,
    private_key=keys.map(Secret),
    listen_port=ports,
    peer_public_key=keys,
    preshared=st.none() | keys.map(Secret),
    endpoint=st.ip_addresses(v=4),
    endpoint_port=ports,
    keepalive=st.integers(0, 65535),
)
CONFIG = WireGuardConfig(
    private_key=Secret(base64.b64encode(bytes(range(32))).decode()),
    listen_port=20064,
    peer_public_key=base64.b64encode(bytes([7]) * 32).decode(),
    endpoint=IPv4Address("198.51.100.7"),
    endpoint_port=51820,
    keepalive=25,
)


def as_device(lines: list[str]) -> Iterator[tuple[str, str]]:
    """What a device tells after `set`: keys clamped, its commands left out."""
    for line in lines:
        key, _, value = line.partition("=")
        if key == "private_key":
            raw = bytes.fromhex(value)
            raw = bytes([raw[0] & 248]) + raw[1:31] + bytes([raw[31] & 127 | 64])
            yield key, raw.hex()
        elif key not in ("set", "replace_allowed_ips"):
            yield key, value


@given(configs)
def test_a_device_that_was_configured_has_the_digest_that_was_wanted(
    config: WireGuardConfig,
) -> None:
    assert parse_get(as_device(render_set(config))).status().digest == config.digest


@given(configs, configs)
def test_other_configurations_have_other_digests(
    one: WireGuardConfig, other: WireGuardConfig
) -> None:
    same = list(as_device(render_set(one))) == list(as_device(render_set(other)))
    assert (one.digest == other.digest) == same


def test_peers_that_do_not_belong_are_removed_and_the_right_one_is_kept() -> None:
    lines = render_set(CONFIG, ["07" * 32, "aa" * 32])
    assert lines[3:6] == ["public_key=" + "aa" * 32, "remove=true", "public_key=" + "07" * 32]
    assert lines.count("remove=true") == 1


@pytest.mark.parametrize(
    ("key", "value"),
    [
        ("public_key", "aa" * 32),
        ("allowed_ip", "10.0.0.0/8"),
        ("endpoint", "[2001:db8::1]:51820"),
        ("endpoint", "198.51.100.8:51820"),
        ("preshared_key", "01" * 32),
        ("listen_port", "1"),
        ("persistent_keepalive_interval", "0"),
        ("private_key", "40" * 32),
    ],
)
def test_a_configuration_that_was_tampered_with_has_another_digest(key: str, value: str) -> None:
    told = [(k, value if k == key else v) for k, v in as_device(render_set(CONFIG))]
    assert parse_get(told).status().digest != CONFIG.digest


def test_what_has_a_second_peer_or_range_is_not_ours() -> None:
    told = list(as_device(render_set(CONFIG)))
    for extra in (("public_key", "aa" * 32), ("allowed_ip", "10.0.0.0/8")):
        assert parse_get([*told, extra]).status().digest is None


def test_counters_and_handshake_are_read() -> None:
    told = [
        *as_device(render_set(CONFIG)),
        ("last_handshake_time_sec", "1700000000"),
        ("last_handshake_time_nsec", "500000000"),
        ("rx_bytes", "12"),
        ("tx_bytes", "34"),
    ]
    status = parse_get(told).status()
    assert status.handshake == 1700000000.5
    assert (status.received, status.sent) == (12, 34)
    assert status.endpoint == (CONFIG.endpoint, 51820)
    assert parse_get(as_device(render_set(CONFIG))).status().handshake is None


def test_a_fresh_device_has_no_configuration() -> None:
    status = parse_get([]).status()
    assert (status.digest, status.endpoint, status.listen_port) == (None, None, 0)


UDP = """\
  sl  local_address rem_address   st tx_queue rx_queue tr tm->when retrnsmt   uid  timeout inode
  221: 0100000A:0035 00000000:0000 07 00000000:00000000 00:00000000 00000000   101        0 19053 2
  358: 00000000:4E60 00000000:0000 07 00000000:00000000 00:00000000 00000000 70033        0 19052 2
"""


def test_the_port_it_is_bound_to_is_found_by_its_user() -> None:
    assert parse_udp(UDP, 70033) == 20064
    assert parse_udp(UDP, 1) == 0
    assert parse_udp(UDP + UDP.splitlines()[2] + "\n", 70033) == 0


def test_keys_are_not_printed() -> None:
    reading = parse_get(as_device(render_set(CONFIG)))
    shown = f"{CONFIG!r} {reading!r} {reading.status()!r}"
    for key in (CONFIG.private_key.reveal(), reading.private_key):
        assert key not in shown


def answering(path: Path, answer: bytes) -> threading.Thread:
    """A device that says `answer` once and hangs up."""
    door = socket.socket(socket.AF_UNIX)
    door.bind(str(path))
    door.listen()

    def serve() -> None:
        with door, door.accept()[0] as connection:
            connection.recv(4096)
            with suppress(BrokenPipeError, ConnectionResetError):
                connection.sendall(answer)

    thread = threading.Thread(target=serve)
    thread.start()
    return thread


def raised_by(folder: Path, answer: bytes, kind: type[ChainctlError]) -> ChainctlError:
    """What reading a device raises that answers so."""
    thread = answering(folder / "tun.sock", answer)
    with pytest.raises(kind) as caught:
        WireGuardGo(folder / "tun.sock").read()
    thread.join()
    return caught.value


def test_a_refusal_is_told_without_what_else_was_said(tmp_path: Path) -> None:
    refused = raised_by(tmp_path, b"private_key=5ec2e7\nerrno=-22\n\n", ChangeServer)
    assert "errno -22" in str(refused)
    assert refused.code == "C551"
    assert "5ec2e7" not in str(refused)


@pytest.mark.parametrize("answer", [b"", b"errno=0\n"])
def test_a_device_that_hangs_up_may_answer_later(tmp_path: Path, answer: bytes) -> None:
    assert raised_by(tmp_path, answer, LookAgain).code == "C550"


@pytest.mark.parametrize(
    "answer",
    [
        b"private_key=5ec2e7g\nerrno=0\n\n",
        b"public_key=\nrx_bytes=" + b"9" * 5000 + b"\nerrno=0\n\n",
        "listen_port=²\nerrno=0\n\n".encode(),
        b"public_key=\nlast_handshake_time_sec=" + b"9" * 400 + b"\nerrno=0\n\n",
        b"\xff\nerrno=0\n\n",
        b"rx_bytes=1\n" * 200_000,
    ],
    ids=["a key", "digits", "a superscript", "a time", "bytes", "no end"],
)
def test_a_device_that_makes_no_sense_may_do_so_later(tmp_path: Path, answer: bytes) -> None:
    refused = raised_by(tmp_path, answer, LookAgain)
    assert refused.code == "C550"
    assert "5ec2e7" not in str(refused)


def test_no_device_is_the_same(tmp_path: Path) -> None:
    with pytest.raises(LookAgain):
        WireGuardGo(tmp_path / "tun.sock").read()


def test_the_path_of_a_socket_may_be_long(tmp_path: Path) -> None:
    folder = tmp_path / ("x" * 120)
    folder.mkdir()
    with pytest.raises(LookAgain, match="No such file"):
        WireGuardGo(folder / "tun.sock").read()
