"""The supervisor's process: lock, unix socket, one thread a connection.

There is one supervisor in a network namespace: an abstract unix socket is bound there, which
the kernel frees on any death. The socket answers root only (SO_PEERCRED).
"""

from __future__ import annotations

import contextlib
import json
import os
import signal
import socket
import socketserver
import threading
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

from chainctl import PROTOCOL, __version__
from chainctl.errors import ChainctlError, LookAgain, MendFile, MendHost, StepFailed
from chainctl.host import descriptors
from chainctl.host.files import ensure_dir
from chainctl.host.memory import share_one_arena
from chainctl.host.unix import connect, limit_sending, peer_of
from chainctl.settings import Settings
from chainctl.supervisor.supervisor import Supervisor

Facts = dict[str, Any]
Send = Callable[[Facts], None]

_LOCK = "\0chainctl supervisor"
_TAKES_LONG = frozenset({"up", "down", "open", "rotate", "sweep", "plan"})
"""Requests that may work for longer than a command waits for a word."""
_BUSY_EVERY = 2.0
_SEND_PATIENCE = 5.0
"""Seconds a client may leave its answer unread before it is hung up on."""
_LISTENS_WITHIN = 2.0
"""Seconds after which a supervisor that accepts nobody counts as one that is there."""
_ENDS_WITHIN = 8.0
"""Seconds from when a supervisor that ends stops listening until its lock is free: 0.1, but a sweep
that somebody has asked for takes 2 and a client that reads nothing `_SEND_PATIENCE`.
"""


def _bound(lock: socket.socket) -> bool:
    try:
        lock.bind(_LOCK)
    except OSError:
        return False
    return True


def _listens(path: Path) -> bool:
    try:
        connect(path, timeout=_LISTENS_WITHIN).close()
    except (TimeoutError, BlockingIOError):
        return True  # There is one that accepts nobody.
    except OSError:
        return False
    return True


@contextlib.contextmanager
def supervisor(settings: Settings) -> Iterator[Supervisor]:
    """The one supervisor of this network namespace. Raises LookAgain C505 when there is one.

    When no chain is wanted in the end, nothing stays in `run_dir`.
    """
    if os.geteuid() != 0:
        raise MendHost("C306", "this needs root", hint="run it again with sudo")
    ensure_dir(settings.run_dir, 0o700)
    ensure_dir(settings.state_dir, 0o700)
    with socket.socket(socket.AF_UNIX, socket.SOCK_STREAM | socket.SOCK_CLOEXEC) as lock:
        deadline = time.monotonic() + _ENDS_WITHIN
        while not _bound(lock):
            if _listens(settings.socket_path) or time.monotonic() > deadline:
                raise LookAgain(
                    "C505",
                    "another supervisor is running on this machine",
                    hint="chainctl status",
                )
            time.sleep(0.01)
        # Who holds the lock knows that these were left by one that was killed.
        settings.socket_path.unlink(missing_ok=True)
        settings.pid_path.unlink(missing_ok=True)
        running = Supervisor(settings)
        try:
            yield running
        finally:
            idle = False  # Nobody knows with a journal that cannot be read.
            with contextlib.suppress(MendHost):
                idle = running.idle
            running.close()
            # While the lock is held: the next supervisor makes these anew.
            settings.socket_path.unlink(missing_ok=True)
            settings.pid_path.unlink(missing_ok=True)
            if idle:
                sweep_out(settings)


def serve(
    settings: Settings,
    *,
    until_idle: bool = False,
    then: Callable[[Supervisor], None] | None = None,
) -> None:
    """Answer requests until SIGTERM or SIGINT; chains stay as they are.

    `until_idle`: also end when the last chain was taken down or the first one was refused.
    `then` runs once the socket listens, in the calling thread (for `up --foreground`); what it
    raises ends the supervisor.
    """
    share_one_arena()
    descriptors.allow_all()
    with _wake_up_calls() as (listen, wake), supervisor(settings) as running:
        settings.pid_path.write_text(f"{os.getpid()}\n")
        with _Server(str(settings.socket_path), running, wake, until_idle) as server:
            settings.socket_path.chmod(0o600)
            thread = threading.Thread(target=server.serve_forever, name="api", daemon=True)
            thread.start()
            try:
                running.adopt_all()
                if then is not None:
                    then(running)
                # Somebody may bring a chain up right after the last one went down.
                while not listen() and not server.nothing_to_do:
                    pass
            finally:
                server.shutdown()


@contextlib.contextmanager
def _wake_up_calls() -> Iterator[tuple[Callable[[], bool], Callable[[], object]]]:
    """Yields what waits for SIGTERM, SIGINT or a call of the second; True: it was a signal.

    The kernel's handler writes into a socket. One in Python that set an Event did not always
    run: not when the signal came right before the wait (seen; the supervisor stayed).
    """
    bell, sleeper = socket.socketpair()
    with bell, sleeper:
        bell.setblocking(False)
        for number in (signal.SIGTERM, signal.SIGINT):
            signal.signal(number, lambda *_: None)
        signal.set_wakeup_fd(bell.fileno(), warn_on_full_buffer=False)
        try:
            yield lambda: any(sleeper.recv(64)), lambda: bell.send(b"\0")
        finally:
            signal.set_wakeup_fd(-1)


def sweep_out(settings: Settings) -> None:
    """Nothing of a machine without chains stays in `run_dir`; what is not empty is not ours."""
    for name in ("tables", "clients", "runc", "netns", "bpf"):
        with contextlib.suppress(OSError):
            (settings.run_dir / name).rmdir()
    (settings.run_dir / "supervisor.log").unlink(missing_ok=True)
    with contextlib.suppress(OSError):
        settings.run_dir.rmdir()


def answer(running: Supervisor, request: Facts, send: Send) -> Any:
    """Carry out one request; the same whether it came by the socket or in process."""

    def progress(step: str, text: str, seconds: float) -> None:
        send({"progress": {"step": step, "text": text, "seconds": round(seconds, 4)}})

    match request:
        case {"do": "up", "file": str(file)}:
            name = running.up(Path(file), progress)
            return running.status(name)
        case {"do": "down", "chains": list(names)}:
            found = running.found(names)
            for name in found:
                running.down(name, progress)
            running.clear()
            return {"down": found}
        case {"do": "close", "chain": str(name)}:
            running.close_gate(name)
            return running.status(name)
        case {"do": "open", "chain": str(name)}:
            running.open_gate(name, progress)
            return running.status(name)
        case {"do": "rotate", "chain": str(name), "hop": str(hop), "to": str(to)}:
            running.rotate(name, hop, to, progress)
            return running.status(name)
        case {"do": "sweep", "chain": str(name)}:
            running.sweep(name)
            return running.status(name)
        case {"do": "events", "chain": str(name), "limit": int(limit)}:
            return running.events(name, limit)
        case {"do": "status", "chain": str(name)}:
            return running.status(name)
        case {"do": "plan", "file": str(file)}:
            return running.plan(Path(file))
        case {"do": "hello"}:
            return {"protocol": PROTOCOL, "version": __version__}
        case {"do": "names"}:
            return running.names()
        case _:
            raise MendFile("C506", f"the supervisor does not know {request.get('do')!r}")


def _parse_request(line: bytes) -> Facts:
    try:
        request = json.loads(line)
    except (ValueError, RecursionError) as error:
        raise MendFile("C506", f"the supervisor was asked in no JSON: {error}") from None
    if not isinstance(request, dict):
        raise MendFile("C506", "the supervisor was asked something that is no JSON object")
    return request


def describe_error(error: BaseException) -> Facts:
    """An error as the socket carries it."""
    if not isinstance(error, ChainctlError):
        error = ChainctlError("C599", f"a fault in chainctl: {error!r}", hint="please report it")
    facts: Facts = {
        "code": error.code,
        "message": error.message,
        "where": error.where,
        "hint": error.hint,
        "exit_status": error.exit_status,
    }
    if isinstance(error, MendFile):
        facts["complaints"] = [vars(complaint) for complaint in error.complaints]
    if isinstance(error, StepFailed):
        facts["step"] = error.step
        facts["still_blocked"] = error.still_blocked
        facts["message"] = error.cause.message
    return facts


class _Server(socketserver.ThreadingUnixStreamServer):
    # What is asked is answered before the supervisor is taken apart: closing waits for handlers.
    daemon_threads = False

    def __init__(
        self, path: str, running: Supervisor, wake: Callable[[], object], until_idle: bool
    ) -> None:
        super().__init__(path, _Handler)
        self.running = running
        self.wake = wake
        self.until_idle = until_idle
        self._counting = threading.Lock()
        self._coming_up = 0
        self._connecting = threading.Lock()
        self._open: set[socket.socket] = set()

    def process_request(self, request: Any, client_address: Any) -> None:
        # Before its thread runs: closing must not miss one.
        with self._connecting:
            self._open.add(request)
        super().process_request(request, client_address)

    def shutdown_request(self, request: Any) -> None:
        with self._connecting:
            self._open.discard(request)
        super().shutdown_request(request)

    def server_close(self) -> None:
        """Take no request more, and wait until those under way are answered."""
        with self._connecting:
            for connection in self._open:
                with contextlib.suppress(OSError):
                    connection.shutdown(socket.SHUT_RD)
        super().server_close()

    @property
    def nothing_to_do(self) -> bool:
        """No chain is wanted, nor is anybody just asking for one."""
        with self._counting:
            return not self._coming_up and self.running.idle

    def carry_out(self, request: Facts, send: Send) -> Facts:
        """The last message about a request; it says `ending` when the supervisor ends after it."""
        coming_up = request.get("do") == "up"
        with self._counting:
            self._coming_up += coming_up
        try:
            message = {"done": answer(self.running, request, send)}
        except Exception as error:
            message = {"error": describe_error(error)}
        finally:
            with self._counting:
                self._coming_up -= coming_up
        if request.get("do") in ("up", "down") and self.until_idle:
            with contextlib.suppress(MendHost):  # A journal that can't be read: stay.
                message["ending"] = self.nothing_to_do
        return message


class _Handler(socketserver.StreamRequestHandler):
    server: _Server

    def handle(self) -> None:
        if peer_of(self.connection).uid != 0:
            self._send({"error": describe_error(MendHost("C306", "this needs root"))})
            return
        for line in self.rfile:
            try:
                request = _parse_request(line)
            except MendFile as error:
                self._send({"error": describe_error(error)})
                continue
            with self._saying_busy(request):
                message = self.server.carry_out(request, self._send)
            self._send(message)
            if message.get("ending"):
                self.server.wake()
            if self._hung_up:
                return

    @contextlib.contextmanager
    def _saying_busy(self, request: Facts) -> Iterator[None]:
        """Something to tell a supervisor that works from one that is stopped."""
        if request.get("do") not in _TAKES_LONG:
            yield
            return
        over = threading.Event()

        def say() -> None:
            while not over.wait(_BUSY_EVERY):
                self._send({"busy": request["do"]})

        thread = threading.Thread(target=say, name="busy", daemon=True)
        thread.start()
        try:
            yield
        finally:
            over.set()
            thread.join()

    def setup(self) -> None:
        super().setup()
        self._writing = threading.Lock()
        self._hung_up = False
        limit_sending(self.connection, _SEND_PATIENCE)

    def _send(self, message: Facts) -> None:
        with self._writing:
            try:
                self.wfile.write((json.dumps(message, default=str) + "\n").encode())
            except BrokenPipeError:
                pass
            except BlockingIOError:
                # Nobody can make sense of what follows half a message.
                self._hung_up = True
                with contextlib.suppress(OSError):
                    self.connection.shutdown(socket.SHUT_RDWR)
