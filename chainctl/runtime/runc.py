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
import json
import os
import re
import shutil
import subprocess
import threading
import time
from collections.abc import Iterator
from pathlib import Path

from chainctl.errors import LookAgain, MendHost
from chainctl.host.files import data_path, names_in
from chainctl.host.groups import group_of
from chainctl.runtime import cgroups
from chainctl.runtime.bundle import ClientSpec, render_config
from chainctl.runtime.locks import locked
from chainctl.runtime.mounts import (
    forget_config,
    make_devices,
    mount_small,
    place_config,
    unmount,
)
from chainctl.runtime.runtime import (
    PATIENCE,
    Running,
    start_time,
    wait_until_it_answers,
    watch,
)
from chainctl.settings import Settings

_NAME = re.compile(r"[a-z0-9][a-z0-9.-]{0,62}")
_LOG_TAIL = 2000


class Clients:
    """`Runtime` by runc, for the clients below one `run_dir`."""

    def __init__(self, settings: Settings) -> None:
        self._folder = settings.run_dir / "clients"
        self._state = settings.run_dir / "runc"
        self._group = group_of(settings.run_dir)
        self._weighing = threading.Lock()
        self._read: cgroups.Hierarchies | None = None

    def start(self, spec: ClientSpec) -> int:
        if not _NAME.fullmatch(spec.name):
            raise ValueError(f"{spec.name!r} is no name for a client")
        config = self._render(spec)
        with self._only_one(spec.name):
            running = self._running(spec.name)
            if running and self._is_as_wanted(spec, config, running):
                forget_config(self.control_dir(spec.name))  # Of a start that was cut short.
                return running.pid
            self._clean(spec.name)
            self._prepare(spec, config)
            try:
                self._run(spec)
                pid = wait_until_it_answers(
                    spec.name,
                    lambda: self._running(spec.name),
                    self.control_socket(spec),
                    lambda: self.read_log(spec.name),
                )
                forget_config(self.control_dir(spec.name))
                return pid
            except BaseException:
                self._clean(spec.name)
                raise

    def stop(self, name: str) -> None:
        with self._only_one(name):
            self._clean(name)
            (self._folder / name).rmdir()
        self.tidy()

    def tidy(self) -> None:
        """With the last client the directories and groups for all of them go."""
        with contextlib.suppress(OSError, LookAgain), locked(self._folder, fcntl.LOCK_EX, 0):
            self._folder.rmdir()
            cgroups.remove(self._hierarchies(), self._group)
            self._state.rmdir()

    def observe(self, prefix: str = "") -> dict[str, Running | None]:
        """0.4 ms a client."""
        found = names_in(self._folder, prefix)
        return {name: self._running(name) for name in found if (self._folder / name).is_dir()}

    def watch(self, name: str) -> int | None:
        return watch(lambda: self._running(name))

    def control_socket(self, spec: ClientSpec) -> Path:
        return self.control_dir(spec.name) / spec.control_socket

    def control_dir(self, name: str) -> Path:
        return self._fs(name) / "control"

    def read_log(self, name: str) -> str:
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
        self._hierarchies()
        fs = self._fs(spec.name)
        fs.mkdir(mode=0o700)
        mount_small(fs)
        for folder in ("dev", "control"):
            (fs / folder).mkdir(mode=0o755)
        make_devices(fs / "dev", spec.uid)
        (fs / "control").chmod(0o700)
        os.chown(fs / "control", spec.uid, spec.uid)
        (fs / "config.json").write_text(config)
        place_config(fs / "control", spec)

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
                    timeout=PATIENCE,
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
        self._weigh(self._hierarchies())

    def _hierarchies(self) -> cgroups.Hierarchies:
        found = self._read
        if found is None or not found.still_there:
            found = self._read = cgroups.read_hierarchies()
        return found

    def _weigh(self, hierarchies: cgroups.Hierarchies) -> None:
        # Clients start side by side: the last one has to count them all.
        with self._weighing:
            cgroups.weigh(hierarchies, self._group)

    def _words_of_runc(self, name: str) -> str:
        lines = (self._fs(name) / "runc.log").read_text().splitlines()
        said = [json.loads(line)["msg"] for line in lines if line.startswith("{")]
        return said[-1] if said else self.read_log(name).strip()

    def _running(self, name: str) -> Running | None:
        """What runc started and is still alive. runc takes exec.fifo away when it lets it go."""
        try:
            state = json.loads((self._state / name / "state.json").read_text())
            config = json.loads((self._fs(name) / "config.json").read_text())
            pid = int(state["init_process_pid"])
            if (self._state / name / "exec.fifo").exists():
                return None
            if start_time(pid) != state["init_process_start"]:
                return None
            return Running(
                pid=pid,
                netns_inode=Path(f"/proc/{pid}/ns/net").stat().st_ino,
                uid=Path(f"/proc/{pid}").stat().st_uid,
                link=config["annotations"]["chainctl.link"],
                image=config["annotations"]["chainctl.image"],
                kind=config["annotations"]["chainctl.kind"],
                config=config["annotations"]["chainctl.config"],
            )
        # A file that is missing or half written, or a process that has just ended.
        except (OSError, ValueError, KeyError):
            return None

    def _clean(self, name: str) -> None:
        hierarchies = self._hierarchies()
        deadline = time.monotonic() + PATIENCE
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
        self._weigh(hierarchies)

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
            locked(self._folder, fcntl.LOCK_SH, PATIENCE),
            locked(self._folder / name, fcntl.LOCK_EX, PATIENCE),
        ):
            yield
