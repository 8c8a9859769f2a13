from __future__ import annotations

import os
import signal
from collections.abc import Iterator
from ipaddress import IPv4Address, IPv4Interface
from pathlib import Path

import pytest
from hypothesis import example, given
from hypothesis import strategies as st

from chainctl.errors import MendFile
from chainctl.spec.model import Endpoint, WireGuardProfile
from chainctl.spec.wireguard_profile import load_wireguard_profile, parse_wireguard_profile
from tests.unit.spec.builders import PRIVATE, PUBLIC, SHARED, key, outcome, profile, profile_text


def test_values() -> None:
    read = profile(
        "se-sto-01",
        address="10.64.0.2/32, fc00::2/128, 10.64.0.3",
        dns="10.64.0.1, 10.64.0.1, lan.example, fc00::1",
        interface="MTU = 1380\nListenPort = 51820\nTable = off",
        peer=f"PresharedKey = {SHARED}\nPersistentKeepalive = 25",
    )
    assert read.name == "se-sto-01"
    assert read.private_key.reveal() == PRIVATE
    assert read.addresses == (IPv4Interface("10.64.0.2/32"), IPv4Interface("10.64.0.3/32"))
    assert read.dns == (IPv4Address("10.64.0.1"),)
    assert read.mtu == 1380
    assert read.peer_public_key == PUBLIC
    assert read.preshared is not None
    assert read.preshared.reveal() == SHARED
    assert read.endpoint == Endpoint(IPv4Address("192.0.2.10"), 51820)
    assert read.keepalive == 25
    assert [str(notice) for notice in read.notices] == [
        "[N103] se-sto-01.conf:4:7 the search domain `lan.example` is not used",
        "[N105] se-sto-01.conf:6:1 ListenPort is not used: "
        "each tunnel gets a source port of its own",
        "[N105] se-sto-01.conf:7:1 Table is not used: chainctl makes the routes",
        "[N101] se-sto-01.conf:3:11 IPv6 is not used (fc00::2, fc00::1): chains carry IPv4 only",
    ]


def test_no_key_is_shown() -> None:
    shown = repr(profile(peer=f"PresharedKey = {SHARED}"))
    assert PRIVATE not in shown
    assert SHARED not in shown


@pytest.mark.parametrize(
    "text",
    [
        profile_text().replace("\n", "\r\n"),
        "\ufeff" + profile_text(),
        profile_text().upper().replace(PRIVATE.upper(), PRIVATE).replace(PUBLIC.upper(), PUBLIC),
        profile_text().replace(" = ", "=\t").replace("\n", "  # Zürich \x00\n"),
        "\n\n# Höhe\n\n" + profile_text().replace("[", "\t["),
        "#! PostUp = rm -rf /\n" + profile_text() + "#! [Peer]\n#! PublicKey = x\n",
        profile_text().rstrip("\n"),
        profile_text(peer="AllowedIPs = 10.0.0.0/8"),
    ],
    ids=["crlf", "bom", "upper", "tabs", "blank-lines", "disabled", "no-newline", "twice"],
)
def test_spellings_of_the_same_profile(text: str, tmp_path: Path) -> None:
    path = tmp_path / "server.conf"
    path.write_text(text, newline="")
    read = load_wireguard_profile(path)
    expected = profile()
    assert read.notices == ()
    assert {**vars(read), "file": None, "notices": ()} == {**vars(expected), "file": None}


def test_comments_may_be_in_any_encoding(tmp_path: Path) -> None:
    path = tmp_path / "server.conf"
    path.write_bytes("# Zürich\n".encode("latin-1") + profile_text().encode())
    assert load_wireguard_profile(path).endpoint.port == 51820


def test_everything_in_parts() -> None:
    text = profile_text().replace("0.0.0.0/0", "0.0.0.0/1, 128.0.0.0/1")
    read = parse_wireguard_profile(text, Path("x.conf"))
    assert [notice.code for notice in read.notices] == ["N102"]


def test_names_of_servers() -> None:
    assert profile(endpoint="SE-1.Example.NET.:443").endpoint == Endpoint("se-1.example.net", 443)


@pytest.mark.parametrize(
    ("parts", "expected"),
    [
        ({"peer": "PersistentKeepalive = off"}, None),
        ({"peer": "PersistentKeepalive = 0"}, None),
        ({"peer": "PersistentKeepalive = 00021"}, 21),
    ],
)
def test_keepalive(parts: dict[str, str], expected: int | None) -> None:
    assert profile(**parts).keepalive == expected


def test_a_preshared_key_of_zeros_is_none() -> None:
    assert profile(peer=f"PresharedKey = {'A' * 43}=").preshared is None


@pytest.fixture
def _no_hanging() -> Iterator[None]:
    """Opening a FIFO must not wait for a writer."""
    signal.alarm(10)
    yield
    signal.alarm(0)


@pytest.mark.usefixtures("_no_hanging")
@pytest.mark.parametrize("kind", ["missing", "directory", "fifo", "large", "device", "loop"])
def test_what_is_no_profile_file(kind: str, tmp_path: Path) -> None:
    path = tmp_path / "server.conf"
    match kind:
        case "directory":
            path.mkdir()
        case "fifo":
            os.mkfifo(path)
        case "large":
            path.write_bytes(profile_text().encode() + b"#" * 65536)
        case "device":
            path.symlink_to("/dev/zero")
        case "loop":
            path.symlink_to(path)
    with pytest.raises(MendFile) as caught:
        load_wireguard_profile(path)
    assert [complaint.code for complaint in caught.value.complaints] == ["C201"]


_LINES = st.one_of(
    st.sampled_from(profile_text(peer=f"PresharedKey = {SHARED}").splitlines()),
    st.sampled_from(["[Peer]", "[Interface]", "[", "]", "=", "MTU =", "MTU = 1400", "DNS = ²"]),
    st.sampled_from(["PostUp = x", "Address = ,", "AllowedIPs = ::/0", f"PublicKey = {key('x')}"]),
    st.builds("{} = {}".format, st.text(max_size=12), st.text(max_size=50)),
    st.text(max_size=60),
)


@given(st.lists(_LINES, max_size=25).map("\n".join))
@example("[Interface]\nMTU = ²\n[Peer]")
@example("[Interface]\nMTU = " + "1" * 5000 + "\n[Peer]")
def test_any_text_gives_a_profile_or_complaints(text: str) -> None:
    lines = text.count("\n") + 1
    found = outcome(lambda: parse_wireguard_profile(text, Path("x.conf")))
    if isinstance(found, WireGuardProfile):
        assert found.addresses
        assert "postup" not in text.partition("#")[0].lower()
        return
    assert found
    assert all(1 <= complaint.line <= lines for complaint in found)
    assert not [c for c in found if PRIVATE in str(c) or SHARED in str(c)]
    assert all(str(complaint).encode() for complaint in found), "can be printed"


@given(st.binary(max_size=200))
def test_any_bytes_give_a_profile_or_complaints(
    tmp_path_factory: pytest.TempPathFactory, content: bytes
) -> None:
    path = tmp_path_factory.getbasetemp() / "any.conf"
    path.write_bytes(profile_text().encode() + content)
    assert outcome(lambda: load_wireguard_profile(path))
