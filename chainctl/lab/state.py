"""What is written down about a lab, so that it is found again after anything.

A lab's home is `/run/chainctl-lab/NAME`: `state.json` (with throw-away keys, hence 0700),
logs, sockets, and the run and state directories of the supervisor that runs inside. The
home is written before the first namespace and removed after the last, so that whatever is
left of a lab has one.
"""

from __future__ import annotations

import contextlib
import fcntl
import json
import os
from collections.abc import Iterator
from dataclasses import asdict, dataclass, field
from pathlib import Path, PurePath
from typing import Any

from chainctl.errors import MendFile
from chainctl.lab.layout import LabSpec
from chainctl.lab.openvpn import Authority, OpenVpnKeys
from chainctl.lab.processes import Process
from chainctl.lab.providers import KeyPair, ServerKeys

HOMES = Path("/run/chainctl-lab")


@dataclass(frozen=True)
class Line:
    """What the box does on the way to one server."""

    rtt_ms: float = 0.0
    loss_percent: float = 0.0
    one_way: bool = False
    """The server hears everything and nothing it sends arrives."""

    @property
    def plain(self) -> bool:
        return self == Line()


@dataclass(frozen=True)
class State:
    spec: LabSpec
    directory: Path
    """Where the chain file and the profiles are; the home, unless asked otherwise."""
    made_directory: bool
    files: tuple[PurePath, ...]
    """What was written into `directory`."""
    wireguard_go: Path
    complete: bool = False
    keys: dict[str, ServerKeys] = field(default_factory=dict)
    """Of WireGuard servers, by name."""
    openvpn_keys: dict[str, OpenVpnKeys] = field(default_factory=dict)
    authority: Authority | None = None
    """Of OpenVPN servers."""
    extra: dict[str, list[str]] = field(default_factory=dict)
    """Lines that an OpenVPN server's configuration has more than usual, by server."""
    processes: dict[str, Process] = field(default_factory=dict)
    """By place; the box has the name "box"."""
    lines: dict[str, Line] = field(default_factory=dict)
    uplink: bool = True


def home_of(name: str) -> Path:
    return HOMES / name


def all_names() -> list[str]:
    """Every lab of this machine, complete or not."""
    return sorted(home.name for home in HOMES.iterdir()) if HOMES.is_dir() else []


def save_state(state: State) -> None:
    home = home_of(state.spec.name)
    fresh = home / "state.json.new"
    text = json.dumps(asdict(state), default=str, indent=1)
    fresh.touch(mode=0o600)
    fresh.write_text(text + "\n")
    fresh.rename(home / "state.json")


def load_state(name: str) -> State:
    """Raises MendFile C602 when there is no such lab, C610 when its state is not readable."""
    try:
        return _parse_state(json.loads((home_of(name) / "state.json").read_text()))
    except FileNotFoundError:
        known = ", ".join(all_names()) or "none"
        raise MendFile(
            "C602", f"there is no lab {name!r}; labs here: {known}", hint="chainctl lab up"
        ) from None
    except (ValueError, KeyError, TypeError, AttributeError):
        # Written by another version of chainctl, or by hand.
        hint = f"chainctl lab down {name}"
        raise MendFile("C610", f"the state of lab {name!r} is not readable", hint=hint) from None


@contextlib.contextmanager
def locked_home(name: str) -> Iterator[Path]:
    """The lab's home, held against other changes of the same lab; made if it is not there.

    The lock is on the directory, so that it ends with whoever holds it.
    """
    home = home_of(name)
    while True:
        try:
            home.mkdir(mode=0o700, parents=True, exist_ok=True)
            descriptor = os.open(home, os.O_RDONLY | os.O_DIRECTORY)
        except FileNotFoundError:  # Another lab that ended removed HOMES meanwhile.
            continue
        try:
            fcntl.flock(descriptor, fcntl.LOCK_EX)
            if _is_still(home, descriptor):
                yield home
                return
        finally:
            os.close(descriptor)


def _is_still(home: Path, descriptor: int) -> bool:
    """False when the home was removed while its lock was waited for."""
    try:
        return home.stat().st_ino == os.fstat(descriptor).st_ino
    except FileNotFoundError:
        return False


def _parse_state(data: Any) -> State:
    return State(
        spec=LabSpec(**data["spec"]),
        directory=Path(data["directory"]),
        made_directory=data["made_directory"],
        files=tuple(PurePath(path) for path in data["files"]),
        wireguard_go=Path(data["wireguard_go"]),
        complete=data["complete"],
        keys={name: _keys(value) for name, value in data["keys"].items()},
        openvpn_keys={name: OpenVpnKeys(**each) for name, each in data["openvpn_keys"].items()},
        authority=Authority(**data["authority"]) if data["authority"] else None,
        extra=data["extra"],
        processes={name: Process(**value) for name, value in data["processes"].items()},
        lines={name: Line(**value) for name, value in data["lines"].items()},
        uplink=data["uplink"],
    )


def _keys(data: Any) -> ServerKeys:
    devices = tuple(KeyPair(**pair) for pair in data["devices"])
    return ServerKeys(KeyPair(**data["own"]), data["preshared"], devices)
