"""What many chains cost the supervisor: 200 chains of three hops, and 10 to see what grows.

Everything is real: a lab with a server a hop that has a device for each chain, the chains up one
after the other, 600 wireguard-go in their namespaces, the supervisor as it is. No client sends.
"""

from __future__ import annotations

import functools
import os
import statistics
import subprocess
import sys
import time
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from bench.harness import Result, at_most, row
from bench.labs import CHAINCTL
from chainctl.api import client
from chainctl.lab.clearing import remove
from chainctl.lab.lab import Lab
from chainctl.lab.layout import LabSpec
from chainctl.lab.wireguard_go import find_wireguard_go
from chainctl.settings import Settings

_SIZES = (10, 50, 100, 200)
_SETTLED = 10.0
"""Seconds for what bringing the last chain up has set off."""
_IDLE = 60.0
_SWEEPS = 11
_PATIENCE = 120.0
"""Seconds until all chains are open."""


@dataclass(frozen=True)
class Fleet:
    """What was measured of so many chains."""

    chains: int
    cpu: float
    """Percent of a core, over a minute in which nothing happens."""
    rss: float
    """MiB."""
    sweeps: tuple[float, ...]
    """Seconds until every hop of every chain has answered."""


@row("fleet_sweep", unit="s", target=at_most(1.0))
def fleet_sweep() -> Result:
    """Every hop of 200 chains is asked and answers; the baseline is 10 chains."""
    small, large = _ends()
    return Result(
        statistics.median(large.sweeps), large.sweeps, baseline=statistics.median(small.sweeps)
    )


@row("fleet_idle_cpu", unit="%", target=at_most(5.0))
def fleet_idle_cpu() -> Result:
    """Of a core, by the supervisor of 200 chains that nobody uses; the baseline is 10 chains."""
    small, large = _ends()
    return Result(large.cpu, [fleet.cpu for fleet in fleets()], baseline=small.cpu)


@row("fleet_rss", unit="MiB", target=at_most(150.0))
def fleet_rss() -> Result:
    """What the supervisor of 200 chains holds in memory; the baseline is 10 chains."""
    small, large = _ends()
    return Result(large.rss, [fleet.rss for fleet in fleets()], baseline=small.rss)


def _ends() -> tuple[Fleet, Fleet]:
    return fleets()[0], fleets()[-1]


@functools.cache
def fleets(sizes: tuple[int, ...] = _SIZES) -> tuple[Fleet, ...]:
    """Of these sizes, one after the other with the same supervisor."""
    with _lab(max(sizes)) as lab, _supervisor(lab) as process:
        settings = Settings.load({**os.environ, **lab.environ})
        _wait_until(lambda: client.is_running(settings))
        found, there = [], 0
        for size in sizes:
            for number in range(there + 1, size + 1):
                _up(lab, settings, number)
            found.append(_measure(settings, process.pid, size))
            there = size
            print(found[-1], file=sys.stderr, flush=True)
        client.ask(settings, {"do": "down", "chains": []}, _silent)
        return tuple(found)


def _measure(settings: Settings, pid: int, chains: int) -> Fleet:
    _wait_until(lambda: _open(settings) == chains)
    time.sleep(_SETTLED)
    before, begun = _cpu_seconds(pid), time.monotonic()
    time.sleep(_IDLE)
    cpu = 100 * (_cpu_seconds(pid) - before) / (time.monotonic() - begun)
    rss = _rss(pid)
    sweeps = []
    for _ in range(_SWEEPS):
        begun = time.monotonic()
        client.ask(settings, {"do": "sweep", "chain": ""}, _silent)
        sweeps.append(time.monotonic() - begun)
    found = _open(settings)
    if found != chains:
        raise RuntimeError(f"{chains} chains are up, {found} of them open")
    return Fleet(chains, cpu, rss, tuple(sweeps))


def _open(settings: Settings) -> int:
    chains: list[dict[str, Any]] = client.ask(settings, {"do": "status", "chain": ""}, _silent)
    return sum(chain["posture"] == "open" for chain in chains)


def _up(lab: Lab, settings: Settings, number: int) -> None:
    file = lab.directory / f"f{number}.yaml"
    # The first device's profiles are in the pools of the lab's own chain file.
    hops = "\n".join(
        f"  - {{name: hop{server.plan.hop}, servers: ./devices/{server.name}-{number + 1}.conf}}"
        for server in lab.servers
    )
    file.write_text(
        f"chain: f{number}\n"
        f"lan: {{interface: eth1, address: 172.20.{number}.254/24}}\n"
        f"hops:\n{hops}\n"
    )
    client.ask(settings, {"do": "up", "file": str(file)}, _silent)


@contextmanager
def _lab(chains: int) -> Iterator[Lab]:
    name = f"bfleet{os.getpid()}"[:16]
    try:
        engine = find_wireguard_go(Settings.load().image_dir)
        spec = LabSpec(name, spares=0, devices=chains + 1)
        yield Lab.create(spec, wireguard_go=engine)
    finally:
        remove(name)


@contextmanager
def _supervisor(lab: Lab) -> Iterator[subprocess.Popen[bytes]]:
    log = (lab.home / "log" / "supervisor.log").open("wb")
    with log, lab.popen("host", [CHAINCTL, "serve"], stdout=log, stderr=log) as process:
        try:
            yield process
        finally:
            process.terminate()
            with suppress(subprocess.TimeoutExpired):
                process.wait(30)
            process.kill()


def _cpu_seconds(pid: int) -> float:
    fields = Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()
    return (int(fields[11]) + int(fields[12])) / os.sysconf("SC_CLK_TCK")


def _rss(pid: int) -> float:
    pages = int(Path(f"/proc/{pid}/statm").read_text().split()[1])
    return pages * os.sysconf("SC_PAGE_SIZE") / 2**20


def _wait_until(condition: Any) -> None:
    deadline = time.monotonic() + _PATIENCE
    while not condition():
        if time.monotonic() > deadline:
            raise RuntimeError("not within a minute")
        time.sleep(0.1)


def _silent(_step: dict[str, Any]) -> None:
    """Steps are of no interest here."""


if __name__ == "__main__":
    fleets(tuple(int(word) for word in sys.argv[1:]) or _SIZES)
