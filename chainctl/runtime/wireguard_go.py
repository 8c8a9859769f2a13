"""wireguard-go by its control socket (https://www.wireguard.com/xplatform/)."""

from __future__ import annotations

import base64
from collections.abc import Iterable
from dataclasses import replace
from pathlib import Path

from chainctl.errors import ChangeServer, LookAgain
from chainctl.host.unix import Answers, connect, peer_of
from chainctl.model.chain import Engine
from chainctl.model.wireguard import WireGuardConfig, key_bytes
from chainctl.runtime.wireguard import EVERYTHING, NO_KEY, Reading, WireGuardStatus

_PATIENCE = 3.0
"""Seconds for the whole answer; measured 0.3 ms."""
_MOST_BYTES = 1 << 20
"""Of an answer: 2000 peers, and ours have one."""
_MOST_DIGITS = 20
"""64 bits."""


class WireGuardGo:
    """A running wireguard-go. Its methods raise LookAgain C550 when it does not answer."""

    engine = Engine.USERSPACE

    def __init__(self, control_socket: Path) -> None:
        self._control_socket = control_socket

    def configure(self, config: WireGuardConfig) -> None:
        """Raises ChangeServer C551 when wireguard-go refuses the configuration."""
        # Peers are removed by name: `replace_peers` would end the session of the same one too.
        pairs, _ = self._ask(["get=1"])
        self._ask(render_set(config, [value for key, value in pairs if key == "public_key"]))

    def shake_anew(self, config: WireGuardConfig) -> None:
        """Raises ChangeServer C551 when wireguard-go refuses the configuration."""
        peer = _hex(config.peer_public_key)
        self._ask(["set=1", f"public_key={peer}", "remove=true"])
        self.configure(config)

    def read(self) -> WireGuardStatus:
        pairs, pid = self._ask(["get=1"])
        try:
            reading = parse_get(pairs)
        except ValueError:
            raise _no_sense() from None
        if not reading.listen_port:
            # It forgets its port where there is no IPv6: conn/bind_std.go takes the one of the
            # second socket, which there is not.
            reading = replace(reading, listen_port=_bound_port(pid))
        return reading.status()

    def _ask(self, lines: Iterable[str]) -> tuple[list[tuple[str, str]], int]:
        """The answer, and who gave it."""
        try:
            answer, pid = _exchange(self._control_socket, "\n".join(lines) + "\n\n")
        except OSError as error:
            raise LookAgain("C550", f"wireguard-go does not answer: {error}") from None
        except ValueError:
            raise _no_sense() from None
        pairs = [(key, value) for key, _, value in (x.partition("=") for x in answer.split())]
        errno = dict(pairs).get("errno", "missing")
        if errno != "0":
            # The rest of the answer may hold keys.
            raise ChangeServer("C551", f"wireguard-go refuses its configuration (errno {errno})")
        return [pair for pair in pairs if pair[0] != "errno"], pid


def render_set(config: WireGuardConfig, known: Iterable[str] = ()) -> list[str]:
    """The lines that make `config` the whole configuration of a device that has peers `known`."""
    peer = _hex(config.peer_public_key)
    lines = [
        "set=1",
        f"private_key={_hex(config.private_key.reveal())}",
        f"listen_port={config.listen_port}",
    ]
    for other in sorted(set(known) - {peer}):
        lines += [f"public_key={other}", "remove=true"]
    return [
        *lines,
        f"public_key={peer}",
        f"preshared_key={_hex(config.preshared.reveal() if config.preshared else NO_KEY)}",
        f"endpoint={config.endpoint}:{config.endpoint_port}",
        f"persistent_keepalive_interval={config.keepalive}",
        "replace_allowed_ips=true",
        f"allowed_ip={EVERYTHING}",
    ]


def parse_get(pairs: Iterable[tuple[str, str]]) -> Reading:
    """The answer to a `get`. Of a device with several peers only its own part is told.

    Raises ValueError for what is no number and no key.
    """
    device: dict[str, str] = {}
    peers: list[dict[str, str]] = []
    allowed: list[str] = []
    for key, value in pairs:
        if key == "public_key":
            peers.append({})
        if key == "allowed_ip":
            allowed.append(value)
        (peers[-1] if peers else device)[key] = value
    peer = peers[0] if len(peers) == 1 else {}
    host, _, port = peer.get("endpoint", "").rpartition(":")
    return Reading(
        private_key=_base64(device.get("private_key", "")),
        listen_port=_number(device.get("listen_port", "")),
        public_key=_base64(peer.get("public_key", "")),
        preshared=_base64(peer.get("preshared_key", "")),
        host=host,
        port=_number(port),
        keepalive=_number(peer.get("persistent_keepalive_interval", "")),
        allowed=allowed,
        handshake_seconds=_number(peer.get("last_handshake_time_sec", "")),
        handshake_nanoseconds=_number(peer.get("last_handshake_time_nsec", "")),
        received=_number(peer.get("rx_bytes", "")),
        sent=_number(peer.get("tx_bytes", "")),
    )


def parse_udp(table: str, uid: int) -> int:
    """The port of the user's only socket in /proc/PID/net/udp (proc(5)), else 0."""
    rows = [line.split() for line in table.splitlines()[1:]]
    ports = [int(row[1].rpartition(":")[2], 16) for row in rows if row[7] == str(uid)]
    return ports[0] if len(ports) == 1 else 0


def _bound_port(pid: int) -> int:
    try:
        process = Path(f"/proc/{pid}")
        return parse_udp((process / "net/udp").read_text(), process.stat().st_uid)
    except OSError:
        return 0


def _exchange(path: Path, text: str) -> tuple[str, int]:
    """The answer, and who gave it, by its pid here and not the one it has inside."""
    with connect(path, timeout=_PATIENCE) as connection:
        answers = Answers(connection, seconds=_PATIENCE, most=_MOST_BYTES)
        answers.send(text.encode())
        return _read_answer(answers), peer_of(connection).pid


def _read_answer(answers: Answers) -> str:
    answer = b""
    while not answer.endswith(b"\n\n"):
        answer += answers.more()
    return answer.decode()


def _no_sense() -> LookAgain:
    """Without the error's own text, which may hold a key."""
    return LookAgain("C550", "wireguard-go answers what makes no sense")


def _number(text: str) -> int:
    """0 where there is none. Not whatever int() takes: it has other digits and a limit."""
    if not text:
        return 0
    if not (text.isascii() and text.isdigit() and len(text) <= _MOST_DIGITS):
        raise ValueError("not a number")
    return int(text)


def _hex(key: str) -> str:
    return key_bytes(key).hex()


def _base64(key: str) -> str:
    return base64.b64encode(bytes.fromhex(key)).decode()
