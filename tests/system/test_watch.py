"""`status -w` on a terminal: what it shows follows what happens, and Ctrl-C ends it."""

from __future__ import annotations

import fcntl
import os
import pty
import re
import select
import struct
import subprocess
import sys
import termios
import time
from collections.abc import Callable, Iterator

import pytest

from chainctl.lab.faults import Kind, fault
from tests.system.chain_lab import ChainLab, chain_lab
from tests.waiting import wait_until

pytestmark = pytest.mark.root

PATIENCE = 30.0
_WIPED = "\x1b[2J"
_ESCAPES = re.compile(r"\x1b\[[0-9;?]*[A-Za-z]")


class Terminal:
    """A program on a pseudo-terminal of 160 columns; `screen` is what a person sees."""

    def __init__(self, start: Callable[[int], subprocess.Popen[bytes]]) -> None:
        self._ours, theirs = pty.openpty()
        fcntl.ioctl(theirs, termios.TIOCSWINSZ, struct.pack("HHHH", 40, 160, 0, 0))
        self.process = start(theirs)
        os.close(theirs)
        self._written = ""

    def screen(self) -> str:
        while select.select([self._ours], [], [], 0)[0]:
            try:
                self._written += os.read(self._ours, 65536).decode()
            except OSError:  # EIO: nobody has the other end open any more.
                break
        # The newest screen may be half written: the one before is whole.
        screens = self._written.split(_WIPED)
        return _ESCAPES.sub("", screens[-2] if len(screens) > 2 else screens[-1])

    def wait(self, right: Callable[[str], object]) -> str:
        deadline = time.monotonic() + PATIENCE
        while not right(screen := self.screen()):
            assert time.monotonic() < deadline, screen
            assert self.process.poll() is None, screen
            time.sleep(0.05)
        return screen

    def type(self, keys: bytes) -> None:
        os.write(self._ours, keys)

    def close(self) -> None:
        if self.process.poll() is None:
            self.process.kill()
        self.process.wait()
        os.close(self._ours)


@pytest.fixture(scope="module")
def chain() -> Iterator[ChainLab]:
    with chain_lab("swatch", spares=3) as chain:
        yield chain


@pytest.fixture
def terminal(chain: ChainLab) -> Iterator[Terminal]:
    command = [sys.executable, "-m", "chainctl", "status", "-w"]

    def start(theirs: int) -> subprocess.Popen[bytes]:
        return chain.lab.popen(
            "host",
            command,
            stdin=theirs,
            stdout=theirs,
            stderr=theirs,
            start_new_session=True,
            preexec_fn=lambda: fcntl.ioctl(0, termios.TIOCSCTTY, 0),
        )

    terminal = Terminal(start)
    yield terminal
    terminal.close()


def test_the_screen_follows_the_chain_until_it_is_told_to_end(
    chain: ChainLab, terminal: Terminal
) -> None:
    first = terminal.wait(lambda screen: "OPEN" in screen and "exit" in screen)
    lines = [line.split() for line in first.splitlines() if line.strip()]
    assert [line[0] for line in lines[1:5]] == ["HOP", "guard", "middle", "exit"]
    assert [line[1] for line in lines[2:5]] == list(chain.servers.values())

    chain.ask({"do": "close", "chain": chain.lab.name})
    shut = terminal.wait(lambda screen: "CLOSED" in screen)
    assert "shut by hand" in shut
    assert f"Next: chainctl open {chain.lab.name}" in shut
    chain.ask({"do": "open", "chain": chain.lab.name})
    terminal.wait(lambda screen: "OPEN" in screen)

    before = chain.servers["middle"]
    mark = chain.drill.mark(chain.drill.status(), chain.hop("middle"))
    with fault(chain.lab, Kind.FREEZE_SERVER, mark):
        terminal.wait(lambda screen: before not in screen and chain.servers["middle"] in screen)

    terminal.type(b"\x03")
    assert terminal.process.wait(PATIENCE) == 0
    assert "Traceback" not in terminal.screen()
    assert "Aborted" not in terminal.screen()


def test_explain_says_who_is_passed_over_why_and_until_when(chain: ChainLab) -> None:
    before = chain.servers["exit"]
    mark = chain.drill.mark(chain.drill.status(), chain.hop("exit"))
    with fault(chain.lab, Kind.FREEZE_SERVER, mark):
        wait_until(lambda: chain.servers["exit"] != before)
    # The new server carries traffic before anything of it is written down.
    pattern = rf"{before} failed \(dead\) and is passed over for \d+ \w+, to \d\d:\d\d"
    wait_until(lambda: re.search(pattern, explain(chain)))
    assert f"server replaced [N421]: {before} -> " in explain(chain)


def explain(chain: ChainLab) -> str:
    argv = [sys.executable, "-m", "chainctl", "explain"]
    return chain.lab.run("host", argv, timeout=60).stdout
