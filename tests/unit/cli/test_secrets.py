from __future__ import annotations

import json
import os
import re
import signal
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
from click.testing import CliRunner, Result

from chainctl.cli.main import main
from tests.conftest import Golden
from tests.unit.spec.builders import openvpn_text, profile_text

HERE = Path(__file__).parent
DOCS = HERE.parents[2] / "docs"


def check(*words: str) -> Result:
    return CliRunner().invoke(main, ["secrets", "check", *words])


def facts(*words: str) -> Any:
    return json.loads(check(*words, "--json").output)


@pytest.fixture
def folder(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    monkeypatch.chdir(tmp_path)
    return tmp_path


def test_the_example_of_the_documents(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(HERE / "profiles")
    done = check("es-mad-01.ovpn")
    assert done.exit_code == 0
    shown = f"```\nchainctl secrets check es-mad-01.ovpn\n{done.output}```\n"
    assert shown in (DOCS / "profiles.md").read_text()


def test_a_refused_file(monkeypatch: pytest.MonkeyPatch, golden: Golden) -> None:
    monkeypatch.chdir(HERE / "profiles")
    done = check("hostile.ovpn", "es-mad-01.ovpn")
    assert done.exit_code == 2
    golden(HERE / "golden" / "secrets-check.txt", done.output)


def test_the_fields_are_documented(folder: Path) -> None:
    (folder / "ch-zrh-01.ovpn").write_text(openvpn_text())
    (folder / "bad.conf").write_text(profile_text(interface="PostUp = x"))
    printed = facts("ch-zrh-01.ovpn", "bad.conf")
    section = (DOCS / "json.md").read_text().partition("## `secrets check`\n")[2]
    rows = re.findall(r"^\| `([^`]+)` \|", section.partition("\n## ")[0], re.M)
    assert set(rows) == {path for path in _paths(printed) if not path.startswith("error.")}


def _paths(value: Any, path: str = "") -> Iterator[str]:
    if isinstance(value, dict):
        for key, inside in value.items():
            yield from _paths(inside, f"{path}.{key}" if path else key)
    elif isinstance(value, list):
        for inside in value:
            yield from _paths(inside, f"{path}[]")
    else:
        yield path


def test_code_line_and_candidates(folder: Path) -> None:
    (folder / "a.ovpn").write_text(openvpn_text(more="up /bin/touch"))
    remotes = "remote 192.0.2.1\nremote 192.0.2.2 443 tcp"
    (folder / "b.ovpn").write_text(openvpn_text(remote=remotes))
    printed = facts("a.ovpn", "b.ovpn")
    first, second = printed["files"]
    (line,) = [line for line in first["lines"] if line["verdict"] == "refused"]
    assert (line["line"], line["code"], line["class"]) == (6, "C221", "E_CFG_EXEC")
    assert first["candidates"] == []
    assert [(each["endpoint"], each["protocol"]) for each in second["candidates"]] == [
        ("192.0.2.1:1194", "udp"),
        ("192.0.2.2:443", "tcp"),
    ]
    (complaint,) = printed["error"]["complaints"]
    assert (complaint["file"], complaint["line"], complaint["code"]) == ("a.ovpn", 6, "C221")
    assert "error" not in facts("b.ovpn")


def test_a_profile_of_wireguard(folder: Path) -> None:
    (folder / "se.conf").write_text(profile_text(interface="Table = off"))
    (found,) = facts("se.conf")["files"]
    assert (found["kind"], found["usable"]) == ("wireguard", True)
    verdicts = {line["word"]: line["verdict"] for line in found["lines"]}
    assert verdicts["Table"] == "dropped"
    assert verdicts["PrivateKey"] == verdicts["Endpoint"] == "used"


@pytest.mark.parametrize(
    ("login", "expected"), [("", "missing"), ("me\nsesame\n", "file"), ("sesame\n", "file")]
)
def test_where_the_login_is(folder: Path, login: str, expected: str) -> None:
    (folder / "a.ovpn").write_text(openvpn_text())
    if login:
        (folder / "auth.txt").write_text(login)
    (found,) = facts("a.ovpn")["files"]
    assert found["login"] == expected
    assert found["usable"] is (login != "sesame\n")
    assert "sesame" not in check("a.ovpn").output


@pytest.mark.parametrize(("text", "status"), [("me\nsesame\n", 0), ("me\n", 2)])
def test_a_login_beside_profiles(folder: Path, text: str, status: int) -> None:
    (folder / "auth.txt").write_text(text)
    done = check("auth.txt")
    assert done.exit_code == status
    assert done.output.startswith("auth.txt: username and password, ")
    assert "sesame" not in done.output


@pytest.fixture
def _no_hanging() -> Iterator[None]:
    signal.alarm(60)
    yield
    signal.alarm(0)


@pytest.mark.usefixtures("_no_hanging")
@pytest.mark.parametrize(
    "kind", ["missing", "directory", "fifo", "empty", "junk", "long-line", "large", "name"]
)
@pytest.mark.parametrize("ending", ["conf", "ovpn"])
def test_what_is_no_profile(folder: Path, kind: str, ending: str) -> None:
    path = folder / f"x.{ending}"
    match kind:
        case "directory":
            path.mkdir()
        case "fifo":
            os.mkfifo(path)
        case "empty":
            path.touch()
        case "junk":
            path.write_bytes(bytes(range(256)) * 200)
        case "long-line":
            path.write_bytes(b"up " + b"x" * 60_000)
        case "large":
            path.write_bytes(b"#" * 10_000_000)
        case "name":
            path = folder / os.fsdecode(b"\xff\n.conf")
            path.write_text(openvpn_text())
    done = check(str(path))
    assert done.exit_code == 2, done.output
    assert "REFUSED" in done.output
    assert isinstance(done.exception, SystemExit)
    assert len(done.output) < 30_000
    assert json.loads(check(str(path), "--json").output)["error"]["exit_status"] == 2


def test_no_file_that_is_named_is_opened(folder: Path) -> None:
    """A FIFO that nobody writes to would hold up whoever opens it."""
    os.mkfifo(folder / "bait")
    names = "ca cert key tls-auth tls-crypt extra-certs crl-verify pkcs12 auth-user-pass config"
    for name in names.split():
        (folder / "a.ovpn").write_text(openvpn_text(more=f"{name} {folder / 'bait'}"))
        (found,) = facts("a.ovpn")["files"]
        refused = {line["class"] for line in found["lines"] if line["verdict"] == "refused"}
        assert refused == {"E_CFG_PATH"}, name
