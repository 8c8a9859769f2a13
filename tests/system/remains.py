"""What a chain allows, asked of the kernel and not of the supervisor: which servers anything
of it still names, and which VPN clients run.
"""

from __future__ import annotations

import subprocess
from collections.abc import Iterator
from pathlib import Path

from chainctl.lab.lab import Lab
from chainctl.net.filter import IDENTITY_OBJECT, PanelFilter


def servers_allowed(lab: Lab) -> dict[str, set[str]]:
    """By the server's label, what names it: a table, a route, a row of the filter."""
    found: dict[str, set[str]] = {}
    texts = [*_texts(lab), ("a wire", _wires(lab))]
    for server in lab.servers:
        address = str(server.plan.uplink.ip)
        for what, words in texts:
            if address in words:
                found.setdefault(server.plan.label, set()).add(what)
    return found


def clients_running(lab: Lab) -> set[str]:
    """Names of the containers, without the chain's."""
    runc = lab.home / "run/runc"
    return {path.name.removeprefix(f"{lab.name}.") for path in runc.iterdir()}


def pins(lab: Lab) -> list[Path]:
    """Of every namespace of the chain, and of the panel."""
    return sorted((lab.home / "run/netns").iterdir())


def run_in(namespace: Path, *argv: str) -> str:
    command = ["nsenter", f"--net={namespace}", *argv]
    return subprocess.run(command, capture_output=True, text=True, check=True, timeout=30).stdout


def _texts(lab: Lab) -> Iterator[tuple[str, set[str]]]:
    host = Path("/run/netns", lab.namespace("host"))
    yield "the host's table", _words(run_in(host, "nft", "list", "ruleset"))
    for pin in pins(lab):
        yield f"the table of {pin.name}", _words(run_in(pin, "nft", "list", "ruleset"))
        routes = run_in(pin, "ip", "-4", "route", "show", "table", "all")
        yield f"a route of {pin.name}", _words(routes)


def _words(text: str) -> set[str]:
    return set(text.replace("{", " ").replace(",", " ").split())


def _wires(lab: Lab) -> set[str]:
    opened = PanelFilter.open(IDENTITY_OBJECT, lab.home / "run/bpf")
    try:
        return {str(end) for wire in opened.wires() for end in (wire.source, wire.destination)}
    finally:
        opened.close()
