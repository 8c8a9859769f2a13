from __future__ import annotations

import os
import socket
import threading
from collections import deque
from pathlib import Path

import pytest

from chainctl.host.unix import Answers, connect


def listening(path: Path) -> socket.socket:
    here = Path.cwd()
    os.chdir(path.parent)
    try:
        server = socket.socket(socket.AF_UNIX, socket.SOCK_STREAM)
        server.bind(path.name)
    finally:
        os.chdir(here)
    server.listen()
    return server


def test_a_path_longer_than_an_address(tmp_path: Path) -> None:
    folder = tmp_path / ("long" * 30)
    folder.mkdir()
    with (
        listening(folder / "socket") as server,
        connect(folder / "socket", timeout=5) as stream,
    ):
        accepted, _ = server.accept()
        with accepted:
            stream.sendall(b"hello")
            assert accepted.recv(5) == b"hello"


def test_a_socket_that_is_bound_and_not_listened_on_refuses(tmp_path: Path) -> None:
    with socket.socket(socket.AF_UNIX, socket.SOCK_STREAM) as server:
        server.bind(str(tmp_path / "s"))
        with pytest.raises(ConnectionRefusedError):
            connect(tmp_path / "s", timeout=5)


def test_nothing_is_held_after_a_refusal(tmp_path: Path) -> None:
    held = sum(1 for _ in Path("/proc/self/fd").iterdir())
    with pytest.raises(FileNotFoundError):
        connect(tmp_path / "none", timeout=5)
    assert sum(1 for _ in Path("/proc/self/fd").iterdir()) == held


def test_who_says_a_byte_now_and_then_is_not_listened_to_for_ever() -> None:
    here, there = socket.socketpair()
    over = threading.Event()

    def drip() -> None:
        while not over.wait(0.01):
            there.sendall(b"x")

    thread = threading.Thread(target=drip)
    thread.start()
    answers = Answers(here, seconds=0.2, most=1 << 20)
    try:
        with pytest.raises(TimeoutError):
            deque(iter(answers.more, b""), maxlen=0)
    finally:
        over.set()
        thread.join()
        here.close()
        there.close()


def test_only_so_much_is_listened_to() -> None:
    here, there = socket.socketpair()
    with here, there:
        answers = Answers(here, seconds=10, most=4)
        there.sendall(b"1234")
        assert answers.more() == b"1234"
        there.sendall(b"5")
        with pytest.raises(OSError, match="does not stop"):
            answers.more()
