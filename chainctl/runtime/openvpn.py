"""openvpn by its management socket (OpenVPN's doc/management-notes.txt).

The client waits before every attempt to connect until it is told to go on, so that it is up to
the supervisor whether and when there is another one. Nothing is kept between two calls: what
there is to know is asked of the client, also by a supervisor that has just started.
"""

from __future__ import annotations

import socket
import time
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path

from chainctl.errors import LookAgain
from chainctl.host.unix import Answers, connect
from chainctl.model.chain import Engine
from chainctl.model.fault import Said
from chainctl.model.openvpn import Credentials, quoted
from chainctl.runtime.openvpn_words import Account, State, parse_state, parse_traffic, read_log

_PATIENCE = 3.0
"""Seconds for all questions together; one is answered in 0.2 ms, measured."""
_MOST_BYTES, _MOST_LINES = 1 << 20, 5000
"""Of all answers together. The log, which is asked for twice at most, has 250 lines."""
_GOODBYE = 0.03
"""Seconds for the packet that says goodbye to get out; measured 1 ms."""


@dataclass(frozen=True)
class OpenVpnStatus:
    digest: str | None
    """Of the configuration in force."""
    state: State
    account: Account
    received: int
    """Bytes on the outside, as is `sent`."""
    sent: int
    waits: bool = False
    """It will not try to connect before it is told to."""
    asks: bool = False
    """It wants to know username and password."""

    @property
    def handshake(self) -> float | None:
        """Since when it is connected, in seconds since 1970; None: it is not."""
        return self.state.since if self.state.name == "CONNECTED" else None

    @property
    def said(self) -> Said | None:
        """What it says is wrong."""
        return None if self.handshake else self.account.said


class OpenVpn:
    """A running openvpn. Methods raise LookAgain C553 when it does not answer."""

    engine = Engine.OPENVPN

    def __init__(self, control_socket: Path, digest: str = "") -> None:
        self._control_socket = control_socket
        self._digest = digest or None

    def read(self) -> OpenVpnStatus:
        with self._talk() as talk:
            return self._read(talk)

    def go_on(self, credentials: Credentials | None) -> OpenVpnStatus:
        """Let it connect, if it waits for that; what it said before that."""
        with self._talk() as talk:
            status = self._read(talk)
            if status.waits:
                talk.ask("hold release")
                status = self._read(talk)
            if status.asks and credentials is not None:
                talk.ask(f'username "Auth" {quoted(credentials.username.reveal())}')
                talk.ask(f'password "Auth" {quoted(credentials.password.reveal())}')
            return status

    def start_over(self) -> None:
        """Connect anew; the tunnel's device stays."""
        with self._talk() as talk:
            talk.ask("signal SIGUSR1")

    def leave(self) -> None:
        """Tell the server goodbye, which otherwise keeps the session for a while and lets nobody
        begin another one from the same port: 30 s after the last, measured with 2.6.
        """
        with self._talk() as talk:
            talk.ask("signal SIGTERM")
            talk.drain(_GOODBYE)

    def _read(self, talk: _Talk) -> OpenVpnStatus:
        state = parse_state((talk.ask("state", lines=True) or [""])[-1])
        received, sent = parse_traffic(talk.ask("load-stats")[-1])
        account = read_log(talk.ask("log all", lines=True))
        return OpenVpnStatus(
            digest=self._digest,
            state=state,
            account=account,
            received=received,
            sent=sent,
            waits=talk.waits,
            asks=talk.asks,
        )

    @contextmanager
    def _talk(self) -> Iterator[_Talk]:
        try:
            with connect(self._control_socket, timeout=_PATIENCE) as stream:
                yield _Talk(stream)
        except OSError as error:
            raise LookAgain("C553", f"openvpn does not answer: {error}") from None
        except ValueError:
            # The error's text would repeat what a client said that cannot be trusted any more.
            raise LookAgain("C553", "openvpn answers what makes no sense") from None


class _Talk:
    """One connection. What the client says unasked is kept as what it wants."""

    def __init__(self, stream: socket.socket) -> None:
        self._stream = stream
        self._answers = Answers(stream, seconds=_PATIENCE, most=_MOST_BYTES)
        self._lines_left = _MOST_LINES
        self._rest = b""
        self.waits = False
        self.asks = False

    def ask(self, command: str, *, lines: bool = False) -> list[str]:
        """The answer: one line that says whether it worked, or with `lines` all before END."""
        self._answers.send(f"{command}\n".encode())
        if command == "hold release":
            self.waits = False
        answer: list[str] = []
        while True:
            line = self._line()
            if lines and line == "END":
                return answer
            answer.append(line)
            if line.startswith("ERROR:") or (not lines and line.startswith("SUCCESS:")):
                return answer

    def drain(self, seconds: float) -> None:
        """Listen for so long, or until it hangs up."""
        deadline = time.monotonic() + seconds
        while (left := deadline - time.monotonic()) > 0:
            self._stream.settimeout(left)
            try:
                if not self._stream.recv(65536):
                    return
            except TimeoutError:
                return

    def _line(self) -> str:
        while True:
            line = self._next()
            if not line.startswith(">"):
                return line
            self.waits |= line.startswith(">HOLD:")
            self.asks |= line.startswith(">PASSWORD:Need 'Auth'")

    def _next(self) -> str:
        self._lines_left -= 1
        if self._lines_left < 0:
            raise OSError("it does not stop talking")
        while b"\n" not in self._rest:
            self._rest += self._answers.more()
        line, _, self._rest = self._rest.partition(b"\n")
        return line.rstrip(b"\r").decode(errors="replace")
