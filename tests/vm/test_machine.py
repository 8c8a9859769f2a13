"""That the test machine has what the other tests marked `vm` come here for."""

from __future__ import annotations

import platform
import subprocess
from pathlib import Path

import pytest

pytestmark = pytest.mark.vm


def test_it_runs_another_kernel_with_cgroup_v2() -> None:
    assert platform.release().startswith("6.1.")
    assert "memory" in Path("/sys/fs/cgroup/cgroup.controllers").read_text().split()


def test_it_has_kernel_wireguard_and_netem() -> None:
    for command in (
        "ip link add chainctl-vm type wireguard",
        "tc qdisc add dev chainctl-vm root netem delay 40ms",
        "ip link delete chainctl-vm",
    ):
        subprocess.run(command.split(), check=True)


def test_it_has_no_way_to_this_hosts_network() -> None:
    assert sorted(link.name for link in Path("/sys/class/net").iterdir()) == ["lo"]


def test_what_it_writes_stays_in_its_memory() -> None:
    root = next(
        line for line in Path("/proc/mounts").read_text().splitlines() if line.split()[1] == "/"
    )
    assert root.split()[2] == "overlay"
