"""Kernel settings of the namespace the calling thread is in.

Names are paths below /proc/sys (`net/ipv4/conf/eth0.5/forwarding`) and not sysctl(8)'s
dotted names, because the name of a link may contain dots.
"""

from __future__ import annotations

import os
from collections.abc import Iterable, Mapping
from itertools import groupby
from pathlib import Path

from chainctl.errors import MendHost

_ROOT = Path("/proc/sys")
_MOST_BYTES = 4096
"""Of a setting that is a number or a name."""


def read(name: str) -> str | None:
    """The setting's value; None when the kernel has no such setting (or link)."""
    return _read(f"{_ROOT}/{name}", None)


def _read(name: str, folder: int | None) -> str | None:
    try:
        # Not by Path, which takes three times as long: a chain that is looked at has 150 of them.
        file = os.open(name, os.O_RDONLY | os.O_CLOEXEC, dir_fd=folder)
    except FileNotFoundError:
        return None
    try:
        return os.read(file, _MOST_BYTES).decode().strip()
    finally:
        os.close(file)


def read_all(names: Iterable[str]) -> dict[str, str | None]:
    """`read` for many at once, of at least three parts each. Each lookup of /proc/sys/net/ipv4
    passes one entry for every network namespace of the machine, so that is done once: 400 µs with
    1 000 of them.
    """
    found: dict[str, str | None] = {}
    for folder, members in groupby(
        sorted(names), key=lambda name: "/".join(name.split("/", 2)[:2])
    ):
        try:
            place = os.open(f"{_ROOT}/{folder}", os.O_PATH | os.O_DIRECTORY | os.O_CLOEXEC)
        except FileNotFoundError:
            found.update(dict.fromkeys(members))
            continue
        try:
            for name in members:
                found[name] = _read(name.removeprefix(f"{folder}/"), place)
        finally:
            os.close(place)
    return found


def holds(wanted: Mapping[str, str]) -> bool:
    """Every setting is as wanted; those the kernel lacks do not count."""
    found = read_all(wanted)
    return all(found[name] in (value, None) for name, value in wanted.items())


def write(name: str, value: str) -> None:
    """Set `name`. Raises MendHost C319 when it does not exist or may not be written."""
    try:
        # O_CREAT, as open(…, "w") would use it, hides a missing setting behind EACCES.
        with (_ROOT / name).open("r+") as file:
            file.write(value)
    except OSError as error:
        raise MendHost(
            "C319",
            f"cannot set {name} to {value}: {error.strerror}",
            hint="run as root on a machine where /proc/sys is writable",
        ) from error
