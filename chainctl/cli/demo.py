"""`demo`: a lab, a three-hop chain in it, what the chain does, and everything gone again."""

from __future__ import annotations

import fcntl
import json
import os
import secrets
import shutil
import signal
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import click

from chainctl.errors import LookAgain, MendFile
from chainctl.lab.lab import Lab, Server
from chainctl.lab.layout import GATEWAY, TARGET, LabSpec
from chainctl.lab.making import PROGRAMS
from chainctl.lab.wireguard_go import find_wireguard_go
from chainctl.settings import Settings

_PREFIX = "chainctl-demo-"
"""Of the folder for the chain file and the profiles, which is what marks a demo's lab."""
_PATIENCE = 30.0
_ANSWER = 10.0
"""Seconds for an answer that is expected; it takes milliseconds, and longer on a slow machine."""
_MARKED = 200
"""Datagrams with a marker that the client sends while the wires are watched."""

_SEND = """
import socket, sys, time
marker, count = bytes.fromhex(sys.argv[1]), int(sys.argv[2])
with socket.socket(socket.AF_INET, socket.SOCK_DGRAM) as sock:
    sock.settimeout(2)
    sock.connect((sys.argv[3], 7))
    answered = 0
    for _ in range(count):
        sock.send(marker)
        try:
            answered += marker in sock.recv(2048)
        except OSError:
            pass
print(answered)
"""


@click.command()
@click.option("--name", default="demo", show_default=True, help="Of the lab and the chain.")
def demo(name: str) -> None:
    """Show a three-hop chain at work in a small fake internet; leaves nothing behind."""
    begun = time.monotonic()
    settings = Settings.load()
    _take_away_what_was_left(name)
    with tempfile.TemporaryDirectory(prefix=_PREFIX) as folder, _held(Path(folder)):
        _say("A small internet in network namespaces: three VPN servers, two spares, a web site")
        spec = LabSpec(name)
        go = find_wireguard_go(settings.image_dir)
        with Lab.create(spec, Path(folder) / name, wireguard_go=go) as lab:
            _show(lab)
    _say(f"Everything is gone again. It took {time.monotonic() - begun:.0f} s.")


def _take_away_what_was_left(name: str) -> None:
    """Of a demo that was killed. Another lab of the name, or one that is being shown, stays."""
    try:
        left = Lab.load(name)
    except MendFile:
        return
    folder = left.directory.parent
    if folder.name.startswith(_PREFIX) and not _is_held(folder):
        _say("Taking away what a demo has left that was killed")
        left.down()
        shutil.rmtree(folder, ignore_errors=True)


@contextmanager
def _held(folder: Path) -> Iterator[None]:
    """Locked until this process ends, however it ends."""
    fd = os.open(folder, os.O_RDONLY | os.O_DIRECTORY | os.O_CLOEXEC)
    try:
        fcntl.flock(fd, fcntl.LOCK_EX | fcntl.LOCK_NB)
        yield
    finally:
        os.close(fd)


def _is_held(folder: Path) -> bool:
    try:
        with _held(folder):
            return False
    except BlockingIOError:
        return True
    except FileNotFoundError:
        return False


def _show(lab: Lab) -> None:
    site = TARGET.ip
    click.echo(lab.chain_file.read_text())
    _say("Without the chain: the host itself is seen with its own address; the device has no way")
    _ask(lab, "host", resolver=str(site))
    _ask(lab, "client", expect_silence=True)

    _say("chainctl up")
    _chainctl(lab, "up", str(lab.chain_file))
    try:
        _say("The device behind the chain: the site sees the last server")
        _ask(lab, "client")
        _say(f"What each wire carries while the device sends {_MARKED} marked datagrams")
        _show_wires(lab)
        _say("The second server dies: another one of its pool takes over")
        before = _server_of(lab, "middle")
        _labelled(lab)[before].kill()
        _wait_until(lambda: _server_of(lab, "middle") != before, "another server")
        _chainctl(lab, "explain")
        _ask(lab, "client")
        _say("The guard is replaced by hand while the device goes on")
        _chainctl(lab, "rotate", "guard")
        _ask(lab, "client")
        _say("The supervisor is killed: the kernel shuts the gate by itself within 4 seconds")
        _kill_supervisor(lab)
        _wait_for_silence(lab)
        _chainctl(lab, "status", allowed=(0, 1))
        _say("chainctl up again: nothing is rebuilt that was whole")
        _chainctl(lab, "up", str(lab.chain_file))
        _ask(lab, "client")
    finally:
        _say("chainctl down")
        _chainctl(lab, "down")
    _ask(lab, "client", expect_silence=True)


def _labelled(lab: Lab) -> dict[str, Server]:
    """By the name that its provider gives it."""
    return {server.plan.label: server for server in lab.servers}


def _show_wires(lab: Lab) -> None:
    """Captures in the namespaces of the servers and of the site, never of the chain."""
    marker = secrets.token_bytes(16)
    servers = [_labelled(lab)[name] for name in _servers(lab).values()]
    places = [*(server.plan.name for server in servers), "target"]
    with _taps(lab, places, marker) as taps:
        argv = [sys.executable, "-I", "-c", _SEND, marker.hex(), str(_MARKED), str(TARGET.ip)]
        answered = int(lab.run("client", argv, timeout=60).stdout or 0)
    click.echo(f"{answered} of {_MARKED} answered.")
    for place, facts in zip(places, taps, strict=True):
        label = "the site" if place == "target" else place
        clear = facts["marker"]
        verdict = "marker never seen" if not clear else f"marker seen in {clear} frames"
        click.echo(f"  at {label}: {verdict}")
        flows = sorted(facts["flows"].items(), key=lambda pair: -pair[1])
        for flow, packets in flows:
            click.echo(f"      {packets:>6} x  {flow}")


@contextmanager
def _taps(lab: Lab, places: list[str], marker: bytes) -> Iterator[list[dict[str, Any]]]:
    """Yields a list that is filled, one entry a place, when the block ends."""
    found: list[dict[str, Any]] = []
    argv = [sys.executable, "-I", str(PROGRAMS / "tap.py"), "eth0", marker.hex()]
    taps = [lab.popen(place, argv, stdout=subprocess.PIPE, text=True) for place in places]
    try:
        for tap in taps:
            assert tap.stdout is not None
            tap.stdout.readline()
        yield found
    finally:
        for tap in taps:
            tap.send_signal(signal.SIGTERM)
        found += [json.loads(tap.communicate(timeout=_PATIENCE)[0]) for tap in taps]


def _ask(lab: Lab, where: str, *, resolver: str = "", expect_silence: bool = False) -> None:
    answers = lab.ask(
        where, resolver=resolver or str(GATEWAY.ip), timeout=1 if expect_silence else _ANSWER
    )
    for kind, answer in answers.items():
        seen = answer.get("source")
        click.echo(f"  {where} asks by {kind}: " + (f"seen as {seen}" if seen else "no answer"))
        if bool(seen) == expect_silence:
            raise LookAgain("C620", f"the demo expected {'no' if expect_silence else 'an'} answer")


def _chainctl(lab: Lab, *words: str, allowed: tuple[int, ...] = (0,)) -> None:
    """Run the command as a user on the lab's host would, printing as it prints."""
    sys.stdout.flush()
    process = lab.popen(
        "host", [sys.executable, "-m", "chainctl", *words], stdin=subprocess.DEVNULL
    )
    if process.wait(timeout=60) not in allowed:
        raise LookAgain("C620", f"chainctl {words[0]} ended with status {process.returncode}")


def _server_of(lab: Lab, hop: str) -> str:
    return _servers(lab)[hop]


def _servers(lab: Lab) -> dict[str, str]:
    """By hop, guard first, who serves it."""
    argv = [sys.executable, "-m", "chainctl", "status", "--json"]
    (chain,) = json.loads(lab.run("host", argv, timeout=30).stdout)["chains"]
    return {str(entry["hop"]): str(entry["server"]) for entry in chain["hops"]}


def _wait_until(reached: Callable[[], bool], what: str) -> None:
    begun = time.monotonic()
    while not reached():
        if time.monotonic() - begun > _PATIENCE:
            raise LookAgain("C620", f"the demo waited for {what} in vain")
    click.echo(f"  {what} after {time.monotonic() - begun:.1f} s")


def _wait_for_silence(lab: Lab) -> None:
    begun, last = time.monotonic(), 0.0
    while "source" in lab.ask("client", resolver=str(GATEWAY.ip), timeout=0.5)["web"]:
        last = time.monotonic() - begun
        if last > _PATIENCE:
            raise LookAgain("C620", "the gate did not shut by itself")
    click.echo(f"  last answer after {last:.1f} s")


def _kill_supervisor(lab: Lab) -> None:
    pid = int((Path(lab.environ["CHAINCTL_RUN_DIR"]) / "supervisor.pid").read_text())
    os.kill(pid, signal.SIGKILL)


def _say(text: str) -> None:
    click.echo()
    click.echo(click.style(f"== {text}", bold=True))
