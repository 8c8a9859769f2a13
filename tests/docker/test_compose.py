"""The compose files: what they ask for, and the lab of theirs at work."""

from __future__ import annotations

import contextlib
import errno
import json
import os
import re
import resource
import subprocess
import sys
from collections.abc import Iterator
from functools import partial
from pathlib import Path
from typing import Any

import pytest

from chainctl import __version__
from chainctl.images.image import ensure_image, pack_image
from chainctl.images.lock import ImageKind
from chainctl.settings import Settings
from tests.docker.daemon import TestDaemon
from tests.trixie import program
from tests.waiting import wait_until

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
        assert "no-new-privileges:true" in service["security_opt"], name
        assert not service.get("privileged"), name
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
    names = ("device", "server1", "server2", "server3", "target")
    assert {f"chainctl-lab-{name}-1" for name in names} <= set(daemon.containers())


def test_a_device_reaches_what_lies_behind_the_servers(
    lab: Path, daemon: TestDaemon, tmp_path: Path
) -> None:
    own = {f"CHAINCTL_{name}_DIR": str(tmp_path / name.lower()) for name in ("RUN", "STATE")}
    inside = ["nsenter", f"--net={daemon.netns}", sys.executable, "-m", "chainctl"]

    def chainctl(*words: str) -> None:
        done = subprocess.run(
            [*inside, *words], env={**os.environ, **own}, capture_output=True, text=True
        )
        assert done.returncode == 0, done.stdout + done.stderr

    assert not reaches(daemon, TARGET)
    chainctl("up", str(lab / "chain.yaml"))
    try:
        wait_for(lambda: reaches(daemon, TARGET))
    finally:
        chainctl("down")
    assert not reaches(daemon, TARGET)


@pytest.mark.timeout(300)
def test_the_supervisor_works_in_the_container_of_the_file(
    lab: Path, daemon: TestDaemon, path: str, shared: Path, tmp_path: Path
) -> None:
    """With the rights, mounts and namespaces it has there; its programs are this machine's."""
    here = tmp_path / "here.json"
    here.write_text(
        json.dumps({"services": {"supervisor": as_on_this_machine(lab, daemon, shared)}})
    )
    files = ["--file", str(COMPOSE / "compose.yaml"), "--file", str(here)]
    env = {**os.environ, "PATH": path, "DOCKER_HOST": f"unix://{daemon.socket}"}

    def compose(*words: str) -> subprocess.CompletedProcess[str]:
        command = ["docker-compose", *files, "--profile", "supervisor", *words]
        return subprocess.run(command, env=env, capture_output=True, text=True, timeout=60)

    def chainctl(*words: str) -> str:
        done = compose("exec", "--no-TTY", "supervisor", "chainctl", *words)
        assert done.returncode == 0, done.stdout + done.stderr
        return done.stdout

    try:
        # Compose waits until the health check is content.
        started = compose("up", "--detach", "--wait", "supervisor")
        assert started.returncode == 0, started.stderr
        chainctl("up", "/etc/chainctl/chain.yaml")
        wait_for(lambda: reaches(daemon, TARGET))
        # Nobody else holds the gate, and the next one finds everything where it was.
        compose("kill", "supervisor")
        wait_for(lambda: not reaches(daemon, TARGET))
        assert compose("up", "--detach", "--wait", "supervisor").returncode == 0
        wait_for(lambda: reaches(daemon, TARGET))
        chainctl("down")
        assert not reaches(daemon, TARGET)
    finally:
        with contextlib.suppress(subprocess.TimeoutExpired):
            compose("exec", "--no-TTY", "supervisor", "chainctl", "down")
        compose("down", "--volumes")


TARGET = "203.0.113.210"


def reaches(daemon: TestDaemon, address: str) -> bool:
    """Whether the host with `address` answers the device; nobody is on that port there."""
    with daemon.api() as api:
        pid = api.inspect_container("chainctl-lab-device-1")["State"]["Pid"]
    code = "import socket, sys; print(socket.socket().connect_ex((sys.argv[1], 9)))"
    knock = ["timeout", "2", sys.executable, "-c", code, address]
    done = subprocess.run(
        ["nsenter", f"--net=/proc/{pid}/ns/net", *knock], capture_output=True, text=True
    )
    return done.stdout.strip() == str(errno.ECONNREFUSED)


wait_for = partial(wait_until, seconds=60)


@pytest.fixture
def shared(tmp_path: Path) -> Iterator[Path]:
    """A folder whose mounts are seen outside of a container, as /run is under systemd."""
    folder = tmp_path / "run"
    folder.mkdir()
    subprocess.run(["mount", "--bind", folder, folder], check=True)
    subprocess.run(["mount", "--make-shared", folder], check=True)
    yield folder
    subprocess.run(["umount", "--recursive", folder], check=True)


def as_on_this_machine(lab: Path, daemon: TestDaemon, shared: Path) -> dict[str, Any]:
    """An empty image, with this machine's programs and this checkout bound into it."""
    state = shared.with_name("state")
    state.mkdir()
    images = Settings.load().image_dir
    programs = {"/usr", "/etc/ld.so.cache", str(COMPOSE.parent), sys.prefix, sys.base_prefix}
    volumes: list[dict[str, Any]] = [
        {"type": "bind", "source": place, "target": place, "read_only": True}
        for place in sorted(programs)
        if place == "/usr" or not place.startswith("/usr/")
    ]
    shared_with = {"bind": {"propagation": "rshared"}}
    for source, target, more in (
        (shared, "/run/chainctl", shared_with),
        (state, "/var/lib/chainctl", {}),
        (images, "/var/lib/chainctl/images", {"read_only": True}),
        (lab, "/etc/chainctl", {"read_only": True}),
        (daemon.socket, "/var/run/docker.sock", {}),
    ):
        volumes.append({"type": "bind", "source": str(source), "target": target, **more})
    pause = pack_image(ensure_image(ImageKind.PAUSE, Settings.load()))
    return {
        "image": pause.reference,
        "user": "0:0",
        "entrypoint": [f"{sys.prefix}/bin/chainctl"],
        "environment": {"PATH": f"{sys.prefix}/bin:/usr/sbin:/usr/bin"},
        # As much as this machine lets anybody have.
        "ulimits": {"memlock": resource.getrlimit(resource.RLIMIT_MEMLOCK)[1]},
        "volumes": volumes,
        "healthcheck": {"interval": "1s"},
    }
