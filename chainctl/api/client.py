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
from typing import IO, Any

from chainctl import PROTOCOL, __version__
from chainctl.errors import ChainctlError, LookAgain, MendHost
from chainctl.host.unix import limit_sending, peer_of
from chainctl.settings import Settings

Facts = dict[str, Any]

_END_PATIENCE = 10.0
_START_PATIENCE = 20.0
"""Seconds a supervisor may take until it listens."""
PATIENCE = 10.0
"""Seconds without a word, after which a supervisor is taken for stopped or hung. While it works at
something that may take longer it says every two seconds that it does.
"""


class Reported(ChainctlError):
    """An error of the supervisor's, as it was sent."""

    def __init__(self, facts: Facts) -> None:
        super().__init__(
            facts["code"], facts["message"], hint=facts["hint"], where=facts.get("where", "")
        )
        self.facts = facts
        self.exit_status = facts["exit_status"]  # type: ignore[misc]


class NotAnswering(LookAgain):
    """There is a supervisor, and it says nothing: stopped (SIGSTOP), or hung."""

    def __init__(self, settings: Settings) -> None:
        try:
            pid = settings.pid_path.read_text().strip()
        except OSError:
            pid = f"$(cat {settings.pid_path})"
        super().__init__(
            "C508",
            f"the supervisor (process {pid}) does not answer",
            hint=f"kill -CONT {pid} if somebody stopped it, else kill -KILL {pid} and chainctl up:"
            " that leaves chains as they are",
        )


class NotRunning(LookAgain):
    """There is none, or it ended before it heard what it was asked."""

    def __init__(self) -> None:
        super().__init__("C502", "no supervisor is running", hint="chainctl up")


def is_running(settings: Settings, *, patience: float = PATIENCE) -> bool:
    """Also when it does not answer."""
    try:
        _connect(settings, patience).close()
    except NotAnswering:
        return True
    except LookAgain:
        return False
    return True


def ask(
    settings: Settings,
    request: Facts,
    progress: Callable[[Facts], None],
    *,
    patience: float = PATIENCE,
) -> Any:
    """Send one request; `progress` gets each finished step, the answer is returned.

    `patience`: seconds without a word. Raises Reported for what the supervisor refused or
    failed at, LookAgain C502 when none runs (NotRunning) or it went away in the middle, C508
    (NotAnswering) when it says nothing, C509 when it is of a version that this one does not
    understand.
    """
    try:
        with _connect(settings, patience) as sock, _end_of_peer(sock) as wait_for_end:
            with sock.makefile(encoding="utf-8") as heard:
                hello = _converse(sock, heard, {"do": "hello"}, progress)
                if hello is None:
                    raise NotRunning
                _agree(settings, hello)
                message = _converse(sock, heard, request, progress)
            if message is None:
                raise LookAgain(
                    "C502",
                    "the supervisor went away before it was done",
                    hint="run the command again: it goes on where it stopped",
                )
            if message.get("ending"):
                wait_for_end()
    except TimeoutError:
        raise NotAnswering(settings) from None
    if "error" in message:
        raise Reported(message["error"])
    return message["done"]


def _agree(settings: Settings, answer: Facts) -> None:
    """What an older or newer one says could mean something else, so nothing is asked of it."""
    hello = answer.get("done")
    if isinstance(hello, dict) and hello.get("protocol") == PROTOCOL:
        return
    version = hello.get("version") if isinstance(hello, dict) else None
    raise LookAgain(
        "C509",
        f"the supervisor that runs is chainctl {version or 'of another version'},"
        f" this is {__version__}",
        hint=f"kill $(cat {settings.pid_path}), then chainctl up: it takes chains over as they are",
    )


def _converse(
    sock: socket.socket, heard: IO[str], request: Facts, progress: Callable[[Facts], None]
) -> Facts | None:
    """The last message about a request; None when the supervisor went away before."""
    for message in _messages(sock, heard, request):
        if "progress" in message:
            progress(message["progress"])
        elif "busy" in message:
            continue
        else:
            return message
    return None


def _messages(sock: socket.socket, heard: IO[str], request: Facts) -> Iterator[Facts]:
    """What is answered, until the supervisor hangs up, which it may do in the middle of a line."""
    with contextlib.suppress(ConnectionError, ValueError):
        sock.sendall(json.dumps(request).encode() + b"\n")
        for line in heard:
            yield json.loads(line)


@contextlib.contextmanager
def _end_of_peer(sock: socket.socket) -> Iterator[Callable[[], object]]:
    """Yields what waits until the supervisor behind a socket has ended, at most 10 s."""
    try:
        handle = os.pidfd_open(peer_of(sock).pid)
    except OSError:  # It has just ended, or is in another pid namespace.
        yield lambda: None
        return
    try:
        yield lambda: select.select([handle], [], [], _END_PATIENCE)
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


def _connect(settings: Settings, patience: float) -> socket.socket:
    sock = socket.socket(socket.AF_UNIX, socket.SOCK_STREAM | socket.SOCK_CLOEXEC)
    # For a supervisor that accepts nobody, whose queue is full.
    limit_sending(sock, patience)
    try:
        sock.connect(os.fspath(settings.socket_path))
        sock.settimeout(patience)
    except BlockingIOError:
        sock.close()
        raise NotAnswering(settings) from None
    except OSError:
        sock.close()
        raise NotRunning from None
    return sock


def _last_line(path: Path) -> str:
    lines = path.read_text(errors="replace").splitlines()
    return lines[-1] if lines else "without a word"
