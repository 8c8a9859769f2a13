"""What a machine looks like to whoever compares it before and after: "the host is as before".

    before = snapshot(lab)
    ...
    assert_same(before, snapshot(lab))

Of the namespace that plays the user's machine: links, addresses, routes, rules, neighbours,
queueing disciplines, the forwarding database, multicast memberships, nft, every setting below
/proc/sys/net, the tables of iptables. Of the machine itself what belongs to this lab: mounts,
network namespaces, control groups, processes, files. Other labs may run at the same time.

Not compared, because it is not to come back: counters, the age and state of a neighbour, and
the content of the journal, which is the one thing that `down` keeps.
"""

from __future__ import annotations

import hashlib
import json
import os
import re
import stat
import subprocess
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from chainctl.lab.lab import Lab
from tests.leak.namespace import inside

_NETNS = Path("/run/netns")
_CGROUPS = Path("/sys/fs/cgroup")
_SETTINGS = Path("/proc/sys/net")
_JOURNAL = "journal.sqlite"

_COUNTERS = re.compile(r"\bpackets \d+ bytes \d+|# handle \d+")
_COUNTING_SETTINGS = {"netfilter/nf_conntrack_count", "ipv4/route/flush", "ipv6/route/flush"}
_PASSING = {"stats", "stats64", "used", "probes", "refcnt", "cacheinfo", "expires", "age", "state"}
"""Keys of iproute2's JSON that change without anybody's doing."""
_SET_BY_HAND = {"PERMANENT", "NOARP"}
"""States of a neighbour that do not change by themselves."""


@dataclass(frozen=True)
class HostState:
    """Lines of text by section, comparable and readable."""

    sections: Mapping[str, frozenset[str]]

    def difference(self, other: HostState) -> str:
        """What `other` has not (-) and what only it has (+); empty when they are the same."""
        lines = []
        for section in sorted({*self.sections, *other.sections}):
            mine = self.sections.get(section, frozenset())
            theirs = other.sections.get(section, frozenset())
            lines += [f"{section}: - {line}" for line in sorted(mine - theirs)]
            lines += [f"{section}: + {line}" for line in sorted(theirs - mine)]
        return "\n".join(lines)


def assert_same(before: HostState, after: HostState, when: str = "") -> None:
    """Raises AssertionError with the difference, one line for each thing."""
    difference = before.difference(after)
    assert not difference, f"the host is not as before {when}\n{difference}"


def snapshot(lab: Lab, where: str = "host") -> HostState:
    """The state of `where` in the lab, and of the lab's things on this machine."""
    with (_NETNS / lab.namespace(where)).open("rb") as entrance:
        sections = inside(entrance.fileno(), _read_namespace)
    run_dir = lab.home / "run"
    groups = frozenset(_read_groups(_group_tag(run_dir)))
    sections["namespaces"] = frozenset(_read_namespaces(lab))
    sections["mounts"] = frozenset(_read_mounts(lab.home))
    sections["groups"] = groups
    sections["processes"] = frozenset(_read_processes(lab, where))
    sections["run files"] = frozenset(_read_files(run_dir))
    sections["state files"] = frozenset(
        line for line in _read_files(lab.home / "state") if _JOURNAL not in line
    )
    return HostState(sections)


# Inside the namespace.

_IP = {
    "links": ("-d", "link"),
    "addresses": ("address",),
    "routes": ("-4", "route", "show", "table", "all"),
    "routes of IPv6": ("-6", "route", "show", "table", "all"),
    "rules": ("-4", "rule"),
    "rules of IPv6": ("-6", "rule"),
    "neighbours": ("neighbour",),
    "multicast": ("maddress",),
}


def _read_namespace() -> dict[str, frozenset[str]]:
    out = {section: frozenset(_read_json("ip", *words)) for section, words in _IP.items()}
    # The kernel forgets whom it heard of after a while, whatever is done meanwhile.
    out["neighbours"] = frozenset(line for line in out["neighbours"] if '"by hand": []' not in line)
    out["queueing"] = frozenset(_read_json("tc", "qdisc"))
    out["forwarding database"] = frozenset(_read_json("bridge", "fdb"))
    ruleset = _COUNTERS.sub("", _output("nft", "list", "ruleset"))
    out["nft"] = frozenset(_with_places(ruleset))
    out["settings"] = frozenset(_read_settings())
    return out


def _read_json(program: str, *words: str) -> Iterator[str]:
    """One line per object the program lists."""
    listed = json.loads(_output(program, "-j", *words) or "[]")
    return (json.dumps(_lasting(entry), sort_keys=True) for entry in listed)


def _lasting(value: Any) -> Any:
    if isinstance(value, dict):
        lasting = {key: _lasting(inner) for key, inner in value.items() if key not in _PASSING}
        return {**lasting, "by hand": sorted(_SET_BY_HAND.intersection(value.get("state", ())))}
    if isinstance(value, list):
        return [_lasting(inner) for inner in value]
    return value


def _output(*argv: str) -> str:
    return subprocess.run(argv, capture_output=True, text=True, check=True).stdout


def _with_places(ruleset: str) -> Iterator[str]:
    """Each rule with its table and chain in front, so that a line says where it stands."""
    place: list[str] = []
    for number, line in enumerate(ruleset.splitlines()):
        text = line.strip()
        if text.endswith("{"):
            place.append(text.removesuffix("{").strip())
        elif text == "}":
            place.pop()
        elif text:
            # Order within a chain counts, so the number of the line is part of it.
            yield f"{' / '.join(place)}: {text} ({number})"
        if text.endswith("{"):
            yield " / ".join(place)


def _read_settings() -> Iterator[str]:
    # The kernel looks at the namespace of the thread that reads, not of the process.
    for folder, _, names in os.walk(_SETTINGS):
        for name in names:
            path = Path(folder, name)
            key = str(path.relative_to(_SETTINGS))
            if key in _COUNTING_SETTINGS:
                continue
            try:
                yield f"{key} = {path.read_text().strip()}"
            except OSError:
                continue  # Only to be written, or of a link that has just gone.


# On the machine.


def _read_namespaces(lab: Lab) -> Iterator[str]:
    if _NETNS.is_dir():
        yield from (pin.name for pin in _NETNS.iterdir() if lab.name in pin.name)


def _read_mounts(home: Path) -> Iterator[str]:
    """Type and place of everything mounted below the lab's home, bpffs and pins included."""
    for line in Path("/proc/self/mountinfo").read_text().splitlines():
        before, _, after = line.partition(" - ")
        place = before.split()[4]
        if Path(place).is_relative_to(home):
            yield f"{after.split()[0]} {place}"


def _group_tag(run_dir: Path) -> str:
    """What the groups of clients of one supervisor are called; see `chainctl.runtime.runc`."""
    return f"chainctl-{hashlib.sha256(str(run_dir.resolve()).encode()).hexdigest()[:8]}"


def _read_groups(tag: str) -> Iterator[str]:
    for folder in (*_CGROUPS.glob(tag), *_CGROUPS.glob(f"*/{tag}")):
        yield str(folder)
        yield from (str(path) for path in folder.rglob("*") if path.is_dir())


def _read_processes(lab: Lab, where: str) -> Iterator[str]:
    """Those that live in the place or a pinned namespace, in our groups, or speak of the lab."""
    tag = _group_tag(lab.home / "run")
    inodes = {(_NETNS / lab.namespace(where)).stat().st_ino}
    for line in _read_mounts(lab.home):
        kind, _, place = line.partition(" ")
        if kind == "nsfs":
            inodes.add(Path(place).stat().st_ino)
    home = str(lab.home).encode()
    for process in Path("/proc").glob("[0-9]*"):
        try:
            lives_there = (process / "ns/net").stat().st_ino in inodes
            words = (process / "cmdline").read_bytes() + (process / "environ").read_bytes()
            in_group = tag in (process / "cgroup").read_text()
            fields = (process / "stat").read_text().rpartition(")")[2].split()
        except OSError:
            continue  # It has ended meanwhile, or shows itself to nobody, as process 1 may.
        ours = lives_there or in_group or home in words
        if ours and process.name != str(os.getpid()) and fields[1] != str(os.getpid()):
            command = words.partition(b"\0\0")[0].replace(b"\0", b" ")[:100].decode()
            yield f"{process.name} since {fields[19]}: {command}"


def _read_files(folder: Path) -> Iterator[str]:
    for path in folder.rglob("*"):
        status = path.lstat()
        yield f"{stat.filemode(status.st_mode)} {path.relative_to(folder)}"
