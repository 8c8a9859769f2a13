"""A Docker daemon of the tests' own: never the host's, in a network namespace that was made for it.

Its data, sockets and pid files lie in one short-named directory, it is ended by its pid, and
`destroy` leaves no process, mount, group or file of it.
"""

from __future__ import annotations

import contextlib
import ctypes
import os
import select
import shutil
import signal
import socket
import subprocess
import tempfile
import time
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any

import docker

_PATIENCE = 60.0
_libc = ctypes.CDLL(None, use_errno=True)


class TestDaemon:
    """`netns`: pin of the namespace it runs in; its bridges and rules are there and only there."""

    __test__ = False

    def __init__(self, netns: Path, *, live_restore: bool = False) -> None:
        # A unix socket's path has at most 107 bytes.
        self.home = Path(tempfile.mkdtemp(prefix="chaind-", dir="/tmp"))
        self.socket = self.home / "d.sock"
        self.group = f"/chainctl-test-{self.home.name}"
        self.netns = netns
        self._live_restore = live_restore
        self._process: subprocess.Popen[bytes] | None = None

    def start(self) -> None:
        """Returns when it answers."""
        self._forget_dead_containerd()
        command = [
            *("nsenter", f"--net={self.netns}", "dockerd"),
            *("--host", f"unix://{self.socket}", "--pidfile", str(self.home / "d.pid")),
            *("--data-root", str(self.home / "data"), "--exec-root", str(self.home / "exec")),
            *("--config-file", str(self._config()), "--cgroup-parent", self.group),
            *("--bip", "10.213.0.1/24", "--storage-driver", "overlay2"),
            *("--live-restore",) * self._live_restore,
        ]
        with (self.home / "log").open("ab") as log:
            self._process = subprocess.Popen(
                command, stdin=subprocess.DEVNULL, stdout=log, stderr=log, cwd="/"
            )
        deadline = time.monotonic() + _PATIENCE
        while not self._answers():
            assert self._process.poll() is None, self.log()
            assert time.monotonic() < deadline, self.log()
            select.select([], [], [], 0.05)

    def _forget_dead_containerd(self) -> None:
        """It dies with a dockerd that is killed. The next one would take it for alive as long as
        nobody waited for it, or whoever has its number by then."""
        file = self.home / "exec/containerd/containerd.pid"
        deadline = time.monotonic() + 3
        with contextlib.suppress(OSError, ValueError):
            pid = int(file.read_text())
            while _is_containerd(pid) and time.monotonic() < deadline:
                select.select([], [], [], 0.05)
            if not _is_containerd(pid):
                file.unlink()

    @property
    def pid(self) -> int:
        """Of dockerd itself: nsenter becomes it."""
        assert self._process is not None
        return self._process.pid

    def signal(self, number: int) -> None:
        os.kill(self.pid, number)

    def kill(self) -> None:
        """As it dies of a fault; its containers and their shims stay."""
        assert self._process is not None
        with contextlib.suppress(ProcessLookupError):
            self.signal(signal.SIGCONT)
        self._process.kill()
        self._process.wait()

    def stop(self) -> None:
        """As `systemctl stop docker` does it."""
        assert self._process is not None
        self._process.terminate()
        self._process.wait(_PATIENCE)

    def restart(self) -> None:
        self.stop()
        self.start()

    @contextlib.contextmanager
    def api(self) -> Iterator[Any]:
        """For what people do to containers."""
        api = docker.APIClient(f"unix://{self.socket}", timeout=_PATIENCE)
        try:
            yield api
        finally:
            api.close()

    def containers(self) -> list[str]:
        """Names of all, running or not."""
        with self.api() as api:
            return [one["Names"][0].lstrip("/") for one in api.containers(all=True)]

    @property
    def answers(self) -> bool:
        return self._process is not None and self._process.poll() is None and self._answers()

    def log(self) -> str:
        lines = (self.home / "log").read_text().splitlines()
        return "\n".join(line for line in lines if "module=grpc" not in line)[-3000:]

    def destroy(self) -> None:
        if self._process is not None and self._process.poll() is None:
            with contextlib.suppress(Exception):
                self.signal(signal.SIGCONT)
            with contextlib.suppress(Exception), self.api() as api:
                for name in self.containers():
                    api.remove_container(name, force=True)
            with contextlib.suppress(subprocess.TimeoutExpired):
                self.stop()
            self.kill()
        _end(self._own_processes())
        _unmount_below(self.home)
        shutil.rmtree(self.home)
        for place in Path("/sys/fs/cgroup").glob(f"*{self.group}"):
            _remove_groups(place)

    def rests(self) -> list[str]:
        """What is left after `destroy`."""
        found = [str(pid) for pid in self._own_processes()]
        found += [x for x in Path("/proc/mounts").read_text().splitlines() if str(self.home) in x]
        return found + [str(x) for x in Path("/sys/fs/cgroup").glob(f"*{self.group}")]

    def _config(self) -> Path:
        # Not /etc/docker/daemon.json, which is the host's.
        place = self.home / "daemon.json"
        place.write_text("{}")
        return place

    def _answers(self) -> bool:
        with socket.socket(socket.AF_UNIX) as door:
            door.settimeout(1)
            try:
                door.connect(str(self.socket))
                door.sendall(b"GET /_ping HTTP/1.0\r\n\r\n")
                return b" 200 " in door.recv(100)
            except OSError:
                return False

    def _own_processes(self) -> list[int]:
        """All that name this daemon's directory: containerd, shims; and what runs in its groups."""
        found = []
        for place in Path("/proc").glob("[0-9]*"):
            with contextlib.suppress(OSError):
                words = (place / "cmdline").read_bytes()
                own = bytes(self.home) in words and int(place.name) != os.getpid()
                if own or self.group in (place / "cgroup").read_text():
                    found.append(int(place.name))
        return found


def _is_containerd(pid: int) -> bool:
    try:
        name, _, rest = Path(f"/proc/{pid}/stat").read_text().rpartition(")")
    except OSError:
        return False
    return name.endswith("(containerd") and rest.split()[0] not in "ZX"


def _end(pids: Sequence[int]) -> None:
    handles = []
    for pid in pids:
        with contextlib.suppress(ProcessLookupError):
            handles.append(os.pidfd_open(pid))
            os.kill(pid, signal.SIGKILL)
    for handle in handles:
        select.select([handle], [], [], _PATIENCE)
        os.close(handle)


def _unmount_below(folder: Path) -> None:
    lines = Path("/proc/self/mounts").read_text().splitlines()
    places = [line.split()[1] for line in lines if line.split()[1].startswith(f"{folder}/")]
    for place in sorted(places, reverse=True):
        _libc.umount2(place.encode(), 2)


def _remove_groups(place: Path) -> None:
    for child in place.iterdir():
        if child.is_dir():
            _remove_groups(child)
    with contextlib.suppress(OSError):
        place.rmdir()
