"""VPN clients as containers that runc starts and nobody has to look after.

All that belongs to the client NAME lies in `run_dir/clients/NAME`: `fs` is its small tmpfs with
the bundle, the device nodes, the control socket and its output. There is no other memory of
it, so that whoever comes after a crash sees what is, and `stop` can clean up from any point.

Two locks keep those apart who start and stop at the same time. Whoever does either holds a lock
on the directory. A second one, on the file `runc.lock`, is handed on to runc: a runc that
outlives its caller still holds it, and so may the process it was about to make.
"""

from __future__ import annotations

import contextlib
import fcntl
import hashlib
import json
import os
import re
import select
import shutil
import subprocess
import time
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from chainctl.errors import LookAgain, MendHost
from chainctl.host.files import data_path
from chainctl.host.unix import connect
from chainctl.runtime import cgroups
from chainctl.runtime.bundle import ClientSpec, render_config
from chainctl.runtime.mounts import make_devices, mount_small, unmount
from chainctl.settings import Settings

_NAME = re.compile(r"[a-z0-9][a-z0-9.-]{0,62}")
_PATIENCE = 10.0
"""Seconds for a client to answer or to end; measured 60 ms."""
_LOG_TAIL = 2000


@dataclass(frozen=True)
class Running:
    """A client's process, as the kernel shows it."""

    pid: int
    netns_inode: int
    uid: int
    link: str
    image: str


class Clients:
    """The clients below one `run_dir`. Safe to use from several threads and processes."""

    def __init__(self, settings: Settings) -> None:
        self._folder = settings.run_dir / "clients"
        self._state = settings.run_dir / "runc"
        # Two supervisors with directories of their own do not meet in the groups either.
        tag = hashlib.sha256(str(settings.run_dir.resolve()).encode()).hexdigest()[:8]
        self._group = f"/chainctl-{tag}"

    def start(self, spec: ClientSpec) -> int:
        """Have the client run as `spec` says, answering on its control socket; gives its pid.

        One that runs already and is the same is left alone, anything else of that name is
        stopped first. Raises MendHost C540 to C545, LookAgain C544.
        """
        if not _NAME.fullmatch(spec.name):
            raise ValueError(f"{spec.name!r} is no name for a client")
        config = self._render(spec)
        with self._only_one(spec.name):
            running = self._running(spec.name)
            if running and self._is_as_wanted(spec, config, running):
                return running.pid
            self._clean(spec.name)
            self._prepare(spec, config)
            try:
                self._run(spec)
                return self._wait_until_it_answers(spec)
            except BaseException:
                self._clean(spec.name)
                raise

    def stop(self, name: str) -> None:
        """Kill the client and leave nothing of it; also what a crash left, or nothing at all."""
        with self._only_one(name):
            self._clean(name)
            (self._folder / name).rmdir()
        self.tidy()

    def tidy(self) -> None:
        """With the last client the directories and groups for all of them go.

        To be called again when nothing is left: a crash may have ended `stop` in between.
        """
        with contextlib.suppress(OSError, LookAgain), _locked(self._folder, fcntl.LOCK_EX, 0):
            self._folder.rmdir()
            cgroups.remove(cgroups.read_hierarchies(), self._group)
            self._state.rmdir()

    def observe(self, prefix: str = "") -> dict[str, Running | None]:
        """Clients by name, 0.4 ms each; None: only rests, which `start` and `stop` clean up."""
        names = [place.name for place in self._folder.glob(f"{prefix}*") if place.is_dir()]
        return {name: self._running(name) for name in sorted(names)}

    def watch(self, name: str) -> int | None:
        """A pidfd that becomes readable when the client ends; the caller closes it."""
        running = self._running(name)
        if running is None:
            return None
        try:
            handle = os.pidfd_open(running.pid)
        except ProcessLookupError:
            return None
        if self._running(name) == running:
            return handle
        os.close(handle)
        return None

    def control_socket(self, spec: ClientSpec) -> Path:
        return self._fs(spec.name) / "control" / spec.control_socket

    def read_log(self, name: str) -> str:
        """The last lines the client printed; empty when there is no such client."""
        try:
            text = (self._fs(name) / "log").read_bytes()[-_LOG_TAIL:]
        except FileNotFoundError:
            return ""
        return text.decode(errors="replace")

    def _fs(self, name: str) -> Path:
        return self._folder / name / "fs"

    def _runc_lock(self, name: str) -> Path:
        return self._folder / name / "runc.lock"

    def _client_group(self, name: str) -> str:
        return f"{self._group}/{name}"

    def _render(self, spec: ClientSpec) -> str:
        return render_config(
            spec,
            seccomp=json.loads(data_path(spec.seccomp).read_text()),
            cgroup=self._client_group(spec.name),
            dev=self._fs(spec.name) / "dev",
            control=self._fs(spec.name) / "control",
        )

    def _is_as_wanted(self, spec: ClientSpec, config: str, running: Running) -> bool:
        return (
            (self._fs(spec.name) / "config.json").read_text() == config
            and running.netns_inode == spec.netns.stat().st_ino
            and self.control_socket(spec).exists()
        )

    def _prepare(self, spec: ClientSpec, config: str) -> None:
        cgroups.read_hierarchies()
        fs = self._fs(spec.name)
        fs.mkdir(mode=0o700)
        mount_small(fs)
        for folder in ("dev", "control"):
            (fs / folder).mkdir(mode=0o755)
        make_devices(fs / "dev", spec.uid)
        (fs / "control").chmod(0o700)
        os.chown(fs / "control", spec.uid, spec.uid)
        (fs / "config.json").write_text(config)

    def _run(self, spec: ClientSpec) -> None:
        fs = self._fs(spec.name)
        command = ["runc", "--root", str(self._state), "--log", str(fs / "runc.log")]
        command += ["--log-format", "json", "run", "--detach", "--bundle", str(fs), spec.name]
        # Not a pipe: SIGPIPE would kill the client when the supervisor is gone. And not through
        # `host.run`, because what runc's caller gives it as output becomes the client's output.
        with (fs / "log").open("ab") as log, self._runc_lock(spec.name).open("a") as lock:
            fcntl.flock(lock, fcntl.LOCK_EX | fcntl.LOCK_NB)
            try:
                done = subprocess.run(
                    command,
                    stdin=subprocess.DEVNULL,
                    stdout=log,
                    stderr=log,
                    pass_fds=(lock.fileno(),),
                    timeout=_PATIENCE,
                    check=False,
                )
            except FileNotFoundError:
                raise MendHost(
                    "C540", "runc is not installed", hint="install the package runc"
                ) from None
            except subprocess.TimeoutExpired:
                raise LookAgain("C544", f"runc did not start {spec.name} in time") from None
        if done.returncode:
            raise MendHost(
                "C542",
                f"runc cannot start the client {spec.name}: {self._words_of_runc(spec.name)}",
                hint="chainctl doctor",
            )

    def _words_of_runc(self, name: str) -> str:
        lines = (self._fs(name) / "runc.log").read_text().splitlines()
        said = [json.loads(line)["msg"] for line in lines if line.startswith("{")]
        return said[-1] if said else self.read_log(name).strip()

    def _wait_until_it_answers(self, spec: ClientSpec) -> int:
        deadline = time.monotonic() + _PATIENCE
        watched = self.watch(spec.name)
        running = self._running(spec.name)
        try:
            while watched is not None and running is not None:
                if _listens(self.control_socket(spec)):
                    return running.pid
                ended = select.select([watched], [], [], 0.002)[0]
                if ended or time.monotonic() > deadline:
                    break
        finally:
            if watched is not None:
                os.close(watched)
        raise MendHost(
            "C543",
            f"the client {spec.name} did not come up: {self.read_log(spec.name).strip()}",
            hint="chainctl doctor",
        )

    def _running(self, name: str) -> Running | None:
        """What runc started and is still alive. runc takes exec.fifo away when it lets it go."""
        try:
            state = json.loads((self._state / name / "state.json").read_text())
            config = json.loads((self._fs(name) / "config.json").read_text())
            pid = int(state["init_process_pid"])
            if (self._state / name / "exec.fifo").exists() or not _is_alive(pid, state):
                return None
            return Running(
                pid=pid,
                netns_inode=Path(f"/proc/{pid}/ns/net").stat().st_ino,
                uid=Path(f"/proc/{pid}").stat().st_uid,
                link=config["annotations"]["chainctl.link"],
                image=config["annotations"]["chainctl.image"],
            )
        # A file that is missing or half written, or a process that has just ended.
        except (OSError, ValueError, KeyError):
            return None

    def _clean(self, name: str) -> None:
        hierarchies = cgroups.read_hierarchies()
        deadline = time.monotonic() + _PATIENCE
        while not self._is_gone(name, hierarchies):
            if time.monotonic() > deadline:
                raise LookAgain("C544", f"the processes of the client {name} do not end")
            time.sleep(0.001)
        for file in (self._state / name).glob("*"):
            # For a moment runc has its own program mounted there (nsenter/cloned_binary.c).
            unmount(file)
        shutil.rmtree(self._state / name, ignore_errors=True)
        if self._fs(name).exists():
            unmount(self._fs(name))
            self._fs(name).rmdir()
        self._runc_lock(name).unlink(missing_ok=True)

    def _is_gone(self, name: str, hierarchies: cgroups.Hierarchies) -> bool:
        """Kill what runs; True when nothing does, and no runc is left that could begin again."""
        cgroups.kill(hierarchies, self._client_group(name))
        try:
            with self._runc_lock(name).open("a") as lock:
                fcntl.flock(lock, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError:
            return False
        cgroups.kill(hierarchies, self._client_group(name))
        return cgroups.remove(hierarchies, self._client_group(name))

    @contextlib.contextmanager
    def _only_one(self, name: str) -> Iterator[None]:
        """Nobody else starts or stops `name`, and nobody takes the directories away."""
        with (
            _locked(self._folder, fcntl.LOCK_SH, _PATIENCE),
            _locked(self._folder / name, fcntl.LOCK_EX, _PATIENCE),
        ):
            yield


@contextlib.contextmanager
def _locked(folder: Path, mode: int, patience: float) -> Iterator[None]:
    """Hold a lock on the directory, made if need be. Raises LookAgain C544 if others hold it."""
    deadline = time.monotonic() + patience
    while (handle := _try_lock(folder, mode)) is None:
        if time.monotonic() >= deadline:
            raise LookAgain("C544", f"somebody else is busy in {folder}")
        time.sleep(0.005)
    try:
        yield
    finally:
        os.close(handle)


def _try_lock(folder: Path, mode: int) -> int | None:
    folder.mkdir(mode=0o700, parents=True, exist_ok=True)
    handle = os.open(folder, os.O_RDONLY | os.O_DIRECTORY | os.O_CLOEXEC)
    try:
        fcntl.flock(handle, mode | fcntl.LOCK_NB)
        # Whoever held it before may have removed the directory, and another may be there now.
        if folder.stat().st_ino == os.fstat(handle).st_ino:
            return handle
    except (BlockingIOError, FileNotFoundError):
        pass
    os.close(handle)
    return None


def _listens(control_socket: Path) -> bool:
    try:
        connect(control_socket, timeout=_PATIENCE).close()
    except OSError:
        return False  # Not there yet, or bound and not listened on yet.
    return True


def _is_alive(pid: int, state: dict[str, Any]) -> bool:
    """Still the process that runc made: pids are used again, start times are not (proc(5))."""
    fields = Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()
    return fields[0] not in "ZX" and int(fields[19]) == state["init_process_start"]
