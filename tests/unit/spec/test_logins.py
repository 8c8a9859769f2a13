from __future__ import annotations

from pathlib import Path

import pytest

from chainctl.errors import MendFile
from chainctl.spec.chain_file import parse_chain_file
from chainctl.spec.forms import Account
from chainctl.spec.logins import check_logins, load_login
from chainctl.spec.model import ChainSpec, OpenVpnServer
from chainctl.spec.pool import load_pool
from chainctl.spec.profile_file import is_openvpn, load_profiles
from tests.unit.spec.builders import chain_text, openvpn_text, outcome, profile_text


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    path = tmp_path / "profiles"
    path.mkdir()
    (path / "a.ovpn").write_text(openvpn_text(remote="remote 192.0.2.1\nremote 192.0.2.2"))
    (path / "b.conf").write_text(profile_text(endpoint="192.0.2.3:51820"))
    (path / "c.conf").write_text(openvpn_text(remote="remote 192.0.2.4"))
    return path


def _spec(folder: Path) -> ChainSpec:
    return parse_chain_file(chain_text(servers="./profiles/*"), folder.parent / "chain.yaml")


def _login(folder: Path, name: str, text: str = "me\nsesame\n", mode: int = 0o600) -> None:
    (folder / name).write_text(text)
    (folder / name).chmod(mode)


def _usernames(spec: ChainSpec) -> dict[str, str]:
    return {
        server.name: server.profile.credentials.username.reveal()
        for server in spec.profiles
        if isinstance(server, OpenVpnServer) and server.profile.credentials
    }


def test_a_pool_mixes_both_kinds(folder: Path) -> None:
    _login(folder, "auth.txt")
    spec = _spec(folder)
    assert [server.name for server in spec.hops[0].pool] == ["a#1", "a#2", "b", "c"]
    assert list(check_logins(spec)) == []


def test_the_profiles_own_login_comes_first(folder: Path) -> None:
    _login(folder, "auth.txt", "all\nsesame")
    _login(folder, "c.auth", "own\nsesame")
    assert _usernames(_spec(folder)) == {"a#1": "all", "a#2": "all", "c": "own"}


def test_a_login_that_is_missing_is_said_once_a_hop(folder: Path) -> None:
    (complaint,) = check_logins(_spec(folder))
    assert complaint.code == "C231"
    assert "hop hop1: `a#1` (and 2 more) asks for username and password" in complaint.message


def test_a_login_others_can_read(folder: Path) -> None:
    _login(folder, "auth.txt", mode=0o644)
    codes = [notice.code for notice in _spec(folder).notices]
    assert codes.count("N112") == 2, "once a profile"


@pytest.mark.parametrize(
    "text",
    ["", "me", "me\n\n", "\nsesame", "me\nsesame\nmore", "me\n" + "s" * 128, "me\nse\x07same"],
)
def test_what_is_no_login(folder: Path, text: str) -> None:
    _login(folder, "auth.txt", text)
    with pytest.raises(MendFile) as caught:
        load_login(folder / "auth.txt")
    assert [complaint.code for complaint in caught.value.complaints] == ["C230"]
    assert "same" not in str(caught.value)
    complaints = outcome(lambda: _spec(folder))
    assert isinstance(complaints, tuple)
    assert [each.code for each in complaints] == ["C230"], "two profiles, one login"


def test_a_login_with_a_bom_and_dos_lines(folder: Path) -> None:
    (folder / "auth.txt").write_bytes(b"\xef\xbb\xbfme\r\nsesame\r\n\r\n".removesuffix(b"\r\n"))
    assert load_login(folder / "auth.txt").username.reveal() == "me"


def test_what_kind_a_file_is(folder: Path) -> None:
    for name, openvpn in (("a.ovpn", True), ("b.conf", False), ("c.conf", True)):
        path = folder / name
        assert is_openvpn(path, path.read_bytes()) is openvpn
    assert is_openvpn(folder / "x.ovpn", b"[Interface]")
    assert not is_openvpn(folder / "x.conf", b"remote 192.0.2.1\n[Peer]\n")


def test_complaints_about_both_kinds_come_at_once(folder: Path) -> None:
    (folder / "a.ovpn").write_text(openvpn_text(more="up x\nfrobnicate"))
    (folder / "b.conf").write_text(profile_text(interface="PostUp = x"))
    complaints = outcome(lambda: _spec(folder))
    assert isinstance(complaints, tuple)
    found = [(Path(each.file).name, each.line, each.code) for each in complaints]
    assert found == [("a.ovpn", 6, "C221"), ("a.ovpn", 7, "C225"), ("b.conf", 5, "C203")]


def test_an_account_is_one_of_wireguard(folder: Path) -> None:
    (folder / "list.csv").write_text("name,endpoint,public_key\n")
    pool = load_pool([Account("a.ovpn", "list.csv")], folder)
    words = "`a.ovpn` is an OpenVPN profile; a list needs one of WireGuard"
    assert pool.flaws == [((0, "account"), words)]


@pytest.mark.parametrize(
    ("names", "meant"), [("ab", "*"), ("a", "*.ovpn"), ("b", "*.conf"), ("", "*.conf")]
)
def test_a_directory_is_no_pattern(folder: Path, names: str, meant: str) -> None:
    for path in folder.iterdir():
        if path.stem not in names:
            path.unlink()
    ((_, words),) = load_pool(["profiles"], folder.parent).flaws
    assert words == f"`profiles` is a directory; did you mean `profiles/{meant}`?"


def test_servers_of_one_file(folder: Path) -> None:
    first, second = load_profiles(folder / "a.ovpn")
    assert isinstance(first, OpenVpnServer)
    assert (first.name, second.name) == ("a#1", "a#2")
