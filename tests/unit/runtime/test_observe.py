"""Which clients and containers are whose: a name begins one, and is no pattern."""

from __future__ import annotations

from pathlib import Path

import pytest

from chainctl.runtime.docker import DockerClients
from chainctl.runtime.runc import Clients
from chainctl.settings import Settings

_CLIENTS = ["away.guard", "home.guard", "home.middle"]


@pytest.fixture
def settings(tmp_path: Path) -> Settings:
    for folder in ("clients", "docker/clients", "docker/anchors"):
        for name in _CLIENTS:
            (tmp_path / folder / name).mkdir(parents=True)
    return Settings(tmp_path, tmp_path / "state", tmp_path / "images")


@pytest.mark.parametrize(
    ("prefix", "found"),
    [("", _CLIENTS), ("home.", _CLIENTS[1:]), ("*", []), ("?ome.", []), ("/etc/chain.yaml.", [])],
)
def test_only_a_name_is_looked_for(settings: Settings, prefix: str, found: list[str]) -> None:
    docker = DockerClients(settings, lambda digest: pytest.fail(f"packs {digest}"))
    assert docker.anchors(prefix) == found
    assert list(docker.observe(prefix)) == found
    assert list(Clients(settings).observe(prefix)) == found
