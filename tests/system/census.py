"""How many of everything a chain has: what many rotations must not make more of."""

from __future__ import annotations

import json
import os
from collections import Counter
from collections.abc import Iterator
from pathlib import Path

from chainctl.lab.lab import Lab
from chainctl.net.filter import IDENTITY_OBJECT, LAYOUT
from chainctl.net.libbpf import Object
from tests.system.host_state import snapshot
from tests.system.remains import pins, run_in

_TRAFFIC = {"flow_map", "reason_map", "verdict_map"}
"""Maps that say what passed."""
_MAY_END = {"processes", "descriptors", "threads"}

_IP = {
    "links": ("link",),
    "addresses": ("-4", "address"),
    "routes": ("-4", "route", "show", "table", "all"),
    "rules": ("-4", "rule"),
}


def census(lab: Lab) -> Counter[str]:
    """Numbers by what is counted, of a chain that is up and has one tunnel a hop."""
    found = Counter(dict(_in_namespaces(lab)))
    for section, lines in snapshot(lab).sections.items():
        found[section] = len(lines)
    opened = Object(
        IDENTITY_OBJECT, pin_root=lab.home / "run/bpf" / LAYOUT, device_maps=["far_map"]
    )
    try:
        for name, one in opened.maps().items():
            if name not in _TRAFFIC:
                found[name] = sum(1 for _ in one.scan())
    finally:
        opened.close()
    process = Path("/proc", str(supervisor_of(lab)))
    found["descriptors"] = len(list((process / "fd").iterdir()))
    found["threads"] = len(list((process / "task").iterdir()))
    return found


def differences(before: Counter[str], after: Counter[str]) -> dict[str, int]:
    """What became more or fewer, and by how many; helpers that ended meanwhile do not count."""
    return {
        what: after[what] - before[what]
        for what in sorted({*before, *after})
        if after[what] > before[what] or (after[what] < before[what] and what not in _MAY_END)
    }


def memory_of(lab: Lab) -> int:
    """Bytes of the supervisor that are in memory."""
    pages = Path("/proc", str(supervisor_of(lab)), "statm").read_text().split()[1]
    return int(pages) * os.sysconf("SC_PAGE_SIZE")


def supervisor_of(lab: Lab) -> int:
    return int((lab.home / "run/supervisor.pid").read_text())


def _in_namespaces(lab: Lab) -> Iterator[tuple[str, int]]:
    for pin in pins(lab):
        for what, words in _IP.items():
            yield f"{what} of {pin.name}", len(json.loads(run_in(pin, "ip", "-j", *words)))
        tables = run_in(pin, "nft", "list", "ruleset")
        yield f"tables of {pin.name}", len(tables.splitlines())
