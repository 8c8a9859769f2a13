"""Network namespaces of a row's own, for what is measured beside a chain."""

from __future__ import annotations

import ctypes
import os
import subprocess
from collections.abc import Callable, Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager
from pathlib import Path
from typing import TypeVar

T = TypeVar("T")

DIRECTORY = Path("/run/netns")
_CLONE_NEWNET = 0x40000000


class Namespaces:
    """Namespaces whose names begin with this process's own; `remove` takes all away."""

    def __init__(self, purpose: str) -> None:
        self._prefix = f"bench{os.getpid()}-{purpose}-"
        self._made: list[str] = []

    def add(self, *names: str) -> None:
        """Without IPv6, whose own traffic nobody asked for."""
        for name in names:
            run(["ip", "netns", "add", self.name(name)])
            self._made.append(name)
            off = "for w in all default; do echo 1 > /proc/sys/net/ipv6/conf/$w/disable_ipv6; done"
            self.run(name, ["sh", "-ec", off])

    def remove(self) -> None:
        while self._made:
            run(["ip", "netns", "del", self.name(self._made.pop())])

    def name(self, name: str) -> str:
        return self._prefix + name

    def path(self, name: str) -> Path:
        return DIRECTORY / self.name(name)

    def enter(self, name: str, argv: Sequence[str]) -> list[str]:
        return ["nsenter", f"--net={self.path(name)}", "--", *argv]

    def run(self, name: str, argv: Sequence[str], *, stdin: str = "") -> str:
        return run(self.enter(name, argv), stdin=stdin)

    def ip(self, name: str, *commands: str) -> None:
        self.run(name, ["ip", "-batch", "-"], stdin="\n".join(commands) + "\n")

    def inside(self, name: str, work: Callable[[], T]) -> T:
        """Do `work` on a thread that enters the namespace, and ends there."""

        def enter() -> T:
            with self.path(name).open("rb") as entrance:
                if ctypes.CDLL(None, use_errno=True).setns(entrance.fileno(), _CLONE_NEWNET):
                    raise OSError(ctypes.get_errno(), f"cannot enter {name}")
            return work()

        with ThreadPoolExecutor(1) as thread:
            return thread.submit(enter).result()


@contextmanager
def namespaces(purpose: str) -> Iterator[Namespaces]:
    made = Namespaces(purpose)
    try:
        yield made
    finally:
        made.remove()


def run(argv: Sequence[str], *, stdin: str = "", timeout: float = 60) -> str:
    done = subprocess.run(
        argv, input=stdin, capture_output=True, text=True, timeout=timeout, check=False
    )
    if done.returncode:
        raise RuntimeError(f"{' '.join(argv)} exited with status {done.returncode}: {done.stderr}")
    return done.stdout
