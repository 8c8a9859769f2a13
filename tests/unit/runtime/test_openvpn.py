"""A client on whose management socket nobody can rely any more."""

from __future__ import annotations

import socket
import threading
from contextlib import suppress
from itertools import repeat
from pathlib import Path

import pytest

from chainctl.errors import LookAgain
from chainctl.runtime.openvpn import OpenVpn


@pytest.mark.parametrize("said", [b">INFO:\n", b"x\n", b"x"], ids=["unasked", "lines", "no line"])
def test_a_client_that_does_not_stop_talking_is_left(tmp_path: Path, said: bytes) -> None:
    door = socket.socket(socket.AF_UNIX)
    door.bind(str(tmp_path / "management"))
    door.listen()

    def serve() -> None:
        with door, door.accept()[0] as connection, suppress(OSError):
            connection.settimeout(10)
            for text in repeat(said * 1000):
                connection.sendall(text)

    thread = threading.Thread(target=serve)
    thread.start()
    with pytest.raises(LookAgain, match="does not stop talking") as caught:
        OpenVpn(tmp_path / "management").read()
    thread.join()
    assert caught.value.code == "C553"
