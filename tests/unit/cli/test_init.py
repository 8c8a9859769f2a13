from __future__ import annotations

import json
import shutil
from pathlib import Path

import pytest
from click.testing import CliRunner, Result

from chainctl.cli.main import main
from chainctl.spec.chain_file import load_chain_file
from tests.unit.spec.builders import openvpn_text

PROFILES = Path(__file__).parents[3] / "examples" / "profiles"
LAN = ("--lan", "eth1", "--address", "192.168.10.254/24")


@pytest.fixture
def folder(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    shutil.copytree(PROFILES, tmp_path / "provider files")
    monkeypatch.chdir(tmp_path)
    return tmp_path


def _init(*arguments: str) -> Result:
    return CliRunner().invoke(main, ["init", *arguments])


def _pools(path: str = "chain.yaml") -> list[tuple[str, list[str]]]:
    spec = load_chain_file(Path(path))
    return [(hop.name, [profile.name for profile in hop.pool]) for hop in spec.hops]


def test_a_sub_folder_is_a_hop(folder: Path) -> None:
    done = _init(*LAN, "--servers", "provider files")
    assert done.exit_code == 0, done.output
    assert _pools() == [
        ("guard", ["ch-zrh-01", "ch-zrh-02", "se-sto-01"]),
        ("exit", ["nl-ams-01", "nl-ams-02"]),
    ]
    assert "Next: chainctl doctor chain.yaml" in done.output
    assert "sudo chainctl up chain.yaml" in done.output
    assert "Note [N101] provider files/north/ch-zrh-01.conf:4:11 IPv6" in done.output


def test_one_folder_is_split(folder: Path) -> None:
    done = _init(*LAN, "--servers", "provider files/north", "--hops", "2", "--name", "away")
    assert done.exit_code == 0, done.output
    assert _pools() == [("guard", ["ch-zrh-01", "ch-zrh-02"]), ("exit", ["se-sto-01"])]
    assert load_chain_file(Path("chain.yaml")).name == "away"


def test_both_kinds_of_profiles(folder: Path) -> None:
    north = folder / "provider files" / "north"
    (north / "es-mad-01.ovpn").write_text(openvpn_text())
    done = _init(*LAN, "--servers", "provider files")
    assert done.exit_code == 0, done.output
    assert _pools()[0] == ("guard", ["ch-zrh-01", "ch-zrh-02", "se-sto-01", "es-mad-01"])
    assert "hop guard: `es-mad-01` asks for username and password" in done.output
    (north / "auth.txt").write_text("me\nword\n")
    (north / "auth.txt").chmod(0o600)
    done = _init(*LAN, "--servers", "provider files", "-o", "second.yaml")
    assert "C231" not in done.output


def test_each_servers_option_is_a_hop(folder: Path) -> None:
    north, west = "provider files/north", "provider files/west"
    one, two = f"{north}/se-sto-01.conf", f"{west}/nl-ams-01.conf"
    servers = [word for path in (one, west, two) for word in ("--servers", path)]
    assert _init(*LAN, *servers).exit_code == 0
    assert _pools() == [
        ("guard", ["se-sto-01"]),
        ("middle", ["nl-ams-01", "nl-ams-02"]),
        ("exit", ["nl-ams-01"]),
    ]


def test_paths_are_relative_to_the_file_written(folder: Path) -> None:
    (folder / "etc").mkdir()
    odd = folder / "a [b] \"c\" 'd' ü"
    (folder / "provider files" / "west").rename(odd)
    done = _init(*LAN, "--servers", odd.name, "-o", "etc/away.yaml", "--json")
    assert done.exit_code == 0, done.output
    assert str(folder) not in (folder / "etc" / "away.yaml").read_text()
    assert _pools("etc/away.yaml") == [("guard", ["nl-ams-01"]), ("exit", ["nl-ams-02"])]
    assert json.loads(done.output)["hops"] == [
        {"name": "guard", "servers": 1},
        {"name": "exit", "servers": 1},
    ]


@pytest.mark.parametrize(
    ("arguments", "code"),
    [
        ((*LAN, "--servers", "provider files", "-o", "no/such.yaml"), "C140"),
        (("--lan", "eth1", "--servers", "provider files"), "C141"),
        ((*LAN, "--servers", "provider files/north", "--hops", "4"), "C142"),
        ((*LAN, "--servers", "empty"), "C142"),
        ((*LAN, "--servers", "many"), "C142"),
        (("--lan", "eth1", "--address", "192.168.10.254", "--servers", "provider files"), "C112"),
        (("--lan", "e:1", "--address", "192.168.10.9/24", "--servers", "provider files"), "C111"),
        (("--lan", "eth1", "--address", "198.19.0.1/24", "--servers", "provider files"), "C130"),
        ((*LAN, "--servers", "hooked"), "C203"),
    ],
)
def test_refusals_write_nothing(folder: Path, arguments: tuple[str, ...], code: str) -> None:
    for name in ("empty", "many", "hooked"):
        (folder / name).mkdir()
    north = folder / "provider files" / "north"
    for number in range(5):
        shutil.copy(north / "se-sto-01.conf", folder / "many" / f"{number}.conf")
    profile = (north / "se-sto-01.conf").read_text().replace("DNS", "PostUp = true\nDNS")
    (folder / "hooked" / "x.conf").write_text(profile)
    before = sorted(folder.rglob("*"))
    done = _init(*arguments)
    assert done.exit_code == 2, done.output
    assert f"[{code}]" in done.output
    assert sorted(folder.rglob("*")) == before


def test_a_name_that_yaml_reads_as_something_else(folder: Path) -> None:
    assert _init(*LAN, "--servers", "provider files", "--name", "true").exit_code == 0
    assert load_chain_file(Path("chain.yaml")).name == "true"


def test_never_overwrites(folder: Path) -> None:
    Path("chain.yaml").symlink_to("nowhere")
    done = _init(*LAN, "--servers", "provider files")
    assert done.exit_code == 2
    assert "[C140]" in done.output
    assert not Path("nowhere").exists()
