"""Writes what was measured into the documents that speak of it.

`python -m bench.tables` does it from `bench/results.json`; `make bench` does so by itself. A
table stands between two comments that name it, and is written whole.
"""

from __future__ import annotations

import json
import re
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any, TypeAlias

from bench.harness import EDGES

Entry: TypeAlias = dict[str, Any]

_ROOT = Path(__file__).parents[1]
_RESULTS = Path(__file__).with_name("results.json")
_HEALTH = _ROOT / "docs/health.md"

_OUTAGES = {
    "failover_active": "1000 packets/s from each of two sockets",
    "failover_idle": "10 packets/s",
    "failover_openvpn": "1000 packets/s from each of two sockets, every hop by OpenVPN over UDP",
    "failover_standby": "1000 packets/s, the hop has a standby",
}
_CLAIMS = (
    "planned_rotation_lost",
    "tcp_survival",
    "exit_drain_broken",
    "false_rotations",
    "rotation_leftovers",
    "rotation_memory",
)


def main() -> None:
    write(_HEALTH, {entry["name"]: entry for entry in json.loads(_RESULTS.read_text())})


def write(document: Path, entries: Mapping[str, Entry]) -> None:
    """Renew the tables of `document` for which there are entries."""
    text = document.read_text()
    outages = [entries[name] for name in _OUTAGES if "distribution" in entries.get(name, {})]
    if outages:
        text = replace(text, "failover", render_outages(outages))
    claims = [entries[name] for name in _CLAIMS if name in entries]
    if claims:
        text = replace(text, "rotation", render_claims(claims))
    document.write_text(text)


def replace(text: str, name: str, table: str) -> str:
    """Raises ValueError when the document has no place for the table."""
    begin, end = f"<!-- measured: {name} -->\n", "<!-- end -->"
    new, found = re.subn(
        f"{re.escape(begin)}.*?{re.escape(end)}", lambda _: begin + table + end, text, flags=re.S
    )
    if found != 1:
        raise ValueError(f"the table {name} has {found} places")
    return new


def render_outages(entries: Sequence[Entry]) -> str:
    """One line a class of each row; the histogram counts draws by the upper ends of EDGES."""
    edges = " ".join(f"≤{edge:g}" for edge in EDGES)
    lines = [
        f"| row | what | draws | median | 90 % | longest | draws by seconds: {edges} more |",
        "|---|---|---|---|---|---|---|",
    ]
    for entry in entries:
        for number, (name, found) in enumerate(entry["distribution"].items()):
            row = f"`{entry['name']}` {_OUTAGES[entry['name']]}" if number == 0 else ""
            times = " | ".join(f"{found[key]:.2f} s" for key in ("median", "p90", "max"))
            counts = " ".join(map(str, found["histogram"]))
            lines.append(f"| {row} | {name} | {found['count']} | {times} | {counts} |")
    return "\n".join(lines) + "\n"


def render_claims(entries: Sequence[Entry]) -> str:
    lines = ["| row | measured | target | met |", "|---|---|---|---|"]
    for entry in entries:
        met = "yes" if entry["met"] else "no"
        value = f"{entry['value']:.4g} {entry['unit']}"
        lines.append(f"| `{entry['name']}` | {value} | {entry['target']} | {met} |")
    return "\n".join(lines) + "\n"


if __name__ == "__main__":
    main()
