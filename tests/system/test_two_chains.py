"""Two chains on one machine: each carries its own clients, and one may go without the other."""

from __future__ import annotations

import secrets
import sys
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

from chainctl.lab.lab import Lab
from chainctl.lab.layout import LabSpec
from chainctl.lab.wireguard_go import find_wireguard_go
from chainctl.settings import Settings

pytestmark = pytest.mark.root

FIRST, SECOND = "192.168.10.254", "192.168.10.253"
SECOND_FILE = f"""\
chain: second
lan: {{interface: eth1, address: {SECOND}/24}}
hops:
  - {{name: guard, servers: ./devices/server1-2.conf}}
  - {{name: exit, servers: ./devices/server2-2.conf}}
"""


@pytest.fixture
def lab(tmp_path: Path) -> Iterator[Lab]:
    spec = LabSpec(f"two{secrets.token_hex(3)}")
    go = find_wireguard_go(Settings.load().image_dir)
    with Lab.create(spec, tmp_path / "chain", wireguard_go=go) as one:
        (one.directory / "second.yaml").write_text(SECOND_FILE)
        yield one


def chainctl(lab: Lab, *words: str) -> str:
    done = lab.run("host", [sys.executable, "-m", "chainctl", *words], timeout=60)
    assert done.returncode == 0, (words, done.stdout, done.stderr)
    return done.stdout


def seen_source(lab: Lab, gateway: str) -> Any:
    """The address the target sees when the device uses this gateway; None: no answer."""
    lab.run("client", ["ip", "route", "replace", "default", "via", gateway], timeout=10)
    return lab.ask(resolver=gateway, timeout=1)["web"].get("source")


def wait_for_source(lab: Lab, gateway: str, source: str) -> None:
    deadline = time.monotonic() + 30
    while (seen := seen_source(lab, gateway)) != source:
        assert time.monotonic() < deadline, seen


def forwards(lab: Lab) -> str:
    name = "net.ipv4.conf.eth0.forwarding"
    return lab.run("host", ["sysctl", "-n", name], timeout=10).stdout.strip()


def test_one_goes_without_the_other(lab: Lab) -> None:
    assert forwards(lab) == "0"
    chainctl(lab, "up", str(lab.chain_file))
    chainctl(lab, "up", str(lab.directory / "second.yaml"))
    assert seen_source(lab, FIRST) == "5.3.0.10"
    assert seen_source(lab, SECOND) == "5.2.0.10"
    chainctl(lab, "close", "second")
    assert seen_source(lab, SECOND) is None
    assert seen_source(lab, FIRST) == "5.3.0.10"
    chainctl(lab, "open", "second")
    chainctl(lab, "down", lab.name)
    assert seen_source(lab, FIRST) is None
    # The one that goes takes the uplink's forwarding along; the other one mends it.
    wait_for_source(lab, SECOND, "5.2.0.10")
    chainctl(lab, "down", "second")
    assert forwards(lab) == "0"
