"""What a chain that is up does when something is asked that cannot be done."""

from __future__ import annotations

import errno
import json
import secrets
import subprocess
import sys
import time
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import pytest

from chainctl.lab.clearing import remove
from chainctl.lab.lab import Lab
from chainctl.lab.layout import GATEWAY, LabSpec
from chainctl.lab.wireguard_go import find_wireguard_go
from chainctl.settings import Settings

pytestmark = pytest.mark.root

DISK = 4 << 20
"""Bytes of the disk that the journal is on."""


@pytest.fixture(scope="module")
def lab(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Lab]:
    spec = LabSpec(f"refuse{secrets.token_hex(3)}", hops=1)
    try:
        go = find_wireguard_go(Settings.load().image_dir)
        one = Lab.create(spec, tmp_path_factory.mktemp("refuse") / "chain", wireguard_go=go)
        with small_disk(Settings.load(one.environ).state_dir):
            run(one, "up", str(one.chain_file)).check_returncode()
            yield one
            run(one, "down")
    finally:
        remove(spec.name)


@contextmanager
def small_disk(folder: Path) -> Iterator[None]:
    folder.mkdir(parents=True, exist_ok=True)
    command = ["mount", "-t", "tmpfs", "-o", f"size={DISK}", "tmpfs", str(folder)]
    subprocess.run(command, check=True)
    try:
        yield
    finally:
        subprocess.run(["umount", "-l", str(folder)], check=True)


@contextmanager
def full(folder: Path) -> Iterator[None]:
    ballast = folder / "ballast"
    with ballast.open("wb", buffering=0) as file:
        try:
            while True:
                file.write(bytes(4096))
        except OSError as error:
            if error.errno != errno.ENOSPC:
                raise
    try:
        yield
    finally:
        ballast.unlink()


def run(lab: Lab, *words: str) -> subprocess.CompletedProcess[str]:
    return lab.run("host", [sys.executable, "-m", "chainctl", *words], timeout=60)


def status(lab: Lab) -> Any:
    return json.loads(run(lab, "status", "--json").stdout)["chains"][0]


def passes(lab: Lab) -> bool:
    return "source" in lab.ask("client", resolver=str(GATEWAY.ip), timeout=1)["web"]


def test_a_slip_of_the_pen_changes_nothing(lab: Lab) -> None:
    assert passes(lab)
    for _ in range(6):
        assert "C421" in run(lab, "rotate", "gaurd").stderr
    lab.chain_file.with_name("broken.yaml").write_text("chain: 7\n")
    assert run(lab, "up", str(lab.chain_file.with_name("broken.yaml"))).returncode == 2
    facts = status(lab)
    assert (facts["posture"], facts["why_closed"]) == ("open", None)
    assert passes(lab)


def test_close_shuts_although_the_disk_is_full(lab: Lab) -> None:
    assert passes(lab)
    with full(Settings.load(lab.environ).state_dir):
        done = run(lab, "close")
        assert "C512" in done.stderr
        # Longer than the gate lasts without anybody who refreshes it, and then some looks.
        until = time.monotonic() + 3
        while time.monotonic() < until:
            assert not passes(lab)
    run(lab, "close").check_returncode()
    run(lab, "open").check_returncode()
    assert passes(lab)
