"""`chainctl demo` beside what an earlier one has left, and beside another one."""

from __future__ import annotations

import re
import secrets
import signal
import subprocess
import sys
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import pytest

from chainctl.errors import MendFile
from chainctl.lab.clearing import remove
from chainctl.lab.lab import Lab

pytestmark = pytest.mark.root

PATIENCE = 60.0


@pytest.fixture
def name() -> Iterator[str]:
    name = f"demo{secrets.token_hex(3)}"
    yield name
    remove(name)


@contextmanager
def demo(name: str) -> Iterator[subprocess.Popen[str]]:
    """One whose lab is there and asks what can be seen without a chain."""
    argv = [sys.executable, "-m", "chainctl", "demo", "--name", name]
    with subprocess.Popen(argv, stdout=subprocess.PIPE, stderr=subprocess.STDOUT, text=True) as one:
        try:
            yield one
        finally:
            one.kill()


def printed_until(process: subprocess.Popen[str], words: str) -> str:
    assert process.stdout is not None
    lines = []
    for line in process.stdout:
        lines.append(line)
        if words in line:
            return "".join(lines)
    pytest.fail("".join(lines))


def test_what_a_killed_one_has_left_is_taken_away(name: str) -> None:
    with demo(name) as first:
        printed_until(first, "Without the chain")
        folder = Lab.load(name).directory.parent
        first.send_signal(signal.SIGKILL)
        first.wait(PATIENCE)
    assert folder.exists()

    with demo(name) as second:
        said = printed_until(second, "Without the chain")
        assert "a demo has left that was killed" in said
        assert not folder.exists()
        second.send_signal(signal.SIGINT)
        second.wait(PATIENCE)
    with pytest.raises(MendFile, match="C602"):
        Lab.load(name)


def test_one_that_is_being_shown_stays(name: str) -> None:
    with demo(name) as first:
        printed_until(first, "Without the chain")
        with demo(name) as second:
            said = printed_until(second, "[C601]")
            second.wait(PATIENCE)
        assert re.search(rf"lab '{name}' is up", said), said
        assert first.poll() is None
        assert Path(Lab.load(name).directory).exists()
        first.send_signal(signal.SIGINT)
        first.wait(PATIENCE)
