"""The OCI bundle of a client: config.json, rendered purely (OCI runtime-spec, config-linux.md).

What a client may do is decided here and in its seccomp profile: no capability, no new
privileges, a read-only root, its own processes only, and of the machine nothing but one
network namespace, one TUN device and the directory of its control socket.
"""

from __future__ import annotations

import json
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from chainctl.model.secret import Secret

MEMORY_LIMIT = 256 * 2**20
"""wireguard-go reaches 105 MB with GOMEMLIMIT=128MiB, and 273 MB without."""
PIDS_LIMIT = 64
"""Threads count too; the Go runtime has about ten on two cores."""

_NAMESPACES = ("pid", "ipc", "uts", "mount", "cgroup")
_MASKED = (
    *("acpi", "asound", "interrupts", "kcore", "keys", "latency_stats", "timer_list"),
    *("timer_stats", "sched_debug", "scsi"),
)
_READONLY = ("bus", "fs", "irq", "sys", "sysrq-trigger")

DEVICES: Mapping[str, tuple[int, int]] = {
    "null": (1, 3),
    "zero": (1, 5),
    "random": (1, 8),
    "urandom": (1, 9),
    "net/tun": (10, 200),
}
"""Everything in /dev, with its number (Documentation/admin-guide/devices.txt)."""


@dataclass(frozen=True)
class ClientSpec:
    """A VPN client as it should run."""

    name: str
    """Unique on the machine: letters, digits, `.` and `-`."""
    netns: Path
    """The pin of the network namespace it joins."""
    link: str
    """Its TUN device, which exists already and belongs to `uid`."""
    uid: int
    """Of this tunnel slot alone, as is the group of the same number."""
    image: str
    """Digest of the root file system."""
    root: Path
    argv: tuple[str, ...]
    env: tuple[str, ...]
    control_dir: str
    """Where it puts its control socket, as the client sees it."""
    control_socket: str
    seccomp: str
    """Name of the profile among the files that come with chainctl."""
    kind: str = "wireguard"
    config: Secret | None = None
    """What it reads from the file `CONFIG_FILE` beside its control socket while it starts. The
    file is there for no longer than that."""
    config_digest: str = ""
    """Stands for `config` where a value may be seen; another one is another client."""


CONFIG_FILE = "config"


def wireguard_client(
    name: str, *, netns: Path, link: str, uid: int, image: str, root: Path, program: str
) -> ClientSpec:
    """wireguard-go as an unprivileged client of a TUN that was made for it."""
    return ClientSpec(
        name=name,
        netns=netns,
        link=link,
        uid=uid,
        image=image,
        root=root,
        argv=(program, link),
        env=("WG_PROCESS_FOREGROUND=1", "LOG_LEVEL=error", "GOMEMLIMIT=128MiB"),
        control_dir="/run/wireguard",
        control_socket=f"{link}.sock",
        seccomp="seccomp-wireguard.json",
    )


def openvpn_client(
    name: str,
    *,
    netns: Path,
    link: str,
    uid: int,
    image: str,
    root: Path,
    program: str,
    config: Secret,
    config_digest: str,
) -> ClientSpec:
    """openvpn on a TUN that was made for it, waiting on its management socket."""
    return ClientSpec(
        name=name,
        netns=netns,
        link=link,
        uid=uid,
        image=image,
        root=root,
        # Named here as well, so that a list of processes says which tunnel is which.
        argv=(program, "--config", f"{OPENVPN_DIR}/{CONFIG_FILE}", "--dev", link),
        env=(),
        control_dir=OPENVPN_DIR,
        control_socket=OPENVPN_SOCKET,
        seccomp="seccomp-openvpn.json",
        kind="openvpn",
        config=config,
        config_digest=config_digest,
    )


OPENVPN_DIR = "/run/openvpn"
OPENVPN_SOCKET = "management.sock"


def render_config(
    spec: ClientSpec, *, seccomp: Mapping[str, Any], cgroup: str, dev: Path, control: Path
) -> str:
    """config.json for runc. `dev` and `control` are bound to /dev and to the control directory."""
    config = {
        "ociVersion": "1.0.2",
        "hostname": "hop",
        "root": {"path": str(spec.root), "readonly": True},
        "process": _process(spec),
        "mounts": [
            _mount("/proc", "proc", "proc", "nosuid", "nodev", "noexec"),
            _mount("/dev", "bind", dev, "bind", "ro", "nosuid", "noexec", "dev"),
            _mount(spec.control_dir, "bind", control, "bind", "rw", "nosuid", "nodev", "noexec"),
        ],
        "linux": {
            "namespaces": [
                *({"type": kind} for kind in _NAMESPACES),
                {"type": "network", "path": str(spec.netns)},
            ],
            "cgroupsPath": cgroup,
            "resources": _resources(),
            "maskedPaths": [f"/proc/{name}" for name in _MASKED],
            "readonlyPaths": [f"/proc/{name}" for name in _READONLY],
            "seccomp": seccomp,
        },
        "annotations": {
            "chainctl.link": spec.link,
            "chainctl.image": spec.image,
            "chainctl.kind": spec.kind,
            "chainctl.config": spec.config_digest,
        },
    }
    return json.dumps(config, indent=1) + "\n"


def _process(spec: ClientSpec) -> dict[str, Any]:
    sets = ("bounding", "effective", "inheritable", "permitted", "ambient")
    return {
        "args": list(spec.argv),
        "env": list(spec.env),
        "cwd": "/",
        "user": {"uid": spec.uid, "gid": spec.uid},
        "capabilities": {name: [] for name in sets},
        "noNewPrivileges": True,
        "rlimits": [
            {"type": "RLIMIT_NOFILE", "soft": 1024, "hard": 1024},
            # A core dump would hold the private key.
            {"type": "RLIMIT_CORE", "soft": 0, "hard": 0},
        ],
    }


def _mount(destination: str, kind: str, source: str | Path, *options: str) -> dict[str, Any]:
    return {
        "destination": destination,
        "type": kind,
        "source": str(source),
        "options": list(options),
    }


def _resources() -> dict[str, Any]:
    devices = [
        {"allow": True, "type": "c", "major": major, "minor": minor, "access": "rw"}
        for major, minor in DEVICES.values()
    ]
    return {
        "devices": [{"allow": False, "access": "rwm"}, *devices],
        "memory": {"limit": MEMORY_LIMIT},
        "pids": {"limit": PIDS_LIMIT},
    }
