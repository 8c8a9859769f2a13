"""The compose files: what they ask for, and the lab of theirs at work."""

from __future__ import annotations

import json
import os
import re
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

from chainctl import __version__
from tests.docker.daemon import TestDaemon
from tests.trixie import program

pytestmark = pytest.mark.root

COMPOSE = Path(__file__).parents[2] / "compose"


@pytest.fixture(scope="module")
def path(tmp_path_factory: pytest.TempPathFactory) -> str:
    """A PATH with docker-compose on it."""
    folder = tmp_path_factory.mktemp("bin")
    words = program("docker-compose", "/usr/libexec/docker/cli-plugins/docker-compose")
    script = folder / "docker-compose"
    script.write_text(f'#!/bin/sh\nexec {" ".join(words)} "$@"\n')
    script.chmod(0o755)
    return f"{folder}:{os.environ['PATH']}"


def rendered(path: str, file: Path, **env: str) -> Any:
    """The file as Compose understands it; it has been held to the schema then."""
    done = subprocess.run(
        ["docker-compose", "--file", str(file), "--profile", "*", "config", "--format", "json"],
        env={"PATH": path, **env},
        capture_output=True,
        text=True,
    )
    assert done.returncode == 0, done.stderr
    return json.loads(done.stdout)


@pytest.fixture(scope="module")
def services(path: str) -> dict[str, Any]:
    found: dict[str, Any] = rendered(path, COMPOSE / "compose.yaml")["services"]
    return found


def test_it_has_what_chainctl_works_with(services: dict[str, Any]) -> None:
    assert set(services) == {
        *("openbao", "elasticsearch", "elasticsearch-users", "kibana", "supervisor")
    }
    assert services["supervisor"]["profiles"] == ["supervisor"]


def test_images_are_pinned_by_digest(services: dict[str, Any]) -> None:
    for name, service in services.items():
        if name == "supervisor":
            assert service["image"] == f"chainctl/supervisor:{__version__}"
            assert service["pull_policy"] == "never"
        else:
            assert re.fullmatch(r"[a-z/]+:\d[\d.]+@sha256:[0-9a-f]{64}", service["image"])


def test_nothing_is_open_to_other_machines(services: dict[str, Any]) -> None:
    for service in services.values():
        assert all(port["host_ip"] == "127.0.0.1" for port in service.get("ports", ()))
        assert service.get("network_mode") in (None, "host")
    # The supervisor listens on a unix socket alone.
    assert [n for n, s in services.items() if s.get("network_mode")] == ["supervisor"]


def test_every_service_is_bounded_and_watched(services: dict[str, Any]) -> None:
    for name, service in services.items():
        assert int(service["mem_limit"]) <= 2**31, name
        assert service["pids_limit"], name
        assert service["logging"]["options"]["max-size"], name
        assert service["security_opt"] == ["no-new-privileges:true"], name
        if name != "elasticsearch-users":
            assert service["healthcheck"]["test"], name
            assert service["restart"] == "unless-stopped", name


def test_no_password_is_in_the_file(services: dict[str, Any]) -> None:
    for service in services.values():
        for key, value in (service.get("environment") or {}).items():
            if re.search(r"(?i)passw|secret|token|key", key):
                assert str(value).startswith("/run/secrets/"), key
    # Nor where a command would show it.
    said = json.dumps([[s.get("command"), s.get("healthcheck")] for s in services.values()])
    assert "--user" not in said
    assert "elastic:$$" not in said


def test_passwords_are_made_once_and_are_all_that_is_named(tmp_path: Path, path: str) -> None:
    for name in ("passwords.sh", "compose.yaml", "openbao.hcl"):
        (tmp_path / name).write_bytes((COMPOSE / name).read_bytes())
    made = []
    for _ in range(2):
        subprocess.run(["bash", str(tmp_path / "passwords.sh")], check=True, capture_output=True)
        made.append({p.name: p.read_text() for p in (tmp_path / "secrets").iterdir()})
    assert made[0] == made[1]
    assert len(set(made[0].values())) == len(made[0])
    assert made[0]["kibana"] in made[0]["kibana.yml"]
    for file in (tmp_path / "secrets").iterdir():
        assert (file.stat().st_mode & 0o777, file.stat().st_uid) == (0o400, 1000)
    wanted = rendered(path, tmp_path / "compose.yaml")["secrets"].values()
    assert {Path(s["file"]).name for s in wanted} == set(made[0])


# The lab.


@pytest.fixture(scope="module")
def lab(daemon: TestDaemon, path: str, tmp_path_factory: pytest.TempPathFactory) -> Iterator[Path]:
    folder = tmp_path_factory.mktemp("compose-lab") / "lab"
    env = {
        **os.environ,
        "PATH": path,
        "DOCKER_HOST": f"unix://{daemon.socket}",
        "CHAINCTL_DOCKER_SOCKET": str(daemon.socket),
    }

    def do(word: str) -> None:
        command = [sys.executable, str(COMPOSE / "lab/lab.py"), word, str(folder)]
        done = subprocess.run(command, env=env, capture_output=True, text=True)
        assert done.returncode == 0, done.stderr + done.stdout

    do("up")
    do("up")
    yield folder
    do("down")
    assert daemon.containers() == []
    assert not folder.exists()


def test_the_lab_starts(lab: Path, daemon: TestDaemon) -> None:
    assert sorted(daemon.containers()) == [
        f"chainctl-lab-{name}-1" for name in ("device", "server1", "server2", "server3", "target")
    ]
