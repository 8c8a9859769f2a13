"""Ask the lab's target which source it sees, as a browser and a resolver would.

    ask.py TARGET RESOLVER SECONDS

Prints one JSON object: {"web": {"source": ip, "ms": n} or {"error": text}, "dns": the same}.
"""

from __future__ import annotations

import contextlib
import http.client
import json
import secrets
import socket
import struct
import sys
import time
from collections.abc import Callable
from ipaddress import IPv4Address

_TRIES = 3
"""Questions of a resolver whose packets may get lost, as those of TCP may."""
_WHOAMI = b"\x06whoami\x03lab\x00" + struct.pack("!HH", 1, 1)


def main() -> None:
    target, resolver, seconds = sys.argv[1], sys.argv[2], float(sys.argv[3])
    answers = {
        "web": _try(lambda: _web(target, seconds)),
        "dns": _try(lambda: _dns(resolver, seconds)),
    }
    print(json.dumps(answers))  # noqa: T201


def _try(question: Callable[[], str]) -> dict[str, object]:
    begun = time.monotonic()
    try:
        source = question()
    except (OSError, ValueError, http.client.HTTPException) as error:
        return {"error": str(error) or type(error).__name__}
    return {"source": source, "ms": round(1000 * (time.monotonic() - begun), 1)}


def _web(target: str, seconds: float) -> str:
    connection = http.client.HTTPConnection(target, timeout=seconds)
    try:
        connection.request("GET", "/")
        return str(json.loads(connection.getresponse().read())["source"])
    finally:
        connection.close()


def _dns(resolver: str, seconds: float) -> str:
    number = secrets.token_bytes(2)
    with socket.socket(socket.AF_INET, socket.SOCK_DGRAM) as asker:
        asker.settimeout(seconds / _TRIES)
        asker.connect((resolver, 53))
        question = number + struct.pack("!5H", 0x0100, 1, 0, 0, 0) + _WHOAMI
        answer = _answered(asker, question)
    if answer[:2] != number or answer[6:8] != b"\0\1":
        raise ValueError(f"no address in the answer, code {answer[3] & 0x0F}")
    return str(IPv4Address(answer[-4:]))


def _answered(asker: socket.socket, question: bytes) -> bytes:
    for _ in range(_TRIES - 1):
        asker.send(question)
        with contextlib.suppress(TimeoutError):
            return asker.recv(512)
    asker.send(question)
    return asker.recv(512)


if __name__ == "__main__":
    main()
