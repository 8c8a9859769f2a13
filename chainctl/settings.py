"""Where chainctl keeps its things on this machine; the same for every chain."""

from __future__ import annotations

import os
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path


@dataclass(frozen=True)
class Settings:
    """Places, each overridable by an environment variable (for labs and tests)."""

    run_dir: Path = Path("/run/chainctl")
    """Pins, sockets, secrets on tmpfs; gone after a reboot. CHAINCTL_RUN_DIR."""
    state_dir: Path = Path("/var/lib/chainctl")
    """Journal and wanted state; survives a reboot. CHAINCTL_STATE_DIR."""
    image_dir: Path = Path("/var/lib/chainctl/images")
    """Unpacked hop images, shared by all chains and labs. CHAINCTL_IMAGE_DIR."""
    docker_socket: Path = Path("/var/run/docker.sock")
    """Where a Docker daemon of this machine answers, if there is one. CHAINCTL_DOCKER_SOCKET."""

    @classmethod
    def load(cls, environ: Mapping[str, str] = os.environ) -> Settings:
        default = cls()
        return cls(
            run_dir=Path(environ.get("CHAINCTL_RUN_DIR", default.run_dir)),
            state_dir=Path(environ.get("CHAINCTL_STATE_DIR", default.state_dir)),
            image_dir=Path(environ.get("CHAINCTL_IMAGE_DIR", default.image_dir)),
            docker_socket=Path(environ.get("CHAINCTL_DOCKER_SOCKET", default.docker_socket)),
        )

    @property
    def netns_dir(self) -> Path:
        return self.run_dir / "netns"

    @property
    def bpf_dir(self) -> Path:
        """Our own bpffs, 0700."""
        return self.run_dir / "bpf"

    @property
    def socket_path(self) -> Path:
        return self.run_dir / "supervisor.sock"

    @property
    def pid_path(self) -> Path:
        """The supervisor's pid, for people; the lock is elsewhere (`chainctl.daemon`)."""
        return self.run_dir / "supervisor.pid"

    @property
    def journal_path(self) -> Path:
        return self.state_dir / "journal.sqlite"
