"""The side of the command line. Standard library only: start-up is a budget."""

from __future__ import annotations

import contextlib
import json
import os
import select
import socket
import subprocess
import sys
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

from chainctl.errors import ChainctlError, LookAgain, MendHost
from chainctl.settings import Settings

Facts = dict[str, Any]

_END_PATIENCE = 10.0
_START_PATIENCE = 20.0
"""Seconds a supervisor may take until it listens."""


class Reported(ChainctlError):
    """An error of the supervisor's, as it was sent."""

    def __init__(self, facts: Facts) -> None:
        super().__init__(
            facts["code"], facts["message"], hint=facts["hint"], where=facts.get("where", "")
        )
        self.facts = facts
        self.exit_status = facts["exit_status"]  # type: ignore[misc]


def is_running(settings: Settings) -> bool:
    try:
        _connect(settings).close()
    except LookAgain:
        return False
    return True


def ask(settings: Settings, request: Facts, progress: Callable[[Facts], None]) -> Any:
    """Send one request; `progress` gets each finished step, the answer is returned.

    Raises Reported for what the supervisor refused or failed at, LookAgain C502 when none
    runs or it went away in the middle.
    """
    with _connect(settings) as sock, sock.makefile("rw", encoding="utf-8") as stream:
        stream.write(json.dumps(request) + "\n")
        stream.flush()
        for line in stream:
            message = json.loads(line)
            if "progress" in message:
                progress(message["progress"])
            elif "error" in message:
                raise Reported(message["error"])
            else:
                return message["done"]
    raise LookAgain(
        "C502",
        "the supervisor went away before it was done",
        hint="run the command again: it goes on where it stopped",
    )


@contextlib.contextmanager
def watched(settings: Settings) -> Iterator[Callable[[], object]]:
    """Yields what waits until the supervisor that runs now has ended, at most 10 s."""
    try:
        handle = os.pidfd_open(int(settings.pid_path.read_text()))
    except (OSError, ValueError):
        yield lambda: None
        return
    try:
        yield lambda: bool(select.select([handle], [], [], _END_PATIENCE))
    finally:
        os.close(handle)


def start(settings: Settings) -> None:
    """Start a supervisor that outlives this command, and wait until it listens."""
    settings.run_dir.mkdir(parents=True, exist_ok=True, mode=0o700)
    log_path = settings.run_dir / "supervisor.log"
    with log_path.open("ab") as log:
        process = subprocess.Popen(
            [sys.executable, "-m", "chainctl", "serve", "--until-idle"],
            stdin=subprocess.DEVNULL,
            stdout=log,
            stderr=log,
            start_new_session=True,
            cwd="/",
        )
    deadline = time.monotonic() + _START_PATIENCE
    while time.monotonic() < deadline:
        if is_running(settings):
            return
        if process.poll() is not None and process.returncode != 0:
            # Another one may have won the race for the lock.
            if is_running(settings):
                return
            raise MendHost(
                "C503",
                f"the supervisor ended: {_last_line(log_path)}",
                hint="chainctl serve",
            )
        time.sleep(0.01)
    raise MendHost("C504", "the supervisor does not listen", hint=f"read {log_path}")


def _connect(settings: Settings) -> socket.socket:
    sock = socket.socket(socket.AF_UNIX, socket.SOCK_STREAM | socket.SOCK_CLOEXEC)
    try:
        sock.connect(os.fspath(settings.socket_path))
    except OSError:
        sock.close()
        raise LookAgain("C502", "no supervisor is running", hint="chainctl up") from None
    return sock


def _last_line(path: Path) -> str:
    lines = path.read_text(errors="replace").splitlines()
    return lines[-1] if lines else "without a word"
