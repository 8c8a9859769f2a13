"""Chains with OpenVPN hops in labs of their own, and what tests look at in them."""

from __future__ import annotations

import contextlib
import json
import secrets
import socket
import sqlite3
import subprocess
import sys
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from functools import partial
from pathlib import Path
from typing import Any, TypeVar

from chainctl.lab.clearing import remove
from chainctl.lab.lab import Lab, Server
from chainctl.lab.layout import GATEWAY, LabSpec
from chainctl.lab.wireguard_go import find_wireguard_go
from chainctl.settings import Settings
from tests import waiting

T = TypeVar("T")

PATIENCE = 60.0
"""Seconds: a server lets nobody begin another session from the same port for up to 33."""


class OpenVpnLab:
    def __init__(self, lab: Lab) -> None:
        self.lab = lab
        self.run_dir = lab.home / "run"

    def chainctl(self, *words: str) -> subprocess.CompletedProcess[str]:
        return self.lab.run("host", [sys.executable, "-m", "chainctl", *words], timeout=120)

    def up(self) -> None:
        done = self.chainctl("up", str(self.lab.chain_file))
        assert done.returncode == 0, done.stdout + done.stderr

    def down(self) -> None:
        assert self.chainctl("down").returncode == 0

    def use(self, *servers: Server) -> None:
        """Write a chain file that uses these servers' profiles and no others."""
        hops = "".join(
            f"  - {{name: hop{number}, servers: {server.profile}}}\n"
            for number, server in enumerate(servers, start=1)
        )
        head = self.lab.chain_file.read_text().partition("hops:\n")[0]
        self.lab.chain_file.write_text(f"{head}hops:\n{hops}")

    def status(self) -> dict[str, Any]:
        facts: dict[str, Any] = json.loads(self.chainctl("status", "--json").stdout)["chains"][0]
        return facts

    def wait_open(self) -> None:
        wait_until(lambda: self.status()["posture"] == "open")

    def source(self) -> str:
        """Whom the target sees; "" when nothing comes back."""
        web = self.lab.ask(resolver=str(GATEWAY.ip))["web"]
        return str(web.get("source", ""))

    def inside(self, hop: int, *argv: str) -> str:
        """Run a program in the hop's namespace, as root."""
        pin = self.run_dir / "netns" / f"{self.lab.name}.hop{hop}"
        done = subprocess.run(
            ["nsenter", f"--net={pin}", *argv], capture_output=True, text=True, check=True
        )
        return done.stdout

    def network(self, hop: int) -> dict[str, Any]:
        """Addresses, routes, rules and links of a hop, as the kernel shows them."""
        wanted = {"addr": ("addr",), "route": ("route", "show", "table", "all"), "rule": ("rule",)}
        found = {
            name: json.loads(self.inside(hop, "ip", "-j", "-4", *words))
            for name, words in wanted.items()
        }
        found["six"] = json.loads(self.inside(hop, "ip", "-j", "-6", "addr"))
        for link in found["addr"]:
            link.pop("ifindex")
            link.pop("link_index", None)
            link.pop("link_netnsid", None)
            link.pop("operstate")
        return found

    def pid(self, hop: int, slot: str = "a") -> int:
        """Of the VPN client, as this machine counts."""
        name = f"{self.lab.name}.hop{hop}.{slot}"
        state = json.loads((self.run_dir / "runc" / name / "state.json").read_text())
        return int(state["init_process_pid"])

    def command(self, hop: int, command: str) -> None:
        """Say something to the client of a hop on its management socket."""
        folder = self.run_dir / "clients" / f"{self.lab.name}.hop{hop}.a" / "fs/control"
        with socket.socket(socket.AF_UNIX) as management:
            management.settimeout(PATIENCE)
            management.connect(str(folder / "management.sock"))
            management.sendall(f"{command}\n".encode())
            said = ""
            while "SUCCESS" not in said:
                said += management.recv(4096).decode()

    def events(self, kind: str) -> list[dict[str, Any]]:
        """Oldest first, with their facts."""
        with contextlib.closing(sqlite3.connect(self.lab.home / "state/journal.sqlite")) as journal:
            rows = journal.execute(
                "SELECT hop, code, text, facts FROM event WHERE kind = ? ORDER BY seq", (kind,)
            ).fetchall()
        names = ("hop", "code", "text", "facts")
        return [dict(zip(names, (*row[:3], json.loads(row[3])), strict=True)) for row in rows]


wait_until = partial(waiting.wait_until, seconds=PATIENCE)


@contextmanager
def openvpn_lab(letter: str, vias: Sequence[str], **spec: Any) -> Iterator[OpenVpnLab]:
    """A lab whose hops are reached so, guard first; its chain is not up."""
    name = f"{letter}-{secrets.token_hex(3)}"
    asked = LabSpec(name, hops=len(vias), via=",".join(vias), **{"spares": 0, **spec})
    try:
        yield OpenVpnLab(
            Lab.create(asked, wireguard_go=find_wireguard_go(Settings.load().image_dir))
        )
    finally:
        remove(name)


def give(server: Server, address: str, mask: str = "255.255.0.0") -> str:
    """Have the server give its clients this address; returns the line that makes it do so."""
    folder: Path = server.lab.home / f"{server.name}.clients"
    folder.mkdir(exist_ok=True, mode=0o755)
    (folder / "DEFAULT").write_text(f"ifconfig-push {address} {mask}\n")
    return f"client-config-dir {folder}"
